"""The elements of an encoded data set (PS3.5 §7): where each one lies, without decoding any value.

Everything here believes no declared length: nothing is allocated for it, nothing is read beyond the data set, nesting
and the number of elements are limited. What real writers do wrong and can be read without doubt is read: odd
lengths, unknown VRs, implicit elements in explicit data sets, missing item delimiters, zero bytes at the end.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Final, NamedTuple

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from archive.errors import UnreadableInstance

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

MAX_NESTING = 32
MAX_ELEMENTS = 5_000_000
MAX_INFLATED_BYTES = 1 << 30
_CHUNK = 1 << 15
_INFLATED_IN_MEMORY = 1 << 22


class Encoding(NamedTuple):
    """How elements are written (PS3.5 §10, Annex A)."""

    implicit: bool
    little: bool
    deflated: bool = False


EXPLICIT_LE = Encoding(implicit=False, little=True)
IMPLICIT_LE = Encoding(implicit=True, little=True)
EXPLICIT_BE = Encoding(implicit=False, little=False)
_ENCODINGS = {
    "1.2.840.10008.1.2": IMPLICIT_LE,
    "1.2.840.113619.5.2": IMPLICIT_LE,  # GE private: implicit, with big endian pixels
    "1.2.840.10008.1.2.2": EXPLICIT_BE,
    "1.2.840.10008.1.2.1.99": Encoding(implicit=False, little=True, deflated=True),
    "1.2.840.10008.1.2.4.95": Encoding(implicit=False, little=True, deflated=True),
    "1.2.840.10008.1.2.4.205": Encoding(implicit=False, little=True, deflated=True),
}


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """Explicit VR little endian for every transfer syntax that says nothing else (PS3.5 Annex A.4)."""
    return _ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LE)


class Source:
    """A data set in a file, read through a window. Positions count from the start of the data set.

    Deflated data sets are inflated as far as they are asked for, into memory, then into a temporary file.
    """

    def __init__(self, fd: int, *, offset: int, length: int, deflated: bool = False) -> None:
        self.fd = fd
        self.offset = offset
        self.size = length
        self.steps = 0
        self._window = b""
        self._base = 0
        self._inflating = _Inflating(fd, offset, length) if deflated else None
        if deflated:
            self.size = 1 << 62  # not known before the end is reached

    @classmethod
    def of_bytes(cls, data: bytes) -> Source:
        """A data set that is in memory already."""
        source = cls(-1, offset=0, length=len(data))
        source._window = data
        return source

    def at(self, position: int, least: int) -> tuple[bytes, int]:
        """A window and the position of its first byte; it holds `least` bytes from `position`, fewer only at the end.

        Raises:
            UnreadableInstance: `position` lies beyond the end.
        """
        start = position - self._base
        if start >= 0 and start + least <= len(self._window):
            return self._window, self._base
        if self._inflating is not None:
            window = self._inflating.read(position, max(least, _CHUNK))
        else:
            if position > self.size:
                raise UnreadableInstance("the data set ends inside an element")
            if self.fd < 0:
                return self._window, 0
            window = os.pread(self.fd, min(max(least, _CHUNK), self.size - position), self.offset + position)
        self._window, self._base = window, position
        return window, position

    def read(self, position: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            UnreadableInstance: the data set ends before.
        """
        if position + length > self.size:
            raise UnreadableInstance("the data set ends inside an element")
        window, base = self.at(position, length)
        value = window[position - base : position - base + length]
        if len(value) < length:
            raise UnreadableInstance("the data set ends inside an element")
        return value

    def end(self) -> int:
        """The length of the data set; a deflated one is inflated whole."""
        if self._inflating is not None:
            self.size = self._inflating.finish()
        return self.size

    def step(self) -> None:
        """Count an element.

        Raises:
            UnreadableInstance: there are more than any real object has.
        """
        self.steps += 1
        if self.steps > MAX_ELEMENTS:
            raise UnreadableInstance(f"more than {MAX_ELEMENTS} elements")


