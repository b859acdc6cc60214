"""Do two data sets say the same? (REQ-DCM-15)

Other bytes under one SOP Instance UID are often the same image: sent again in another lossless syntax, with other
padding, another character set, implicit instead of explicit VRs; or it is our own corrected output, whose Original
Attributes say what was corrected. Before a sender is accused of a conflict, elements are compared by meaning, all of
them, also those behind the pixels, and pixels decoded. In doubt the answer is no: then both are kept.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest

from archive.dicom import pixels, values
from archive.dicom.charset import LATIN1, SPECIFIC_CHARACTER_SET, terms
from archive.dicom.corrections import (
    MAC_PARAMETERS,
    MODIFIED_ATTRIBUTES,
    MODIFYING_SYSTEM,
    ORIGINAL_ATTRIBUTES,
    SIGNATURES,
    SYSTEM,
)
from archive.dicom.elements import PIXEL_TAGS, opened
from archive.dicom.file_meta import data_set_offset
from archive.dicom.frames import Frames, image_in
from archive.dicom.json import ambiguous, pixel_representation
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse
from archive.errors import NotFound, UnreadableInstance, Unsupported

# Pixels are compared decoded; these say how they, and text, are encoded.
_ENCODING = {
    0x00080001,  # Length to End (retired)
    SPECIFIC_CHARACTER_SET,
    0x00280004,  # Photometric Interpretation: compared after decoding
    0x00280006,  # Planar Configuration
    0x7FE00001,  # Extended Offset Table
    0x7FE00002,  # its lengths
    0xFFFCFFFC,  # Data Set Trailing Padding
    *PIXEL_TAGS,
}
_SIGNED = {MAC_PARAMETERS, SIGNATURES}
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Copy:
    """A stored file, and the syntax of its data set."""

    path: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class _DataSet:
    """One side of the comparison: elements, and what decides how they are read."""

    copy: Copy
    source: Source
    elements: list[Element]
    fallback: str
    charsets: tuple[str, ...] = ()
    signed: int = 0
    unsigned: bool = False  # signatures are not compared

    def within(self, elements: list[Element]) -> _DataSet:
        """The same for an item, which inherits; also makes the root's own facts known."""
        charsets = (
            next((self._terms(one) for one in elements if one.tag == SPECIFIC_CHARACTER_SET), ()) or self.charsets
        )
        signed = pixel_representation(self.source, elements, self.signed)
        return replace(self, elements=elements, charsets=charsets, signed=signed)

    def _terms(self, element: Element) -> tuple[str, ...]:
        return terms(self.source.read(element.value, element.length))

    def compared(self) -> list[Element]:
        """Elements that have a meaning of their own, ascending."""
        aside = _ENCODING | _SIGNED if self.unsigned else _ENCODING
        kept = [one for one in self.elements if one.tag not in aside and one.tag & 0xFFFF]
        return sorted(kept, key=lambda element: element.tag)


def same_meaning(one: Copy, other: Copy, *, fallback: str = LATIN1) -> bool:
    """Whether two stored files hold the same object. False in any doubt; never raises for bad content.

    Corrections of ours (`archive.dicom.coerce`) that only one of them has are set aside, and the signatures that they
    cost. Text that is no text of its character set is read with `fallback`. Memory is that of two trees of elements and
    two decoded frames.
    """
    try:
        with ExitStack() as stack:
            first, second = (_opened(stack, copy, fallback) for copy in (one, other))
            return _same(*_set_aside(first, second))
    except (UnreadableInstance, Unsupported, NotFound, OSError):
        return False


def _opened(stack: ExitStack, copy: Copy, fallback: str) -> _DataSet:
    offset = data_set_offset(copy.path)
    source, encoding = stack.enter_context(
        opened(copy.path, data_set_offset=offset, transfer_syntax_uid=copy.transfer_syntax_uid)
    )
    elements = parse(source, encoding)
    return _DataSet(copy, source, elements, fallback).within(elements)


def _set_aside(one: _DataSet, other: _DataSet) -> tuple[_DataSet, _DataSet]:
    """Both without the corrections of ours that the other does not have: as they were before."""
    histories = [len(_history(side)) for side in (one, other)]
    sides = [one, other]
    absent: set[int] = set()
    for place in (0, 1):
        for _ in range(histories[place] - histories[1 - place]):
            restored = _undone(sides[place])
            if restored is None:
                return one, other
            sides[place], empty = restored
            absent |= empty
    if sides == [one, other]:
        return one, other
    first, second = (_without_empty(side, absent) for side in sides)
    return first, second


def _without_empty(side: _DataSet, absent: set[int]) -> _DataSet:
    """What was absent left as a former value that is empty; and a signature over what was changed did not leave."""
    elements = [element for element in side.elements if element.tag not in absent or element.length]
    return replace(side, elements=elements, unsigned=True)


def _history(side: _DataSet) -> list[list[Element]]:
    """The items of Original Attributes Sequence."""
    return next((one.items or [] for one in side.elements if one.tag == ORIGINAL_ATTRIBUTES), [])


