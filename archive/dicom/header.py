"""Reading a header: from the first element to Pixel Data, no further.

The top level is scanned, not decoded: values that the index does not keep are stepped over. Sequences that it keeps
are read from their own bytes. Hot path: a CT header takes some tenths of a millisecond (docs/performance.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from archive.dicom import values
from archive.dicom.attributes import ATTRIBUTES, BY_TAG, LEVELS, Match
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, terms
from archive.dicom.elements import UNDEFINED, Encoding, Kept, Scanner, encoding_of, head
from archive.dicom.json import JsonReader
from archive.dicom.keys import normalise
from archive.dicom.source import Source
from archive.errors import UidMismatch, UnreadableInstance

MAX_VALUE_BYTES = 1 << 16  # of a value that the index keeps; a longer one is left out of it
MAX_REMEMBERED_BYTES = 1 << 10  # of a value; slices of a series repeat theirs
_NO_TEXT = frozenset({*values.NUMBERS, "AT", "OB", "OD", "OF", "OL", "OV", "OW", "SQ"})
_SCANNER = Scanner({*BY_TAG, SPECIFIC_CHARACTER_SET}, max_bytes=MAX_VALUE_BYTES)
_UIDS = (
    (0x00080016, "SOP Class UID"),
    (0x00080018, "SOP Instance UID"),
    (0x0020000D, "Study Instance UID"),
    (0x0020000E, "Series Instance UID"),
)
_LEGAL_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
_PLACES = {attribute.tag: (LEVELS.index(attribute.level), attribute.key, attribute.column) for attribute in ATTRIBUTES}
_EMPTY: tuple[dict[str, str | int | None], ...] = tuple(
    {
        attribute.column: "" if attribute.match in (Match.TEXT, Match.NAME, Match.UID) else None
        for attribute in ATTRIBUTES
        if attribute.level is level and attribute.column
    }
    for level in LEVELS
)


def is_legal_uid(value: str) -> bool:
    """Numbers and dots, 64 characters at most. Leading zeros, which PS3.5 §9.1 forbids, are let pass: real objects
    have them, and as a key they do no harm."""
    return _LEGAL_UID.fullmatch(value) is not None


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
    found, pixel_offset = _SCANNER.scan(source, encoding)
    sop_class_uid, sop_instance_uid, study_uid, series_uid = [_uid(found, tag, name) for tag, name in _UIDS]

    declared = found.pop(SPECIFIC_CHARACTER_SET, None)
    charsets = terms(declared[1]) if declared is not None else ()
    assumed = False
    levels: list[dict[str, Any]] = [{} for _ in LEVELS]
    keys = [columns.copy() for columns in _EMPTY]
    language = (charsets or (default_charset,), default_charset)
    for tag in sorted(found):
        raw = found[tag]
        level, key, column = _PLACES[tag]
        read = _remembered if len(raw[1]) <= MAX_REMEMBERED_BYTES else _read
        element, normalised, beyond = read(tag, raw, language)
        levels[level][key] = element
        if column is not None:
            keys[level][column] = normalised
        if beyond:
            assumed = True
    return Header(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        levels=dict(zip(LEVELS, levels, strict=True)),
        keys=dict(zip(LEVELS, keys, strict=True)),
        pixel_offset=None if encoding.deflated else pixel_offset,
        charset_assumed=assumed and not charsets,
        truncated=pixel_offset is not None and not encoding.deflated and _truncated(source, pixel_offset, encoding),
    )


_Raw = tuple[bytes, bytes, Encoding]  # a value: its VR as written, its bytes, how they are written
_Language = tuple[tuple[str, ...], str]  # (0008,0005) or what is assumed; what undefined bytes are read with
_Read = tuple[dict[str, Any], str | int | None, bool]


def _truncated(source: Source, position: int, encoding: Encoding) -> bool:
    announced = head(source, position, encoding)
    if announced is None:
        return True
    _, _, length, value = announced
    return length != UNDEFINED and value + length > source.size


def _uid(found: Kept, tag: int, name: str) -> str:
    if tag not in found:
        raise UidMismatch(f"{name} is missing", tag=tag)
    value = found[tag][1].decode("latin_1").rstrip(" \0")
    if not value:
        raise UidMismatch(f"{name} is empty", tag=tag)
    if not is_legal_uid(value):
        raise UidMismatch(f"{name} is not a legal UID", tag=tag)
    return value


def _read(tag: int, raw: _Raw, language: _Language) -> _Read:
    """The DICOM JSON of a value, its key, and whether its bytes beyond ASCII were read as (0008,0005) says."""
    attribute = BY_TAG[tag]
    vr, data, encoding = raw
    charsets, fallback = language
    if attribute.vr == "SQ":
        return _sequence(raw, language)
    element: dict[str, Any] = {"vr": attribute.vr}
    content: list[Any] | None
    text, beyond = "", False
    if attribute.vr in values.NUMBERS:
        content = values.of_numbers(data, attribute.vr, little=encoding.little)
    elif vr.decode("latin_1") in _NO_TEXT:
        content = None  # not what the dictionary says, and not text
    else:
        text = values.text(data, attribute.vr, charsets, fallback=fallback)
        content = values.of_text(text, attribute.vr)
        beyond = attribute.vr in values.TEXT_OF_CHARSET and not data.isascii()
    if content:
        element["Value"] = content
    return element, normalise(text, attribute.match) if attribute.column else None, beyond


_remembered = lru_cache(maxsize=8192)(_read)


def _sequence(raw: _Raw, language: _Language) -> _Read:
    """The DICOM JSON of a sequence; without Value when its items cannot be followed."""
    _, data, encoding = raw
    reader = JsonReader(Source.of_bytes(data), language[0], fallback=language[1])
    try:
        items = reader.items(encoding)
    except UnreadableInstance:
        items = []
    return ({"vr": "SQ", "Value": items} if items else {"vr": "SQ"}), None, reader.beyond_ascii
