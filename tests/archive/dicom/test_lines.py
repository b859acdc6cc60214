"""Lines of files that are alike are what is made of each file by itself (`metadata`, the oracle), byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from archive.dicom import lines
from archive.dicom.elements import opened
from archive.dicom.json import metadata
from archive.dicom.lines import MOST_BYTES, MOST_LAYOUTS, Lines
from archive.dicom.tree import element_at, parse
from archive.errors import UnreadableInstance
from tests.archive.dicom.reading import meta_of, real_files
from tests.builders import ct_slice, new_uid, part10

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
BULK = "http://pacs/bulkdata/"
OURS = Path(__file__).parents[2] / "data"
Change = Callable[[Dataset, int], Any]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tags of elements that are read one by one, because they are not what they were."""
    tags: list[int] = []

    def look(*how: Any) -> Any:
        element = element_at(*how)
        tags.append(element.tag if element else 0)
        return element

    monkeypatch.setattr(lines, "element_at", look)
    return tags


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each file that is read from its first element to its last."""
    files: list[int] = []

    def read(*how: Any, **options: Any) -> Any:
        files.append(1)
        return parse(*how, **options)

    monkeypatch.setattr(lines, "parse", read)
    return files


def told(make: Callable[[], bytes]) -> bytes | str:
    try:
        return make()
    except UnreadableInstance as error:
        return str(error)


def same(alike: Lines, path: Path, syntax: str, offset: int) -> None:
    how: dict[str, Any] = {"data_set_offset": offset, "transfer_syntax_uid": syntax}

    def quickly() -> bytes:
        with opened(str(path), **how) as (source, encoding):
            return alike.line(source, encoding, BULK.encode())

    slowly = told(lambda: orjson.dumps(metadata(str(path), **how, bulk_uri=lambda at: BULK + at)))
    assert told(quickly) == slowly, path


def same_of(alike: Lines, path: Path, *datasets: Dataset) -> None:
    for ds in datasets:
        path.write_bytes(part10(ds))
        found = meta_of(path)
        assert found is not None
        same(alike, path, *found)


def our_files() -> Iterator[tuple[Path, str, int]]:
    for path in sorted(OURS.rglob("*")):
        if path.is_file() and (meta := meta_of(path)):
            yield path, *meta


@pytest.mark.req("REQ-DCM-97")
@pytest.mark.parametrize("files", [our_files, real_files])
@pytest.mark.parametrize("mixed", [False, True])
def test_real_files_say_the_same_in_whatever_order_they_are_read(files: Callable[[], Any], mixed: bool) -> None:
    found = list(files())
    assert len(found) > 15
    if mixed:
        Random(1).shuffle(found)
    alike = Lines()
    for one in found:
        same(alike, *one)


def test_of_a_slice_like_the_one_before_only_what_differs_is_looked_at(
    tmp_path: Path, looked_at: list[int], whole: list[int]
) -> None:
    alike = Lines()
    same_of(alike, tmp_path / "a.dcm", *(ct_slice(number=number) for number in (1, 2, 3, 20)))
    assert (len(whole), looked_at) == (1, [0x00080018, 0x00200013] * 3)


def implicit(ds: Dataset, _: int) -> None:
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def nested(ds: Dataset, number: int) -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID = new_uid(f"nested {number}")
    inner = Dataset()
    inner.add_new(0x00283006, "OW", bytes([number]) * 2048)  # bulk data, inside
    item.ModalityLUTSequence = [Dataset(), inner]
    ds.SourceImageSequence = [item] * (1 + number % 2)
    ds["SourceImageSequence"].is_undefined_length = True


def owned(ds: Dataset, number: int) -> None:
    implicit(ds, number)
    creator = "SIEMENS CSA HEADER" if number % 2 else "GEMS_PARM_01"  # (0029,xx08): CS; (0043,xx08) is SS
    for group in (0x0029, 0x0043):
        ds.private_block(group, creator, create=True).add_new(8, "CS", "AB")


def unsaid(ds: Dataset, number: int) -> None:
    if number > 1:
        del ds.SpecificCharacterSet


def signed(ds: Dataset, number: int) -> None:
    implicit(ds, number)
    ds.PixelRepresentation = number % 2
    ds.add_new(0x00280106, "US", 0xFFFE)


def commented(ds: Dataset, number: int) -> None:
    if number % 2:
        ds.PatientComments = "x"


CHANGES: dict[str, Change] = {
    "nothing": lambda ds, number: None,
    "a character set": lambda ds, number: setattr(ds, "SpecificCharacterSet", ["ISO_IR 100", "ISO_IR 192"][number % 2]),
    "no character set": unsaid,
    "the sign of pixels, which implicit numbers depend on": signed,
    "private creators": owned,
    "sequences": nested,
    "an element more, or less": commented,
    "another that stands there instead": lambda ds, number: ds.add_new([0x00104000, 0x001021B0][number % 2], "LT", "x"),
    "a VR": lambda ds, number: ds.add_new(0x00101010, ["AS", "LO"][number % 2], "030Y"),
    "an empty value": lambda ds, number: setattr(ds, "PatientName", ["", "A^B"][number % 2]),
    "the size of bulk data": lambda ds, number: ds.add_new(0x00420011, "OB", b"%PDF" * 500 * number),
    "bulk data that become short": lambda ds, number: ds.add_new(0x00420011, "OB", bytes([2000, 10][number % 2])),
    "what bulk data are": lambda ds, number: ds.add_new(0x00420011, "OB", bytes([number]) * 70000),
    "a private value that is VR UN": lambda ds, number: ds.add_new(0x00091010, "UN", bytes([number]) * 3000),
    "what follows pixels": lambda ds, number: ds.add_new(0xFFFCFFFC, "OB", bytes(number * 100)),
    "a group length": lambda ds, number: ds.add_new(0x00100000, "UL", number),
    "text longer than what is compared": lambda ds, number: setattr(ds, "TextValue", "abc " * MOST_BYTES + str(number)),
}  # fmt: skip


@pytest.mark.req("REQ-DCM-97")
@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_from_slice_to_slice(tmp_path: Path, syntax: str, change: str) -> None:
    alike = Lines()
    for number in (1, 2, 3, 2, 1, 4):
        ds = ct_slice(number=number, transfer_syntax=syntax)
        CHANGES[change](ds, number)
        same_of(alike, tmp_path / "a.dcm", ds)


@pytest.mark.parametrize("again", [False, True])
def test_elements_that_are_not_in_order_are_told_in_order(tmp_path: Path, again: bool) -> None:
    alike, path = Lines(), tmp_path / "a.dcm"
    for number in range(4):
        content = part10(ct_slice(number=number, Modality="CT", StudyTime="101500"))
        time, modality = b"\x08\0\x30\0TM\6\x00101500", b"\x08\0\x60\0CS\2\0CT"
        assert time in content and modality in content
        content = content.replace(modality, modality + time) if again else content.replace(modality, b"")
        path.write_bytes(content.replace(time, modality[:-2] + b"MR" if again else modality + time))
        syntax, offset = meta_of(path) or ("", 0)
        same(alike, path, syntax, offset)


def test_what_is_a_sequence_by_its_tag_alone_and_then_is_none(tmp_path: Path) -> None:
    alike, path = Lines(), tmp_path / "a.dcm"
    for number in range(6):
        item = b"\xfe\xff\0\xe0\x0a\0\0\0\x40\0\x09\0\2\0\0\0" + b"A%d" % number
        value = [item * 200, b"no items", b"no items" * 450][number % 3]  # 3600 bytes of each
        ds = ct_slice(number=number, RequestAttributesSequence=None)
        ds.add_new(0x00400274, "OB", value)
        path.write_bytes(part10(ds).replace(b"\x40\0\x74\2OB", b"\x40\0\x75\2UN"))
        syntax, offset = meta_of(path) or ("", 0)
        same(alike, path, syntax, offset)
        found = metadata(str(path), data_set_offset=offset, transfer_syntax_uid=syntax, bulk_uri=lambda at: at)
        assert ("Value" in found["00400275"], "BulkDataURI" in found["00400275"]) == (number % 3 == 0, number % 3 == 2)


def test_encapsulated_pixels_are_followed_to_their_end(tmp_path: Path, whole: list[int]) -> None:
    alike = Lines()
    for number in (1, 2, 3):
        ds = ct_slice(number=number, transfer_syntax=JPEGLSLossless, NumberOfFrames=2)
        ds.PixelData = encapsulate([b"\xff\xd8" * 10000 * number, b"\xff\xd8two!"])
        ds.add_new(0xFFFCFFFC, "OB", bytes(4))
        same_of(alike, tmp_path / "a.dcm", ds)
    assert len(whole) == 1


def test_files_that_were_cut_short_are_read_as_ever(tmp_path: Path) -> None:
    alike, path = Lines(), tmp_path / "a.dcm"
    content = part10(ct_slice(rows=64, columns=64))
    path.write_bytes(content)
    syntax, offset = meta_of(path) or ("", 0)
    for end in (len(content), *range(offset, len(content), 7), len(content)):
        path.write_bytes(content[:end])
        same(alike, path, syntax, offset)


def test_several_kinds_of_images_in_one_series_are_remembered(tmp_path: Path, whole: list[int]) -> None:
    alike = Lines()
    kinds: list[dict[str, Any]] = [
        {},
        {"PatientComments": "x"},
        {"SpecificCharacterSet": None},
        {"PixelRepresentation": 1},
        {"KVP": 1},
    ]
    for turn in range(3):
        for number, kind in enumerate(kinds[:MOST_LAYOUTS]):
            same_of(alike, tmp_path / "a.dcm", ct_slice(number=10 * turn + number, **kind))
    assert len(whole) == MOST_LAYOUTS
    same_of(alike, tmp_path / "a.dcm", *(ct_slice(number=number, **kinds[number % 5]) for number in range(20)))
    assert len(alike._layouts) == MOST_LAYOUTS


def test_what_is_kept_for_comparing_is_bounded(tmp_path: Path) -> None:
    alike = Lines()
    for number in range(3):
        ds = ct_slice(number=number)
        for element in range(0x10, 0x50):
            ds.add_new(0x00090010, "LO", "MINIPACS")
            ds.add_new(0x00091000 + element, "UT", "x" * 60_000)
        same_of(alike, tmp_path / "a.dcm", ds)
    [layout] = alike._layouts
    kept = sum(len(piece.raw or b"") + len(piece.said) for piece in layout._pieces)
    assert 500_000 < kept <= lines.MOST_LAYOUT_BYTES


@pytest.mark.parametrize("syntax", SYNTAXES[:3])
def test_damaged_slices_say_or_fail_the_same(tmp_path: Path, syntax: str) -> None:
    """Bytes that were changed, lost, or put in, at random."""
    random, alike, path = Random(1), Lines(), tmp_path / "a.dcm"
    for _ in range(100):
        ds = ct_slice(number=random.randrange(9), transfer_syntax=syntax)
        nested(ds, 1)
        content = bytearray(part10(ds))
        path.write_bytes(content)
        _, offset = meta_of(path) or ("", 0)
        same(alike, path, syntax, offset)
        for _ in range(random.choice([1, 1, 3])):
            place = random.randrange(offset, len(content) - 8)
            length, inserted = random.choice([(1, 1), (1, 1), (2, 2), (4, 0), (8, 0), (0, 2), (0, 8)])
            content[place : place + length] = random.randbytes(inserted)
        path.write_bytes(content)
        same(alike, path, syntax, offset)
