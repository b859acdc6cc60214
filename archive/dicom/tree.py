"""All elements of a data set with those of its sequences, as a tree of positions: values stay where they are."""

from __future__ import annotations

from dataclasses import dataclass

from archive.dicom.dictionary import private_vr, public_vr
from archive.dicom.elements import (
    IMPLICIT_LE,
    ITEM,
    ITEM_END,
    MAX_NESTING,
    PIXEL_TAGS,
    SEQUENCE_END,
    UNDEFINED,
    Encoding,
    head,
    inside,
    skip,
)
from archive.dicom.source import Source
from archive.errors import UnreadableInstance

Creators = dict[int, str]  # private creators by their block, as far as they are known


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


def parse(source: Source, encoding: Encoding, *, cut: bool = False) -> list[Element]:
    """All elements of a data set, with those of their items.

    `cut`: pixels that are cut short end where the data set ends.

    Raises:
        UnreadableInstance: they cannot be followed.
    """
    return _parse(source, 0, source.end(), encoding, 0, stop=False, cut=cut)[0]


def top_level(source: Source, encoding: Encoding) -> list[Element]:
    """The elements of the top level alone, sequences not unfolded, as far as they can be followed.

    What lies behind pixels and cannot be followed is left out; pixels that are cut short end with the data set.

    Raises:
        UnreadableInstance: the elements before pixels cannot be followed.
    """
    elements: list[Element] = []
    try:
        _parse(source, 0, source.end(), encoding, 0, stop=False, cut=True, deep=False, into=elements)
    except UnreadableInstance:
        if not any(element.tag in PIXEL_TAGS for element in elements):
            raise
    return elements


def unfold(source: Source, element: Element) -> None:
    """Find the items of a sequence of `top_level`. What cannot be followed keeps none."""
    if element.vr != "SQ" or element.items is not None:
        return
    end = source.end() if element.undefined else element.end
    try:
        element.items, _ = _items(source, element.value, end, element.encoding, 0, stop=element.undefined)
    except UnreadableInstance:
        return


def parse_items(source: Source, encoding: Encoding) -> list[list[Element]]:
    """The items of a sequence whose value is all of `source`.

    Raises:
        UnreadableInstance: they cannot be followed.
    """
    return _items(source, 0, source.end(), encoding, 0, stop=False)[0]


def element_at(source: Source, position: int, encoding: Encoding, creators: Creators) -> Element | None:
    """The element of the top level at a position, as `parse` with `cut` finds it behind those that made `creators`
    known; None: no element begins there.

    Raises:
        UnreadableInstance: it cannot be followed.
    """
    found = head(source, position, encoding)
    if found is None or found[0] >> 16 == 0xFFFE:
        return None
    source.step()
    return _element(source, position, found, creators, source.end(), encoding=encoding, depth=0, cut=True, deep=True)


def is_creator(tag: int) -> bool:
    """Whether an element names who owns a block of private ones (PS3.5 §7.8.1)."""
    return bool(tag & 0x10000) and 0x10 <= tag & 0xFFFF <= 0xFF


def note_creator(source: Source, element: Element, creators: Creators) -> None:
    """Remember a private creator for the elements that follow it."""
    if is_creator(element.tag) and element.length <= 64:
        creators[element.tag & 0xFFFF] = source.read(element.value, element.length).decode("latin_1").strip(" \0")


def _parse(
    source: Source,
    position: int,
    end: int,
    encoding: Encoding,
    depth: int,
    *,
    stop: bool,
    cut: bool = False,
    deep: bool = True,
    into: list[Element] | None = None,
) -> tuple[list[Element], int]:
    """Elements up to `end`, or with `stop` up to the end of their item; put `into` a list as they are found."""
    if depth > MAX_NESTING:
        raise UnreadableInstance(f"nested deeper than {MAX_NESTING}")
    elements: list[Element] = [] if into is None else into
    creators: Creators = {}
    while position < end:
        found = head(source, position, encoding)
        if found is None:
            break
        tag, _, length, value = found
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
        element = _element(source, position, found, creators, end, encoding=encoding, depth=depth, cut=cut, deep=deep)
        if tag & 0x10000:
            note_creator(source, element, creators)
        elements.append(element)
        position = element.end
    if stop:
        raise UnreadableInstance("an item has no end")
    return elements, position


def _element(
    source: Source,
    position: int,
    found: tuple[int, bytes, int, int],
    creators: Creators,
    end: int,
    *,
    encoding: Encoding,
    depth: int,
    cut: bool,
    deep: bool,
) -> Element:
    """The element whose head was `found`."""
    tag, written, length, value = found
    vr = written.decode("ascii", "replace") if written not in (b"", b"UN") else _known_vr(tag, creators)
    element = Element(tag, vr, position, value, value + length, length == UNDEFINED, encoding)
    try:
        _complete(source, element, written, end, depth, deep=deep)
    except UnreadableInstance:
        if not (cut and tag in PIXEL_TAGS):
            raise
        element.end = end
    return element


def _complete(source: Source, element: Element, written: bytes, end: int, depth: int, *, deep: bool) -> None:
    """Find the end of an element, and with `deep` its items if it is a sequence."""
    if element.undefined:
        element.encoding = inside(source, element.value, written, element.encoding)
        if element.vr not in ("SQ", "UN"):  # encapsulated fragments
            element.end = skip(source, element.value, element.encoding)
            return
        element.vr = "SQ"
        if deep:
            element.items, element.end = _items(source, element.value, end, element.encoding, depth, stop=True)
        else:
            element.end = skip(source, element.value, element.encoding)
        return
    if element.end > end:
        raise UnreadableInstance("the data set ends inside an element")
    if written == b"UN":
        element.encoding = IMPLICIT_LE
    if element.vr == "SQ" and deep:
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


def _known_vr(tag: int, creators: Creators) -> str:
    """The VR of the dictionary for an element that is written without one."""
    if tag & 0x10000:
        element = tag & 0xFFFF
        if element <= 0xFF:
            return "LO" if element >= 0x10 else "UL" if element == 0 else "UN"
        return private_vr(tag, creators.get(element >> 8, ""))
    return public_vr(tag)
