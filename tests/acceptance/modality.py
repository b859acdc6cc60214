"""A modality and a RIS as the acceptance tests play them: worklist and performed procedure steps by pynetdicom, images
of a real phantom, messages over MLLP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE
from pynetdicom.sop_class import ModalityPerformedProcedureStep, ModalityWorklistInformationFind

from tests.acceptance.clients import CT
from tests.server import Server

AUTHORITY = '[{"namespace": "CIM-RIVAGES", "oid": "2.25.171717001", "trusted": true}]'
MSH = "MSH|^~\\&|RIS|RIVAGES|PACS|RIVAGES|20260105083000||{kind}|{id}|P|2.5|||||FRA|UNICODE UTF-8"
PID = "PID|1||{pid}^^^CIM-RIVAGES&2.25.171717001&ISO^PI||{name}^^^^^L||19600615|F"


def say(server: Server, kind: str, control_id: str, *segments: str) -> None:
    evn = ["EVN||20260105083000"] if kind.startswith("ADT") else []
    raw = "\r".join([MSH.format(kind=kind, id=control_id), *evn, *segments, ""]).encode()
    assert f"\rMSA|AA|{control_id}".encode() in server.send_hl7(raw)


def ordered(number: str, pid: str, name: str, study: str) -> tuple[str, ...]:
    obr = f"OBR|1|PL{number}^RIS|FI{number}^RIS|ZBQH001^Scanner du thorax^CCAM"
    obr += f"{'|' * 14}A{number}|RP{number}|S{number}||||CT"
    orc = f"ORC|NW|PL{number}^RIS|FI{number}^RIS||SC||^^^20260110083000^^S"
    return PID.format(pid=pid, name=name), "PV1||O", orc, obr, f"ZDS|{study}^PACS^Application^DICOM"


def worklist(server: Server, **step: Any) -> list[Dataset]:
    query = Dataset()
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyInstanceUID",
        "RequestedProcedureID",
    ):  # fmt: skip
        setattr(query, keyword, "")
    query.SpecificCharacterSet = "ISO_IR 192"
    inner = Dataset()
    for keyword, value in {"ScheduledProcedureStepID": "", "Modality": "", **step}.items():
        setattr(inner, keyword, value)
    query.ScheduledProcedureStepSequence = Sequence([inner])
    ae = AE("CT1")
    ae.add_requested_context(ModalityWorklistInformationFind)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    answers = list(assoc.send_c_find(query, ModalityWorklistInformationFind))
    assoc.release()
    assert answers[-1][0].Status == 0x0000
    return [ds for _, ds in answers[:-1]]


def perform(server: Server, kind: str, uid: str, ds: Dataset) -> int:
    ae = AE("CT1")
    ae.add_requested_context(ModalityPerformedProcedureStep)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    operation = assoc.send_n_create if kind == "create" else assoc.send_n_set
    status, _ = operation(ds, ModalityPerformedProcedureStep, uid)
    assoc.release()
    return int(status.Status)


def begun(item: Dataset) -> Dataset:
    """What a modality says when it begins with an item of its worklist."""
    scheduled = Dataset()
    for keyword in ("StudyInstanceUID", "AccessionNumber", "RequestedProcedureID"):
        setattr(scheduled, keyword, item.get(keyword, ""))
    scheduled.ScheduledProcedureStepID = item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        setattr(ds, keyword, item.get(keyword, ""))
    ds.Modality, ds.StudyID, ds.PerformedProcedureStepID = "CT", "1", "PPS1"
    ds.PerformedStationAETitle, ds.PerformedProcedureStepStatus = "CT1", "IN PROGRESS"
    ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime = "20260110", "083500"
    ds.PerformedSeriesSequence = Sequence([])
    ds.ScheduledStepAttributesSequence = Sequence([scheduled])
    return ds


def ended(series_uid: str, uids: list[str], status: str = "COMPLETED") -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID, series.ProtocolName = series_uid, "Thorax"
    series.ReferencedImageSequence = Sequence([])
    for uid in uids:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
        series.ReferencedImageSequence.append(reference)
    ds = Dataset()
    ds.PerformedProcedureStepStatus = status
    ds.PerformedProcedureStepEndDate, ds.PerformedProcedureStepEndTime = "20260110", "084500"
    ds.PerformedSeriesSequence = Sequence([series])
    return ds


def images(folder: Path, item: Dataset, series_uid: str, step_uid: str) -> list[Path]:
    """Three slices of the phantom, as a modality makes them for an item of its worklist."""
    paths = []
    for number, source in enumerate(CT[:3], 1):
        ds = pydicom.dcmread(source)
        ds.SpecificCharacterSet = "ISO_IR 192"
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            setattr(ds, keyword, item.get(keyword, ""))
        ds.AccessionNumber, ds.StudyInstanceUID = item.AccessionNumber, item.StudyInstanceUID
        ds.SeriesInstanceUID, ds.SOPInstanceUID = series_uid, f"{series_uid}.{number}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = ModalityPerformedProcedureStep, step_uid
        ds.ReferencedPerformedProcedureStepSequence = Sequence([reference])
        path = folder / f"{number}.dcm"
        ds.save_as(path)
        paths.append(path)
    return paths
