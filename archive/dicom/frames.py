"""Frames of stored pixel data: where each one lies (PS3.5 §8, Annex A.4), without decoding any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from archive.dicom import syntaxes
from archive.dicom.elements import (
    IMPLICIT_LE,
    ITEM,
    PIXEL_TAGS,
    SEQUENCE_END,
    UNDEFINED,
    Encoding,
    Kept,
    Scanner,
    head,
)
from archive.dicom.source import Source
from archive.dicom.tree import Element
from archive.errors import NotFound, UnreadableInstance, Unsupported
from archive.stretch import Stretch

Ranges = tuple[tuple[int, int], ...]  # offset and length of each piece, in order

_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\xff\x0a")  # JPEG and JPEG-LS, JPEG 2000, JPEG XL
_TAGS: Final = {
    0x00280002: "samples", 0x00280004: "photometric", 0x00280006: "planar", 0x00280008: "frames", 0x00280010: "rows",
    0x00280011: "columns", 0x00280100: "allocated", 0x00280101: "stored", 0x00280103: "signed",
    0x7FE00001: "offsets", 0x7FE00002: "lengths",
}  # fmt: skip
_MAX_TABLE_BYTES = 1 << 24
_PIECE_BYTES = 1 << 20
_WORTH_BYTES = 1 << 16  # of a frame that the system is to send unread
_SCANNER = Scanner(_TAGS, max_bytes=_MAX_TABLE_BYTES)


@dataclass(frozen=True, slots=True)
class Image:
    """The Image Pixel module of a data set (PS3.3 C.7.6.3), and where its pixels lie. Positions in the data set."""

    tag: int  # of Pixel Data, Float Pixel Data or Double Float Pixel Data
    vr: str  # as it is written, "" in implicit data sets
    start: int
    value: int
    end: int  # of the data set, where the length is undefined
    encapsulated: bool
    encoding: Encoding
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: int
    planar: int
    photometric: str
    frames: int
    offsets: tuple[int, ...] = ()  # Extended Offset Table
    lengths: tuple[int, ...] = ()

    @property
    def frame_bits(self) -> int:
        """Bits of a native frame; two samples a pixel where chrominance is halved (PS3.3 C.7.6.3.1.2)."""
        pixels = self.rows * self.columns
        if self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422") and self.samples == 3:
            return pixels * 2 * self.bits_allocated
        return pixels * self.samples * self.bits_allocated


def image_of(source: Source, encoding: Encoding) -> Image | None:
    """The image of a data set; None when it has no pixels.

    Raises:
        UnreadableInstance: the elements before the pixels cannot be followed.
    """
    kept, position = _SCANNER.scan(source, encoding)
    if position is None:
        return None
    announced = head(source, position, encoding)
    if announced is None:
        return None
    tag, vr, length, value = announced
    end = source.end() if length == UNDEFINED else value + length
    pixels = Element(tag, vr.decode("latin_1"), position, value, end, length == UNDEFINED, encoding)
    return _image(kept, pixels)


def image_in(source: Source, elements: list[Element]) -> Image | None:
    """The same for parsed elements, for example an icon in a sequence."""
    pixels = next((element for element in elements if element.tag in PIXEL_TAGS), None)
    if pixels is None:
        return None
    kept: Kept = {
        element.tag: (element.vr.encode(), source.read(element.value, element.length), element.encoding)
        for element in elements
        if element.tag in _TAGS and element.length <= _MAX_TABLE_BYTES
    }
    return _image(kept, pixels)


def _image(kept: Kept, pixels: Element) -> Image:
    facts = {name: kept[number] for number, name in _TAGS.items() if number in kept}
    short = {name: _number(facts[name]) for name in facts if name not in ("photometric", "frames")}
    encoding = pixels.encoding
    floating = {0x7FE00008: 32, 0x7FE00009: 64}.get(pixels.tag)
    frames = facts.get("frames", (b"", b"1", encoding))[1].strip(b" \0")
    return Image(
        tag=pixels.tag,
        vr=pixels.vr,
        start=pixels.start,
        value=pixels.value,
        end=pixels.end,
        encapsulated=pixels.undefined,
        encoding=encoding,
        rows=short.get("rows", 0),
        columns=short.get("columns", 0),
        samples=short.get("samples", 1),
        bits_allocated=short.get("allocated", floating or 0),
        bits_stored=short.get("stored", short.get("allocated", 0)),
        signed=short.get("signed", 0),
        planar=short.get("planar", 0),
        photometric=facts.get("photometric", (b"", b"", encoding))[1].decode("latin_1").strip(" \0"),
        frames=max(1, int(frames)) if frames.isdigit() and len(frames) < 10 else 1,
        offsets=_longs(facts.get("offsets")),
        lengths=_longs(facts.get("lengths")),
    )


def _number(raw: tuple[bytes, bytes, Encoding]) -> int:
    return int.from_bytes(raw[1][:2], "little" if raw[2].little else "big")


def _longs(raw: tuple[bytes, bytes, Encoding] | None) -> tuple[int, ...]:
    if raw is None:
        return ()
    data = raw[1]
    return tuple(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) - 7, 8))


def ranges(source: Source, image: Image, transfer_syntax_uid: str) -> list[Ranges]:
    """Where each frame lies in the data set; frames of single bits may share a byte with their neighbours.

    Raises:
        UnreadableInstance: pixels are missing or the fragments cannot be followed.
        Unsupported: frames that cannot be told apart: video, or fragments without a table.
    """
    if not image.encapsulated:
        return _native(source, image)
    if transfer_syntax_uid in syntaxes.VIDEO:
        raise Unsupported("a video has no frames that can be told apart")
    return _encapsulated(source, image, transfer_syntax_uid)


def _native(source: Source, image: Image) -> list[Ranges]:
    bits = image.frame_bits
    if not bits:
        raise UnreadableInstance("the image says no rows, columns or bits")
    if image.value + (bits * image.frames + 7) // 8 > min(image.end, source.end()):
        raise UnreadableInstance("there are fewer pixels than the image says")
    starts = range(0, bits * image.frames, bits)
    return [((image.value + start // 8, (start + bits + 7) // 8 - start // 8),) for start in starts]


def _encapsulated(source: Source, image: Image, transfer_syntax_uid: str) -> list[Ranges]:
    table, fragments = _fragments(source, image)
    first = fragments[0][0] - 8 if fragments else 0
    places = {position - 8 - first: number for number, (position, _) in enumerate(fragments)}
    count = image.frames
    for offsets in (image.offsets, table):
        starts = [places.get(offset, -1) for offset in offsets]
        if len(starts) == count and starts[0] == 0 and all(a < b for a, b in pairwise(starts)):
            grouped = _grouped(fragments, starts)
            if offsets is image.offsets and len(image.lengths) == count:
                return [_cut(pieces, length) for pieces, length in zip(grouped, image.lengths, strict=True)]
            return grouped
    if len(fragments) == count:
        return [(fragment,) for fragment in fragments]
    if count == 1 and fragments:
        return [tuple(fragments)]
    if transfer_syntax_uid != syntaxes.RLE:
        starts = [n for n, (position, length) in enumerate(fragments) if _begins(source, position, length)]
        if len(starts) == count and starts[0] == 0:
            return _grouped(fragments, starts)
    raise Unsupported(f"{count} frames in {len(fragments)} fragments that cannot be told apart")


def _fragments(source: Source, image: Image) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The Basic Offset Table, and where the bytes of each fragment lie."""
    position = image.value
    end = source.end()
    table: tuple[int, ...] | None = None
    fragments: list[tuple[int, int]] = []
    while position < end:
        found = head(source, position, IMPLICIT_LE)
        if found is None:
            break
        tag, _, length, value = found
        source.step()
        if tag == SEQUENCE_END:
            break
        if tag != ITEM or value + length > end:
            raise UnreadableInstance("the fragments of the pixels cannot be followed")
        if table is None:
            raw = source.read(value, min(length, _MAX_TABLE_BYTES))
            table = tuple(int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw) - 3, 4))
        else:
            fragments.append((value, length))
        position = value + length
    return table or (), fragments