def _undone(side: _DataSet) -> tuple[_DataSet, set[int]] | None:
    """A data set before its last correction, and the tags of what was empty or absent then; None: it is not ours."""
    last = {element.tag: element for element in _history(side)[-1]}
    if MODIFYING_SYSTEM not in last or MODIFIED_ATTRIBUTES not in last:
        return None
    system, modified = last[MODIFYING_SYSTEM], last[MODIFIED_ATTRIBUTES].items or []
    if side.source.read(system.value, system.length).strip(b" \0") != SYSTEM.encode() or len(modified) != 1:
        return None
    former = {element.tag: element for element in modified[0]}
    kept = [element for element in side.elements if element.tag not in former and element.tag != ORIGINAL_ATTRIBUTES]
    history = next(one for one in side.elements if one.tag == ORIGINAL_ATTRIBUTES)
    if len(history.items or []) > 1:
        kept.append(replace(history, items=(history.items or [])[:-1]))
    kept = sorted([*kept, *former.values()], key=lambda element: element.tag)
    empty = {element.tag for element in former.values() if not element.length}
    return replace(side, elements=kept), empty


def _same(one: _DataSet, other: _DataSet) -> bool:
    for a, b in zip_longest(one.compared(), other.compared()):
        if a is None or b is None or a.tag != b.tag or not _same_element(one, a, other, b):
            return False
    return _same_pixels(one, other)


def _same_element(one: _DataSet, a: Element, other: _DataSet, b: Element) -> bool:
    if a.items is not None and b.items is not None:
        return len(a.items) == len(b.items) and all(
            _same(one.within(x), other.within(y)) for x, y in zip(a.items, b.items, strict=True)
        )
    if a.items is not None or b.items is not None:
        return not a.length and not b.length
    vrs = ambiguous(a, one.signed), ambiguous(b, other.signed)
    if max(a.length, b.length) > _PIECE:
        return _same_bytes(one, a, other, b)
    raw = [side.source.read(element.value, element.length) for side, element in ((one, a), (other, b))]
    known = [vr for vr in vrs if vr != "UN"]  # an implicit data set does not say what private elements are
    if known and all(vr in values.TEXT for vr in known):
        return _parts(raw[0], known[0], one) == _parts(raw[1], known[-1], other)
    little = [
        values.little_endian(data, vr, little=element.encoding.little)
        for data, vr, element in zip(raw, vrs, (a, b), strict=True)
    ]
    return little[0] == little[1] or _unpadded(little[0], vrs) == _unpadded(little[1], vrs)


def _parts(raw: bytes, vr: str, side: _DataSet) -> list[str]:
    """The values of a text without padding."""
    text = values.text(raw, vr, side.charsets, fallback=side.fallback)
    return [text] if vr in values.ONE_VALUE else [part.strip(" \0") for part in text.split("\\")]


def _unpadded(raw: bytes, vrs: tuple[str, str]) -> bytes:
    """Without the byte that makes a length even, where a VR may have one."""
    if any(values.unit(vr) > 1 for vr in vrs):
        return raw
    return raw[:-1] if raw.endswith((b"\0", b" ")) else raw


def _same_bytes(one: _DataSet, a: Element, other: _DataSet, b: Element) -> bool:
    """Long values, a piece at a time. Other byte orders, or other padding, are in doubt."""
    if a.length != b.length or a.encoding.little != b.encoding.little or a.undefined != b.undefined:
        return False
    return all(
        one.source.read(a.value + at, min(_PIECE, a.length - at))
        == other.source.read(b.value + at, min(_PIECE, b.length - at))
        for at in range(0, a.length, _PIECE)
    )


def _same_pixels(one: _DataSet, other: _DataSet) -> bool:
    sides = (one, other)
    elements = [next((element for element in side.elements if element.tag in PIXEL_TAGS), None) for side in sides]
    if elements == [None, None]:
        return True
    if elements[0] is None or elements[1] is None or elements[0].tag != elements[1].tag:
        return False
    images = [image_in(side.source, side.elements) for side in sides]
    syntaxes = [side.copy.transfer_syntax_uid for side in sides]
    if images[0] is None or images[1] is None:
        return False
    alike = images[0].photometric == images[1].photometric and images[0].planar == images[1].planar
    comparable = alike and (syntaxes[0] == syntaxes[1] or not images[0].encapsulated)
    if comparable and _same_bytes(one, elements[0], other, elements[1]):
        return True
    first, second = Frames(one.source, images[0], syntaxes[0]), Frames(other.source, images[1], syntaxes[1])
    return len(first) == len(second) and all(_same_frame(first, second, number) for number in range(1, len(first) + 1))


def _same_frame(first: Frames, second: Frames, number: int) -> bool:
    import numpy as np

    a, b = pixels.decode(first, number), pixels.decode(second, number)
    return a.photometric_interpretation == b.photometric_interpretation and np.array_equal(a.values, b.values)
