"""The values behind the BulkDataURIs of `archive.dicom.json` (PS3.18 10.4.1.1.5)."""

from __future__ import annotations

from collections.abc import Iterator

from archive.dicom import elements, values
from archive.dicom.elements import Encoding
from archive.dicom.frames import Frames, image_in
from archive.dicom.json import ambiguous, pixel_representation
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse
from archive.errors import NotFound, Unsupported

PIECE_BYTES = 1 << 20
_WHOLE = 8  # bytes of the longest number


def bulk_data(
    path: str, tag_path: str, *, data_set_offset: int, transfer_syntax_uid: str, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The value of one element in pieces, little endian, as octets; of it the bytes from `start` up to `end`.

    `tag_path` is what `metadata` gave to its `bulk_uri`: `7FE00010`, or `SEQUENCE/ITEM/TAG` with items from 1. The
    element is looked up before the first piece. Encapsulated pixels are frames, each in its own part: they are not
    given here.

    Raises:
        NotFound: there is no such element, or it is a sequence.
        Unsupported: encapsulated pixel data.
        UnreadableInstance, OSError: the file cannot be followed, or read.
    """
    pieces = _pieces(path, tag_path, data_set_offset, transfer_syntax_uid, span=(start, end))
    next(pieces)
    return pieces


def bulk_length(path: str, tag_path: str, *, data_set_offset: int, transfer_syntax_uid: str) -> int:
    """How many bytes `bulk_data` gives; arguments and errors as there."""
    where = data_set_offset
    with elements.opened(path, data_set_offset=where, transfer_syntax_uid=transfer_syntax_uid) as (source, encoding):
        return _value(source, encoding, tag_path)[0].length


def bulk_frames(path: str, tag_path: str, *, data_set_offset: int, transfer_syntax_uid: str) -> Iterator[bytes]:
    """The encoded frames of encapsulated pixels, one after the other; arguments and errors as `bulk_data`.

    Raises:
        NotFound: there are no encapsulated pixels.
    """
    frames = _frames(path, tag_path, data_set_offset, transfer_syntax_uid)
    next(frames)
    return frames


def _frames(path: str, tag_path: str, data_set_offset: int, transfer_syntax_uid: str) -> Iterator[bytes]:
    where = data_set_offset
    with elements.opened(path, data_set_offset=where, transfer_syntax_uid=transfer_syntax_uid) as (source, encoding):
        element, siblings, _ = _find(source, encoding, tag_path)
        image = image_in(source, siblings)
        if image is None or image.tag != element.tag or not image.encapsulated:
            raise NotFound("no encapsulated pixels there")
        frames = Frames(source, image, transfer_syntax_uid)
        yield b""  # found
        for number in range(1, len(frames) + 1):
            yield frames.read(number)


def _pieces(
    path: str, tag_path: str, data_set_offset: int, transfer_syntax_uid: str, *, span: tuple[int, int | None]
) -> Iterator[bytes]:
    where, (start, end) = data_set_offset, span
    with elements.opened(path, data_set_offset=where, transfer_syntax_uid=transfer_syntax_uid) as (source, encoding):
        element, vr = _value(source, encoding, tag_path)
        yield b""  # found
        first = element.value + start - start % _WHOLE  # no number is cut in two before it is turned round
        last = element.end if end is None else min(element.end, element.value + end)
        for position in range(first, last, PIECE_BYTES):
            raw = source.read(position, min(PIECE_BYTES, element.end - position))
            turned = values.little_endian(raw, vr, little=element.encoding.little)
            yield turned[max(0, element.value + start - position) : last - position]


def _value(source: Source, encoding: Encoding, tag_path: str) -> tuple[Element, str]:
    element, _, signed = _find(source, encoding, tag_path)
    if element.undefined:
        raise Unsupported("encapsulated: its frames are given, each in its own part")
    return element, ambiguous(element, signed)


def _find(source: Source, encoding: Encoding, tag_path: str) -> tuple[Element, list[Element], int]:
    """The element of a path, those beside it, and the Pixel Representation that holds there."""
    level = parse(source, encoding, cut=True)
    signed = 0
    parts = tag_path.upper().split("/")
    for part in range(0, len(parts), 2):
        signed = pixel_representation(source, level, signed)
        element = next((one for one in level if f"{one.tag:08X}" == parts[part]), None)
        if element is None:
            break
        if part + 1 == len(parts):
            if element.items is not None:
                break
            return element, level, signed
        items = element.items or []
        number = parts[part + 1]
        if not number.isdigit() or not 1 <= int(number) <= len(items):
            break
        level = items[int(number) - 1]
    raise NotFound("no such element")
