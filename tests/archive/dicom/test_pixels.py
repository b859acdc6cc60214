"""Decoded pixels are the stored ones, all bits of them (REQ-DCM-41)."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from archive.dicom.pixels import can_decode, decode, opened_file
from archive.errors import UnreadableInstance, Unsupported
from tests.archive.dicom.reading import meta_of, read, real_files
from tests.builders import ct_slice, part10


def decoded(path: Path, **how: bool) -> list[np.ndarray]:
    syntax, _ = meta_of(path)
    with opened_file(str(path), syntax) as frames:
        return [decode(frames, number, **how).values for number in range(1, len(frames) + 1)]


def put(folder: Path, ds: Dataset) -> Path:
    path = folder / "one.dcm"
    path.write_bytes(part10(ds))
    return path


def with_overlay() -> Dataset:
    """12 bits stored, signed, and an overlay plane in bit 15 that is none of the values."""
    ds = ct_slice(PixelRepresentation=1, BitsStored=12, HighBit=11)
    values = np.random.default_rng(3).integers(0, 4096, (16, 16), dtype="<u2")
    ds.PixelData = (values | (np.eye(16, dtype="<u2") << 15)).tobytes()
    return ds


def test_bits_that_are_not_stored_ones_are_kept_when_decoding_and_masked_for_showing(tmp_path: Path) -> None:
    plain = with_overlay()
    rle = with_overlay()
    rle.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    for ds in (plain, rle):
        path = put(tmp_path, ds)
        assert decoded(path)[0].tobytes() == plain.PixelData
        shown = decoded(path, rgb=True)[0]
        assert shown.min() >= -2048 and shown.max() < 2048


def test_big_endian_and_single_bits_are_unpacked(tmp_path: Path) -> None:
    big = ct_slice(transfer_syntax=ExplicitVRBigEndian)
    big.PixelData = np.arange(256, dtype=">u2").tobytes()
    assert decoded(put(tmp_path, big))[0].tolist() == np.arange(256).reshape(16, 16).tolist()
    bits = ct_slice(BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=2, Rows=3, Columns=3)
    bits.PixelData = np.packbits([1, 0, 1, 0, 1, 0, 1, 0, 1] + [0] * 8 + [1], bitorder="little").tobytes()
    assert [frame.sum() for frame in decoded(put(tmp_path, bits))] == [5, 1]


@pytest.mark.parametrize(("syntax", "plugin"), [(JPEGLSLossless, "pyjpegls"), (JPEG2000Lossless, "pylibjpeg")])
def test_eight_bits_in_sixteen_allocated_come_back_in_sixteen(tmp_path: Path, syntax: str, plugin: str) -> None:
    ds = ct_slice(rows=64, columns=64, BitsStored=8, HighBit=7)
    ds.PixelData = (np.arange(4096, dtype="<u2") % 256).tobytes()
    plain = ds.PixelData
    ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    assert decoded(put(tmp_path, ds))[0].tobytes() == plain


def test_damaged_and_missing_pixels_are_said(tmp_path: Path) -> None:
    ds = ct_slice(transfer_syntax=JPEGLSLossless)
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xf7 nothing"])
    with pytest.raises(Unsupported):
        decoded(put(tmp_path, ds))
    with pytest.raises(Unsupported):
        decoded(put(tmp_path, ct_slice(PixelData=None)))
    cut = ct_slice()
    cut.PixelData = cut.PixelData[:-2]
    with pytest.raises(UnreadableInstance):
        decoded(put(tmp_path, cut))
    assert not can_decode("1.2.840.10008.1.2.4.100")


@pytest.mark.parametrize(("syntax", "plugin"), [(JPEGLSLossless, "pyjpegls"), (JPEG2000Lossless, "pylibjpeg")])
def test_a_codestream_that_announces_another_size_is_not_decoded(tmp_path: Path, syntax: str, plugin: str) -> None:
    """A few bytes may claim a picture of 4 gigapixels."""
    ds = ct_slice(rows=64, columns=64)
    ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    ds.Rows = 65
    with pytest.raises(Unsupported, match="size"):
        decoded(put(tmp_path, ds))


@pytest.mark.parametrize("more", [b"\x81\x01", b"\xff\x01"])
def test_a_panic_of_a_codec_is_an_error_like_others(tmp_path: Path, more: bytes) -> None:
    """RLE that unpacks to more than its frame: the decoder in Rust panics, which is no Exception in Python."""
    ds = ct_slice(transfer_syntax=RLELossless)
    segment = b"\x7f" + bytes(128) + b"\x7f" + bytes(128) + more
    head = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13)
    ds.PixelData = encapsulate([head + segment + segment])
    with pytest.raises(Unsupported):
        decoded(put(tmp_path, ds))


def test_frames_beyond_a_gigabyte_are_not_decoded(tmp_path: Path) -> None:
    ds = ct_slice(transfer_syntax=RLELossless, rows=16, columns=16)
    ds.PixelData = encapsulate([b"\1" + bytes(63) + b"\0\0"])
    ds.Rows = ds.Columns = 65535
    with pytest.raises(Unsupported, match="large"):
        decoded(put(tmp_path, ds))


TWINS = [
    ("MR_small.dcm", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
                      "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm"]),
    ("emri_small.dcm", ["emri_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm", "emri_small_jpeg_ls_lossless.dcm"]),
    ("693_UNCR.dcm", ["693_J2KR.dcm"]),
    ("MR2_UNCR.dcm", ["MR2_J2KR.dcm"]),
    ("US1_UNCR.dcm", ["US1_J2KR.dcm"]),
    ("rtdose.dcm", ["rtdose_rle.dcm"]),
]  # fmt: skip


@pytest.mark.req("REQ-DCM-41")
def test_real_images_in_lossless_syntaxes_decode_to_their_native_twins() -> None:
    where = {path.name: path for path, _, _ in real_files()}
    for native, others in TWINS:
        expected = decoded(where[native])
        for other in others:
            found = decoded(where[other])
            assert len(found) == len(expected), other
            for one, two in zip(found, expected, strict=True):
                assert np.array_equal(one, two), other


def test_every_real_image_decodes_as_pydicom_decodes_it() -> None:
    compared = 0
    for path, syntax, _ in real_files():
        ds = read(path)
        if "PixelData" not in ds or not can_decode(syntax) or path.parent.name == "mr-series-ge":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = pixel_array(ds, raw=True)
        except Exception:
            continue
        frames = decoded(path)
        unused = ds.BitsAllocated - ds.BitsStored
        for ours, other in zip(frames, theirs if len(frames) > 1 else [theirs], strict=True):
            stored = [
                values if ds.BitsAllocated == 1 else values.astype(ours.dtype) << unused for values in (ours, other)
            ]
            assert np.array_equal(*stored), path
        compared += 1
    assert compared > 120
