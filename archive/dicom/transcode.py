"""A stored data set in a native transfer syntax, without loss, under its own UID (REQ-DCM-41, sheet 10 §2.2).

Values are carried over as bytes: only heads, byte order and, for compressed pixels, the pixel elements change. Decoding
what came lossy adds no loss; it stays marked (0028,2110). Nothing here compresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from archive.dicom import encode, pixels, syntaxes, values
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, decode, terms
from archive.dicom.elements import EXPLICIT_LE, IMPLICIT_LE, UNDEFINED, Encoding, encoding_of, opened
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
# (0008,0005), MAC parameters and digital signatures: they speak of the bytes of text as they were
_OF_OTHER_BYTES = {SPECIFIC_CHARACTER_SET, 0x4FFE0001, 0xFFFAFFFA}

Part = tuple[int, Iterator[bytes]]  # a tag, and the pieces of its element
Edits = Mapping[int, Iterable[bytes] | None]


def targets(transfer_syntax_uid: str) -> tuple[str, ...]:
    """The native syntaxes that something stored in this syntax can be given in, besides itself; best first."""
    if not pixels.can_decode(transfer_syntax_uid):
        return ()
    return tuple(syntax for syntax in _TARGETS if syntax != transfer_syntax_uid)


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
        yield from Writer(source, source_syntax, _TARGETS[target_syntax]).data_set(parse(source, encoding))


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


class Writer:
    """Writes elements of one source in an encoding. Group lengths, which would be wrong, are left out.

    Args:
        decode: write encapsulated pixels decoded, as a native syntax has them; else they stay as they are.
        recode: write all text in UTF-8; the value is what undefined bytes are read with. (0008,0005) of every level is
            left out then, and so are signatures, which cover other bytes.
    """

    def __init__(
        self, source: Source, syntax: str, encoding: Encoding, *, decode: bool = True, recode: str = ""
    ) -> None:
        self.encoding = encoding._replace(deflated=False)
        self.recode = recode
        self._source = source
        self._syntax = syntax
        self._decode = decode
        self._representation = 0
        self._charsets: tuple[str, ...] = ()
        # the heads of this level are written as they are to be: its elements may be copied
        self._alike = self._same = encoding_of(syntax)[:2] == encoding[:2]

    def data_set(self, elements: list[Element], edits: Edits | None = None) -> Iterator[bytes]:
        """A data set or an item, its encapsulated pixels decoded; `edits` stand in the places of their tags."""
        inherited = self._representation, self._charsets, self._alike
        # in an explicit data set, the items of a value of VR UN are implicit
        self._alike = self._same and any(element.encoding[:2] == self.encoding[:2] for element in elements)
        self._representation = pixel_representation(self._source, elements, self._representation)
        self._charsets = charsets_of(self._source, elements) or self._charsets
        if self._decode and any(element.tag == _PIXEL_DATA and element.undefined for element in elements):
            parts = self._with_decoded(elements, _Decoded(self._source, elements, self._syntax))
        elif edits and self._alike and not self._decode and not self.recode:
            parts = self._runs(elements, edits)
        else:
            parts = ((element.tag, self.element(element)) for element in elements)
        for _, pieces in edited(parts, edits) if edits else parts:
            yield from pieces
        self._representation, self._charsets, self._alike = inherited

    def _with_decoded(self, elements: list[Element], decoded: _Decoded) -> Iterator[Part]:
        marked = not decoded.lossy
        for element in elements:
            if not marked and element.tag >= _LOSSY:  # JPEG always loses: said, also where the sender did not
                yield _LOSSY, iter((self.made(_LOSSY, "CS", b"01"),))
                marked = True
            if element.tag == _PHOTOMETRIC:
                yield element.tag, iter((self.made(element.tag, "CS", decoded.photometric.encode()),))
            elif element.tag == _PLANAR:
                yield element.tag, iter((self.made(element.tag, "US", b"\0\0"),))
            elif element.tag == _PIXEL_DATA:
                yield element.tag, chain((self.head(_PIXEL_DATA, decoded.vr, decoded.length),), decoded.frames())
            elif element.tag not in _OFFSET_TABLES and not (decoded.lossy and element.tag == _LOSSY):
                yield element.tag, self.element(element)

    def _runs(self, elements: list[Element], edits: Edits) -> Iterator[Part]:
        """Elements that are copied, those between two edits in one piece; an edited one is an empty part."""
        places = sorted(edits)
        reached, first, start, end = 0, -1, 0, 0
        for element in elements:
            tag = element.tag
            if not tag & 0xFFFF:
                continue
            before = reached
            while reached < len(places) and places[reached] <= tag:
                reached += 1
            if first >= 0 and (reached > before or tag in edits or element.start != end):
                yield first, self.copy(start, end)
                first = -1
            if tag in edits:
                yield tag, iter(())
                continue
            if first < 0:
                first, start = tag, element.start
            end = element.end
        if first >= 0:
            yield first, self.copy(start, end)

    def head(self, tag: int, vr: str, length: int) -> bytes:
        return encode.head(tag, vr, length, self.encoding)

    def made(self, tag: int, vr: str, value: bytes) -> bytes:
        return encode.element(tag, vr, value, self.encoding)

    def element(self, element: Element) -> Iterator[bytes]:
        if element.tag & 0xFFFF == 0 or (self.recode and element.tag in _OF_OTHER_BYTES):
            return
        if self._alike and not (self._decode and _holds_fragments(element)) and not self._recodes(element):
            yield from self.copy(element.start, element.end)
        elif element.items is not None:
            yield self.head(element.tag, "SQ", UNDEFINED)
            yield from self.items(element)
            yield encode.sequence_end(self.encoding)
        elif element.undefined:
            raise NotAcceptable("it can be given as stored only: fragments of something else than pixels")
        else:
            yield from self._value(element)

    def items(self, element: Element) -> Iterator[bytes]:
        """The items of a sequence, without its own head and end."""
        for item in element.items or ():
            yield from self.item(item)

    def item(self, elements: list[Element]) -> Iterator[bytes]:
        """One item, of undefined length."""
        yield encode.item(self.encoding)
        yield from self.data_set(elements)
        yield encode.item_end(self.encoding)

    def _recodes(self, element: Element) -> bool:
        return bool(self.recode) and (element.items is not None or element.vr in values.TEXT_OF_CHARSET)

    def _value(self, element: Element) -> Iterator[bytes]:
        vr = ambiguous(element, self._representation)
        if self.recode and vr in values.TEXT_OF_CHARSET:
            raw = self._source.read(element.value, element.length)
            text = decode(raw, self._charsets or (self.recode,), person_name=vr == "PN", fallback=self.recode)
            yield self.made(element.tag, vr, text.encode())
            return
        odd = element.length % 2
        yield self.head(element.tag, vr, element.length + odd)
        turned = element.encoding.little != self.encoding.little
        for piece in self.copy(element.value, element.end):
            yield values.little_endian(piece, vr, little=not turned)
        if odd:
            yield b"\0" if vr in ("OB", "UN", "UI") else b" "

    def copy(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from one position of the data set to another, as they lie."""
        for position in range(start, end, _PIECE):
            yield self._source.read(position, min(_PIECE, end - position))


def charsets_of(source: Source, elements: list[Element]) -> tuple[str, ...]:
    """The values of (0008,0005) of one level; () where it says nothing."""
    for element in elements:
        if element.tag == SPECIFIC_CHARACTER_SET:
            return terms(source.read(element.value, element.length))
    return ()


def edited(parts: Iterator[Part], edits: Edits) -> Iterator[Part]:
    """The parts of a data set with others in the places of their tags; None leaves a tag out."""
    waiting = sorted(tag for tag, pieces in edits.items() if pieces is not None)
    waiting.reverse()
    for tag, pieces in parts:
        while waiting and waiting[-1] <= tag:
            yield waiting[-1], iter(edits[waiting.pop()] or ())
        if tag not in edits:
            yield tag, pieces
    while waiting:
        yield waiting[-1], iter(edits[waiting.pop()] or ())


def _holds_fragments(element: Element) -> bool:
    """Whether there are encapsulated pixels in it, which have no place in a native syntax."""
    if element.items is None:
        return element.undefined
    return any(_holds_fragments(inner) for item in element.items for inner in item)
