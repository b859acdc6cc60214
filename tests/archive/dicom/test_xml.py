"""The Native DICOM Model (PS3.19 Annex A.1)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom import xml
from archive.errors import UnreadableInstance

NAME = {"Alphabetic": "LEFÈVRE^Anaïs^^Dr", "Ideographic": "山田^太郎"}
FOUND: dict[str, Any] = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
    "00080050": {"vr": "SH"},
    "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}, {}]},
    "00090010": {"vr": "LO", "Value": ["ACME"]},
    "00091001": {"vr": "UN", "InlineBinary": "AAEC"},
    "00100010": {"vr": "PN", "Value": [NAME]},
    "00104000": {"vr": "LT", "Value": [" two\r\nlines < & > "]},
    "00280010": {"vr": "US", "Value": [512]},
    "00281050": {"vr": "DS", "Value": ["40.5"]},
    "00189073": {"vr": "FD", "Value": [1e-3, float("inf")]},
    "00209165": {"vr": "AT", "Value": ["00209056"]},
    "7FE00010": {"vr": "OW", "BulkDataURI": 'http://h/a?b="c"&d'},
}


@pytest.mark.req("REQ-DCM-91")
def test_what_is_written_is_read_back() -> None:
    document = xml.written(FOUND)
    assert document.startswith(b'<?xml version="1.0" encoding="UTF-8"?>')
    assert b'<DicomAttribute tag="00090001" vr="UN" privateCreator="ACME">' in document
    assert b"<FamilyName>LEF" in document
    assert xml.read(document) == FOUND


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_makes_a_document_that_can_be_read(text: str, name: str) -> None:
    found = {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]},
        "00104000": {"vr": "LT", "Value": [text]},
        "00090010": {"vr": "LO", "Value": [text or "x"]},
        "00091002": {"vr": "LO", "Value": [name]},
    }
    assert set(xml.read(xml.written(found))) >= {"00100010", "00104000"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<",
        b"<other/>",
        b"<NativeDicomModel>",
        b'<NativeDicomModel><DicomAttribute tag="1" vr="US"/></NativeDicomModel>',
        b'<NativeDicomModel><DicomAttribute vr="US"/></NativeDicomModel>',
        b'<NativeDicomModel><DicomAttribute tag="00280010" vr="US"><Value>x</Value></DicomAttribute>'
        b"</NativeDicomModel>",
        b'<NativeDicomModel><DicomAttribute tag="00280010" vr="US"/><DicomAttribute tag="00280010" vr="US"/>'
        b"</NativeDicomModel>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel/>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><NativeDicomModel/>',
        b"<NativeDicomModel>" + b'<DicomAttribute tag="00081140" vr="SQ"><Item>' * 200,
        b"<NativeDicomModel>"
        + b"".join(b'<DicomAttribute tag="00090001" vr="LO" privateCreator="C%d"/>' % one for one in range(241))
        + b"</NativeDicomModel>",
    ],
)
def test_what_is_not_of_the_model_is_refused_and_nothing_is_expanded(document: bytes) -> None:
    with pytest.raises(UnreadableInstance):
        xml.read(document)
