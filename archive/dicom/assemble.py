"""A PS3.10 file from DICOM JSON and bulk data that came beside it (PS3.18 10.5.1.1.2, Store of metadata and bulk data).

Explicit VR Little Endian, or encapsulated where the pixels came compressed; text in UTF-8, and said so in (0008,0005).
Values that break the rules of their VR are refused, not repaired: nothing is stored that nobody sent.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archive.dicom import encode, values
from archive.dicom.charset import UTF8
from archive.dicom.elements import EXPLICIT_LE as ENCODING
from archive.dicom.elements import UNDEFINED
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.json import CHARACTER_SET
from archive.dicom.syntaxes import EXPLICIT_LE, JPEG, NATIVE, RLE
from archive.errors import UnreadableInstance

DEEPEST = 64  # sequences within sequences
_KEY = re.compile(r"[0-9A-F]{8}")
_VRS = values.TEXT | values.BINARY | frozenset(values.NUMBERS) | {"AT", "SQ"}
_PIXEL_DATA, _FRAMES, _CLASS, _INSTANCE, _SYNTAX = "7FE00010", "00280008", "00080016", "00080018", "00020010"
_ITEM, _STRUCTURE = 0xFFFEE000, "FFFE0000"  # from here on: no attributes, but what holds items together
# The syntax of a compressed frame that names none (PS3.18 Table 8.7.3-5).
_DEFAULT_SYNTAX = {
    "image/jpeg": f"{JPEG}70", "image/dicom-rle": RLE, "image/x-dicom-rle": RLE, "image/jls": f"{JPEG}80",
    "image/x-jls": f"{JPEG}80", "image/jp2": f"{JPEG}90", "image/jpx": f"{JPEG}92", "image/jphc": f"{JPEG}201",
    "image/jxl": f"{JPEG}110", "video/mpeg": f"{JPEG}100", "video/mp4": f"{JPEG}102",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bulk:
    """The bytes of one part that came beside the metadata."""

    media_type: str
    transfer_syntax_uid: str  # "" when it was not said
    length: int
    read: Callable[[], Iterator[bytes]]


def assembled(found: Mapping[str, Any], bulk: Mapping[str, Sequence[Bulk]]) -> Iterator[bytes]:
    """The file of one instance, in pieces. `bulk` holds, by its address, what a BulkDataURI means: one part, or of
    compressed pixels one for each frame.

    Raises (with any piece):
        UnreadableInstance: metadata that are none, bulk data that did not come, or frames that are not all there.
    """
    data_set = {str(key).upper(): element for key, element in found.items()}
    if len(data_set) < len(found) or not all(_KEY.fullmatch(key) for key in data_set):
        raise UnreadableInstance("the metadata hold a key that is no tag, or one twice")
    pixels = _parts(data_set.get(_PIXEL_DATA), bulk)
    syntax = _syntax(pixels, first_text(data_set, _SYNTAX))
    yield file_head(FileMeta(first_text(data_set, _CLASS), first_text(data_set, _INSTANCE), syntax))
    data_set = {key: element for key, element in data_set.items() if key >= "00080000" and key[4:] != "0000"}
    yield from _data_set(data_set | CHARACTER_SET, bulk, encapsulated=syntax not in NATIVE, depth=0)


def first_text(data_set: Mapping[str, Any], key: str) -> str:
    """The first value of an attribute in DICOM JSON; "" when there is none."""
    try:
        return str(data_set[key]["Value"][0])
    except (KeyError, TypeError, IndexError):
        return ""


def _parts(element: Any, bulk: Mapping[str, Sequence[Bulk]]) -> Sequence[Bulk]:
    if not isinstance(element, Mapping) or "BulkDataURI" not in element:
        return ()
    uri = str(element["BulkDataURI"])
    if not bulk.get(uri):
        raise UnreadableInstance("bulk data that the metadata point at did not come")
    return bulk[uri]


def _syntax(pixels: Sequence[Bulk], announced: str) -> str:
    """The transfer syntax that the pixels came in; all parts the same."""
    said = {one.transfer_syntax_uid or _DEFAULT_SYNTAX.get(one.media_type, "") for one in pixels} - {""}
    if len(said) > 1:
        raise UnreadableInstance("frames in several transfer syntaxes")
    syntax = said.pop() if said else (announced if pixels else "")
    return EXPLICIT_LE if not syntax or syntax in NATIVE else syntax


def _data_set(
    data_set: Mapping[str, Any], bulk: Mapping[str, Sequence[Bulk]], *, encapsulated: bool, depth: int
) -> Iterator[bytes]:
    if depth > DEEPEST:
        raise UnreadableInstance("sequences within sequences, too deep")
    for key in sorted(data_set):
        element = data_set[key]
        vr = str(element.get("vr")) if isinstance(element, Mapping) else ""
        if not _KEY.fullmatch(key) or key >= _STRUCTURE or vr not in _VRS:
            raise UnreadableInstance("the metadata hold something that is no attribute")
        tag = int(key, 16)
        if vr == "SQ":
            yield encode.head(tag, vr, UNDEFINED, ENCODING)
            for item in _items(element):
                yield encode.item(ENCODING)
                inner = {str(name).upper(): one for name, one in item.items() if str(name) != "00080005"}
                yield from _data_set(inner, bulk, encapsulated=False, depth=depth + 1)
                yield encode.item_end(ENCODING)
            yield encode.sequence_end(ENCODING)
        elif key == _PIXEL_DATA and encapsulated:
            yield from _encapsulated(_parts(element, bulk), first_text(data_set, _FRAMES))
        elif "BulkDataURI" in element:
            parts = _parts(element, bulk)
            if len(parts) > 1:
                raise UnreadableInstance("several parts for one value")
            yield encode.head(tag, vr, parts[0].length + parts[0].length % 2, ENCODING)
            yield from parts[0].read()
            yield b"\0" * (parts[0].length % 2)
        else:
            yield _element(key, vr, element)


def _items(element: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = element.get("Value") or []
    items = [one or {} for one in found] if isinstance(found, list) else [found]
    if not all(isinstance(one, Mapping) for one in items):
        raise UnreadableInstance("a sequence holds something that is no item")
    return items


def _encapsulated(frames: Sequence[Bulk], announced: str) -> Iterator[bytes]:
    """A fragment for each frame, without an offset table (PS3.5 A.4)."""
    if str(len(frames)) != (announced or "1") and not frames[0].media_type.startswith("video/"):
        raise UnreadableInstance(f"{len(frames)} frames came, {announced or 1} are announced")
    yield encode.head(int(_PIXEL_DATA, 16), "OB", UNDEFINED, ENCODING)
    yield encode.fragment(b"")
    for frame in frames:
        yield encode.head(_ITEM, "", frame.length + frame.length % 2, ENCODING)
        yield from frame.read()
        yield b"\0" * (frame.length % 2)
    yield encode.sequence_end(ENCODING)


def _element(key: str, vr: str, element: Mapping[str, Any]) -> bytes:
    try:
        found = dict(element)
        if found.get("Value"):
            found["Value"] = [_value(one, vr) for one in found["Value"]]
        return encode.of_json(key, found, ENCODING, UTF8)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise UnreadableInstance(f"the value of {key} is none of its VR: {type(error).__name__}") from error


def _value(value: Any, vr: str) -> Any:
    """A value of DICOM JSON, where numbers may come as text and text as numbers (PS3.18 Table F.2.3-1)."""
    if vr in ("FL", "FD"):
        return float(value)
    if vr in values.NUMBERS:
        return int(value)
    if vr == "IS" and isinstance(value, float):
        return int(value) if value.is_integer() else _refuse(value)
    if vr == "DS" and isinstance(value, float):
        from pydicom.valuerep import format_number_as_ds

        return format_number_as_ds(value)
    return value


def _refuse(value: object) -> Any:
    raise ValueError(value)
