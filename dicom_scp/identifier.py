"""Identifiers of C-FIND, both ways: bytes to keys, and matches straight to bytes in the syntax of the context.

No pydicom data set on the way: the shape of an answer is known once the request is read, so an answer is a walk over
prepared fields. `tests/dicom_scp/slow_encoder.py` says the same with pydicom, slowly, and the tests compare.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import methodcaller
from typing import Any, NamedTuple

from archive.dicom import values
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, UTF8, choose, encode, terms
from archive.dicom.dictionary import public_vr
from archive.dicom.elements import IMPLICIT_LE, LONG, Encoding
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse

_IMPLICIT = struct.Struct("<HHI").unpack_from
_REMEMBERED_BYTES = 64  # of a value that is asked for
_USUAL_BYTES = 64  # of a value that is given back, at most
_TOO_LONG = 0xFFFE  # of a value whose length has two bytes
_ALPHABETIC = {"Alphabetic"}
_PADDED_WITH_NUL = frozenset({"UI", *values.BINARY})

Row = Mapping[str, Any]
ToBytes = Callable[[str], bytes]


class Asked(NamedTuple):
    """One element of a request, decoded. Several values are joined by a backslash; `items` is a sequence's."""

    tag: int
    vr: str
    text: str
    items: tuple[tuple[Asked, ...], ...] | None = None


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


Shape = tuple[tuple[int, str, tuple[Field, ...] | None], ...]  # tag, VR and wanted items of each element of a request


class Identifier(NamedTuple):
    """A request's identifier: all its elements, and those with a value or items. `charsets` is its (0008,0005), () when
    absent; `shape` what it has whatever its values.

    Those of one shape often share it, so that it is soon compared.
    """

    elements: dict[int, Asked]
    given: list[Asked]
    charsets: tuple[str, ...]
    shape: Shape


def decode(data: bytes, encoding: Encoding, *, default_charset: str) -> Identifier:
    """Read an identifier. Raises UnreadableInstance when its elements cannot be followed."""
    if encoding == IMPLICIT_LE:
        found = _values(data)
        blank, shape = _plain(tuple(found))
        if shape:
            declared = found.get(SPECIFIC_CHARACTER_SET)
            charsets = terms(declared) if declared else ()
            language = (charsets or (default_charset,), default_charset)
            given = [_asked(tag, blank[tag].vr, raw, language) for tag, raw in found.items() if raw]
            return Identifier(blank | {one.tag: one for one in given}, given, charsets, shape)
    elements = parse(Source.of_bytes(data), encoding)
    charsets = ()
    for element in elements:
        if element.tag == SPECIFIC_CHARACTER_SET:
            charsets = terms(data[element.value : element.end])
    reader = _Reader(data, (charsets or (default_charset,), default_charset))
    asked = {element.tag: reader.asked(element) for element in elements}
    shape = tuple([(one.tag, one.vr, nested_of(one) if one.items else None) for one in asked.values()])
    return Identifier(asked, [one for one in asked.values() if one.text or one.items], charsets, shape)


def nested_of(asked: Asked) -> tuple[Field, ...] | None:
    """What is wanted of a sequence's items: the elements of the request's item, or all when it has none."""
    items: Iterable[Asked] = asked.items[0] if asked.items else ()
    fields = tuple(
        Field(inner.tag, inner.vr, nested_of(inner) if inner.vr == "SQ" else None)
        for inner in items
        if inner.tag & 0xFFFF and inner.tag != SPECIFIC_CHARACTER_SET
    )
    return fields or None


def _values(data: bytes) -> dict[int, bytes]:
    """The values by their tags, where the elements are implicit and none has items; {} where they cannot be cut so."""
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    try:
        while position < end:
            group, element, length = _IMPLICIT(data, position)
            position += 8
            if length:
                found[group << 16 | element] = data[position : position + length]
                position += length
            else:
                found[group << 16 | element] = b""
    except struct.error:
        return {}
    return found if position == end else {}


