"""Scheduled workflow, from the patient's registration to the images on a workstation, with real clients (sheet 30 §2).

One archive of each kind; the modality is pynetdicom (worklist, MPPS, commitment) and DCMTK (images), the RIS an MLLP
sender.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE
from pynetdicom.sop_class import (
    CTImageStorage,
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
)
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRoot

from tests.acceptance.clients import CT, data_set_of, find, receiver, tool
from tests.conftest import STRICT, need
from tests.dicom_scp.listening import Listener, listening, request
from tests.server import Server, free_port

AUTHORITY = '[{"namespace": "CIM-RIVAGES", "oid": "2.25.171717001", "trusted": true}]'
MSH = "MSH|^~\\&|RIS|RIVAGES|PACS|RIVAGES|20260105083000||{kind}|{id}|P|2.5|||||FRA|UNICODE UTF-8"
PID = "PID|1||{pid}^^^CIM-RIVAGES&2.25.171717001&ISO^PI||{name}^^^^^L||19600615|F"
STUDY = "2.25.777001"


@pytest.fixture(scope="module")
def move_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def modality(module_database_url: str) -> Iterator[Listener]:
    """Where the modality hears what was committed; one for each server."""
    with listening("CT1") as listener:
        yield listener


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, module_database_url: str, move_port: int, modality: Listener
) -> Iterator[Server]:
    ct = {"host": "127.0.0.1", "port": modality.port, "modalities": ["CT"]}
    peers = {
        "CT1": {**ct, "may": ["store", "query", "commit", "worklist", "mpps"]},
        "STORESCP": {"host": "127.0.0.1", "port": move_port},
        "PYNETDICOM": {},
    }
    running = Server(
        tmp_path_factory.mktemp("swf"),
        module_database_url,
        {"MINIPACS_DICOM__PEERS": json.dumps(peers), "MINIPACS_HL7__AUTHORITIES": AUTHORITY},
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


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


def commit(server: Server, transaction_uid: str, uids: list[str]) -> int:
    ae = AE("CT1")
    ae.add_requested_context(StorageCommitmentPushModel)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    wanted = request(transaction_uid, *((CTImageStorage, uid) for uid in uids))
    status, _ = assoc.send_n_action(wanted, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
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


@pytest.mark.req("REQ-DCM-50", "REQ-DCM-52", "REQ-DCM-53")
def test_the_scheduled_workflow_from_registration_to_the_images(
    server: Server, move_port: int, modality: Listener, tmp_path: Path
) -> None:
    """The end-to-end check of sheet 30 §2."""
    need("storescu", "movescu", "storescp")
    say(server, "ADT^A28", "SWF1", PID.format(pid="R77", name="LEFÈVRE^Anaïs"))
    say(server, "ORM^O01", "SWF2", *ordered("77", "R77", "LEFÈVRE^Anaïs", STUDY))

    (item,) = worklist(server, ScheduledStationAETitle="CT1", ScheduledProcedureStepStartDate="20260110", Modality="CT")
    assert (item.PatientName, item.PatientID, item.PatientBirthDate) == ("LEFÈVRE^Anaïs", "R77", "19600615")
    assert (item.AccessionNumber, item.StudyInstanceUID) == ("A77", STUDY)
    done = server.command("mwl", "list", "--date", "20260110", "--json")
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)["items"]
    assert (shown["accession_number"], shown["station_aes"], shown["patient_name"]) == ("A77", ["CT1"], "LEFÈVRE^Anaïs")
    assert "1 items" in server.command("mwl", "list").stdout

    step, series = "2.25.777900", "2.25.777100"
    assert perform(server, "create", step, begun(item)) == 0x0000
    assert worklist(server, Modality="CT") == [], "it is being done"
    paths = images(tmp_path, item, series, step)
    tool("storescu", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", server.dicom_port, *paths)
    uids = [f"{series}.{number}" for number in (1, 2, 3)]
    assert perform(server, "set", step, ended(series, uids)) == 0x0000

    assert commit(server, "2.25.777300", uids) == 0x0000
    event, report = modality.hear(30)
    assert (event, report.TransactionUID) == (1, "2.25.777300")
    assert [one.ReferencedSOPInstanceUID for one in report.ReferencedSOPSequence] == uids
    assert "FailedSOPSequence" not in report

    (study,) = find(
        server, StudyRoot, QueryRetrieveLevel="STUDY", AccessionNumber="A77", StudyInstanceUID="", PatientID="",
        NumberOfStudyRelatedInstances="",
    )  # fmt: skip
    assert (study.StudyInstanceUID, study.PatientID) == (STUDY, "R77")
    assert study.NumberOfStudyRelatedInstances == 3
    received = tmp_path / "received"
    received.mkdir()
    with receiver(received, move_port):
        tool(
            "movescu", "-S", "-aet", "PYNETDICOM", "-aec", "MINIPACS", "-aem", "STORESCP", "127.0.0.1",
            server.dicom_port, "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}",
        )  # fmt: skip
    moved = {data_set_of(path.read_bytes()) for path in received.iterdir()}
    assert len(moved) == 3

    with server.client("service") as client:
        order = client.get("/api/v1/orders", params={"accession": "A77"}).json()
        trail = client.get("/api/v1/audit", params={"patient": "R77^^^CIM-RIVAGES", "limit": 500}).json()["items"]
        queries = client.get("/api/v1/audit", params={"event": "110112", "limit": 500}).json()["items"]
        waiting = client.get("/api/v1/work-items", params={"state": "open"}).json()["items"]
    assert (order["status"], order["in_worklist"], order["studies"]) == ("completed", False, [STUDY])
    (performed,) = order["performed"]
    assert (performed["status"], performed["instances_listed"], performed["instances_received"]) == ("COMPLETED", 3, 3)
    assert [one for one in waiting if one["study"] == STUDY] == []
    told = [(one["event"], one["action"]) for one in trail if one["outcome"] == 0]
    for wanted in (
        ("110110", "C"),  # the patient
        ("110109", "C"),  # the order
        ("110111", "C"),  # the step is begun
        ("110109", "U"),
        ("110104", "C"),  # images stored
        ("110111", "U"),  # the step is completed
        ("110103", "R"),  # committed
        ("110104", "R"),  # and moved
    ):
        assert wanted in told, (wanted, told)
    assert len([one for one in queries if one["user"] in ("CT1", "PYNETDICOM")]) >= 3
    done = server.command("verify-audit", "--json")
    assert json.loads(done.stdout)["ok"]


@pytest.mark.req("REQ-HL7-95", "REQ-HL7-96")
def test_an_unidentified_patient_with_an_unscheduled_exam_is_reconciled(
    server: Server, move_port: int, tmp_path: Path
) -> None:
    """PIR, case 4 of sheet 30 §3: images and step under a temporary identity, then A28, A40, and the order."""
    need("storescu", "movescu", "storescp")
    item = Dataset()
    item.PatientName, item.PatientID, item.PatientBirthDate, item.PatientSex = "INCONNU^X", "TEMP88", "", "O"
    item.AccessionNumber, item.StudyInstanceUID = "", "2.25.888001"
    item.ScheduledProcedureStepSequence = Sequence([Dataset()])
    item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID = ""
    step, series = "2.25.888900", "2.25.888100"
    assert perform(server, "create", step, begun(item)) == 0x0000
    paths = images(tmp_path, item, series, step)
    tool("storescu", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", server.dicom_port, *paths)
    assert perform(server, "set", step, ended(series, [f"{series}.{number}" for number in (1, 2, 3)])) == 0x0000

    say(server, "ADT^A28", "PIR1", PID.format(pid="R88", name="MARTIN^Zoé"))
    say(
        server, "ADT^A40", "PIR2", PID.format(pid="R88", name="MARTIN^Zoé"),
        "MRG|TEMP88^^^CIM-RIVAGES&2.25.171717001&ISO^PI",
    )  # fmt: skip
    say(server, "ORM^O01", "PIR3", *ordered("88", "R88", "MARTIN^Zoé", "2.25.888001"))

    assert worklist(server, ScheduledProcedureStepID="S88") == [], "it is done"
    (study,) = find(
        server, StudyRoot, QueryRetrieveLevel="STUDY", AccessionNumber="A88", StudyInstanceUID="", PatientID="",
        PatientName="", SpecificCharacterSet="ISO_IR 192",
    )  # fmt: skip
    assert (study.StudyInstanceUID, study.PatientID, study.PatientName) == ("2.25.888001", "R88", "MARTIN^Zoé")
    received = tmp_path / "received"
    received.mkdir()
    with receiver(received, move_port):
        tool(
            "movescu", "-S", "-aet", "PYNETDICOM", "-aec", "MINIPACS", "-aem", "STORESCP", "127.0.0.1",
            server.dicom_port, "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=2.25.888001",
        )  # fmt: skip
    moved = [pydicom.dcmread(path) for path in received.iterdir()]
    assert len(moved) == 3
    for ds in moved:
        assert (ds.PatientName, ds.PatientID, ds.AccessionNumber) == ("MARTIN^Zoé", "R88", "A88")
        former = ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        assert (former.PatientID, former.PatientName) == ("TEMP88", "INCONNU^X")
    with server.client("service") as client:
        order = client.get("/api/v1/orders", params={"accession": "A88"}).json()
        waiting = client.get("/api/v1/work-items", params={"state": "open"}).json()["items"]
    (performed,) = order["performed"]
    assert (order["status"], performed["sop_instance_uid"], performed["patient_id"]) == ("completed", step, "R88")
    assert performed["instances_received"] == 3
    assert [one for one in waiting if one["study"] == "2.25.888001"] == []
    assert server.command("verify", "--study", "2.25.888001").returncode == 0, "the stored bytes are what was received"


@pytest.mark.req("REQ-DCM-52")
def test_the_order_of_the_shared_samples_is_in_the_worklist(server: Server) -> None:
    shared = os.environ.get("MINIPACS_TEST_DATA")
    if not shared:
        message = "MINIPACS_TEST_DATA is not set: no shared HL7 samples"
        if STRICT:
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(shared) / "spec" / "samples" / "orders"
    assert b"\rMSA|AA|" in server.send_hl7(folder / "orm-nw.hl7")
    (item,) = worklist(server, Modality="CT", ScheduledProcedureStepID="SPS-1602")
    assert (item.PatientName, item.AccessionNumber) == ("SÁNCHEZ Y GARCÍA^José-María", "ACC-1602")
    assert b"\rMSA|AA|" in server.send_hl7(folder / "orm-dc.hl7")
    assert worklist(server, Modality="CT", ScheduledProcedureStepID="SPS-1602") == []
