"""The Native DICOM Model (PS3.19 Annex A.1), to and from the DICOM JSON Model of the same data set (PS3.18 Annex F).

Written as text, since a data set has few forms; read with expat, without a document type: no entity is ever expanded.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterator, Mapping
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from archive.dicom.dictionary import keyword_of
from archive.dicom.values import BINARY, NUMBERS
from archive.errors import UnreadableInstance

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
DEEPEST = 64  # elements within elements
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_VR = re.compile(r"[A-Z]{2}")
_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF

Json = Mapping[str, Any]


def written(found: Json) -> bytes:
    """One data set as an XML document in UTF-8.

    Private elements name their creator, whose own element is left out then (PS3.19 Table A.1.5-2). Characters that XML
    does not have become U+FFFD.
    """
    body = "".join(_data_set(found))
    root = f'<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">{body}</NativeDicomModel>'
    return f'<?xml version="1.0" encoding="UTF-8"?>{root}'.encode()


def _data_set(found: Json) -> Iterator[str]:
    creators = {key: str(element["Value"][0]) for key, element in found.items() if _creates(key, element)}
    for key in sorted(found):
        element = found[key]
        if key in creators:
            continue
        tag, private = key, ""
        creator = creators.get(f"{key[:4]}00{key[4:6]}") if int(key[:4], 16) % 2 else None
        if creator is not None:
            tag, private = f"{key[:4]}00{key[6:]}", f" privateCreator={_attribute(creator)}"
        keyword = keyword_of(int(key, 16)) if creator is None else ""
        named = f' keyword="{keyword}"' if keyword else ""
        yield f'<DicomAttribute tag="{tag}" vr="{element["vr"]}"{named}{private}>'
        yield from _content(element)
        yield "</DicomAttribute>"


def _creates(key: str, element: Json) -> bool:
    private = int(key[:4], 16) % 2 and key[4:6] == "00" and int(key[6:], 16) >= _FIRST_BLOCK
    return bool(private and element.get("Value") and isinstance(element["Value"][0], str))


def _content(element: Json) -> Iterator[str]:
    if "BulkDataURI" in element:
        yield f"<BulkData uri={_attribute(str(element['BulkDataURI']))}/>"
    elif "InlineBinary" in element:
        yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(element.get("Value") or (), 1):
        if element["vr"] == "SQ":
            yield f'<Item number="{number}">'
            yield from _data_set(value or {})
            yield "</Item>"
        elif element["vr"] == "PN":
            yield f'<PersonName number="{number}">{"".join(_name(value or {}))}</PersonName>'
        else:
            yield f'<Value number="{number}">{"" if value is None else _text(str(value))}</Value>'


def _name(value: Json) -> Iterator[str]:
    for group in _GROUPS:
        if value.get(group):
            parts = str(value[group]).split("^", len(_COMPONENTS) - 1)
            named = zip(_COMPONENTS, parts, strict=False)
            inner = "".join(f"<{name}>{_text(part)}</{name}>" for name, part in named if part)
            yield f"<{group}>{inner}</{group}>"


def _text(value: str) -> str:
    return escape(_UNWRITABLE.sub("\ufffd", value), {"\r": "&#13;"})


def _attribute(value: str) -> str:
    return quoteattr(_UNWRITABLE.sub("\ufffd", value), {"\r": "&#13;"})


def read(document: bytes) -> dict[str, Any]:
    """The DICOM JSON of one document. Names outside the model are passed over.

    Raises:
        UnreadableInstance: it is no XML, has a document type, or is not of the Native DICOM Model.
    """
    return _Reader().read(document)


class _Reader:
    """Follows the elements with a stack: data sets, attributes, values."""

    def __init__(self) -> None:
        self._root: dict[str, Any] | None = None
        self._path: list[str] = []
        self._sets: list[_DataSet] = []
        self._attributes: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._names: dict[str, dict[str, str]] = {}

    def read(self, document: bytes) -> dict[str, Any]:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.StartDoctypeDeclHandler = _no_doctype
        try:
            parser.Parse(document, True)
        except expat.ExpatError as error:
            raise UnreadableInstance(f"no XML: {expat.errors.messages[error.code]}") from None
        except (ValueError, LookupError, TypeError, NotBase64) as error:
            raise UnreadableInstance(f"not of the Native DICOM Model: {type(error).__name__}") from None
        if self._root is None:
            raise UnreadableInstance("not of the Native DICOM Model")
        return self._root

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]
        self._path.append(name)
        self._text.clear()
        if len(self._path) > DEEPEST * 2:
            raise UnreadableInstance("elements within elements, too deep")
        if name == "NativeDicomModel" and len(self._path) == 1:
            self._sets.append(_DataSet())
            self._root = self._sets[0].found
        elif name == "DicomAttribute" and self._sets:
            self._attributes.append(self._sets[-1].add(attributes))
        elif name == "Item" and self._attributes:
            self._sets.append(_DataSet())
            self._attributes[-1].setdefault("Value", []).append(self._sets[-1].found)
        elif name == "PersonName":
            self._names = {}
        elif name in _GROUPS:
            self._names[name] = {}
        elif name == "BulkData" and self._attributes:
            self._attributes[-1]["BulkDataURI"] = attributes["uri"]

    def _end(self, name: str) -> None:
        name = self._path.pop()
        text = "".join(self._text)
        self._text.clear()
        if name == "Item":
            self._sets.pop()
        elif name == "DicomAttribute":
            self._attributes.pop()
        elif not self._attributes:
            return
        elif name == "Value":
            self._attributes[-1].setdefault("Value", []).append(_value(text, self._attributes[-1]["vr"]))
        elif name == "InlineBinary":
            b64decode(text)
            self._attributes[-1]["InlineBinary"] = text
        elif name in _COMPONENTS:
            self._names[self._path[-1]][name] = text
        elif name == "PersonName":
            self._attributes[-1].setdefault("Value", []).append(
                {
                    group: "^".join(parts.get(one, "") for one in _COMPONENTS).rstrip("^")
                    for group, parts in self._names.items()
                }
                or None
            )


class _DataSet:
    """A data set that is read; private elements get blocks in the order in which their creators come."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._blocks: dict[tuple[str, str], int] = {}

    def add(self, attributes: Mapping[str, str]) -> dict[str, Any]:
        key, vr, creator = attributes["tag"].upper(), attributes["vr"], attributes.get("privateCreator")
        if not _TAG.fullmatch(key) or not _VR.fullmatch(vr):
            raise ValueError(key)
        if creator is not None:
            key = f"{key[:4]}{self._block(key[:4], creator):02X}{key[6:]}"
        if key in self.found:
            raise UnreadableInstance(f"the attribute {key} comes twice")
        made: dict[str, Any] = {"vr": vr}
        self.found[key] = made
        return made

    def _block(self, group: str, creator: str) -> int:
        known = self._blocks.get((group, creator))
        if known is not None:
            return known
        free = (n for n in range(_FIRST_BLOCK, _LAST_BLOCK + 1) if f"{group}00{n:02X}" not in self.found)
        block = next(free, None)
        if block is None:
            raise UnreadableInstance(f"the group {group} has more private creators than blocks")
        self.found[f"{group}00{block:02X}"] = {"vr": "LO", "Value": [creator]}
        self._blocks[group, creator] = block
        return block


def _value(text: str, vr: str) -> Any:
    if vr in BINARY or not text:
        return None
    if vr in NUMBERS:
        return float(text) if vr in ("FL", "FD") else int(text)
    return text


def _no_doctype(*_: object) -> None:
    raise UnreadableInstance("a document type, which the Native DICOM Model has not")
