"""Answers of C-FIND by pydicom: slow, and obviously right. What the fast encoder is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from archive.dicom.charset import SPECIFIC_CHARACTER_SET
from archive.dicom.elements import Encoding
from dicom_scp.identifier import Field


def encode(fields: Iterable[Field], row: dict[str, Any], encoding: Encoding, charset: str) -> bytes:
    """A row's fields in `charset`, the value of (0008,0005)."""
    ds = _data_set(fields, row)
    if charset:
        ds.add_new(SPECIFIC_CHARACTER_SET, "CS", charset.split("\\"))
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = encoding.implicit, encoding.little
    write_dataset(buffer, ds, charset.split("\\") if charset else "ISO_IR 6")
    return buffer.getvalue()


def _data_set(fields: Iterable[Field] | None, row: dict[str, Any]) -> Dataset:
    ds = Dataset()
    if fields is None:
        fields = [Field(int(key, 16), element["vr"]) for key, element in row.items()]
    for field in fields:
        if field.constant is not None:
            ds.add_new(field.tag, field.vr, field.constant)
            continue
        values = row.get(field.key, {}).get("Value", [])
        if not values and field.optional:
            continue
        ds.add_new(field.tag, field.vr, [_value(field, value) for value in values])
    return ds


def _value(field: Field, value: Any) -> Any:
    if field.vr == "SQ":
        return _data_set(field.nested, value or {})
    if field.vr == "PN":
        groups = [(value or {}).get(name, "") for name in ("Alphabetic", "Ideographic", "Phonetic")]
        return "=".join(groups).rstrip("=")
    if field.vr == "AT":
        return int(value, 16)
    return "" if value is None else value if field.vr in ("US", "SS", "UL", "SL", "FL", "FD") else str(value)
