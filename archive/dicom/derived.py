"""The data set of a lossy copy: its original's, element by element, but for what says that it is one (REQ-DCM-81)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from archive.dicom import encode, syntaxes
from archive.dicom.charset import LATIN1, decode, fits
from archive.dicom.charset import encode as encode_text
from archive.dicom.elements import EXPLICIT_LE, UNDEFINED
from archive.dicom.eligible import Facts
from archive.dicom.equipment import Equipment
from archive.dicom.json import pixel_representation
from archive.dicom.source import Source
from archive.dicom.transcode import Writer, charsets_of
from archive.dicom.tree import Element
from archive.policy import local_time

SUFFIX = " [lossy]"
_PIXEL_DATA = 0x7FE00010
_FRAME_TYPE, _DERIVATION_IMAGE, _SHARED = 0x00089007, 0x00089124, 0x52009229
_INSIDE = {_FRAME_TYPE, _DERIVATION_IMAGE}
_GROUPS = {_SHARED, 0x52009230}
# Signatures of other bytes; tables of other pixels; who made the original; extremes of the series.
_DROPPED = {0x00080014, 0x4FFE0001, 0xFFFAFFFA, 0x00280108, 0x00280109, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0xFFFCFFFC}
_SIGNATURES = {0x4FFE0001, 0xFFFAFFFA}
_TABLE_LIMIT = 0xFFFFFFFF

Json = dict[str, Any]  # a data set or an item in the DICOM JSON Model
LOSSY_COMPRESSION = ("113040", "Lossy Compression")
UNCOMPRESSED_PREDECESSOR = ("121320", "Uncompressed predecessor")
PROCESSING_EQUIPMENT = ("109102", "Processing Equipment")


@dataclass(frozen=True, slots=True)
class Facets:
    """What is new in the copy."""

    facts: Facts  # of the original
    sop_instance_uid: str
    series_instance_uid: str
    ratio: float
    codec_description: str
    method: str
    photometric_interpretation: str
    smallest: int  # of the decoded pixels
    largest: int
    at: datetime
    equipment: Equipment


class DerivedWriter(Writer):
    """Writes the copy in Explicit VR Little Endian, from an original in any syntax that can be decoded."""

    def __init__(self, source: Source, transfer_syntax_uid: str, facets: Facets) -> None:
        super().__init__(source, transfer_syntax_uid, syntaxes.EXPLICIT_LE)
        self._facets = facets
        self._at = facets.at
        self._charset = ""  # of the top level
        self._wanted = _SIGNATURES  # of what is not carried over as it is

    def pieces(self, elements: list[Element], lengths: list[int], frames: Iterable[bytes]) -> Iterator[bytes]:
        """The data set, with these codestreams of these lengths as its frames.

        Raises:
            NotAcceptable, UnreadableInstance: an element that cannot be written again.
        """
        top: dict[int, Element] = {}
        for element in elements:
            top.setdefault(element.tag, element)
        self._charsets = charsets_of(self._source, elements)
        self._charset = "\\".join(self._charsets)
        self._at = self._local(top.get(0x00080201))
        self._representation = pixel_representation(self._source, elements, 0)
        made = self._made(top)
        for tag in sorted((top.keys() | made.keys()) - _DROPPED):
            if tag == _PIXEL_DATA:
                yield from self._pixels(lengths, frames)
            elif tag in made:
                yield from made[tag](top.get(tag))
            else:
                yield from self.element(top[tag])

    def element(self, element: Element) -> Iterator[bytes]:
        """Below the top level: without signatures, and in functional groups saying that frames are derived too."""
        outside = self._wanted
        if element.tag in _SIGNATURES:
            return
        if element.tag in _GROUPS:
            self._wanted = _SIGNATURES | _INSIDE
        if element.tag in self._wanted:
            yield from self._inside(element)
        elif _holds(element, self._wanted):
            yield self.head(element.tag, "SQ", UNDEFINED)
            yield from self.items(element)
            yield encode.sequence_end(EXPLICIT_LE)
        else:
            yield from super().element(element)
        self._wanted = outside

    def _inside(self, element: Element) -> Iterator[bytes]:
        if element.tag == _FRAME_TYPE:
            return self._image_type(element)
        return self._appended(_DERIVATION_IMAGE, element, self._derivation())

    def _made(self, top: dict[int, Element]) -> dict[int, Callable[[Element | None], Iterator[bytes]]]:
        """How each element is written that differs from the original's."""
        new = self._facets
        made: dict[int, Callable[[Element | None], Iterator[bytes]]] = {
            0x00080008: self._image_type,
            0x00080012: self._new(0x00080012, "DA", f"{self._at:%Y%m%d}"),
            0x00080013: self._new(0x00080013, "TM", f"{self._at:%H%M%S.%f}"),
            0x00080018: self._new(0x00080018, "UI", new.sop_instance_uid),
            0x0008103E: lambda element: self._extended(0x0008103E, "LO", element, SUFFIX, 64),
            0x00082111: self._description,
            0x00082112: self._sequence(0x00082112, self._source_image()),
            0x00089215: self._sequence(0x00089215, code(*LOSSY_COMPRESSION)),
            0x0018A001: self._sequence(0x0018A001, self._contribution()),
            0x0020000E: self._new(0x0020000E, "UI", new.series_instance_uid),
            0x00280004: self._new(0x00280004, "CS", new.photometric_interpretation),
            0x00282110: self._new(0x00282110, "CS", "01"),
            0x00282112: self._new(0x00282112, "DS", f"{new.ratio:.2f}"),
            0x00282114: self._new(0x00282114, "CS", new.method),
        }
        if 0x00280006 in top:
            made[0x00280006] = self._short(0x00280006, 0)
        for tag, number in ((0x00280106, new.smallest), (0x00280107, new.largest)):
            if tag in top:
                made[tag] = self._short(tag, number)
        if _SHARED in top:
            made[0x00089154] = self._sequence(0x00089154, self._evidence(top))
            if not any(_holds(top.get(tag), {_DERIVATION_IMAGE}) for tag in _GROUPS):
                made[_SHARED] = self._shared
        return made

    def _new(self, tag: int, vr: str, value: str) -> Callable[[Element | None], Iterator[bytes]]:
        return lambda _: iter([self.made(tag, vr, value.encode())])

    def _short(self, tag: int, value: int) -> Callable[[Element | None], Iterator[bytes]]:
        vr = "SS" if self._representation and tag != 0x00280006 else "US"
        return lambda _: iter([self.made(tag, vr, struct.pack("<H", value & 0xFFFF))])

    def _image_type(self, element: Element | None) -> Iterator[bytes]:
        """Value 1 becomes DERIVED, the rest is kept; value 2 of one that has none is PRIMARY."""
        tag = element.tag if element else 0x00080008
        values = self._raw(element).strip(b" \0").split(b"\\")[1:] or [b"PRIMARY"]
        yield self.made(tag, "CS", b"\\".join([b"DERIVED", *values]))

    def _words(self) -> str:
        return f"Lossy compression, {self._facets.codec_description}, ratio {self._facets.ratio:.1f}:1"

    def _description(self, element: Element | None) -> Iterator[bytes]:
        before = self._raw(element).strip(b" \0")
        return self._extended(0x00082111, "ST", element, f"; {self._words()}" if before else self._words(), 1024)

    def _extended(self, tag: int, vr: str, element: Element | None, suffix: str, limit: int) -> Iterator[bytes]:
        """A text with ASCII words behind it; where both are too long, the text is cut (`limit` in characters)."""
        raw = self._raw(element).rstrip(b" \0")
        text = decode(raw, self._charsets, fallback=LATIN1)
        if len(text) + len(suffix) > limit:
            text = text[: limit - len(suffix)].rstrip()
            raw = self._encoded(text)
        yield self.made(tag, vr, raw + suffix.encode() if raw else suffix.strip().encode())

    def _encoded(self, text: str) -> bytes:
        """In the character set of the data set; characters that it has not, which came wrong, as they came."""
        try:
            return encode_text(text, self._charset)
        except UnicodeEncodeError:
            return text.encode("latin_1", "replace")

    def _sequence(self, tag: int, content: Json) -> Callable[[Element | None], Iterator[bytes]]:
        """The items of the original, then a new one."""
        return lambda element: self._appended(tag, element, content)

    def _appended(self, tag: int, element: Element | None, content: Json) -> Iterator[bytes]:
        yield self.head(tag, "SQ", UNDEFINED)
        if element is not None:
            yield from self.items(element)
        yield encode.item(EXPLICIT_LE)
        for key in sorted(content):
            yield encode.of_json(key, content[key], EXPLICIT_LE, self._charset)
        yield encode.item_end(EXPLICIT_LE)
        yield encode.sequence_end(EXPLICIT_LE)

    def _shared(self, element: Element | None) -> Iterator[bytes]:
        """Shared Functional Groups, with a Derivation Image of all frames (PS3.3 C.7.6.16.2.6)."""
        group = element.items[0] if element and element.items else []
        outside, self._wanted = self._wanted, _SIGNATURES | _INSIDE
        yield self.head(_SHARED, "SQ", UNDEFINED)
        yield encode.item(EXPLICIT_LE)
        yield from self.data_set(
            group, {_DERIVATION_IMAGE: self._appended(_DERIVATION_IMAGE, None, self._derivation())}
        )
        yield encode.item_end(EXPLICIT_LE)
        yield encode.sequence_end(EXPLICIT_LE)
        self._wanted = outside

    def _derivation(self) -> Json:
        return {
            "00082111": {"vr": "ST", "Value": [self._words()]},
            "00082112": {"vr": "SQ", "Value": [self._source_image()]},
            "00089215": {"vr": "SQ", "Value": [code(*LOSSY_COMPRESSION)]},
        }

    def _source_image(self) -> Json:
        purpose = {"0040A170": {"vr": "SQ", "Value": [code(*UNCOMPRESSED_PREDECESSOR)]}}
        return {**self._reference(), "0028135A": {"vr": "CS", "Value": ["YES"]}, **purpose}  # same place, same geometry

    def _reference(self) -> Json:
        facts = self._facets.facts
        return {
            "00081150": {"vr": "UI", "Value": [facts.sop_class_uid]},
            "00081155": {"vr": "UI", "Value": [facts.sop_instance_uid]},
        }

    def _evidence(self, top: dict[int, Element]) -> Json:
        """Source Image Evidence, which enhanced images have beside their sources (PS3.3 C.8.13.2)."""
        study, series = (self._raw(top.get(tag)).decode("latin_1").strip(" \0") for tag in (0x0020000D, 0x0020000E))
        instances = {"00081199": {"vr": "SQ", "Value": [self._reference()]}}
        return {
            "0020000D": {"vr": "UI", "Value": [study]},
            "00081115": {"vr": "SQ", "Value": [{**instances, "0020000E": {"vr": "UI", "Value": [series]}}]},
        }

    def _contribution(self) -> Json:
        """Contributing Equipment (PS3.3 C.12.1): the archive as processing equipment."""
        us = self._facets.equipment
        texts = {
            "00080070": ("LO", us.manufacturer),
            "00080080": ("LO", us.institution_name if fits(us.institution_name, self._charset) else ""),
            "00081010": ("SH", us.station_name),
            "00081090": ("LO", us.model_name),
            "00181020": ("LO", us.software_version),
            "0018A002": ("DT", f"{self._at:%Y%m%d%H%M%S.%f%z}"),
            "0018A003": ("ST", "Lossy compression for long-term storage"),
        }
        written = {key: {"vr": vr, "Value": [text]} for key, (vr, text) in texts.items() if text}
        return {**written, "0040A170": {"vr": "SQ", "Value": [code(*PROCESSING_EQUIPMENT)]}}

    def _pixels(self, lengths: list[int], frames: Iterable[bytes]) -> Iterator[bytes]:
        """Encapsulated, a fragment a frame (PS3.5 A.4): several with a table of offsets, extended where a basic one
        cannot reach them. The extended tables stand before Pixel Data, so they are made here too."""
        padded = [length + length % 2 for length in lengths]
        offsets = [0]
        for length in padded[:-1]:
            offsets.append(offsets[-1] + 8 + length)
        extended = offsets[-1] > _TABLE_LIMIT
        if extended:
            for tag, numbers in ((0x7FE00001, offsets), (0x7FE00002, lengths)):
                yield self.head(tag, "OV", 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)
        table = b"" if extended or len(offsets) == 1 else struct.pack(f"<{len(offsets)}I", *offsets)
        yield self.head(_PIXEL_DATA, "OB", UNDEFINED)
        yield struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table
        for frame, length in zip(frames, padded, strict=True):
            yield struct.pack("<HHI", 0xFFFE, 0xE000, length) + frame.ljust(length, b"\0")
        yield encode.sequence_end(EXPLICIT_LE)

    def _raw(self, element: Element | None) -> bytes:
        return b"" if element is None or element.undefined else self._source.read(element.value, element.length)

    def _local(self, offset: Element | None) -> datetime:
        """The moment by the clock of the data set, Timezone Offset From UTC (0008,0201)."""
        written = self._raw(offset).strip(b" \0")
        if len(written) == 5 and written[:1] in b"+-" and written[1:].isdigit():
            minutes = int(written[1:3]) * 60 + int(written[3:])
            if minutes < 24 * 60:
                return self._facets.at.astimezone(
                    timezone((1 if written[:1] == b"+" else -1) * timedelta(minutes=minutes))
                )
        return local_time(self._facets.at)


def code(value: str, meaning: str) -> Json:
    """A code of the DICOM terminology (PS3.16 Annex D)."""
    texts = {"00080100": ("SH", value), "00080102": ("SH", "DCM"), "00080104": ("LO", meaning)}
    return {key: {"vr": vr, "Value": [text]} for key, (vr, text) in texts.items()}


def _holds(element: Element | None, tags: set[int]) -> bool:
    """Whether one of these elements is in a sequence, at any depth."""
    return element is not None and any(
        one.tag in tags or _holds(one, tags) for item in element.items or [] for one in item
    )
