"""DICOM objects made for tests: small, valid, and different from each other where a test needs it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    XRayRadiationDoseSRStorage,
    generate_uid,
)

PREFIX = "1.2.826.0.1.3680043.10.1683.99."


def new_uid(*entropy: str) -> str:
    """A UID; the same one for the same words."""
    return str(generate_uid(prefix=PREFIX, entropy_srcs=list(entropy) or None))


def ct_slice(
    *, rows: int = 16, columns: int = 16, number: int = 1, transfer_syntax: str = ExplicitVRLittleEndian, **changes: Any
) -> Dataset:
    """A CT image with file meta. `changes` are keywords to set, or to delete with None."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = new_uid()
    ds.StudyDate = "20260105"
    ds.StudyTime = "101500"
    ds.AccessionNumber = "A1001"
    ds.Modality = "CT"
    ds.Manufacturer = "minipacs tests"
    ds.ReferringPhysicianName = "LEFÈVRE^Anaïs"
    ds.StudyDescription = "Scanner thoracique"
    ds.SeriesDescription = "Axial"
    ds.PatientName = "DUPONT^Anne"
    ds.PatientID = "IPP1"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "F"
    ds.StudyInstanceUID = new_uid("study")
    ds.SeriesInstanceUID = new_uid("series")
    ds.StudyID = "S1"
    ds.SeriesNumber = 1
    ds.InstanceNumber = number
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.random.default_rng(number).integers(0, 4096, (rows, columns), dtype="<u2").tobytes()

    for keyword, value in changes.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax)
    return ds


def key_object(
    *images: Dataset, title: tuple[str, str] = ("113000", "Of Interest"), scheme: str = "DCM", **changes: Any
) -> Dataset:
    """A key object (TID 2010) of the first image's study that selects these images; `changes` as in `ct_slice`."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = KeyObjectSelectionDocumentStorage
    ds.SOPInstanceUID = new_uid()
    for keyword in _OF_STUDY:
        setattr(ds, keyword, images[0].get(keyword))
    ds.Modality = "KO"
    ds.SeriesInstanceUID = new_uid("key objects", str(ds.StudyInstanceUID))
    ds.SeriesNumber, ds.InstanceNumber = 900, 1
    ds.ContentDate, ds.ContentTime = "20260105", "113000"
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.ValueType = "CONTAINER"
    ds.ContinuityOfContent = "SEPARATE"
    ds.ConceptNameCodeSequence = [_code(title[0], scheme, title[1])]
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    ds.ContentTemplateSequence = [template]
    ds.CurrentRequestedProcedureEvidenceSequence = _evidence(images)
    ds.ContentSequence = [_item(image) for image in images]
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def dose_report(*events: tuple[float, float], total: float | None = None, **changes: Any) -> Dataset:
    """A CT dose report (TID 10011) with an event for each pair of CTDIvol (mGy) and DLP (mGy.cm). `total`: DLP."""
    ds = key_object(ct_slice(**{"StudyInstanceUID": new_uid("study"), **changes}), **changes)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = XRayRadiationDoseSRStorage
    ds.Modality = changes.get("Modality", "SR")
    ds.SeriesInstanceUID = changes.get("SeriesInstanceUID", new_uid("dose", str(ds.StudyInstanceUID)))
    ds.ConceptNameCodeSequence = [_code("113701", "DCM", "X-Ray Radiation Dose Report")]
    ds.ContentTemplateSequence[0].TemplateIdentifier = "10011"
    del ds.CurrentRequestedProcedureEvidenceSequence
    accumulated = _content("CONTAINER", ("113811", "CT Accumulated Dose Data"))
    if total is not None:
        accumulated.ContentSequence = [_measured(("113813", "CT Dose Length Product Total"), total, "mGy.cm")]
    ds.ContentSequence = [_content("UIDREF", ("121012", "Device Observer UID"), UID="1.2.3.99"), accumulated]
    for number, (ctdi_vol, dlp) in enumerate(events, 1):
        figures = _content("CONTAINER", ("113829", "CT Dose"))
        figures.ContentSequence = [
            _measured(("113830", "Mean CTDIvol"), ctdi_vol, "mGy"),
            _measured(("113838", "DLP"), dlp, "mGy.cm"),
        ]
        event = _content("CONTAINER", ("113819", "CT Acquisition"))
        event.ContentSequence = [
            _content("TEXT", ("125203", "Acquisition Protocol"), TextValue=f"Passage {number}"),
            _content("UIDREF", ("113769", "Irradiation Event UID"), UID=f"1.2.3.99.{number}"),
            figures,
        ]
        ds.ContentSequence.append(event)
    return ds


def _content(value_type: str, concept: tuple[str, str], **values: Any) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", value_type
    item.ConceptNameCodeSequence = [_code(concept[0], "DCM", concept[1])]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _measured(concept: tuple[str, str], value: float, unit: str) -> Dataset:
    measured = Dataset()
    measured.NumericValue = str(value)
    measured.MeasurementUnitsCodeSequence = [_code(unit, "UCUM", unit)]
    return _content("NUM", concept, MeasuredValueSequence=[measured])


_OF_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _named(image: Dataset) -> Dataset:
    named = Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return named


def _item(image: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "IMAGE"
    item.ReferencedSOPSequence = [_named(image)]
    return item


def _evidence(images: Iterable[Dataset]) -> list[Dataset]:
    found: dict[str, dict[str, list[Dataset]]] = {}
    for image in images:
        found.setdefault(image.StudyInstanceUID, {}).setdefault(image.SeriesInstanceUID, []).append(image)
    studies = []
    for study_uid, parts in found.items():
        study = Dataset()
        study.StudyInstanceUID = study_uid
        study.ReferencedSeriesSequence = []
        for series_uid, members in parts.items():
            series = Dataset()
            series.SeriesInstanceUID = series_uid
            series.ReferencedSOPSequence = [_named(one) for one in members]
            study.ReferencedSeriesSequence.append(series)
        studies.append(study)
    return studies


def part10(ds: Dataset) -> bytes:
    """The PS3.10 file of a data set."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def data_set(ds: Dataset) -> bytes:
    """The data set's bytes alone, in its transfer syntax, group 0002 excluded."""
    buffer = io.BytesIO(part10(ds))
    meta_length = pydicom.dcmread(buffer, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return buffer.getvalue()[132 + 12 + meta_length :]
