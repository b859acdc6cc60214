"""Finding the elements of an encoded data set (PS3.5 §7): where each one lies, without decoding any value.

No declared length is believed: nothing is allocated for it, nothing is read beyond the data set, nesting and the
number of elements are limited. What real writers do wrong and can be read without doubt is read: odd lengths,
unknown VRs, implicit elements in explicit data sets, missing item delimiters, zero bytes at the end.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from archive.dicom import syntaxes
from archive.dicom.source import Source
from archive.errors import UnreadableInstance

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
MAX_NESTING = 32


class Encoding(NamedTuple):
    """How elements are written (PS3.5 §10, Annex A)."""

    implicit: bool
    little: bool
    deflated: bool = False


EXPLICIT_LE = Encoding(implicit=False, little=True)
IMPLICIT_LE = Encoding(implicit=True, little=True)
EXPLICIT_BE = Encoding(implicit=False, little=False)
_DEFLATED = Encoding(implicit=False, little=True, deflated=True)
_ENCODINGS = {
    syntaxes.IMPLICIT_LE: IMPLICIT_LE,
    "1.2.840.113619.5.2": IMPLICIT_LE,  # GE private: implicit, with big endian pixels
    syntaxes.EXPLICIT_BE: EXPLICIT_BE,
    syntaxes.DEFLATED_LE: _DEFLATED,
    f"{syntaxes.JPEG}95": _DEFLATED,  # JPIP, referenced and deflated
    f"{syntaxes.JPEG}205": _DEFLATED,
}


def encoding_of(transfer_syntax_uid: str) -> Encoding:
    """Explicit VR little endian for every transfer syntax that says nothing else (PS3.5 Annex A.4)."""
    return _ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LE)


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


class Scanner:
    """Collects wanted values of the top level of a data set up to its Pixel Data, stepping over all else.

    Values longer than `max_bytes` are not collected. Made once for a set of tags, used for many data sets.
    """

    def __init__(self, wanted: Collection[int], *, max_bytes: int) -> None:
        self._wanted = frozenset(wanted)
        self._max_bytes = max_bytes
        self._codes = {little: order.codes(wanted, PIXEL_TAGS) for little, order in ORDERS.items()}

    def scan(self, source: Source, encoding: Encoding) -> tuple[Kept, int | None]:
        """The raw values found, and where Pixel Data starts, if there is any.

        Raises:
            UnreadableInstance: the elements before cannot be followed.
        """
        found: Kept = {}
        codes = self._codes[encoding.little]
        position = 0
        while True:
            position = stride(source, position, encoding, codes, found)
            announced = head(source, position, encoding)
            if announced is None:
                return found, None
            tag, vr, length, value = announced
            if tag in PIXEL_TAGS:
                return found, position
            source.step()
            how = IMPLICIT_LE if vr == b"UN" else encoding
            position = value + length
            if length == UNDEFINED:
                how = inside(source, value, vr, encoding)
                position = skip(source, value, how)
            elif position > source.size:
                raise UnreadableInstance("the data set ends inside an element")
            if tag in self._wanted and position - value <= self._max_bytes:
                found[tag] = (vr, source.read(value, position - value), how)


@contextmanager
def opened(path: str, *, data_set_offset: int, transfer_syntax_uid: str) -> Iterator[tuple[Source, Encoding]]:
    """The data set of a stored file, which is open meanwhile.

    Raises:
        OSError: the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        encoding = encoding_of(transfer_syntax_uid)
        length = max(0, os.fstat(fd).st_size - data_set_offset)
        yield Source(fd, offset=data_set_offset, length=length, deflated=encoding.deflated), encoding
    finally:
        os.close(fd)
