"""The data sets of normalized services (PS3.7 §10): DICOM JSON inside, bytes of the context's syntax outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archive.dicom.charset import SPECIFIC_CHARACTER_SET, UTF8
from archive.dicom.elements import encoding_of
from archive.dicom.encode import of_json, texts
from archive.dicom.json import JsonReader
from archive.dicom.source import Source
from archive.dicom.tree import parse

_CHARACTER_SET = f"{SPECIFIC_CHARACTER_SET:08X}"


def decode(data: bytes, transfer_syntax_uid: str, *, default_charset: str) -> dict[str, Any]:
    """A data set as DICOM JSON. Raises UnreadableInstance when its elements cannot be followed."""
    source = Source.of_bytes(data)
    reader = JsonReader(source, (), fallback=default_charset)
    return reader.data_set(parse(source, encoding_of(transfer_syntax_uid)))


def encode(attributes: Mapping[str, Any], transfer_syntax_uid: str) -> bytes:
    """DICOM JSON as a data set; in ISO_IR 192, and said so, where text goes beyond ASCII (REQ-DCM-62)."""
    encoding = encoding_of(transfer_syntax_uid)
    content = {key: value for key, value in attributes.items() if key != _CHARACTER_SET}
    if any(not text.isascii() for value in content.values() for text in texts(value)):
        content[_CHARACTER_SET] = {"vr": "CS", "Value": [UTF8]}
    return b"".join(of_json(key, content[key], encoding, UTF8) for key in sorted(content))
