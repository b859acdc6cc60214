"""Key objects and presentation states of lossy copies (REQ-DCM-87)."""

from __future__ import annotations

import io
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from archive.dicom.companions import Copy, companion, encoded
from archive.dicom.equipment import Equipment
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.rejection_note import Rejected, rejection_note
from tests.archive.dicom.conftest import shared
from tests.archive.dicom.test_rejection_note import STUDY
from tests.conftest import need

AT = datetime(2029, 2, 6, 12, 0, tzinfo=UTC)
CT = "1.2.840.10008.5.1.4.1.1.2"
EQUIPMENT = Equipment(software_version="1.2")
COPIES = {f"1.2.3.1.{number}": Copy(f"2.25.{number}", "2.25.100") for number in range(1, 4)}


def key_object(*uids: str, title: tuple[str, str] = ("113000", "Of Interest")) -> Dataset:
    """A key object that names these images of series 1.2.3.1, as a reader finds it."""
    named = [Rejected(uid, "1.2.3.1", CT) for uid in uids]
    note = rejection_note(STUDY, named, equipment=EQUIPMENT, at=AT, title=title)
    return pydicom.dcmread(io.BytesIO(note.content))


def presentation_state(*uids: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.3.9.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2.3", "1.2.3.9", "PR"
    ds.ReferencedSeriesSequence = [series_item(uids)]
    annotation = Dataset()
    annotation.ReferencedImageSequence = [image(uid) for uid in uids[:1]]
    annotation.GraphicLayer = "LAYER"
    ds.GraphicAnnotationSequence = [annotation]
    source = Dataset()
    source.ReferencedSOPInstanceUID = uids[0]
    ds.SourceImageSequence = [source]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def series_item(uids: Any) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = "1.2.3.1"
    item.ReferencedImageSequence = [image(uid) for uid in uids]
    return item


def image(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
    return item


def made_of(ds: Dataset, copies: dict[str, Copy] | None = None) -> Dataset:
    """The companion, written and read again."""
    made = companion(
        ds, COPIES if copies is None else copies, series_instance_uid="2.25.50", at=AT, equipment=EQUIPMENT
    )
    assert made is not None
    head = file_head(FileMeta(str(made.SOPClassUID), str(made.SOPInstanceUID), ExplicitVRLittleEndian))
    return pydicom.dcmread(io.BytesIO(head + encoded(made)))


def names(ds: Dataset) -> set[tuple[str, str]]:
    """Series and instance of everything in the evidence."""
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    return {
        (series.SeriesInstanceUID, one.ReferencedSOPInstanceUID)
        for series in evidence.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


@pytest.mark.req("REQ-DCM-87")
def test_a_key_object_gets_a_companion_that_names_the_copies() -> None:
    source = key_object("1.2.3.1.1", "1.2.3.1.2")
    made = made_of(source)
    assert names(made) == {("2.25.100", "2.25.1"), ("2.25.100", "2.25.2")}
    content = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in made.ContentSequence[1:]]
    assert content == ["2.25.1", "2.25.2"]
    assert made.StudyInstanceUID == source.StudyInstanceUID
    assert made.SeriesInstanceUID == "2.25.50"
    assert made.SOPInstanceUID not in ("", source.SOPInstanceUID)
    assert made.ConceptNameCodeSequence == source.ConceptNameCodeSequence
    assert made.SeriesDescription.endswith(" [lossy]")
    (before,) = made.PredecessorDocumentsSequence
    assert before.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    (converted,) = made.ConversionSourceAttributesSequence
    assert converted.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_what_has_no_copy_stays_named_in_its_own_series() -> None:
    made = made_of(key_object("1.2.3.1.1", "1.2.3.1.7", "1.2.3.1.2"))
    assert names(made) == {("2.25.100", "2.25.1"), ("2.25.100", "2.25.2"), ("1.2.3.1", "1.2.3.1.7")}


@pytest.mark.req("REQ-DCM-87")
def test_a_presentation_state_gets_one_at_every_place_that_names_an_image() -> None:
    source = presentation_state("1.2.3.1.1", "1.2.3.1.3")
    made = made_of(source)
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "2.25.100"
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedImageSequence] == ["2.25.1", "2.25.3"]
    (annotation,) = made.GraphicAnnotationSequence
    assert annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "2.25.1"
    assert annotation.GraphicLayer == "LAYER"
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.1.1"  # history stays history
    assert made.ConversionSourceAttributesSequence[0].ReferencedSOPInstanceUID == "1.2.3.9.1"
    assert "PredecessorDocumentsSequence" not in made


def test_the_one_that_came_is_not_changed() -> None:
    for source in (key_object("1.2.3.1.1", "1.2.3.1.7"), presentation_state("1.2.3.1.1")):
        before = source.to_json()
        made_of(source)
        assert source.to_json() == before


@pytest.mark.parametrize("title", ["113001", "113030", "113037", "113038", "113039"])
def test_a_rejection_or_a_manifest_gets_none(title: str) -> None:
    """A copy of a rejection would reject the lossy images."""
    ds = key_object("1.2.3.1.1", title=(title, "Title"))
    assert companion(ds, COPIES, series_instance_uid="2.25.50", at=AT, equipment=EQUIPMENT) is None


def test_what_names_no_replaced_image_gets_none() -> None:
    for ds in (key_object("1.2.3.1.8"), presentation_state("1.2.3.1.8")):
        assert companion(ds, COPIES, series_instance_uid="2.25.50", at=AT, equipment=EQUIPMENT) is None
    other = key_object("1.2.3.1.1")
    other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    assert companion(other, COPIES, series_instance_uid="2.25.50", at=AT, equipment=EQUIPMENT) is None


def referenced(ds: Dataset) -> set[str]:
    found: set[str] = set()
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                found |= referenced(item)
        elif element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    return found


@pytest.mark.parametrize("name", ["made/kos_key_images.dcm", "gsps/prLUTs.dcm", "gsps/prOverlay.dcm"])
def test_companions_of_real_objects_have_no_new_error(tmp_path: Path, name: str) -> None:
    need("dciodvfy")
    path = shared("data") / name
    source = pydicom.dcmread(path)
    copies = {uid: Copy(f"2.25.{number}", "2.25.100") for number, uid in enumerate(sorted(referenced(source)), 1)}
    made = made_of(source, copies)
    assert referenced(made) - {str(source.SOPInstanceUID)} == {copy.sop_instance_uid for copy in copies.values()}
    (tmp_path / "made.dcm").write_bytes(
        file_head(FileMeta(str(made.SOPClassUID), str(made.SOPInstanceUID), ExplicitVRLittleEndian)) + encoded(made)
    )
    assert errors(tmp_path / "made.dcm") - errors(path) == Counter()


def errors(path: Path) -> Counter[str]:
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False).stderr
    return Counter(line for line in said.splitlines() if line.startswith("Error"))
