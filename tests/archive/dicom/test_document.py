"""Reading documents: bounded, tolerant, and what they name in the order in which they name it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from archive.dicom.document import MAX_BYTES, Json, code_of, key_object, read_content
from archive.errors import UnreadableInstance
from archive.storage.part10 import read_meta
from tests.archive.dicom.conftest import shared
from tests.builders import ct_slice, part10
from tests.builders import key_object as made


def read(path: Path, max_bytes: int = MAX_BYTES) -> Json:
    meta, offset = read_meta(path.read_bytes()[: 64 << 10])
    with path.open("rb") as file:
        return read_content(
            file.fileno(),
            offset=offset,
            length=path.stat().st_size - offset,
            transfer_syntax_uid=meta.transfer_syntax_uid,
            default_charset="ISO_IR 100",
            max_bytes=max_bytes,
        )


def written(tmp_path: Path, ds: Dataset) -> Path:
    path = tmp_path / "document.dcm"
    path.write_bytes(part10(ds))
    return path


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_key_object_says_the_same_in_every_syntax(tmp_path: Path, syntax: str) -> None:
    images = [ct_slice(number=number) for number in (1, 2, 3)]
    ds = made(*images, title=("113004", "For Teaching"))
    ds.file_meta.TransferSyntaxUID = syntax
    said = key_object(read(written(tmp_path, ds)), study_instance_uid=ds.StudyInstanceUID)
    assert said.title == "113004"
    assert [one.sop_instance_uid for one in said.selected] == [image.SOPInstanceUID for image in images]
    assert said.selected[0].series_instance_uid == images[0].SeriesInstanceUID
    assert {one.study_instance_uid for one in said.named} == {ds.StudyInstanceUID}


def test_a_title_of_another_scheme_is_no_title_of_ours(tmp_path: Path) -> None:
    ds = made(ct_slice(), title=("113001", "Something else"), scheme="99SITE")
    assert key_object(read(written(tmp_path, ds)), study_instance_uid="1.2").title == ""


def test_what_only_the_content_names_is_of_the_document_s_own_study(tmp_path: Path) -> None:
    image = ct_slice()
    ds = made(image, CurrentRequestedProcedureEvidenceSequence=[])
    said = key_object(read(written(tmp_path, ds)), study_instance_uid="1.2.3")
    assert [(one.study_instance_uid, one.sop_instance_uid) for one in said.named] == [("1.2.3", image.SOPInstanceUID)]


def test_a_document_is_not_read_beyond_its_bounds(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInstance):
        read(written(tmp_path, made(ct_slice())), max_bytes=1000)
    deflated = made(*(ct_slice() for _ in range(50)))
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = written(tmp_path, deflated)
    with pytest.raises(UnreadableInstance):
        read(path, max_bytes=path.stat().st_size)  # what it is when it is inflated counts


def test_content_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    ds = made(ct_slice())
    items: Any = ds.ContentSequence
    for _ in range(100):
        inner = Dataset()
        inner.ValueType = "CONTAINER"
        items[0].ContentSequence = [inner]
        items = items[0].ContentSequence
    try:
        said = key_object(read(written(tmp_path, ds)), study_instance_uid="1.2.3")
    except UnreadableInstance:
        return
    assert len(said.named) == 1


@pytest.mark.req("REQ-IHE-06")
def test_a_manifest_of_the_national_project_is_read() -> None:
    path = shared("data/kos-drim/kos.dcm")
    said = key_object(read(path), study_instance_uid="1.2.3")
    ds = pydicom.dcmread(io.BytesIO(path.read_bytes()))
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    named = [one for part in evidence.ReferencedSeriesSequence for one in part.ReferencedSOPSequence]
    assert code_of(read(path), "0040A043")[0] == said.title == "113030"
    assert [one.sop_instance_uid for one in said.named] == [one.ReferencedSOPInstanceUID for one in named]
    assert {one.study_instance_uid for one in said.named} == {evidence.StudyInstanceUID}
