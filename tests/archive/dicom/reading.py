"""Reading with pydicom, as the oracle for what our own readers say."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from archive.dicom.header import Header, read_header
from tests.archive.dicom.conftest import shared


def header_of(raw: bytes, transfer_syntax_uid: str, default_charset: str = "ISO_IR 100") -> Header:
    """`read_header` of bytes, by way of a real file."""
    fd = os.memfd_create("header")
    try:
        os.write(fd, b"before" + raw + b"\xff after")
        return read_header(
            fd,
            offset=6,
            length=len(raw),
            transfer_syntax_uid=transfer_syntax_uid,
            default_charset=default_charset,
        )
    finally:
        os.close(fd)


def meta_of(path: Path) -> tuple[str, int] | None:
    """Transfer syntax and where the data set starts; None when the file is not complete PS3.10."""
    with path.open("rb") as file:
        head = file.read(132)
        if head[128:] != b"DICM":
            return None
        try:
            meta = pydicom.filereader._read_file_meta_info(file)
        except (InvalidDicomError, NotImplementedError):
            return None
        if "TransferSyntaxUID" not in meta:
            return None
        return str(meta.TransferSyntaxUID), file.tell()


def real_files() -> Iterator[tuple[Path, str, int]]:
    """Every PS3.10 file of the shared data, with its transfer syntax and the offset of its data set."""
    for path in sorted(shared("data").rglob("*")):
        if path.is_file() and (meta := meta_of(path)):
            yield path, *meta


def read(source: Path | bytes, **how: Any) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, **how)


def as_json(ds: Dataset, tag: int) -> Any:
    """An element in DICOM JSON as pydicom says, then `comparable`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        element = ds[tag]
        try:
            return comparable(element.to_json_dict(None, 1 << 30))
        except (TypeError, ValueError):  # a malformed number, which pydicom has no JSON for
            malformed = element.value if element.VM > 1 else [element.value]
            return {"vr": element.VR, "Value": [comparable(str(value)) for value in malformed]}


def comparable(element: Any) -> Any:
    """DICOM JSON where padding, empty values and the type of numbers do not count, (0008,0005) neither."""
    if isinstance(element, list):
        return [comparable(value) for value in element]
    if isinstance(element, dict):
        kept = {}
        for name, value in element.items():
            if name == "00080005" or (len(name) == 8 and name.endswith("0000")):
                continue
            if name in ("Value", "InlineBinary") and value in (None, "", [], [""], [None], [{}]):
                continue
            simple = comparable(value)
            if name in ("Alphabetic", "Ideographic", "Phonetic") and not simple:
                continue
            kept[name] = simple
        return kept or None
    if isinstance(element, str):
        text = str(element).strip(" \0")
        try:
            return float(text)
        except ValueError:
            return text or None
    if isinstance(element, int | float):
        return float(element)
    return element
