"""A stored data set in another transfer syntax, without loss, under its own UID (REQ-DCM-41, sheet 10 §2.2).

Values are carried over as bytes: only heads, byte order and, where the pixels are encoded otherwise, the pixel elements
change. Decoding what came lossy adds no loss; it stays marked (0028,2110). What compresses is `archive.dicom.lossless`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

from archive.dicom import encode, lossless, pixels, syntaxes, values
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, decode, terms
from archive.dicom.elements import UNDEFINED, Encoding, encoding_of, opened
from archive.dicom.frames import Frames, image_in
from archive.dicom.json import ambiguous, pixel_representation
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse
from archive.errors import NotAcceptable, NotFound, Unsupported

_TARGETS = (syntaxes.EXPLICIT_LE, syntaxes.IMPLICIT_LE)  # best first
# A codec's own colour transform or subsampling is undone by decoding it.
_LOSSY_JPEG = {f"{syntaxes.JPEG}50", f"{syntaxes.JPEG}51"}
_PHOTOMETRIC, _PLANAR, _LOSSY, _PIXEL_DATA = 0x00280004, 0x00280006, 0x00282110, 0x7FE00010
_FLOATS = {0x7FE00008, 0x7FE00009}
_OFFSET_TABLES = {0x7FE00001, 0x7FE00002, 0x7FE00003}
_BULK = {  # pixels and their tables, provider URL, document, waveform, spectroscopy
    *range(0x7FE00001, 0x7FE00004), 0x7FE00008, 0x7FE00009, 0x7FE00010, 0x00287FE0, 0x00420011, 0x54001010, 0x56000020
}  # fmt: skip
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


def alternatives(transfer_syntax_uid: str) -> tuple[str, ...]:
    """All syntaxes that something stored in this one can be given in, besides itself; best first: compressed ones
    before native ones, unless the pixels are native already and would be compressed for nothing."""
    native = targets(transfer_syntax_uid)
    compressed = tuple(syntax for syntax in lossless.SYNTAXES if native and syntax != transfer_syntax_uid)
    return native + compressed if transfer_syntax_uid in syntaxes.NATIVE else compressed + native


def pieces(path: str, *, data_set_offset: int, source_syntax: str, target_syntax: str) -> Iterator[bytes]:
    """The data set of a stored file in one of the `alternatives` to its syntax, in pieces of at most a frame or 1 MiB.

    Raises (with the first piece, unless a later frame is the cause):
        NotAcceptable: pixels that cannot be decoded here, or not be encoded so, or are too long for a native syntax.
        UnreadableInstance: the elements cannot be followed.
        OSError: the file cannot be read.
    """
    if target_syntax not in alternatives(source_syntax):
        raise NotAcceptable(f"what is stored in {source_syntax} cannot be given in {target_syntax}")
    where = data_set_offset
    with opened(path, data_set_offset=where, transfer_syntax_uid=source_syntax) as (source, encoding):
        yield from Writer(source, source_syntax, target_syntax).data_set(parse(source, encoding))


class _Pixels:
    """The pixels of a data set in another syntax; the first frame is made at once, to know what they become."""

    def __init__(self, source: Source, elements: list[Element], syntax: str, target: str) -> None:
        image = image_in(source, elements)
        assert image is not None  # the caller has seen pixels
        self._rgb = self.lossy = syntax in _LOSSY_JPEG
        self._target = target
        try:
            self._frames = Frames(source, image, syntax)
            first = pixels.decode(self._frames, 1, rgb=self._rgb)
        except (NotFound, Unsupported) as error:
            raise NotAcceptable(f"it can be given as stored only: {error}") from error
        self.compressed = target in lossless.SYNTAXES
        self.photometric = first.photometric_interpretation
        if self.photometric == "YBR_FULL_422":
            self.photometric = "YBR_FULL"
        self.planar = lossless.planar_configuration(target)
        self.vr = "OB" if self.compressed or image.bits_allocated <= 8 else "OW"
        size = first.values.nbytes * len(self._frames)
        self._frame_bytes = first.values.nbytes
        self._padding = size % 2
        self.length = UNDEFINED if self.compressed else size + self._padding
        if not self.compressed and self.length > _LONGEST:
            raise NotAcceptable("the pixels are too long for a native transfer syntax")
        self._first = self._made(first)

    def _made(self, frame: pixels.Frame) -> bytes:
        if not self.compressed:
            return frame.values.tobytes()
        return lossless.encode(frame.values, self._frames.image, self._target, photometric=self.photometric)

    def value(self, encoding: Encoding) -> Iterator[bytes]:
        """What follows the head of Pixel Data; one fragment a frame, without offset table (PS3.5 A.4)."""
        if not self.compressed:
            yield from self._all()
            yield b"\0" * self._padding
            return
        yield encode.fragment(b"")
        for frame in self._all():
            yield encode.fragment(frame)
        yield encode.sequence_end(encoding)

    def _all(self) -> Iterator[bytes]:
        yield self._first
        for number in range(2, len(self._frames) + 1):
            try:
                frame = pixels.decode(self._frames, number, rgb=self._rgb)
            except Unsupported as error:
                raise NotAcceptable(f"it can be given as stored only: {error}") from error
            if frame.values.nbytes != self._frame_bytes:
                raise NotAcceptable("it can be given as stored only: frames of different sizes")
            yield self._made(frame)


class Writer:
    """Writes elements of one source in an encoding. Group lengths, which would be wrong, are left out.

    Args:
        syntax, target: transfer syntaxes of the source, and of what is written. Where they are the same, pixels are
            copied as they are.
        bulk: False leaves bulk data out, at every level (PS3.4 Annex Z).
        recode: write all text in UTF-8; the value is what undefined bytes are read with. (0008,0005) of every level is
            left out then, and so are signatures, which cover other bytes.
    """

    def __init__(self, source: Source, syntax: str, target: str, *, bulk: bool = True, recode: str = "") -> None:
        encoding = encoding_of(target)
        self.encoding = encoding._replace(deflated=False)
        self.recode = recode
        self._source = source
        self._syntax = syntax
        self._target = target
        self._bulk = bulk
        self._decode = target != syntax
        self._compress = self._decode and target in lossless.SYNTAXES
        self._representation = 0
        self._charsets: tuple[str, ...] = ()
        # the heads of this level are written as they are to be: its elements may be copied
        self._alike = self._same = encoding_of(syntax)[:2] == encoding[:2]

    def data_set(self, elements: list[Element], edits: Edits | None = None, *, nested: bool = False) -> Iterator[bytes]:
        """A data set or an item; `edits` stand in the places of their tags. Pixels of an item (an icon) that were
        encapsulated are written native."""
        inherited = self._representation, self._charsets, self._alike
        # in an explicit data set, the items of a value of VR UN are implicit
        self._alike = self._same and any(element.encoding[:2] == self.encoding[:2] for element in elements)
        self._representation = pixel_representation(self._source, elements, self._representation)
        self._charsets = charsets_of(self._source, elements) or self._charsets
        compress = self._compress and not nested and self._bulk
        if not self._bulk:
            elements = [element for element in elements if not _is_bulk(element.tag)]
        if compress and any(element.tag in _FLOATS for element in elements):
            raise NotAcceptable("pixels that no lossless codec takes")
        if self._decode and any(element.tag == _PIXEL_DATA and (compress or element.undefined) for element in elements):
            target = self._target if compress else syntaxes.EXPLICIT_LE
            parts = self._with_pixels(elements, _Pixels(self._source, elements, self._syntax, target))
        elif edits and self._alike and self._bulk and not self._decode and not self.recode:
            parts = self._runs(elements, edits)
        else:
            parts = ((element.tag, self.element(element)) for element in elements)
        for _, pieces in edited(parts, edits) if edits else parts:
            yield from pieces
        self._representation, self._charsets, self._alike = inherited

    def _with_pixels(self, elements: list[Element], made: _Pixels) -> Iterator[Part]:
        marked = not made.lossy
        for element in elements:
            if not marked and element.tag >= _LOSSY:  # JPEG always loses: said, also where the sender did not
                yield _LOSSY, iter((self.made(_LOSSY, "CS", b"01"),))
                marked = True
            if element.tag == _PHOTOMETRIC:
                yield element.tag, iter((self.made(element.tag, "CS", made.photometric.encode()),))
            elif element.tag == _PLANAR:
                yield element.tag, iter((self.made(element.tag, "US", bytes((made.planar, 0))),))
            elif element.tag == _PIXEL_DATA:
                yield element.tag, chain((self.head(_PIXEL_DATA, made.vr, made.length),), made.value(self.encoding))
            elif element.tag not in _OFFSET_TABLES and not (made.lossy and element.tag == _LOSSY):
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
        if self._alike and not self._opens(element) and not self._recodes(element):
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
        yield from self.data_set(elements, nested=True)
        yield encode.item_end(self.encoding)

    def _opens(self, element: Element) -> bool:
        """Whether something below it is not copied as it is."""
        return (self._decode and _holds(element, lambda one: one.items is None and one.undefined)) or (
            not self._bulk and _holds(element, lambda one: _is_bulk(one.tag))
        )

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


def _holds(element: Element, meant: Callable[[Element], bool]) -> bool:
    """Whether an element, or one below it, is meant: encapsulated pixels, which have no place in a native syntax…"""
    return meant(element) or any(_holds(inner, meant) for item in element.items or () for inner in item)


def _is_bulk(tag: int) -> bool:
    """Bulk data of PS3.4 table Z.1-1, and what only says where it lies."""
    repeating = tag & 0xFF00FFFF in (0x60003000, 0x50003000, 0x5000200C) and not tag & 0x00010000
    return tag in _BULK or repeating
