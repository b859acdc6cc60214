"""REQ-DCM-15: the same meaning in other bytes is a duplicate; anything else is not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from archive.dicom.compare import Copy, same_meaning
from tests.builders import ct_slice, part10
from tests.conftest import need

Put = Callable[[Dataset], Copy]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(ds: Dataset) -> Copy:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.dcm"
        path.write_bytes(part10(ds))
        return Copy(str(path), str(ds.file_meta.TransferSyntaxUID))

    return write


def slice_of(syntax: str = ExplicitVRLittleEndian, **changes: object) -> Dataset:
    item = Dataset()
    item.ScheduledProcedureStepID = "SPS1"
    ds = ct_slice(rows=64, columns=48, transfer_syntax=syntax, SOPInstanceUID="1.2.3.4", **changes)
    ds.RequestAttributesSequence = [item]
    ds.add_new(0x00090010, "LO", "MINIPACS TEST")
    ds.add_new(0x00091001, "LO", "privé")
    ds.add_new(0x00091002, "US", 7)
    ds.SliceThickness = "1.50"
    return ds


@pytest.mark.req("REQ-DCM-15")
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_another_encoding_of_elements_means_the_same(put: Put, syntax: str) -> None:
    assert same_meaning(put(slice_of()), put(slice_of(syntax)))


@pytest.mark.req("REQ-DCM-15")
@pytest.mark.parametrize(
    ("syntax", "plugin"), [(JPEGLSLossless, "pyjpegls"), (JPEG2000Lossless, "pylibjpeg"), (RLELossless, "pylibjpeg")]
)
def test_another_lossless_syntax_means_the_same(put: Put, syntax: str, plugin: str) -> None:
    compressed = slice_of()
    compressed.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    assert same_meaning(put(slice_of()), put(compressed))
    changed = slice_of(number=2, InstanceNumber=1)
    assert not same_meaning(put(changed), put(compressed))


@pytest.mark.req("REQ-DCM-15")
def test_another_character_set_means_the_same(put: Put) -> None:
    latin, utf8 = slice_of(PatientName="LEFÈVRE^Anaïs"), slice_of(PatientName="LEFÈVRE^Anaïs")
    utf8.SpecificCharacterSet = "ISO_IR 192"
    assert same_meaning(put(latin), put(utf8))


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientName": "DUPONT^Jeanne"},
        {"SliceThickness": "1.51"},
        {"StudyDescription": None},
        {"PatientComments": "more"},
    ],
)
def test_one_other_element_is_another_content(put: Put, changes: dict[str, object]) -> None:
    other = slice_of(**changes)
    if "SliceThickness" in changes:
        other.SliceThickness = changes["SliceThickness"]
    assert not same_meaning(put(slice_of()), put(other))


def test_one_other_item_is_another_content(put: Put) -> None:
    other = slice_of()
    other.RequestAttributesSequence[0].ScheduledProcedureStepID = "SPS2"
    assert not same_meaning(put(slice_of()), put(other))


def test_one_other_pixel_is_another_content(put: Put) -> None:
    other = slice_of()
    other.PixelData = other.PixelData[:-2] + bytes((other.PixelData[-2] ^ 1, other.PixelData[-1]))
    assert not same_meaning(put(slice_of()), put(other))


def test_what_lies_behind_the_pixels_counts(put: Put) -> None:
    """Some modalities keep images in private elements there."""
    one, other = slice_of(), slice_of()
    for ds, value in ((one, b"\1\2"), (other, b"\1\3")):
        ds.add_new(0x7FE10010, "LO", "MINIPACS TEST")
        ds.add_new(0x7FE11001, "OB", value)
    assert same_meaning(put(one), put(one))
    assert not same_meaning(put(one), put(other))
    assert not same_meaning(put(one), put(slice_of()))


def test_an_overlay_in_unused_bits_counts(put: Put) -> None:
    one, other = slice_of(), slice_of()
    one.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    pixels = bytearray(other.PixelData)
    pixels[1] |= 0x80
    other.PixelData = bytes(pixels)
    assert not same_meaning(put(one), put(other))


def test_videos_are_compared_as_they_are(put: Put) -> None:
    one, other = (slice_of(MPEG4HP41, NumberOfFrames=5) for _ in range(2))
    one.PixelData = encapsulate([b"video"], has_bot=False)
    other.PixelData = encapsulate([b"movie"], has_bot=False)
    assert same_meaning(put(one), put(one))
    assert not same_meaning(put(one), put(other))


@pytest.mark.req("REQ-DCM-15")
@pytest.mark.parametrize(("encode", "decode"), [("dcmcjpls", "dcmdjpls"), ("dcmcrle", "dcmdrle")])
def test_what_dcmtk_compressed_without_loss_means_the_same(put: Put, tmp_path: Path, encode: str, decode: str) -> None:
    need(encode, decode)
    plain = put(slice_of())
    packed, back = str(tmp_path / "packed.dcm"), str(tmp_path / "back.dcm")
    subprocess.run([encode, "--uid-never", plain.path, packed], check=True)
    subprocess.run([decode, packed, back], check=True)
    syntax = str(pydicom.dcmread(packed).file_meta.TransferSyntaxUID)
    assert same_meaning(plain, Copy(packed, syntax))
    assert same_meaning(Copy(back, ExplicitVRLittleEndian), Copy(packed, syntax))


def test_pixels_that_cannot_be_decoded_are_in_doubt(put: Put) -> None:
    cut, whole = slice_of(), slice_of()
    cut.PixelData = cut.PixelData[:-100]
    assert not same_meaning(put(whole), put(cut))


def test_objects_without_pixels_are_compared_by_their_elements(put: Put) -> None:
    one, other = (slice_of(syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian))
    for ds in (one, other):
        del ds.PixelData, ds.Rows, ds.Columns
    assert same_meaning(put(one), put(other))
