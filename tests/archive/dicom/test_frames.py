import struct
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    MPEG4HP41,
    ExplicitVRBigEndian,
    JPEGLSLossless,
    RLELossless,
)

from archive.dicom import frame_index
from archive.dicom.frame_index import frame_ranges, opened
from archive.dicom.frames import image_of
from archive.errors import NotFound, UnreadableInstance, Unsupported
from tests.archive.dicom.reading import meta_of, read, real_files
from tests.builders import ct_slice, part10


@pytest.fixture
def where(tmp_path: Path):
    """Write a file; what `opened` and `frame_ranges` want to know of it."""

    def write(raw: bytes) -> tuple[str, dict[str, object]]:
        path = tmp_path / "file.dcm"
        path.write_bytes(raw)
        syntax, offset = meta_of(path)
        return str(path), {"data_set_offset": offset, "transfer_syntax_uid": syntax}

    return write


def pieces(path: str, how: dict[str, object]) -> list[bytes]:
    raw = Path(path).read_bytes()
    return [b"".join(raw[at : at + length] for at, length in parts) for parts in frame_ranges(path, **how)]


INCOMPLETE = ("MR_truncated.dcm", "nested_priv_SQ.dcm", "3gb-bulk-data-truncated")
JPEG = [b"\xff\xd8frame one", b"\xff\xd8 second!", b"\xff\xd8 the third "]


def multi(syntax: str, pixels: bytes, frames: int = 3) -> bytes:
    ds = ct_slice(transfer_syntax=syntax, NumberOfFrames=frames)
    ds.PixelData = pixels
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return part10(ds)


def unpadded(frames: list[bytes]) -> list[bytes]:
    return [frame.rstrip(b"\0") for frame in frames]


def test_native_frames_follow_each_other(where) -> None:
    pixels = np.arange(3 * 16 * 16, dtype="<u2").tobytes()
    ds = ct_slice(NumberOfFrames=3)
    ds.PixelData = pixels
    assert pieces(*where(part10(ds))) == [pixels[i * 512 : (i + 1) * 512] for i in range(3)]


def test_big_endian_frames_are_read_in_little_endian(where) -> None:
    ds = ct_slice(transfer_syntax=ExplicitVRBigEndian)
    little = np.arange(256, dtype="<u2")
    ds.PixelData = little.astype(">u2").tobytes()
    path, how = where(part10(ds))
    with opened(path, **how) as frames:
        assert frames.read(1) == little.tobytes()


def test_one_fragment_a_frame_needs_no_table(where) -> None:
    assert unpadded(pieces(*where(multi(JPEGLSLossless, encapsulate(JPEG, has_bot=False))))) == JPEG


def test_a_basic_offset_table_joins_fragments(where) -> None:
    raw = multi(JPEGLSLossless, encapsulate(JPEG, fragments_per_frame=2, has_bot=True))
    assert unpadded(pieces(*where(raw))) == JPEG


def test_an_extended_offset_table_gives_exact_lengths(where) -> None:
    pixels, offsets, _ = encapsulate_extended(JPEG)
    lengths = struct.pack("<3Q", *map(len, JPEG))
    ds = ct_slice(transfer_syntax=JPEGLSLossless, NumberOfFrames=3)
    ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = offsets, lengths
    ds.PixelData = pixels
    assert pieces(*where(part10(ds))) == JPEG


def test_fragments_without_a_table_are_told_apart_by_how_images_begin(where) -> None:
    raw = multi(JPEGLSLossless, encapsulate(JPEG, fragments_per_frame=2, has_bot=False))
    assert unpadded(pieces(*where(raw))) == JPEG
    with pytest.raises(Unsupported):
        pieces(*where(multi(RLELossless, encapsulate(JPEG, fragments_per_frame=2, has_bot=False))))


def test_a_wrong_table_is_not_believed(where) -> None:
    pixels = bytearray(encapsulate(JPEG, has_bot=True))
    pixels[12:16] = struct.pack("<I", 9)
    assert unpadded(pieces(*where(multi(JPEGLSLossless, bytes(pixels))))) == JPEG


def test_one_frame_in_many_fragments_is_joined(where) -> None:
    raw = multi(JPEGLSLossless, encapsulate([b"abcdefgh"], fragments_per_frame=4, has_bot=False), frames=1)
    assert pieces(*where(raw)) == [b"abcdefgh"]


