"""Identifiers of C-FIND, both ways: bytes to keys, and matches straight to bytes in the syntax of the context.

No pydicom data set on the way: the shape of an answer is known once the request is read, so an answer is a walk over
prepared fields. `tests/dicom_scp/slow_encoder.py` says the same with pydicom, slowly, and the tests compare.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from archive.dicom import values
from archive.dicom.charset import choose, encode, terms
from archive.dicom.elements import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, LONG, Encoding
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse, public_vr

SPECIFIC_CHARACTER_SET = 0x00080005
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_TOO_LONG = 0xFFFE  # of a value whose length has two bytes

Row = Mapping[str, Any]
ToBytes = Callable[[str], bytes]


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """How the identifiers of a presentation context are written."""
    if transfer_syntax_uid == IMPLICIT_LITTLE_ENDIAN:
        return IMPLICIT_LE
    return EXPLICIT_BE if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else EXPLICIT_LE


@dataclass(frozen=True, slots=True)
class Asked:
    """One element of a request, decoded. Several values are joined by a backslash; `items` is a sequence's."""

    tag: int
    vr: str
    text: str
    items: tuple[tuple[Asked, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Identifier:
    """A request's identifier. `charsets` is its (0008,0005), () when absent."""

    elements: dict[int, Asked]
    charsets: tuple[str, ...]


def decode(data: bytes, encoding: Encoding, *, default_charset: str) -> Identifier:
    """Read an identifier. Raises UnreadableInstance when its elements cannot be followed."""
    elements = parse(Source.of_bytes(data), encoding)
    charsets: tuple[str, ...] = ()
    for element in elements:
        if element.tag == SPECIFIC_CHARACTER_SET:
            charsets = terms(data[element.value : element.end])
    reader = _Reader(data, charsets or (default_charset,), default_charset)
    return Identifier({element.tag: reader.asked(element) for element in elements}, charsets)


class _Reader:
    def __init__(self, data: bytes, charsets: tuple[str, ...], fallback: str) -> None:
        self._data = data
        self._charsets = charsets
        self._fallback = fallback

    def asked(self, element: Element) -> Asked:
        vr = element.vr
        if vr == "UN":
            vr = public_vr(element.tag)
        vr = vr.split(" or ")[0]
        if element.items is not None:
            items = tuple(tuple(self.asked(inner) for inner in item) for item in element.items)
            return Asked(element.tag, "SQ", "", items)
        raw = self._data[element.value : element.end]
        if vr in values.NUMBERS:
            numbers = values.of_numbers(raw, vr, little=element.encoding.little) or []
            return Asked(element.tag, vr, "\\".join(str(number) for number in numbers))
        if vr in values.BINARY or vr in ("AT", "SQ"):
            return Asked(element.tag, vr, "")
        return Asked(element.tag, vr, values.text(raw, vr, self._charsets, fallback=self._fallback))


@dataclass(frozen=True, slots=True)
class Field:
    """One element of an answer: what it is, and what of a sequence's items is wanted (None: all).

    `constant`: its value, the same in each answer. `optional`: left out when the row has none.
    """

    tag: int
    vr: str
    nested: tuple[Field, ...] | None = None
    constant: str | None = None
    optional: bool = False

    @property
    def key(self) -> str:
        """The name in DICOM JSON."""
        return f"{self.tag:08X}"


@dataclass(frozen=True, slots=True)
class _Prepared:
    key: str
    vr: str
    head: bytes  # tag, and VR where it is written
    nested: tuple[_Prepared, ...] | None
    constant: bytes | None
    optional: bool


def _ascii(text: str) -> bytes:
    return text.encode("ascii")


class Encoder:
    """Encodes rows of the index for one request."""

    def __init__(self, fields: Iterable[Field], encoding: Encoding, *, charsets: tuple[str, ...]) -> None:
        order = "<" if encoding.little else ">"
        self._implicit = encoding.implicit
        self._order = order
        self._tag = struct.Struct(f"{order}HH")
        self._short = struct.Struct(f"{order}H")
        self._long = struct.Struct(f"{order}I")
        self._charsets = charsets
        self._numbers = {vr: f"{order}{{}}{code}" for vr, code in values.NUMBERS.items()}
        self._fields = tuple(self._prepared(one) for one in sorted(fields, key=lambda one: one.tag))
        self._plain_start = self._charset_element(choose((), charsets))

    def encode(self, row: Row) -> bytes:
        """One answer. In the requester's character set when all fits in, else ISO_IR 192 (REQ-DCM-62)."""
        try:
            return self._plain_start + self._write(self._fields, row, _ascii)
        except UnicodeEncodeError:
            texts: list[str] = []
            self._write(self._fields, row, partial(_collect, texts))
            charset = choose(texts, self._charsets)
            to_bytes = partial(encode, charset=charset, person_name=True)
            return self._charset_element(charset) + self._write(self._fields, row, to_bytes)

    def _charset_element(self, charset: str) -> bytes:
        if not charset:
            return b""
        head = self._head(SPECIFIC_CHARACTER_SET, "CS")
        return self._element(head, "CS", _padded(charset.encode("ascii"), b" "))

    def _prepared(self, one: Field) -> _Prepared:
        nested = one.nested
        head = self._head(one.tag, one.vr)
        constant = None
        if one.constant is not None:
            constant = self._element(head, one.vr, _padded(one.constant.encode("ascii"), b" "))
        inner = None if nested is None else tuple(self._prepared(x) for x in sorted(nested, key=lambda x: x.tag))
        return _Prepared(one.key, one.vr, head, inner, constant, one.optional)

    def _head(self, tag: int, vr: str) -> bytes:
        written = self._tag.pack(tag >> 16, tag & 0xFFFF)
        return written if self._implicit else written + vr.encode("ascii")

    def _write(self, fields: Sequence[_Prepared], row: Row, to_bytes: ToBytes) -> bytes:
        out = bytearray()
        for one in fields:
            if one.constant is not None:
                out += one.constant
                continue
            element = row.get(one.key)
            content = element.get("Value") if element else None
            if content:
                out += self._element(one.head, one.vr, self._value(one.vr, content, one.nested, to_bytes))
            elif element and "InlineBinary" in element:
                out += self._element(one.head, one.vr, _padded(b64decode(element["InlineBinary"]), b"\0"))
            elif not one.optional:
                out += self._element(one.head, one.vr, b"")
        return bytes(out)

    def _element(self, head: bytes, vr: str, value: bytes) -> bytes:
        if self._implicit:
            return head + self._long.pack(len(value)) + value
        if vr.encode("ascii") in LONG:
            return head + b"\0\0" + self._long.pack(len(value)) + value
        if len(value) > _TOO_LONG:  # PS3.5 6.2.2: too long for its VR, so of VR UN
            return head[:4] + b"UN\0\0" + self._long.pack(len(value)) + value
        return head + self._short.pack(len(value)) + value

    def _value(self, vr: str, content: Sequence[Any], nested: tuple[_Prepared, ...] | None, to_bytes: ToBytes) -> bytes:
        if vr == "UI":
            return _padded("\\".join(str(uid) for uid in content).encode("ascii", "ignore"), b"\0")
        if vr == "PN":
            return _padded(to_bytes("\\".join(_name(name) for name in content)), b" ")
        if vr == "SQ":
            return b"".join(self._item(item or {}, nested, to_bytes) for item in content)
        if vr in self._numbers:
            return struct.pack(self._numbers[vr].format(len(content)), *(_number(vr, number) for number in content))
        if vr == "AT":
            return b"".join(self._tag.pack(int(tag[:4], 16), int(tag[4:], 16)) for tag in content)
        return _padded(to_bytes("\\".join("" if text is None else str(text) for text in content)), b" ")

    def _item(self, item: Row, nested: tuple[_Prepared, ...] | None, to_bytes: ToBytes) -> bytes:
        if nested is None:
            nested = tuple(
                _Prepared(key, item[key]["vr"], self._head(int(key, 16), item[key]["vr"]), None, None, optional=False)
                for key in sorted(item)
            )
        written = self._write(nested, item, to_bytes)
        return self._tag.pack(0xFFFE, 0xE000) + self._long.pack(len(written)) + written


def _collect(texts: list[str], text: str) -> bytes:
    texts.append(text)
    return b""


def _padded(value: bytes, padding: bytes) -> bytes:
    return value + padding if len(value) % 2 else value


def _name(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    groups = [str(value.get(group) or "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


def _number(vr: str, value: Any) -> int | float:
    if value is None:
        return 0
    return float(value) if vr in ("FL", "FD") else int(value)
