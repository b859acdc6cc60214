"""The DICOM JSON Model of a stored data set (PS3.18 Annex F, REQ-DCM-97).

UTF-8 and said so in (0008,0005); keys ascending; no group lengths; long values as BulkDataURI. Values that break the
rules of their VR come as the text that is there, or as bytes of VR UN: metadata of a bad object are still metadata.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any

from archive.dicom import values
from archive.dicom.charset import LATIN1, SPECIFIC_CHARACTER_SET, UTF8, terms
from archive.dicom.elements import PIXEL_TAGS, Encoding, opened
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse, parse_items

INLINE_BYTES = 1024  # of binary values; longer ones are bulk data
INLINE_TEXT_BYTES = 1 << 20  # of all other values
PIXEL_REPRESENTATION = 0x00280103

CHARACTER_SET: dict[str, Any] = {f"{SPECIFIC_CHARACTER_SET:08X}": {"vr": "CS", "Value": [UTF8]}}  # of all our JSON

BulkUri = Callable[[str], str]


def metadata(path: str, *, data_set_offset: int, transfer_syntax_uid: str, bulk_uri: BulkUri) -> dict[str, Any]:
    """The metadata of a stored file, for WADO-RS.

    `bulk_uri` turns the path of a value in the data set (`7FE00010`, or in sequences `SEQUENCE/ITEM/TAG` with items
    counted from 1) into its address; `archive.dicom.bulk` resolves such a path.

    Raises:
        UnreadableInstance: the elements cannot be followed.
        OSError: the file cannot be read.
    """
    with opened(path, data_set_offset=data_set_offset, transfer_syntax_uid=transfer_syntax_uid) as (source, encoding):
        reader = JsonReader(source, (), bulk_uri=bulk_uri)
        found = CHARACTER_SET | reader.data_set(parse(source, encoding, cut=True))
        return dict(sorted(found.items()))


def ambiguous(element: Element, pixel_representation: int) -> str:
    """One VR for an element of an implicit data set whose dictionary VR is a choice (PS3.5 Annex A.1)."""
    if " or " not in element.vr:
        return element.vr
    if element.vr == "US or SS":
        return "SS" if pixel_representation else "US"
    if element.vr == "OB or OW":
        return "OB" if element.undefined else "OW"
    return "US" if element.length == 2 else "OW"  # LUT Data: a single number, or words


def pixel_representation(source: Source, elements: list[Element], inherited: int) -> int:
    """Pixel Representation of a data set or of the one around it: decides "US or SS"."""
    for element in elements:
        if element.tag == PIXEL_REPRESENTATION and element.length == 2:
            order: Any = "little" if element.encoding.little else "big"
            return int.from_bytes(source.read(element.value, 2), order)
        if element.tag > PIXEL_REPRESENTATION:
            break
    return inherited


def charsets_of(source: Source, elements: list[Element]) -> tuple[str, ...]:
    """The values of (0008,0005) of a data set; () when it has none."""
    for element in elements:
        if element.tag == SPECIFIC_CHARACTER_SET:
            return terms(source.read(element.value, element.length))
    return ()


class JsonReader:
    """Turns parsed elements of one source into DICOM JSON; remembers whether text went beyond ASCII."""

    def __init__(
        self,
        source: Source,
        charsets: tuple[str, ...],
        *,
        fallback: str = LATIN1,
        bulk_uri: BulkUri | None = None,
    ) -> None:
        self._source = source
        self._charsets = charsets
        self._fallback = fallback
        self._bulk_uri = bulk_uri
        self.beyond_ascii = False

    def items(self, encoding: Encoding) -> list[dict[str, Any]]:
        """The items of a sequence whose value is the whole source."""
        return [self.data_set(item) for item in parse_items(self._source, encoding)]

    def data_set(self, elements: list[Element]) -> dict[str, Any]:
        """The JSON object of a data set."""
        return self._data_set(elements, self._charsets, 0, "")

    def _data_set(self, elements: list[Element], charsets: tuple[str, ...], signed: int, prefix: str) -> dict[str, Any]:
        signed = pixel_representation(self._source, elements, signed)
        charsets = charsets_of(self._source, elements) or charsets
        result: dict[str, Any] = {}
        for element in sorted(elements, key=lambda element: element.tag):
            if element.tag & 0xFFFF == 0:
                continue
            key = f"{element.tag:08X}"
            if element.tag == SPECIFIC_CHARACTER_SET:
                result |= CHARACTER_SET
            else:
                result[key] = self.element(element, charsets, signed, prefix + key)
        return result

    def element(self, element: Element, charsets: tuple[str, ...], signed: int, path: str) -> dict[str, Any]:
        """The JSON object of one element, in a data set with these character sets and this Pixel Representation;
        `path`: as `metadata` gives it to `bulk_uri`."""
        vr = ambiguous(element, signed)
        if element.items is not None:
            items = [
                self._data_set(item, charsets, signed, f"{path}/{number}/")
                for number, item in enumerate(element.items, 1)
            ]
            return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        if not element.length:
            return {"vr": vr}
        binary = vr in values.BINARY
        limit = INLINE_BYTES if binary else INLINE_TEXT_BYTES
        if self._bulk_uri is not None and (element.length > limit or element.undefined or element.tag in PIXEL_TAGS):
            return {"vr": vr, "BulkDataURI": self._bulk_uri(path)}
        raw = self._source.read(element.value, element.length)
        if binary or vr == "SQ":
            return {
                "vr": vr if binary else "UN",
                "InlineBinary": _base64(values.little_endian(raw, vr, little=element.encoding.little)),
            }
        content: list[Any] | None
        if vr in values.NUMBERS or vr == "AT":
            content = values.of_numbers(raw, vr, little=element.encoding.little)
            if content is None:
                return {"vr": "UN", "InlineBinary": _base64(raw)}
        else:
            self.beyond_ascii = self.beyond_ascii or not raw.isascii()
            content = values.of_text(values.text(raw, vr, charsets, fallback=self._fallback), vr)
        return {"vr": vr, "Value": content} if content else {"vr": vr}


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")