@lru_cache(maxsize=256)
def _plain(tags: tuple[int, ...]) -> tuple[dict[int, Asked], Shape]:
    """The elements without values, and the shape, of an identifier as almost all are: standard elements of text alone.
    () for any other: `parse` knows them all."""
    blank = {tag: Asked(tag, public_vr(tag), "") for tag in tags}
    if any(tag >> 16 & 1 or one.vr not in values.TEXT for tag, one in blank.items()):
        return {}, ()
    return blank, tuple([(one.tag, one.vr, None) for one in blank.values()])


_Language = tuple[tuple[str, ...], str]  # (0008,0005) or what is assumed; what undefined bytes are read with


class _Reader:
    def __init__(self, data: bytes, language: _Language) -> None:
        self._data = data
        self._language = language

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
        return _asked(element.tag, vr, raw, self._language)


def _read(tag: int, vr: str, raw: bytes, language: _Language) -> Asked:
    charsets, fallback = language
    return Asked(tag, vr, values.text(raw, vr, charsets, fallback=fallback))


_remembered = lru_cache(maxsize=4096)(_read)


def _asked(tag: int, vr: str, raw: bytes, language: _Language) -> Asked:
    """An element of a text VR. Clients repeat what they ask for, and most of it is empty."""
    return (_remembered if len(raw) <= _REMEMBERED_BYTES else _read)(tag, vr, raw, language)


class _Prepared(NamedTuple):
    """A field, ready to be written. What can be known before there is a value is known."""

    key: str
    head: bytes  # tag, and in explicit syntaxes VR (and the two reserved bytes of the long form)
    long: bool  # the length has four bytes
    heads: tuple[bytes, ...]  # the same with the length behind: of 0, 2, 4 … bytes
    value: Callable[[Sequence[Any], ToBytes], bytes]
    padding: bytes
    absent: bytes  # what is written without a value: the empty element, a constant one, or nothing


