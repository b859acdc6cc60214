"""A stored data set in a native transfer syntax, without loss, under its own UID (REQ-DCM-41, sheet 10 §2.2).

Values are carried over as bytes: only heads, byte order and, for compressed pixels, the pixel elements change. Decoding
what came lossy adds no loss; it stays marked (0028,2110). Nothing here compresses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain

from archive.dicom import pixels, syntaxes, values
from archive.dicom.elements import EXPLICIT_LE, IMPLICIT_LE, LONG, UNDEFINED, Encoding, opened
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.frames import Frames, image_in
from archive.dicom.json import ambiguous, pixel_representation
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse
from archive.errors import NotAcceptable, NotFound, Unsupported

_TARGETS = {syntaxes.EXPLICIT_LE: EXPLICIT_LE, syntaxes.IMPLICIT_LE: IMPLICIT_LE}  # best first
# A codec's own colour transform or subsampling is undone by decoding it.
_LOSSY_JPEG = {f"{syntaxes.JPEG}50", f"{syntaxes.JPEG}51"}
_PHOTOMETRIC, _PLANAR, _LOSSY, _PIXEL_DATA = 0x00280004, 0x00280006, 0x00282110, 0x7FE00010
_OFFSET_TABLES = {0x7FE00001, 0x7FE00002, 0x7FE00003}
_PIECE = 1 << 20
_LONGEST = 0xFFFFFFFE
_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
_ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def targets(transfer_syntax_uid: str) -> tuple[str, ...]:
    """The native syntaxes that something stored in this syntax can be given in, besides itself; best first."""
    if not pixels.can_decode(transfer_syntax_uid):
        return ()
    return tuple(syntax for syntax in _TARGETS if syntax != transfer_syntax_uid)


def transcode(
    path: str, *, data_set_offset: int, source_syntax: str, target_syntax: str, meta: FileMeta
) -> Iterator[bytes]:
    """The PS3.10 file of a stored instance in `target_syntax`, in pieces. `meta` announces it in that syntax."""
    pieces = native_pieces(
        path, data_set_offset=data_set_offset, source_syntax=source_syntax, target_syntax=target_syntax
    )
    return chain([file_head(meta)], pieces)


def native_pieces(path: str, *, data_set_offset: int, source_syntax: str, target_syntax: str) -> Iterator[bytes]:
    """The data set of a stored file in Explicit or Implicit VR Little Endian, in pieces of at most a frame or 1 MiB.

    Raises (with the first piece):
        NotAcceptable: pixels that cannot be decoded here, or are too long for a native syntax.
        UnreadableInstance: the elements cannot be followed.
        OSError: the file cannot be read.
    """
    if target_syntax not in targets(source_syntax):
        raise NotAcceptable(f"what is stored in {source_syntax} cannot be given in {target_syntax}")
    where = data_set_offset
    with opened(path, data_set_offset=where, transfer_syntax_uid=source_syntax) as (source, encoding):
        yield from _Writer(source, source_syntax, _TARGETS[target_syntax]).data_set(parse(source, encoding))


class _Decoded:
    """The encapsulated pixels of a data set; the first frame is decoded at once, to know what they are."""

    def __init__(self, source: Source, elements: list[Element], syntax: str) -> None:
        image = image_in(source, elements)
        assert image is not None  # the caller has seen pixels
        self._rgb = self.lossy = syntax in _LOSSY_JPEG
        try:
            self._frames = Frames(source, image, syntax)
            first = pixels.decode(self._frames, 1, rgb=self._rgb)
        except (NotFound, Unsupported) as error:
            raise NotAcceptable(f"it can be given as stored only: {error}") from error
        self.photometric = first.photometric_interpretation
        if self.photometric == "YBR_FULL_422":
            self.photometric = "YBR_FULL"
        self.vr = "OW" if image.bits_allocated > 8 else "OB"
        self._first = first.values.tobytes()
        size = len(self._first) * len(self._frames)
        self._padding = size % 2
        self.length = size + self._padding
        if self.length > _LONGEST:
            raise NotAcceptable("the pixels are too long for a native transfer syntax")

    def frames(self) -> Iterator[bytes]:
        yield self._first
        for number in range(2, len(self._frames) + 1):
            try:
                frame = pixels.decode(self._frames, number, rgb=self._rgb).values.tobytes()
            except Unsupported as error:
                raise NotAcceptable(f"it can be given as stored only: {error}") from error
            if len(frame) != len(self._first):
                raise NotAcceptable("it can be given as stored only: frames of different sizes")
            yield frame
        if self._padding:
            yield b"\0"


class _Writer:
    """Writes elements of one source in another encoding. Group lengths, which would be wrong, are left out."""

    def __init__(self, source: Source, syntax: str, encoding: Encoding) -> None:
        self._source = source
        self._syntax = syntax
        self._encoding = encoding
        self._representation = 0

    def data_set(self, elements: list[Element]) -> Iterator[bytes]:
        """A data set or an item, its encapsulated pixels decoded."""
        inherited = self._representation
        self._representation = pixel_representation(self._source, elements, inherited)
        if any(element.tag == _PIXEL_DATA and element.undefined for element in elements):
            yield from self._with_decoded(elements, _Decoded(self._source, elements, self._syntax))
        else:
            for element in elements:
                yield from self.element(element)
        self._representation = inherited

    def _with_decoded(self, elements: list[Element], decoded: _Decoded) -> Iterator[bytes]:
        marked = not decoded.lossy
        for element in elements:
            if not marked and element.tag >= _LOSSY:  # JPEG always loses: said, also where the sender did not
                yield self.made(_LOSSY, "CS", b"01")
                marked = True
            if element.tag == _PHOTOMETRIC:
                yield self.made(element.tag, "CS", decoded.photometric.encode())
            elif element.tag == _PLANAR:
                yield self.made(element.tag, "US", b"\0\0")
            elif element.tag == _PIXEL_DATA:
                yield self.head(_PIXEL_DATA, decoded.vr, decoded.length)
                yield from decoded.frames()
            elif element.tag not in _OFFSET_TABLES and not (decoded.lossy and element.tag == _LOSSY):
                yield from self.element(element)

    def head(self, tag: int, vr: str, length: int) -> bytes:
        if self._encoding.implicit:
            return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)
        if vr.encode() in LONG or length > 0xFFFF:  # a short VR holds 64 KiB; longer ones become UN (PS3.5 §6.2.2)
            written = vr.encode() if vr.encode() in LONG else b"UN"
            return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, written, 0, length)
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode("ascii", "replace"), length)

    def made(self, tag: int, vr: str, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        return self.head(tag, vr, len(value)) + value

    def element(self, element: Element) -> Iterator[bytes]:
        if element.tag & 0xFFFF == 0:
            return
        as_it_is = element.encoding._replace(deflated=False) == self._encoding == EXPLICIT_LE
        if as_it_is and not _holds_fragments(element):
            yield from self._copy(element.start, element.end)
        elif element.items is not None:
            yield self.head(element.tag, "SQ", UNDEFINED)
            for item in element.items:
                yield _ITEM
                yield from self.data_set(item)
                yield _ITEM_END
            yield _SEQUENCE_END
        elif element.undefined:
            raise NotAcceptable("it can be given as stored only: fragments of something else than pixels")
        else:
            yield from self._value(element)

    def _value(self, element: Element) -> Iterator[bytes]:
        vr = ambiguous(element, self._representation)
        odd = element.length % 2
        yield self.head(element.tag, vr, element.length + odd)
        for piece in self._copy(element.value, element.end):
            yield values.little_endian(piece, vr, little=element.encoding.little)
        if odd:
            yield b"\0" if vr in ("OB", "UN", "UI") else b" "

    def _copy(self, start: int, end: int) -> Iterator[bytes]:
        for position in range(start, end, _PIECE):
            yield self._source.read(position, min(_PIECE, end - position))


def _holds_fragments(element: Element) -> bool:
    """Whether there are encapsulated pixels in it, which have no place in a native syntax."""
    if element.items is None:
        return element.undefined
    return any(_holds_fragments(inner) for item in element.items for inner in item)
