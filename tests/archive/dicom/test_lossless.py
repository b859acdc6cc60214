"""REQ-DCM-41: compressed on the way out, every value as it was, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from archive.dicom.lossless import JPEG_2000, JPEG_LS, JPEG_SV1, SYNTAXES
from archive.dicom.syntaxes import EXPLICIT_LE, IMPLICIT_LE, LOSSY, RLE
from archive.dicom.transcode import alternatives, pieces
from archive.errors import NotAcceptable, UnreadableInstance
from tests.archive.dicom.reading import real_files
from tests.archive.dicom.test_transcode import put, read, tags, values
from tests.builders import ct_slice

COLOUR = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
IMAGES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "12 of 16 bits": ("<u2", 0, 4096, {}),
    "signed": ("<i2", -2048, 2048, {"PixelRepresentation": 1}),
    "all 16 bits signed": ("<i2", -32768, 32768, {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}),
    "8 bits": ("<u1", 0, 256, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
    "7 of 8 bits": ("<u1", 0, 128, {"BitsAllocated": 8, "BitsStored": 7, "HighBit": 6}),
    "RGB": ("<u1", 0, 256, {**COLOUR, "PhotometricInterpretation": "RGB"}),
    "YBR_FULL": ("<u1", 0, 256, {**COLOUR, "PhotometricInterpretation": "YBR_FULL"}),
    "RGB by plane": ("<u1", 0, 256, {**COLOUR, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 1}),
}


def image(name: str, *, frames: int = 1, syntax: str = EXPLICIT_LE) -> tuple[Dataset, np.ndarray[Any, Any]]:
    kind, low, high, changes = IMAGES[name]
    ds = ct_slice(rows=64, columns=66, transfer_syntax=syntax, **changes)
    shape: tuple[int, ...] = (frames, 64, 66)
    if ds.SamplesPerPixel == 3:
        shape = (frames, 3, 64, 66) if ds.PlanarConfiguration else (frames, 64, 66, 3)
    pixels = np.random.default_rng(3).integers(low, high, shape).astype(kind)
    ds.PixelData = pixels.astype(kind.replace("<", ">") if syntax == ExplicitVRBigEndian else kind).tobytes()
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    if frames > 1:
        ds.NumberOfFrames = frames
    if ds.SamplesPerPixel == 3 and ds.PlanarConfiguration:
        pixels = np.moveaxis(pixels, 1, -1)
    return ds, pixels[0] if frames == 1 else pixels


def recoded(folder: Path, ds: Dataset, target: str) -> Dataset:
    source = str(ds.file_meta.TransferSyntaxUID)
    path, offset = put(folder, ds)
    made = pieces(path, data_set_offset=offset, source_syntax=source, target_syntax=target)
    return read(b"".join(made), target)


def shown(ds: Dataset) -> np.ndarray[Any, Any]:
    """The stored values, decoded by pydicom, without turning colours."""
    if (stored := ds.BitsStored) < ds.BitsAllocated == 8:
        ds.BitsStored = 8  # with fewer, GDCM ends the process
    ds.pixel_array_options(raw=True)
    values = ds.pixel_array
    ds.BitsStored = stored
    return values


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", SYNTAXES)
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_every_value_of_a_compressed_image_is_as_it_was(tmp_path: Path, name: str, frames: int, target: str) -> None:
    ds, pixels = image(name, frames=frames)
    made = recoded(tmp_path, ds, target)
    assert made["PixelData"].is_undefined_length
    assert np.array_equal(shown(made), pixels)
    assert made.PhotometricInterpretation == ds.PhotometricInterpretation
    assert (made.SOPInstanceUID, made.get("LossyImageCompression")) == (ds.SOPInstanceUID, None)
    if ds.SamplesPerPixel == 3:
        assert made.PlanarConfiguration == (1 if target == RLE else 0)
        made.PlanarConfiguration = ds.PlanarConfiguration
    assert values(made) == values(ds)


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [IMPLICIT_LE, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG_LS, RLE])
@pytest.mark.parametrize("target", SYNTAXES)
def test_from_any_syntax_to_any_other(tmp_path: Path, source: str, target: str) -> None:
    compressed = source in SYNTAXES
    ds, pixels = image("signed", frames=2, syntax=EXPLICIT_LE if compressed else source)
    if compressed:
        ds.compress(source, generate_instance_uid=False)
    if source == target:
        assert target not in alternatives(source)
        return
    assert np.array_equal(recoded(tmp_path, ds, target).pixel_array, pixels)


@pytest.mark.req("REQ-DCM-41", "REQ-DCM-80")
def test_the_order_is_compressed_before_native_and_never_lossy() -> None:
    """What is native already is not compressed when the peer takes another native syntax."""
    assert alternatives(JPEG_2000) == (JPEG_LS, JPEG_SV1, RLE, EXPLICIT_LE, IMPLICIT_LE)
    assert alternatives(EXPLICIT_LE) == (IMPLICIT_LE, JPEG_LS, JPEG_2000, JPEG_SV1, RLE)
    assert alternatives("1.2.840.10008.1.2.4.100") == ()  # a video is given as it is
    for source in (EXPLICIT_LE, JPEG_2000, "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"):
        assert not set(alternatives(source)) & LOSSY


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("target", SYNTAXES)
@pytest.mark.parametrize(
    "changes", [{"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, {"BitsAllocated": 32, "BitsStored": 32}]
)
def test_what_no_codec_takes_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, int], target: str
) -> None:
    ds = ct_slice(rows=8, columns=8, **changes)
    ds.PixelData = bytes(8 * changes["BitsAllocated"])
    path, offset = put(tmp_path, ds)
    with pytest.raises(NotAcceptable):
        next(pieces(path, data_set_offset=offset, source_syntax=EXPLICIT_LE, target_syntax=target))


@pytest.mark.req("REQ-DCM-41")
def test_overlays_in_unused_bits_leave_in_run_lengths_alone(tmp_path: Path) -> None:
    """The other codestreams say how deep they are; more than that does not go in, or does not come back."""
    ds = ct_slice(rows=32, columns=32)
    ds.PixelData = bytes(byte | 0x80 for byte in ds.PixelData)
    made = recoded(tmp_path, ds, RLE)
    made.BitsStored, made.HighBit = 16, 15
    assert made.pixel_array.tobytes() == ds.PixelData
    for target in (JPEG_LS, JPEG_2000, JPEG_SV1):
        with pytest.raises(NotAcceptable):
            recoded(tmp_path, ds, target)


def test_an_icon_stays_native_and_what_has_no_pixels_is_only_written_anew(tmp_path: Path) -> None:
    ds, pixels = image("8 bits")
    icon = ct_slice(rows=16, columns=16, number=2)
    item = Dataset()
    item.update({tag: icon[tag] for tag in (*range(0x00280002, 0x00280104), 0x7FE00010) if tag in icon})
    ds.IconImageSequence = [item]
    made = recoded(tmp_path, ds, JPEG_LS)
    assert made.IconImageSequence[0].PixelData == icon.PixelData
    assert np.array_equal(made.pixel_array, pixels)
    report = ct_slice(PixelData=None, transfer_syntax=IMPLICIT_LE)
    assert values(recoded(tmp_path, report, JPEG_LS)) == values(report)


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", SYNTAXES)
def test_real_files_keep_their_values_and_pixels_compressed(target: str) -> None:
    done = 0
    for path, syntax, offset in real_files():
        if target not in alternatives(syntax) or path.parent.name == "mr-series-ge":  # all alike
            continue
        one = pydicom.dcmread(path)
        try:
            made = b"".join(pieces(str(path), data_set_offset=offset, source_syntax=syntax, target_syntax=target))
        except (NotAcceptable, UnreadableInstance):
            continue
        other = read(made, target)
        assert tags(other) - {0x00280006} == tags(one) - {0x00280006}, path
        if "PixelData" not in one:
            continue
        try:
            expected = shown(one)
        except Exception:
            continue
        if syntax not in LOSSY:
            assert np.array_equal(shown(other), expected), path
            done += 1
    assert done > 10
