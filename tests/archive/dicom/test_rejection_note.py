"""The note that outlives a purged study (113039, sheet 30 §9)."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from archive.dicom.equipment import Equipment
from archive.dicom.rejection_note import Rejected, rejection_note
from tests.conftest import need

AT = datetime(2031, 7, 1, 22, 30, tzinfo=UTC)  # in Paris it is the 2nd
CT, SR, GSPS, ECG, SEG, PDF = (
    f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("2", "88.11", "11.1", "9.1.1", "66.4", "104.1")
)
STUDY: dict[str, Any] = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00080020": {"vr": "DA", "Value": ["20260105"]},
    "00080030": {"vr": "TM", "Value": ["101500"]},
    "00080050": {"vr": "SH", "Value": ["A1001"]},
    "00080061": {"vr": "CS", "Value": ["CT", "SR"]},
    "00080090": {"vr": "PN", "Value": [{"Alphabetic": "LEFÈVRE^Anaïs"}]},
    "00081030": {"vr": "LO", "Value": ["Scanner — cœur"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "NOËL^Œdipe"}]},
    "00100020": {"vr": "LO", "Value": ["IPP1"]},
    "00100021": {"vr": "LO", "Value": ["CABINET"]},
    "00100030": {"vr": "DA", "Value": ["19700101"]},
    "00100040": {"vr": "CS"},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
}
EQUIPMENT = Equipment(software_version="1.2", station_name="MINIPACS", institution_name="Cabinet Lefèvre")


def note_of(rejected: Iterable[Rejected], attributes: dict[str, Any] | None = None) -> tuple[Dataset, bytes]:
    note = rejection_note(STUDY if attributes is None else attributes, rejected, equipment=EQUIPMENT, at=AT)
    ds = pydicom.dcmread(io.BytesIO(note.content))
    assert note.sop_instance_uid == ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    assert note.series_instance_uid == ds.SeriesInstanceUID
    return ds, note.content


SOME = [
    Rejected("1.2.3.2.1", "1.2.3.2", CT),
    Rejected("1.2.3.1.1", "1.2.3.1", SR),
    Rejected("1.2.3.2.2", "1.2.3.2", CT),
    Rejected("1.2.3.3.1", "1.2.3.3", ECG),
    Rejected("1.2.3.4.1", "1.2.3.4", GSPS),
    Rejected("1.2.3.5.1", "1.2.3.5", SEG),
    Rejected("1.2.3.6.1", "1.2.3.6", PDF),
]


def test_a_note_says_that_the_time_of_retention_is_over_for_each_instance() -> None:
    ds, _ = note_of(SOME)
    (title,) = ds.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113039", "DCM")
    assert title.CodeMeaning == "Data Retention Policy Expired"
    assert (ds.SOPClassUID, ds.Modality) == ("1.2.840.10008.5.1.4.1.1.88.59", "KO")
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == ds.StudyInstanceUID == "1.2.3"
    found = {
        (one.ReferencedSOPInstanceUID, series.SeriesInstanceUID, one.ReferencedSOPClassUID)
        for series in evidence.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert found == {(one.sop_instance_uid, one.series_instance_uid, one.sop_class_uid) for one in SOME}
    assert len(evidence.ReferencedSeriesSequence) == 6


def test_the_content_refers_to_images_waveforms_and_documents_as_such() -> None:
    ds, _ = note_of(SOME)
    description, *references = ds.ContentSequence
    assert description.ConceptNameCodeSequence[0].CodeValue == "113012"
    assert description.TextValue == "Durée légale de conservation échue : images détruites"
    kinds = {item.ReferencedSOPSequence[0].ReferencedSOPClassUID: item.ValueType for item in references}
    assert kinds == {CT: "IMAGE", SEG: "IMAGE", SR: "COMPOSITE", GSPS: "COMPOSITE", ECG: "WAVEFORM", PDF: "COMPOSITE"}
    assert len(references) == len(SOME)
    (template,) = ds.ContentTemplateSequence
    assert (template.MappingResource, template.TemplateIdentifier) == ("DCMR", "2010")


def test_patient_and_study_are_as_the_archive_shows_them_in_any_letters() -> None:
    ds, _ = note_of(SOME)
    assert str(ds.PatientName) == "NOËL^Œdipe"
    assert ds.StudyDescription == "Scanner — cœur"
    assert (ds.PatientID, ds.IssuerOfPatientID, ds.PatientBirthDate) == ("IPP1", "CABINET", "19700101")
    assert (ds.AccessionNumber, ds.StudyDate) == ("A1001", "20260105")
    assert "ModalitiesInStudy" not in ds


def test_what_made_it_is_the_archive_by_the_clock_of_paris() -> None:
    ds, _ = note_of(SOME)
    assert (ds.Manufacturer, ds.SoftwareVersions, ds.InstitutionName) == ("minipacs", "1.2", "Cabinet Lefèvre")
    assert (ds.ContentDate, ds.ContentTime) == ("20310702", "003000")


@pytest.mark.parametrize("attributes", [STUDY, {"0020000D": STUDY["0020000D"]}])
def test_the_validator_finds_no_error(tmp_path: Path, attributes: dict[str, Any]) -> None:
    need("dciodvfy")
    _, content = note_of(SOME, attributes)
    (tmp_path / "note.dcm").write_bytes(content)
    said = subprocess.run(["dciodvfy", str(tmp_path / "note.dcm")], capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if line.startswith("Error")] == []
    assert "KeyObjectSelectionDocument" in said


def test_ten_thousand_instances_fit_in_one_note() -> None:
    many = [Rejected(f"1.2.3.{number % 40}.{number}", f"1.2.3.{number % 40}", CT) for number in range(10_000)]
    ds, content = note_of(many)
    assert len(ds.ContentSequence) == 10_001
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert sum(len(one.ReferencedSOPSequence) for one in evidence.ReferencedSeriesSequence) == 10_000
    assert len(content) < 5_000_000
