"""DICOM JSON (PS3.18 Annex F) into encoded elements (PS3.5 §7), in any of their three encodings."""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from archive.dicom import values
from archive.dicom.charset import encode
from archive.dicom.elements import EXPLICIT_LE, ITEM, ITEM_END, LONG, SEQUENCE_END, UNDEFINED, Encoding

_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_ZERO_PADDED = frozenset({"UI", *values.BINARY})


def head(tag: int, vr: str, length: int, encoding: Encoding) -> bytes:
    """Tag, VR and length. What a short VR cannot hold, 64 KiB and more, becomes UN (PS3.5 §6.2.2)."""
    order = "<" if encoding.little else ">"
    group, element = tag >> 16, tag & 0xFFFF
    if encoding.implicit or group == 0xFFFE:
        return struct.pack(f"{order}HHI", group, element, length)
    if vr.encode() in LONG or length > 0xFFFF:
        written = vr.encode() if vr.encode() in LONG else b"UN"
        return struct.pack(f"{order}HH2sHI", group, element, written, 0, length)
    return struct.pack(f"{order}HH2sH", group, element, vr.encode("ascii", "replace"), length)


def element(tag: int, vr: str, value: bytes, encoding: Encoding) -> bytes:
    """An element of a value that is encoded already, made even (PS3.5 §6.2)."""
    if len(value) % 2:
        value += b"\0" if vr in _ZERO_PADDED else b" "
    return head(tag, vr, len(value), encoding) + value


def item(encoding: Encoding) -> bytes:
    """The head of an item of undefined length."""
    return head(ITEM, "", UNDEFINED, encoding)


def item_end(encoding: Encoding) -> bytes:
    return head(ITEM_END, "", 0, encoding)


def sequence_end(encoding: Encoding) -> bytes:
    return head(SEQUENCE_END, "", 0, encoding)


def fragment(value: bytes) -> bytes:
    """One fragment of encapsulated pixels, of even length; an empty one is the offset table (PS3.5 §A.4)."""
    return head(ITEM, "", len(value), EXPLICIT_LE) + value


def of_json(key: str, content: Mapping[str, Any], encoding: Encoding, charset: str) -> bytes:
    """An element of the DICOM JSON Model; without Value, an empty one. `charset` is that of (0008,0005).

    Raises:
        UnicodeEncodeError: a character does not exist in `charset` (`texts` gives what has to be in it).
    """
    tag, vr = int(key, 16), str(content["vr"])
    found = content.get("Value") or []
    if vr == "SQ":
        items = (item(encoding) + _data_set(one or {}, encoding, charset) + item_end(encoding) for one in found)
        return head(tag, vr, UNDEFINED, encoding) + b"".join(items) + sequence_end(encoding)
    if "InlineBinary" in content:
        little = b64decode(content["InlineBinary"])
        return element(tag, vr, values.little_endian(little, vr, little=encoding.little), encoding)
    if vr in values.NUMBERS:
        packed = struct.pack(f"{'<' if encoding.little else '>'}{len(found)}{values.NUMBERS[vr]}", *found)
        return element(tag, vr, packed, encoding)
    if vr == "AT":
        halves = [int(str(one)[at : at + 4], 16) for one in found for at in (0, 4)]
        return element(tag, vr, struct.pack(f"{'<' if encoding.little else '>'}{len(halves)}H", *halves), encoding)
    text = "\\".join(written(one) for one in found)
    return element(tag, vr, encode(text, charset, person_name=vr == "PN"), encoding)


def _data_set(content: Mapping[str, Any], encoding: Encoding, charset: str) -> bytes:
    return b"".join(of_json(key, content[key], encoding, charset) for key in sorted(content) if key != "00080005")


def written(value: Any) -> str:
    """One value of a text VR as it is written between backslashes."""
    if isinstance(value, Mapping):
        return "=".join(str(value.get(group) or "") for group in _GROUPS).rstrip("=")
    return "" if value is None else str(value)


def texts(content: Mapping[str, Any]) -> Iterator[str]:
    """Every text of an element and of its items."""
    for value in content.get("Value") or ():
        if content["vr"] == "SQ":
            for inner in (value or {}).values():
                yield from texts(inner)
        elif content["vr"] in values.TEXT:
            yield written(value)