class _Inflating:
    """RFC 1951 bytes of a file, inflated on demand and kept, up to MAX_INFLATED_BYTES."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd, self._next, self._end = fd, offset, offset + length
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._kept: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_INFLATED_IN_MEMORY)  # noqa: SIM115
        self._have = 0

    def read(self, position: int, length: int) -> bytes:
        self._inflate(position + length)
        if position > self._have:
            raise UnreadableInstance("the data set ends inside an element")
        self._kept.seek(position)
        return self._kept.read(length)

    def finish(self) -> int:
        self._inflate(MAX_INFLATED_BYTES + 1)
        return self._have

    def _inflate(self, wanted: int) -> None:
        while self._have < wanted and not self._inflater.eof:
            raw = self._inflater.unconsumed_tail
            if not raw:
                raw = os.pread(self._fd, min(1 << 16, self._end - self._next), self._next)
                self._next += len(raw)
            if not raw:
                raise UnreadableInstance("the deflated data set is cut short")
            try:
                data = self._inflater.decompress(raw, 1 << 20)
            except zlib.error as error:
                raise UnreadableInstance("the deflated data set cannot be inflated") from error
            self._kept.seek(self._have)
            self._kept.write(data)
            self._have += len(data)
            if self._have > MAX_INFLATED_BYTES:
                raise UnreadableInstance(f"more than {MAX_INFLATED_BYTES} bytes when inflated")


@dataclass(slots=True)
class Element:
    """One element. Positions in the data set: of its tag, of its value, and of what follows it."""

    tag: int
    vr: str
    start: int
    value: int
    end: int
    undefined: bool
    encoding: Encoding  # of its value
    items: list[list[Element]] | None = None  # of a sequence

    @property
    def length(self) -> int:
        """Bytes of the value; of one with undefined length, delimiters included."""
        return self.end - self.value


_HEAD = {True: struct.Struct("<HH2sH"), False: struct.Struct(">HH2sH")}
_TAG = {True: struct.Struct("<HHI"), False: struct.Struct(">HHI")}
_LENGTH = {True: struct.Struct("<I"), False: struct.Struct(">I")}


def head(source: Source, position: int, encoding: Encoding) -> tuple[int, bytes, int, int] | None:
    """Tag, VR (empty: not written), declared length and position of the value; None at the end of the data set.

    Raises:
        UnreadableInstance: the data set ends inside.
    """
    window, base = source.at(position, 12)
    start = position - base
    left = len(window) - start
    if left < 8:
        if any(window[start:]):
            raise UnreadableInstance("the data set ends inside an element")
        return None
    little = encoding.little
    group, element, vr, short = _HEAD[little].unpack_from(window, start)
    tag = group << 16 | element
    if vr in SHORT and not encoding.implicit:
        return tag, vr, short, position + 8
    if encoding.implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
        return tag, b"", _TAG[little].unpack_from(window, start)[2], position + 8
    longer = _LENGTH[little].unpack_from(window, start + 8)[0] if left >= 12 else UNDEFINED
    if vr in LONG:
        if left < 12:
            raise UnreadableInstance("the data set ends inside an element")
        return tag, vr, longer, position + 12
    # a VR of the future is written long (PS3.5 §6.2); those that some writers invent are not
    if short == 0 and position + 12 + longer <= source.size:
        return tag, vr, longer, position + 12
    return tag, vr, short, position + 8


def inside(source: Source, position: int, vr: bytes, encoding: Encoding) -> Encoding:
    """How the items of a value of undefined length are written: those of UN are implicit, little endian (PS3.5 §6.2.2).

    Some writers leave them explicit: then the first element of the first item shows a VR.
    """
    if encoding.implicit or vr not in (b"UN", b""):
        return encoding
    window, base = source.at(position, 16)
    peek = window[position - base : position - base + 16]
    if vr == b"UN" and peek[:4] == b"\xff\xfe\xe0\x00":
        return encoding
    return EXPLICIT_LE if peek[12:14] in SHORT or peek[12:14] in LONG else IMPLICIT_LE


def skip(source: Source, position: int, encoding: Encoding) -> int:
    """The end of a value of undefined length: a sequence, or encapsulated fragments.

    Raises:
        UnreadableInstance: no end is found, or the limits are passed.
    """
    stack = [(True, encoding)]  # (items are expected, else elements of an item; how they are written)
    while stack:
        items, encoding = stack[-1]
        if not items:
            position = stride(source, position, encoding, _ITEMS[encoding.little], {})
        found = head(source, position, encoding)
        if found is None:
            raise UnreadableInstance("a sequence has no end")
        tag, vr, length, value = found
        source.step()
        position = value
        if tag == SEQUENCE_END:
            stack.pop()
            if not items:  # the item's own delimiter is missing
                stack.pop()
        elif tag == ITEM_END:
            if not items:
                stack.pop()
        elif items and tag != ITEM:
            raise UnreadableInstance("a sequence holds something that is not an item")
        elif length == UNDEFINED:
            if len(stack) >= 2 * MAX_NESTING:
                raise UnreadableInstance(f"nested deeper than {MAX_NESTING}")
            stack.append((False, encoding) if items else (True, inside(source, value, vr, encoding)))
        else:
            position = value + length
            if position > source.size:
                raise UnreadableInstance("the data set ends inside an element")
    return position


class _Order:
    """The bytes of tags and VRs as the numbers that one byte order makes of them: what `stride` compares."""

    def __init__(self, *, little: bool) -> None:
        order = "<" if little else ">"
        self.explicit = struct.Struct(f"{order}IHH").unpack_from
        self.implicit = struct.Struct(f"{order}II").unpack_from
        self.long = struct.Struct(f"{order}I").unpack_from
        vrs = {struct.unpack(f"{order}H", vr)[0]: vr for vr in SHORT | LONG}
        self.short_vrs = {code: vr for code, vr in vrs.items() if vr in SHORT}
        self.long_vrs = {code: vr for code, vr in vrs.items() if vr in LONG}
        self._little = little

    def codes(self, wanted: Iterable[int], stops: Iterable[int]) -> dict[int, int]:
        """For `stride`: tags that it keeps, and 0 for those that it stops at."""
        tags = {tag: tag for tag in wanted} | dict.fromkeys((*stops, ITEM, ITEM_END, SEQUENCE_END), 0)
        if self._little:
            return {(tag & 0xFFFF) << 16 | tag >> 16: kept for tag, kept in tags.items()}
        return tags


ORDERS: Final = {True: _Order(little=True), False: _Order(little=False)}
_ITEMS = {little: order.codes((), ()) for little, order in ORDERS.items()}

Kept = dict[int, tuple[bytes, bytes, Encoding]]


def stride(source: Source, position: int, encoding: Encoding, codes: dict[int, int], kept: Kept) -> int:
    """Step over plain elements of defined length, keeping wanted values: (VR, value, how it is written).

    Stops in front of anything else: stops, items, undefined lengths, odd VRs, wanted values of VR UN or beyond the
    window, the last bytes of the window. The position may lie beyond the end: the next read says so.
    """
    window, base = source.at(position, 12)
    start = before = position - base
    last = len(window) - 12
    order = ORDERS[encoding.little]
    implicit, explicit, long = order.implicit, order.explicit, order.long
    short_vrs, long_vrs = order.short_vrs, order.long_vrs
    steps = 0
    while start <= last:
        if encoding[0]:  # implicit
            code, length = implicit(window, start)
            value, vr = start + 8, 0
        else:
            code, vr, length = explicit(window, start)
            if vr in short_vrs:
                value = start + 8
            elif vr in long_vrs:
                length = long(window, start + 8)[0]
                value = start + 12
            else:
                break
        end = value + length
        if length == UNDEFINED:
            break
        if code in codes:
            tag = codes[code]
            written = short_vrs.get(vr) or long_vrs.get(vr, b"")
            if not tag or end - 12 > last or written == b"UN":
                break
            kept[tag] = (written, window[value:end], encoding)
        start = end
        steps += 1
    if steps:
        source.steps += steps - 1
        source.step()
    return position + start - before


def parse(source: Source, encoding: Encoding, *, start: int = 0, end: int | None = None) -> list[Element]:
    """The elements from `start` to `end` (default: to the end of the data set), with those of their items.

    Raises:
        UnreadableInstance: they cannot be followed.
    """
    return _parse(source, start, source.end() if end is None else end, encoding, 0, stop=False)[0]


def parse_items(source: Source, encoding: Encoding) -> list[list[Element]]:
    """The items of a sequence whose value is all of `source`.

    Raises:
        UnreadableInstance: they cannot be followed.
    """
    return _items(source, 0, source.end(), encoding, 0, stop=False)[0]


def _parse(
    source: Source, position: int, end: int, encoding: Encoding, depth: int, *, stop: bool
) -> tuple[list[Element], int]:
    """Elements up to `end`, or with `stop` up to the end of their item."""
    if depth > MAX_NESTING:
        raise UnreadableInstance(f"nested deeper than {MAX_NESTING}")
    elements: list[Element] = []
    creators: dict[int, str] = {}
    while position < end:
        found = head(source, position, encoding)
        if found is None:
            break
        tag, written, length, value = found
        source.step()
        if tag >> 16 == 0xFFFE:
            if tag == ITEM_END and stop:
                return elements, value
            if tag == SEQUENCE_END and stop:
                return elements, position  # the item's own delimiter is missing
            position = value if length == UNDEFINED else value + length
            if position > end:
                raise UnreadableInstance("the data set ends inside an element")
            continue
        vr = written.decode("ascii", "replace") if written not in (b"", b"UN") else _known_vr(tag, creators)
        element = Element(tag, vr, position, value, value + length, length == UNDEFINED, encoding)
        _complete(source, element, written, end, depth)
        if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF and element.length <= 64:
            creators[tag & 0xFFFF] = source.read(value, element.length).decode("latin_1").strip(" \0")
        elements.append(element)
        position = element.end
    if stop:
        raise UnreadableInstance("an item has no end")
    return elements, position


def _complete(source: Source, element: Element, written: bytes, end: int, depth: int) -> None:
    """Find the end of an element, and its items if it is a sequence."""
    if element.undefined:
        element.encoding = inside(source, element.value, written, element.encoding)
        if element.vr not in ("SQ", "UN"):  # encapsulated fragments
            element.end = skip(source, element.value, element.encoding)
            return
        element.vr = "SQ"
        element.items, element.end = _items(source, element.value, end, element.encoding, depth, stop=True)
        return
    if element.end > end:
        raise UnreadableInstance("the data set ends inside an element")
    if written == b"UN":
        element.encoding = IMPLICIT_LE
    if element.vr == "SQ":
        try:
            element.items, _ = _items(source, element.value, element.end, element.encoding, depth, stop=False)
        except UnreadableInstance:
            if written != b"UN":
                raise
            element.vr = "UN"  # the dictionary says sequence, the value does not


def _items(
    source: Source, position: int, end: int, encoding: Encoding, depth: int, *, stop: bool
) -> tuple[list[list[Element]], int]:
    items: list[list[Element]] = []
    while position < end:
        found = head(source, position, encoding)
        if found is None:
            break
        tag, _, length, value = found
        source.step()
        if tag == SEQUENCE_END:
            return items, value
        if tag == ITEM_END:
            position = value
            continue
        if tag != ITEM:
            raise UnreadableInstance("a sequence holds something that is not an item")
        if length != UNDEFINED and value + length > end:
            raise UnreadableInstance("the data set ends inside an element")
        limit = end if length == UNDEFINED else value + length
        item, position = _parse(source, value, limit, encoding, depth + 1, stop=length == UNDEFINED)
        items.append(item)
    if stop:
        raise UnreadableInstance("a sequence has no end")
    return items, position


def _known_vr(tag: int, creators: dict[int, str]) -> str:
    """The VR of the dictionary for an element that is written without one."""
    if tag & 0x10000:
        element = tag & 0xFFFF
        if element <= 0xFF:
            return "LO" if element >= 0x10 else "UL" if element == 0 else "UN"
        return _private_vr(tag, creators.get(element >> 8, ""))
    return public_vr(tag)


@lru_cache(maxsize=4096)
def public_vr(tag: int) -> str:
    """The VR of a standard element; UN when the dictionary does not know it. May be ambiguous, as "US or SS"."""
    if tag & 0xFFFF == 0:
        return "UL"
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "UN"


@lru_cache(maxsize=4096)
def _private_vr(tag: int, creator: str) -> str:
    try:
        return str(private_dictionary_VR(tag, creator)) if creator else "UN"
    except KeyError:
        return "UN"
