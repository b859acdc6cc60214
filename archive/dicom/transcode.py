"""A stored data set in a native transfer syntax, without loss, under its own UID (REQ-DCM-41, sheet 10 §2.2).

Values are carried over as bytes: only heads, byte order and, for compressed pixels, the pixel elements change. Decoding
what came lossy adds no loss; it stays marked (0028,2110). Nothing here compresses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from archive.dicom import pixels, values
from archive.dicom.elements import EXPLICIT_LE, IMPLICIT_LE, LONG, PIXEL_TAGS, Encoding, encoding_of
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.json import ambiguous, pixel_representation
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse
from archive.errors import NotAcceptable, Unsupported

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_TARGETS = {EXPLICIT: EXPLICIT_LE, IMPLICIT: IMPLICIT_LE}
_NOT_COMPRESSED = {EXPLICIT, IMPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}
# A codec's own colour transform or subsampling is undone by decoding it.
_LOSSY_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
_PHOTOMETRIC, _PLANAR, _PIXEL_DATA = 0x00280004, 0x00280006, 0x7FE00010
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
    return tuple(syntax for syntax in (EXPLICIT, IMPLICIT) if syntax != transfer_syntax_uid)


def to_native(path: str, data_set_offset: int, source_syntax: str, *, target_syntax: str) -> bytes:
    """The data set of a stored file in `target_syntax`, whole. See `native_pieces`."""
    return b"".join(
        native_pieces(path, data_set_offset=data_set_offset, source_syntax=source_syntax, target_syntax=target_syntax)
    )


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
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        encoding = encoding_of(source_syntax)
        length = os.fstat(fd).st_size - data_set_offset
        source = Source(fd, offset=data_set_offset, length=length, deflated=encoding.deflated)
        elements = parse(source, encoding)
        writer = _Writer(source, _TARGETS[target_syntax], pixel_representation(source, elements, 0))
        decoded = None
        if source_syntax not in _NOT_COMPRESSED and any(element.tag in PIXEL_TAGS for element in elements):
            decoded = _Decoded(path, lossy_jpeg=source_syntax in _LOSSY_JPEG)
        for element in elements:
            if decoded is None:
                yield from writer.element(element)
            elif element.tag == _PHOTOMETRIC:
                yield writer.made(element.tag, "CS", decoded.photometric.encode())
            elif element.tag == _PLANAR:
                yield writer.made(element.tag, "US", b"\0\0")
            elif element.tag == _PIXEL_DATA:
                yield writer.head(_PIXEL_DATA, decoded.vr, decoded.length)
                yield from decoded.frames()
            elif element.tag not in _OFFSET_TABLES:
                yield from writer.element(element)
    finally:
        os.close(fd)


class _Decoded:
    """The pixels of a compressed instance; the first frame is decoded at once, to know what they are."""

    def __init__(self, path: str, *, lossy_jpeg: bool) -> None:
        self._path = path
        self._rgb = lossy_jpeg
        self._ds: Dataset = pixels.read_header(path)
        count = pixels.count(self._ds)
        first = self._frame(1)
        allocated = int(self._ds.get("BitsAllocated") or 0)
        if first.values.itemsize * 8 != allocated:
            raise NotAcceptable(f"decoded pixels of {first.values.itemsize * 8} bits do not fit {allocated} allocated")
        self.photometric = first.photometric_interpretation
        if self.photometric == "YBR_FULL_422":
            self.photometric = "YBR_FULL"
        self.vr = "OW" if allocated > 8 else "OB"
        self._first = first.values.tobytes()
        size = len(self._first) * count
        self._padding = size % 2
        self.length = size + self._padding
        self._count = count
        if self.length > _LONGEST:
            raise NotAcceptable("the pixels are too long for a native transfer syntax")

    def _frame(self, number: int) -> pixels.Frame:
        try:
            return pixels.frame(self._path, self._ds, number, rgb=self._rgb)
        except Unsupported as error:
            raise NotAcceptable(f"it can be given as stored only: {error}") from error

    def frames(self) -> Iterator[bytes]:
        yield self._first
        for number in range(2, self._count + 1):
            yield self._frame(number).values.tobytes()
        if self._padding:
            yield b"\0"


class _Writer:
    """Writes elements of one source in another encoding. Group lengths, which would be wrong, are left out."""

    def __init__(self, source: Source, encoding: Encoding, pixel_representation: int) -> None:
        self._source = source
        self._encoding = encoding
        self._representation = pixel_representation

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
        if as_it_is or (element.undefined and element.items is None):
            yield from self._copy(element.start, element.end)
        elif element.items is not None:
            yield self.head(element.tag, "SQ", 0xFFFFFFFF)
            for item in element.items:
                yield _ITEM
                inherited = self._representation
                self._representation = pixel_representation(self._source, item, inherited)
                for inner in item:
                    yield from self.element(inner)
                self._representation = inherited
                yield _ITEM_END
            yield _SEQUENCE_END
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
