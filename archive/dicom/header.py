"""Reading a header: from the first element to Pixel Data, no further.

The top level is scanned, not decoded: values that the index does not keep are stepped over. Sequences that it keeps
are read from their own bytes. Hot path: a CT header takes a tenth of a millisecond (docs/performance.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from archive.dicom import values
from archive.dicom.attributes import ATTRIBUTES, BY_TAG, Attribute, Level, Match
from archive.dicom.charset import terms
from archive.dicom.elements import (
    HEAD,
    IMPLICIT_LE,
    LONG,
    PIXEL_TAGS,
    SHORT,
    UNDEFINED,
    Encoding,
    Source,
    encoding_of,
    head,
    inside,
    skip,
)
from archive.dicom.json import JsonReader
from archive.dicom.keys import normalise
from archive.errors import UidMismatch, UnreadableInstance

SPECIFIC_CHARACTER_SET = 0x00080005
MAX_VALUE_BYTES = 1 << 16  # of a value that the index keeps; a longer one is left out of it
MAX_REMEMBERED_BYTES = 1 << 10  # of a value; slices of a series repeat theirs
_NO_TEXT = frozenset({*values.NUMBERS, "AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ"})
_WANTED = frozenset({*BY_TAG, SPECIFIC_CHARACTER_SET})
_UIDS = (
    (0x00080016, "SOP Class UID"),
    (0x00080018, "SOP Instance UID"),
    (0x0020000D, "Study Instance UID"),
    (0x0020000E, "Series Instance UID"),
)
_LEGAL_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
_ORDERED = tuple(sorted(ATTRIBUTES, key=lambda attribute: attribute.tag))
_EMPTY = {
    level: {
        attribute.column: "" if attribute.match in (Match.TEXT, Match.NAME, Match.UID) else None
        for attribute in ATTRIBUTES
        if attribute.level is level and attribute.column
    }
    for level in Level
}


@dataclass(frozen=True, slots=True)
class Header:
    """What reception needs to know of an instance.

    `levels[Level]` is the DICOM JSON (PS3.18 Annex F) of that level's attributes (`archive.dicom.attributes`), in
    Unicode, ascending; its values are shared between headers and must not be changed. `keys[Level]` are the values of
    their columns, normalised (`archive.dicom.keys`): every column is there; a missing or empty text, name or UID is
    "", a missing or wrong date, time or number None. Offsets count from the start of the data set.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    levels: dict[Any, dict[str, Any]] = field(default_factory=dict)
    keys: dict[Any, dict[str, str | int | None]] = field(default_factory=dict)
    # of the Pixel Data element (any of 7FE0,0008 0009 0010); None without pixels and in deflated data sets, whose
    # bytes in the file are no elements
    pixel_offset: int | None = None
    charset_assumed: bool = False  # (0008,0005) absent although bytes are not ASCII
    truncated: bool = False  # Pixel Data announces more bytes than the data set has


def read_header(fd: int, *, offset: int, length: int, transfer_syntax_uid: str, default_charset: str) -> Header:
    """Read the data set that lies at `offset` of an open file, `length` bytes, up to its Pixel Data.

    Nothing else of the file is read, and its position is not moved. `default_charset` is assumed for text beyond
    ASCII when (0008,0005) is absent (REQ-DCM-60).

    Raises:
        UnreadableInstance: the elements before Pixel Data cannot be followed.
        UidMismatch: one of the four UIDs is missing, empty or illegal (REQ-DCM-16).
    """
    encoding = encoding_of(transfer_syntax_uid)
    source = Source(fd, offset=offset, length=length, deflated=encoding.deflated)
    found, pixel_offset = _scan(source, encoding)
    sop_class_uid, sop_instance_uid, study_uid, series_uid = [_uid(found, tag, name) for tag, name in _UIDS]

    declared = found.pop(SPECIFIC_CHARACTER_SET, None)
    charsets = terms(declared.data) if declared is not None else ()
    assumed = False
    levels: dict[Level, dict[str, Any]] = {level: {} for level in Level}
    keys: dict[Level, dict[str, str | int | None]] = {level: dict(columns) for level, columns in _EMPTY.items()}
    language = _Language(charsets or (default_charset,), default_charset)
    for attribute in _ORDERED:
        if attribute.tag not in found:
            continue
        raw = found[attribute.tag]
        if len(raw.data) > MAX_REMEMBERED_BYTES:
            element, key, beyond = _read(attribute, raw, language)
        else:
            element, key, beyond = _remembered(attribute, raw, language)
        levels[attribute.level][attribute.key] = element
        if attribute.column is not None:
            keys[attribute.level][attribute.column] = key
        assumed = assumed or beyond
    return Header(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        levels=levels,
        keys=keys,
        pixel_offset=None if encoding.deflated else pixel_offset,
        charset_assumed=assumed and not charsets,
        truncated=pixel_offset is not None and not encoding.deflated and _truncated(source, pixel_offset, encoding),
    )


