"""Files that are alike into DICOM JSON: what `archive.dicom.json.metadata` says of each of them, as bytes.

Slices of a series repeat nearly all of their elements, byte for byte. What was read of one file is a layout for the
next: bytes that are there again are not looked into, and what they say is told again; an element that changed is read
by itself. A file with other elements than those before, or with another character set, Pixel Representation or private
creator, which decide how other elements are read, is read whole, and is a layout for those that follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from archive.dicom.charset import SPECIFIC_CHARACTER_SET
from archive.dicom.elements import LONG, SHORT, Encoding
from archive.dicom.json import CHARACTER_SET, PIXEL_REPRESENTATION, JsonReader, charsets_of, pixel_representation
from archive.dicom.source import Source
from archive.dicom.tree import Creators, Element, element_at, is_creator, note_creator, parse
from archive.errors import UnreadableInstance

MOST_LAYOUTS = 4
MOST_BYTES = 1 << 16  # of an element that is compared; longer ones are read each time
MOST_LAYOUT_BYTES = 1 << 20  # that are kept of one file
_BULK_DATA = "urn:minipacs:bulkdata/"
_PLACE = b"\xfe"  # of the address of bulk data: no byte of UTF-8
_VRS = frozenset(vr.decode("ascii") for vr in SHORT | LONG)


class Lines:
    """The lines of files that are alike, in any order. Keeps a few layouts."""

    def __init__(self) -> None:
        self._layouts: list[_Layout] = []  # the one that fitted last comes first

    def line(self, source: Source, encoding: Encoding, bulk_data: bytes) -> bytes:
        """The metadata of a data set as a JSON object. `bulk_data`: what stands before the path of a value
        (`archive.dicom.json.metadata`) in its address, as it is written in JSON.

        Raises:
            UnreadableInstance: the elements cannot be followed.
            OSError: the file cannot be read.
        """
        for place, layout in enumerate(self._layouts):
            if layout.encoding == encoding and (said := layout.of(source)) is not None:
                self._layouts.insert(0, self._layouts.pop(place))
                break
        else:
            said = self._whole(source, encoding)
        return b"{%b}" % b"".join(said)[1:].replace(_PLACE, bulk_data)

    def _whole(self, source: Source, encoding: Encoding) -> list[bytes]:
        elements = parse(source, encoding, cut=True)
        if encoding.deflated or not _in_order(source, elements):
            found = CHARACTER_SET | _reader(source).data_set(elements)
            return [_member(key, value) for key, value in sorted(found.items())]
        layout = _Layout(source, encoding, elements)
        self._layouts = [layout, *self._layouts[: MOST_LAYOUTS - 1]]
        return layout.first


@dataclass(slots=True)
class _Piece:
    """An element as it was in the last file."""

    tag: int
    creators: Creators  # those known where it begins
    decides: bool = False  # how other elements are read
    varies: bool = False
    raw: bytes | None = None  # what it begins with, and of bulk data no more counts; None: it is not compared
    length: int = 0  # in the file
    said: bytes = b""  # with a comma before it


class _Run(NamedTuple):
    """Pieces that follow each other and were the same in each file; or one that was not."""

    raw: bytes | None
    length: int
    said: bytes
    pieces: list[_Piece]


class _Layout:
    """The elements of a file, for those that have the same; `first`: what that file says."""

    def __init__(self, source: Source, encoding: Encoding, elements: list[Element]) -> None:
        self.encoding = encoding
        self._charsets = charsets_of(source, elements)
        self._signed = pixel_representation(source, elements, 0)
        self._left = MOST_LAYOUT_BYTES
        self._pieces: list[_Piece] = []
        self.first: list[bytes] = []
        reader = _reader(source)
        creators: Creators = {}
        said_charset = False
        for element in elements:
            if element.tag >= SPECIFIC_CHARACTER_SET and not said_charset:
                said_charset = True
                if element.tag > SPECIFIC_CHARACTER_SET:
                    self._charset_is_missing()
            piece = _Piece(element.tag, creators)
            if is_creator(element.tag):
                note_creator(source, element, creators := dict(creators))
            piece.decides = creators is not piece.creators or element.tag in (
                SPECIFIC_CHARACTER_SET,
                PIXEL_REPRESENTATION,
            )
            self.first.append(self._note(piece, element, source, reader))
            self._pieces.append(piece)
        if not said_charset:
            self._charset_is_missing()
        self._runs = self._arranged()

    def of(self, source: Source) -> list[bytes] | None:
        """What a file says, member by member; None: it has other elements, or they cannot be followed."""
        try:
            return self._of(source)
        except UnreadableInstance:
            return None

    def _of(self, source: Source) -> list[bytes] | None:
        reader = _reader(source)
        window, base = source.at(0, 0)
        position = 0
        told: list[bytes] = []
        changed = False
        for raw, length, said, pieces in self._runs:
            if raw is not None:
                if position - base + len(raw) > len(window):
                    window, base = source.at(position, len(raw))
                if window.startswith(raw, position - base):
                    told.append(said)
                    position += length
                    continue
            for piece in pieces:
                if (raw := piece.raw) is not None:
                    if position - base + len(raw) > len(window):
                        window, base = source.at(position, len(raw))
                    if window.startswith(raw, position - base):
                        told.append(piece.said)
                        position += piece.length
                        continue
                element = None if piece.decides else element_at(source, position, self.encoding, piece.creators)
                if element is None or element.tag != piece.tag:
                    return None
                told.append(self._note(piece, element, source, reader))
                position = element.end
                changed = changed or not piece.varies
                piece.varies = True
        if changed:
            self._runs = self._arranged()
        return told if position == source.size else None

    def _charset_is_missing(self) -> None:
        """It is told all the same: nothing in the file stands for it."""
        [(key, value)] = CHARACTER_SET.items()
        piece = _Piece(SPECIFIC_CHARACTER_SET, {}, raw=b"", said=_member(key, value))
        self._pieces.append(piece)
        self.first.append(piece.said)

    def _note(self, piece: _Piece, element: Element, source: Source, reader: JsonReader) -> bytes:
        """What an element says, and in its piece what the next file is compared with."""
        said, bulk = self._said(element, reader)
        old = len(piece.raw) + len(piece.said) if piece.raw is not None else 0
        piece.length = element.end - element.start
        size = element.value - element.start if bulk else piece.length
        new = size + len(said)
        if size <= MOST_BYTES and new - old <= self._left and _usual(element):
            piece.raw, piece.said = source.read(element.start, size), said
        else:
            piece.raw, piece.said, new = None, b"", 0
        self._left -= new - old
        return said

    def _said(self, element: Element, reader: JsonReader) -> tuple[bytes, bool]:
        """The member of the object, and whether its head alone decides what it is."""
        tag = element.tag
        if tag & 0xFFFF == 0:
            return b"", False
        key = f"{tag:08X}"
        if tag == SPECIFIC_CHARACTER_SET:
            return _member(key, CHARACTER_SET[key]), False
        value = reader.element(element, self._charsets, self._signed, key)
        # of VR UN: what the dictionary calls a sequence, and cannot be followed as one
        return _member(key, value), "BulkDataURI" in value and value["vr"] != "UN" and not element.undefined

    def _arranged(self) -> list[_Run]:
        runs: list[_Run] = []
        together: list[_Piece] = []
        for piece in self._pieces:
            alone = piece.varies or piece.raw is None
            if alone and together:
                runs.append(_run(together))
                together = []
            together.append(piece)
            if alone or piece.length != len(piece.raw or b""):
                runs.append(_run(together))
                together = []
        return [*runs, _run(together)] if together else runs


def _run(pieces: list[_Piece]) -> _Run:
    if pieces[0].varies or pieces[0].raw is None:
        return _Run(None, 0, b"", pieces)
    return _Run(
        b"".join(piece.raw or b"" for piece in pieces),
        sum(piece.length for piece in pieces),
        b"".join(piece.said for piece in pieces),
        pieces,
    )


def _in_order(source: Source, elements: list[Element]) -> bool:
    """Whether elements ascend, one directly behind the other, and there is nothing else."""
    position, tag = 0, -1
    for element in elements:
        if element.start != position or element.tag <= tag:
            return False
        position, tag = element.end, element.tag
    return position == source.size


def _usual(element: Element) -> bool:
    """Whether all its VRs are known: how long an element of an unknown one is depends on the length of the file."""
    if element.vr not in _VRS and " or " not in element.vr:
        return False
    return not element.items or all(_usual(one) for item in element.items for one in item)


def _reader(source: Source) -> JsonReader:
    return JsonReader(source, (), bulk_uri=lambda path: f"{_BULK_DATA}{path}")


def _member(key: str, value: dict[str, Any]) -> bytes:
    said = orjson.dumps({key: value})
    return b"," + said[1:-1].replace(_BULK_DATA.encode(), _PLACE)