def test_what_cannot_be_told_apart_is_unsupported(where) -> None:
    with pytest.raises(Unsupported):
        pieces(*where(multi(MPEG4HP41, encapsulate([b"video!"], has_bot=False))))
    with pytest.raises(Unsupported):
        pieces(*where(part10(ct_slice(PixelData=None))))


def test_frames_of_single_bits_that_begin_inside_a_byte_are_read_but_have_no_range(where) -> None:
    ds = ct_slice(BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=3, Rows=3, Columns=3)
    ds.PixelData = np.packbits([1] * 9 + [0, 1] * 4 + [1] + [0] * 9, bitorder="little").tobytes()
    path, how = where(part10(ds))
    with opened(path, **how) as frames:
        assert [frames.read(n) for n in (1, 2, 3)] == [b"\xff\x01", b"\xaa\x01", b"\x00\x00"]
        with pytest.raises(Unsupported):
            frames.ranges(2)


def test_missing_pixels_and_frames_are_said(where) -> None:
    short = part10(ct_slice())[:-4]
    with pytest.raises(UnreadableInstance):
        pieces(*where(short))
    path, how = where(part10(ct_slice()))
    with opened(path, **how) as frames:
        for number in (0, 2):
            with pytest.raises(NotFound):
                frames.read(number)


def test_frames_of_real_files_are_those_that_pydicom_finds() -> None:
    seen = encapsulated = 0
    for path, syntax, offset in real_files():
        ds = read(path)
        if "PixelData" not in ds or path.name in INCOMPLETE:
            continue
        written = str(ds.get("NumberOfFrames") or 1)
        count = int(written) if written.isdigit() else 1
        try:
            ranges = frame_ranges(str(path), data_set_offset=offset, transfer_syntax_uid=syntax)
        except Unsupported:
            assert syntax == "1.2.840.10008.1.2.1.99" or (ds.BitsAllocated == 1 and ds.Rows * ds.Columns % 8), path
            continue
        assert len(ranges) == count, path
        raw = path.read_bytes()
        ours = [b"".join(raw[at : at + length] for at, length in parts) for parts in ranges]
        if ds["PixelData"].is_undefined_length:
            assert ours == list(generate_frames(ds.PixelData, number_of_frames=count)), path
            encapsulated += 1
        else:
            assert b"".join(ours) == ds.PixelData[: sum(map(len, ours))], path
            more = len(ds.PixelData) - sum(map(len, ours))
            assert more <= 1 or path.name in ("badVR.dcm", "MR_small_padded.dcm"), path
        seen += 1
    assert seen > 300 and encapsulated > 40


def test_where_frames_lie_is_remembered_as_long_as_the_file_is_the_same(where, monkeypatch) -> None:
    looked: list[object] = []

    def look(*words):
        looked.append(words)
        return image_of(*words)

    monkeypatch.setattr(frame_index, "image_of", look)
    monkeypatch.setattr(frame_index, "_places", frame_index._Places())
    for frames in (3, 2):
        ds = ct_slice(NumberOfFrames=frames)
        ds.PixelData = np.arange(frames * 16 * 16, dtype="<u2").tobytes()
        path, how = where(part10(ds))
        for _ in range(3):
            with frame_index.opened(path, **how) as found:
                assert len(found) == frames
                assert [b"".join(found.pieces(number)) for number in (1, frames)] == [found.read(1), found.read(frames)]
    assert len(looked) == 2
    with pytest.raises(UnreadableInstance):  # cut short since
        path, how = where(Path(path).read_bytes()[:-100])
        with frame_index.opened(path, **how):
            pass


def test_no_more_frames_are_remembered_than_fit(where, monkeypatch) -> None:
    places = frame_index._Places()
    monkeypatch.setattr(frame_index, "MOST_FRAMES", 30)
    key = frame_index._Key("", 0, "", 0, 0, 0)
    for number in range(5):
        places.keep(key._replace(inode=number), None, [()] * 3)
    assert [number for number in range(5) if places.get(key._replace(inode=number))] == [3, 4]
    places.keep(key._replace(inode=9), None, [()] * 16)  # would push out all others
    assert places.get(key._replace(inode=9)) is None