class _Raw(NamedTuple):
    """A value as it is written."""

    vr: bytes
    data: bytes
    encoding: Encoding


class _Language(NamedTuple):
    """What text is written in: (0008,0005), or what is assumed; and what to read undefined bytes with."""

    charsets: tuple[str, ...]
    fallback: str


_Found = dict[int, _Raw]
_Announced = tuple[int, bytes, int, int]
_Read = tuple[dict[str, Any], str | int | None, bool]


def _scan(source: Source, encoding: Encoding) -> tuple[_Found, int | None]:  # noqa: PLR0912 - one loop, for speed
    """The raw wanted values of the top level, and where Pixel Data starts."""
    found: _Found = {}
    position, window, base = 0, b"", 0
    implicit, size = encoding.implicit, source.size
    unpack = HEAD[encoding.little].unpack_from
    from_bytes = int.from_bytes
    order: Any = "little" if encoding.little else "big"
    while True:
        start = position - base
        if start + 12 > len(window):
            window, base = source.at(position, 12)
            start = 0 if base == position else position - base
            if start == len(window):
                return found, None
            if start + 12 > len(window):
                ending = head(source, position, encoding)
                if ending is None:
                    return found, None
                if ending[0] in PIXEL_TAGS:
                    return found, position
                position = _take(source, encoding, found, ending)
                continue
        group, element, vr, length = unpack(window, start)
        tag = group << 16 | element
        if tag in PIXEL_TAGS:
            return found, position
        if implicit:
            vr = b""
            length = from_bytes(window[start + 4 : start + 8], order)
            value = position + 8
        elif vr in SHORT:
            value = position + 8
        elif vr in LONG:
            length = from_bytes(window[start + 8 : start + 12], order)
            value = position + 12
        else:
            _, vr, length, value = head(source, position, encoding) or (0, b"", 0, position + 8)
        end = value + length
        if length == UNDEFINED or tag in _WANTED:
            position = _take(source, encoding, found, (tag, vr, length, value))
            size = source.size
        elif end > size:
            raise UnreadableInstance("the data set ends inside an element")
        else:
            source.steps += 1
            position = end


def _take(source: Source, encoding: Encoding, found: _Found, announced: _Announced) -> int:
    """Where the element ends; its value is kept if it is wanted and of a reasonable size."""
    tag, vr, length, value = announced
    source.step()
    if length == UNDEFINED:
        how = inside(source, value, vr, encoding)
        end = skip(source, value, how)
    else:
        how = IMPLICIT_LE if vr == b"UN" else encoding
        end = value + length
        if end > source.size:
            raise UnreadableInstance("the data set ends inside an element")
    if tag in _WANTED and end - value <= MAX_VALUE_BYTES:
        found[tag] = _Raw(vr, source.read(value, end - value), how)
    return end


def _truncated(source: Source, position: int, encoding: Encoding) -> bool:
    announced = head(source, position, encoding)
    if announced is None:
        return True
    _, _, length, value = announced
    return length != UNDEFINED and value + length > source.size


def _uid(found: _Found, tag: int, name: str) -> str:
    if tag not in found:
        raise UidMismatch(f"{name} is missing", tag=tag)
    value = found[tag].data.decode("latin_1").rstrip(" \0")
    if not value:
        raise UidMismatch(f"{name} is empty", tag=tag)
    if not _LEGAL_UID.fullmatch(value):
        raise UidMismatch(f"{name} is not a legal UID", tag=tag)
    return value


def _read(attribute: Attribute, raw: _Raw, language: _Language) -> _Read:
    """The DICOM JSON of a value, its key, and whether its bytes beyond ASCII were read as (0008,0005) says."""
    if attribute.vr == "SQ":
        return _sequence(raw, language)
    element: dict[str, Any] = {"vr": attribute.vr}
    content: list[Any] | None
    text, beyond = "", False
    if attribute.vr in values.NUMBERS:
        content = values.of_numbers(raw.data, attribute.vr, little=raw.encoding.little)
    elif raw.vr.decode("latin_1") in _NO_TEXT:
        content = None  # not what the dictionary says, and not text
    else:
        text = values.text(raw.data, attribute.vr, language.charsets, fallback=language.fallback)
        content = values.of_text(text, attribute.vr)
        beyond = attribute.vr in values.TEXT_OF_CHARSET and not raw.data.isascii()
    if content:
        element["Value"] = content
    return element, normalise(text, attribute.match) if attribute.column else None, beyond


_remembered = lru_cache(maxsize=8192)(_read)


def _sequence(raw: _Raw, language: _Language) -> _Read:
    """The DICOM JSON of a sequence; without Value when its items cannot be followed."""
    reader = JsonReader(Source.of_bytes(raw.data), language.charsets, fallback=language.fallback)
    try:
        items = reader.items(raw.encoding)
    except UnreadableInstance:
        items = []
    return ({"vr": "SQ", "Value": items} if items else {"vr": "SQ"}), None, reader.beyond_ascii