class Encoder:
    """Encodes rows of the index for requests of one form."""

    def __init__(self, fields: Iterable[Field], encoding: Encoding, *, charsets: tuple[str, ...]) -> None:
        order = "<" if encoding.little else ">"
        self._implicit = encoding.implicit
        self._order = order
        self._tag = struct.Struct(f"{order}HH").pack
        self._short = struct.Struct(f"{order}H").pack
        self._long = struct.Struct(f"{order}I").pack
        self._charsets = charsets
        self._fields = self._prepared_all(fields)
        plain = choose((), charsets)
        self._plain_start = self._charset_element(plain)
        first = plain if charsets else UTF8  # what text beyond ASCII is tried in first
        self._beyond, self._beyond_start = _writer(first), self._charset_element(first)

    def encode(self, row: Row) -> bytes:
        """One answer. In the requester's character set when all fits in, else ISO_IR 192 (REQ-DCM-62)."""
        try:
            return self._plain_start + self._write(self._fields, row, _ascii)
        except UnicodeEncodeError:
            pass
        try:
            return self._beyond_start + self._write(self._fields, row, self._beyond)
        except UnicodeEncodeError:
            texts: list[str] = []
            self._write(self._fields, row, partial(_collect, texts))
            charset = choose(texts, self._charsets)
            return self._charset_element(charset) + self._write(self._fields, row, _writer(charset))

    def _charset_element(self, charset: str) -> bytes:
        if not charset:
            return b""
        value = charset.encode("ascii")
        return self._element(self._head(SPECIFIC_CHARACTER_SET, "CS"), value, b" ", long=self._is_long("CS"))

    def _prepared_all(self, fields: Iterable[Field]) -> tuple[_Prepared, ...]:
        return tuple(self._prepared(one) for one in sorted(fields, key=lambda one: one.tag))

    def _prepared(self, one: Field) -> _Prepared:
        head, long = self._head(one.tag, one.vr), self._is_long(one.vr)
        padding = b"\0" if one.vr in _PADDED_WITH_NUL else b" "
        if one.constant is not None:
            constant = self._element(head, one.constant.encode("ascii"), padding, long=long)
            return _Prepared("", head, long, (), _text, padding, constant)
        heads = _heads(head, f"{self._order}{'I' if long else 'H'}")
        absent = b"" if one.optional else heads[0]
        return _Prepared(one.key, head, long, heads, self._value(one.vr, one.nested), padding, absent)

    def _is_long(self, vr: str) -> bool:
        return self._implicit or vr.encode("ascii") in LONG

    def _head(self, tag: int, vr: str) -> bytes:
        written = self._tag(tag >> 16, tag & 0xFFFF)
        if self._implicit:
            return written
        return written + vr.encode("ascii") + (b"\0\0" if self._is_long(vr) else b"")

    def _write(self, fields: Sequence[_Prepared], row: Row, to_bytes: ToBytes) -> bytes:
        out = bytearray()
        for key, head, long, heads, value_of, padding, absent in fields:
            element = row.get(key)
            if element is None:
                out += absent
                continue
            content = element.get("Value")
            if content:
                if value_of is _text and len(content) == 1 and content[0].__class__ is str:
                    value = to_bytes(content[0])
                else:
                    value = value_of(content, to_bytes)
            elif "InlineBinary" in element:
                value = b64decode(element["InlineBinary"])
            else:
                out += absent
                continue
            size = len(value)
            if size & 1:
                value += padding
                size += 1
            if size <= _USUAL_BYTES:
                out += heads[size >> 1]
                out += value
            else:
                out += self._element(head, value, padding, long=long)
        return bytes(out)

    def _element(self, head: bytes, value: bytes, padding: bytes, *, long: bool) -> bytes:
        if len(value) & 1:
            value += padding
        if long:
            return head + self._long(len(value)) + value
        if len(value) > _TOO_LONG:  # PS3.5 6.2.2: too long for its VR, so of VR UN
            return head[:4] + b"UN\0\0" + self._long(len(value)) + value
        return head + self._short(len(value)) + value

    def _value(self, vr: str, nested: tuple[Field, ...] | None) -> Callable[[Sequence[Any], ToBytes], bytes]:
        if vr == "PN":
            return _names
        if vr == "SQ":
            return partial(self._items, None if nested is None else self._prepared_all(nested))
        if vr in values.NUMBERS:
            return partial(_numbers, f"{self._order}{{}}{values.NUMBERS[vr]}", float if vr in ("FL", "FD") else int)
        return self._tags if vr == "AT" else _text

    def _tags(self, content: Sequence[Any], _to_bytes: ToBytes) -> bytes:
        return b"".join(self._tag(int(tag[:4], 16), int(tag[4:], 16)) for tag in content)

    def _items(self, nested: tuple[_Prepared, ...] | None, content: Sequence[Any], to_bytes: ToBytes) -> bytes:
        out = bytearray()
        for item in content:
            fields = nested
            if fields is None:
                fields = self._prepared_all(Field(int(key, 16), inner["vr"]) for key, inner in (item or {}).items())
            written = self._write(fields, item or {}, to_bytes)
            out += self._tag(0xFFFE, 0xE000) + self._long(len(written)) + written
        return bytes(out)


@lru_cache(maxsize=1024)
def _heads(head: bytes, length: str) -> tuple[bytes, ...]:
    return tuple(head + struct.pack(length, size) for size in range(0, _USUAL_BYTES + 1, 2))


_ascii: ToBytes = methodcaller("encode", "ascii")


def _writer(charset: str) -> ToBytes:
    def to_bytes(text: str) -> bytes:
        return text.encode("ascii") if text.isascii() else encode(text, charset, person_name=True)

    return to_bytes


def _collect(texts: list[str], text: str) -> bytes:
    if not text.isascii():
        texts.append(text)
    return b""


def _text(content: Sequence[Any], to_bytes: ToBytes) -> bytes:
    return to_bytes("\\".join("" if text is None else str(text) for text in content))


def _names(content: Sequence[Any], to_bytes: ToBytes) -> bytes:
    if len(content) == 1 and content[0] and content[0].keys() == _ALPHABETIC:
        return to_bytes(content[0]["Alphabetic"])
    return to_bytes("\\".join(_name(name) for name in content))


def _name(value: Any) -> str:
    groups = [str((value or {}).get(group) or "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


def _numbers(form: str, kind: type[int | float], content: Sequence[Any], _to_bytes: ToBytes) -> bytes:
    return struct.pack(form.format(len(content)), *(kind(number or 0) for number in content))
