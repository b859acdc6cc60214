"""REQ-DCM-41: what is stored can be given in a native syntax, with the same values and the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.pixels import can_decode
from archive.dicom.syntaxes import EXPLICIT_LE as EXPLICIT
from archive.dicom.syntaxes import IMPLICIT_LE as IMPLICIT
from archive.dicom.transcode import pieces, targets
from archive.errors import NotAcceptable, UnreadableInstance
from tests.archive.dicom.reading import real_files
from tests.builders import ct_slice, data_set, part10


def rich(syntax: str) -> Dataset:
    """A slice with sequences, private elements, binary values and odd lengths."""
    ds = ct_slice(rows=32, columns=24, transfer_syntax=syntax)
    inner, item = Dataset(), Dataset()
    inner.ScheduledProcedureStepID = "SPS1"
    inner.PixelRepresentation = 0
    inner.SmallestImagePixelValue = 7
    item.ReferencedStudySequence = [inner, Dataset()]
    ds.RequestAttributesSequence = [item, inner]
    ds.add_new(0x00090010, "LO", "MINIPACS TEST")
    ds.add_new(0x00091001, "UN" if syntax == IMPLICIT else "FD", bytes(8) if syntax == IMPLICIT else 1.5)
    ds.RedPaletteColorLookupTableDescriptor = [256, 0, 16]
    ds.FrameIncrementPointer = 0x00181063
    ds.RealWorldValueFirstValueMapped = 3
    ds.PatientComments = "x" * 70001
    return ds


def put(folder: Path, ds: Dataset) -> tuple[str, int]:
    path = folder / "one.dcm"
    path.write_bytes(part10(ds))
    return str(path), len(part10(ds)) - len(data_set(ds))


def read(raw: bytes, syntax: str) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file_head(FileMeta("1.2", "1.2.3", syntax)) + raw))


def to_native(path: str, offset: int, source: str, *, target_syntax: str) -> bytes:
    return b"".join(pieces(path, data_set_offset=offset, source_syntax=source, target_syntax=target_syntax))


def values(ds: Dataset) -> list[object]:
    """Every value, by tag; sequences unfolded."""
    return [
        (int(element.tag), [values(item) for item in element.value] if element.VR == "SQ" else element.value)
        for element in ds
        if element.tag != 0x7FE00010 and element.tag.element
    ]


def tags(ds: Dataset) -> set[int]:
    """What a data set has, but for what says how it is encoded."""
    kept = {int(tag) for tag in list(ds.keys())}
    return {tag for tag in kept if tag & 0xFFFF} - {0x7FE00001, 0x7FE00002, 0x00282110}


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    "source", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_another_encoding_keeps_every_value(tmp_path: Path, source: str, target: str) -> None:
    if source == target:
        assert target not in targets(source)
        return
    ds = rich(source)
    path, offset = put(tmp_path, ds)
    turned = read(to_native(path, offset, source, target_syntax=target), target)
    assert str(turned.pop("PatientComments").value).count("x") == len(str(ds.pop("PatientComments").value)) == 70001
    if ds[0x00091001].VR != turned[0x00091001].VR:  # implicit knows no VR of private elements
        del ds[0x00091001], turned[0x00091001]
    assert values(turned) == values(ds)
    order = ">" if source == ExplicitVRBigEndian else "<"
    assert np.array_equal(np.frombuffer(turned.PixelData, "<u2"), np.frombuffer(ds.PixelData, order + "u2"))


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    ("source", "plugin"), [(JPEGLSLossless, "pyjpegls"), (JPEG2000Lossless, "pylibjpeg"), (RLELossless, "pylibjpeg")]
)
@pytest.mark.parametrize("frames", [1, 3])
def test_compressed_pixels_come_back_bit_for_bit(
    tmp_path: Path, source: str, plugin: str, target: str, frames: int
) -> None:
    ds = ct_slice(rows=65, columns=67, PixelRepresentation=1)
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.PixelData = np.random.default_rng(1).integers(-2048, 2047, (frames, 65, 67), dtype="<i2").tobytes()
    plain = ds.PixelData
    ds.compress(source, encoding_plugin=plugin, generate_instance_uid=False)
    path, offset = put(tmp_path, ds)
    turned = read(to_native(path, offset, source, target_syntax=target), target)
    assert turned.PixelData == plain + b"\0" * (len(plain) % 2)
    assert values(turned) == values(ds)


def test_what_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    ds = ct_slice()
    ds.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    ds.PixelData = ds.PixelData[:40] + bytes(len(ds.PixelData) - 40)
    path, offset = put(tmp_path, ds)
    with pytest.raises(NotAcceptable):
        to_native(path, offset, JPEGLSLossless, target_syntax=EXPLICIT)
    with pytest.raises(NotAcceptable):
        to_native(path, offset, "1.2.840.10008.1.2.4.100", target_syntax=EXPLICIT)


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
def test_a_compressed_icon_is_decoded_too(tmp_path: Path, target: str) -> None:
    ds = ct_slice(rows=64, columns=64)
    icon = ct_slice(rows=64, columns=64, number=2)
    plain = icon.PixelData
    for one in (ds, icon):
        one.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    item = Dataset()
    item.update({tag: icon[tag] for tag in (*range(0x00280002, 0x00280104), 0x7FE00010) if tag in icon})
    ds.IconImageSequence = [item]
    path, offset = put(tmp_path, ds)
    turned = read(to_native(path, offset, JPEGLSLossless, target_syntax=target), target)
    assert turned.IconImageSequence[0].PixelData == plain


def test_overlays_in_unused_bits_survive(tmp_path: Path) -> None:
    ds = ct_slice()
    ds.PixelData = bytes(b | 0x80 for b in ds.PixelData)
    plain = ds.PixelData
    ds.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    path, offset = put(tmp_path, ds)
    assert read(to_native(path, offset, RLELossless, target_syntax=EXPLICIT), EXPLICIT).PixelData == plain


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
def test_decoded_jpeg_says_that_it_lost(tmp_path: Path, target: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 90)).save(out, "JPEG", quality=95)
    ds = ct_slice(
        transfer_syntax=JPEGBaseline8Bit, rows=48, columns=64, BitsAllocated=8, BitsStored=8, HighBit=7,
        SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="YBR_FULL_422",
    )  # fmt: skip
    ds.PixelData = encapsulate([out.getvalue()])
    path, offset = put(tmp_path, ds)
    turned = read(to_native(path, offset, JPEGBaseline8Bit, target_syntax=target), target)
    assert (turned.LossyImageCompression, turned.PhotometricInterpretation) == ("01", "RGB")
    assert turned.SOPInstanceUID == ds.SOPInstanceUID
    assert np.abs(turned.pixel_array.astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
def test_real_files_keep_their_values_and_pixels(target: str) -> None:
    turned_over = refused = 0
    for path, syntax, offset in real_files():
        if syntax == target or not can_decode(syntax) or path.parent.name == "mr-series-ge":  # all alike
            continue
        try:
            made = b"".join(pieces(str(path), data_set_offset=offset, source_syntax=syntax, target_syntax=target))
        except (NotAcceptable, UnreadableInstance):
            refused += 1
            continue
        one, other = pydicom.dcmread(path), read(made, target)
        assert tags(other) == tags(one), path
        assert other.get("SOPInstanceUID") == one.get("SOPInstanceUID")
        if "PixelData" in one:
            try:
                expected = one.pixel_array if syntax.endswith((".99", ".1.2", ".2.2")) else pixel_array(path)
            except Exception:
                continue
            assert np.array_equal(other.pixel_array, expected), path
        turned_over += 1
    assert turned_over > 20
    assert refused < 12