def _grouped(fragments: list[tuple[int, int]], starts: list[int]) -> list[Ranges]:
    ends = [*starts[1:], len(fragments)]
    return [tuple(fragments[start:end]) for start, end in zip(starts, ends, strict=True)]


def _cut(pieces: Ranges, length: int) -> Ranges:
    """The pieces without the padding behind `length` bytes."""
    (position, have), *more = pieces
    return ((position, length),) if not more and 0 < length <= have else pieces


def _begins(source: Source, position: int, length: int) -> bool:
    return source.read(position, min(4, length)).startswith(_STARTS)


class Frames:
    """The frames of an open file. Numbers count from 1."""

    def __init__(
        self, source: Source, image: Image, transfer_syntax_uid: str, *, places: list[Ranges] | None = None
    ) -> None:
        """`places`: what `ranges` gave for this image before."""
        self.image = image
        self.transfer_syntax_uid = transfer_syntax_uid
        self._source = source
        self._ranges = ranges(source, image, transfer_syntax_uid) if places is None else places
        self._shared_bytes = not image.encapsulated and image.frames > 1 and image.frame_bits % 8 > 0

    def __len__(self) -> int:
        return len(self._ranges)

    def ranges(self, number: int) -> Ranges:
        """Where the bytes of a frame lie in the file, as they are stored.

        Raises:
            NotFound: no such frame.
            Unsupported: a deflated data set, whose file holds no frames, or a frame that begins inside a byte.
        """
        if self._source.deflated:
            raise Unsupported("the frames of a deflated data set do not lie in its file")
        if self._shared_bytes:
            raise Unsupported("frames that begin inside a byte")
        return tuple((self._source.offset + position, length) for position, length in self._of(number))

    def length(self, number: int) -> int:
        """Bytes of a frame as it is stored. Raises NotFound."""
        return sum(length for _, length in self._of(number))

    def read(self, number: int) -> bytes:
        """The bytes of a frame: encoded as stored, native ones in little endian.

        Raises:
            NotFound: no such frame.
            Unsupported: big endian pixels of more than 16 bits.
        """
        raw = b"".join(self._source.read(position, length) for position, length in self._of(number))
        image = self.image
        if self._shared_bytes:
            bits = image.frame_bits
            value = int.from_bytes(raw, "little") >> ((number - 1) * bits % 8)
            return (value & ((1 << bits) - 1)).to_bytes((bits + 7) // 8, "little")
        if self.as_they_lie:
            return raw
        if image.bits_allocated > 16 or len(raw) % 2:
            raise Unsupported("big endian pixels that are not words of 16 bits")
        turned = bytearray(len(raw))
        turned[0::2], turned[1::2] = raw[1::2], raw[0::2]
        return bytes(turned)

    @property
    def as_they_lie(self) -> bool:
        """Whether the bytes of frames are those of the file, none turned or shifted."""
        image = self.image
        return not self._shared_bytes and (image.encoding.little or image.encapsulated or image.vr != "OW")

    def pieces(self, number: int, *, head: bytes = b"", tail: bytes = b"") -> Iterator[memoryview]:
        """The bytes of a frame that are `as_they_lie`, a mebibyte at a time, between `head` and `tail`, which come in
        one piece with them. Raises NotFound, with the first piece."""
        cut = [
            (start, min(_PIECE_BYTES, position + length - start))
            for position, length in self._of(number)
            for start in range(position, position + length, _PIECE_BYTES)
        ] or [(0, 0)]
        for n, (start, length) in enumerate(cut):
            before, after = head if n == 0 else b"", tail if n == len(cut) - 1 else b""
            piece = bytearray(len(before) + length + len(after))  # read where it leaves from: a copy costs as much
            piece[: len(before)] = before
            self._source.fill(memoryview(piece)[len(before) : len(before) + length], start)
            piece[len(before) + length :] = after
            yield memoryview(piece)

    def stretches(self, number: int) -> list[Stretch]:
        """Where the bytes of a frame lie that are `as_they_lie`; none for one that is short, or not in the file itself:
        to read it costs less. Raises NotFound, StorageFailed."""
        fd, offset = self._source.fd, self._source.offset
        if self._source.deflated or fd < 0 or self.length(number) < _WORTH_BYTES:
            return []
        return [
            Stretch(os.dup(fd), offset + position, offset + position + length) for position, length in self._of(number)
        ]

    def _of(self, number: int) -> Ranges:
        if not 1 <= number <= len(self._ranges):
            raise NotFound(f"there is no frame {number}: the instance has {len(self._ranges)}")
        return self._ranges[number - 1]
