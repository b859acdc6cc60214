"""Identifiers to keys, and matches to bytes: byte for byte what pydicom writes, in every syntax and character set."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from archive.dicom.charset import choose
from archive.dicom.elements import IMPLICIT_LE, encoding_of
from archive.errors import UnreadableInstance
from dicom_scp import identifier as module
from dicom_scp.identifier import Asked, Encoder, Field, decode
from tests.dicom_scp import slow_encoder

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG]
FIELDS = (
    Field(0x00080052, "CS", constant="STUDY"),
    Field(0x00100010, "PN"),
    Field(0x00100020, "LO"),
    Field(0x00104000, "LT"),
    Field(0x0020000D, "UI"),
    Field(0x00200013, "IS"),
    Field(0x00101030, "DS"),
    Field(0x00280010, "US"),
    Field(0x00080008, "CS"),
    Field(0x00080201, "SH", optional=True),
    Field(0x00400275, "SQ", nested=(Field(0x00400009, "SH"), Field(0x00401001, "SH"))),
    Field(0x00081032, "SQ"),
    Field(0x00083001, "SQ"),
)
CODE = {
    "00080100": {"vr": "SH", "Value": ["Z1"]},
    "00080104": {"vr": "LO", "Value": ["Écho"]},
    "00080106": {"vr": "DT"},
}
ROW: dict[str, Any] = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "LEFÈVRE^Anaïs"}]},
    "00100020": {"vr": "LO", "Value": ["IPP1"]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "00200013": {"vr": "IS", "Value": [12]},
    "00101030": {"vr": "DS", "Value": [72.5]},
    "00280010": {"vr": "US", "Value": [512]},
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
    "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["SPS1"]}, "00400007": {"vr": "LO"}}, None]},
    "00081032": {"vr": "SQ", "Value": [CODE]},
    "0008FFFF": {"vr": "LO", "Value": ["not asked"]},
}


def read(data: bytes, syntax: str) -> Dataset:
    """As a requester reads it."""
    ds = dcmread(BytesIO(b"\0" * 128 + b"DICM" + _meta(syntax) + data))
    ds.remove_private_tags()
    return ds


def _meta(syntax: str) -> bytes:
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = b"\x02\0\x10\0UI" + len(value).to_bytes(2, "little") + value
    return b"\x02\0\0\0UL\x04\0" + len(element).to_bytes(4, "little") + element


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "wanted",
    [(), ("ISO_IR 100",), ("ISO_IR 192",), ("ISO_IR 144",), ("ISO_IR 203",), ("GB18030",), ("nonsense",)],
    ids=lambda wanted: "+".join(wanted) or "none",
)
def test_the_fast_encoder_writes_what_pydicom_writes(syntax: str, wanted: tuple[str, ...]) -> None:
    encoding = encoding_of(syntax)
    charset = choose(["LEFÈVRE^Anaïs", "Écho"], wanted)
    slow = slow_encoder.encode(FIELDS, ROW, encoding, charset)
    assert Encoder(FIELDS, encoding, charsets=wanted).encode(ROW) == slow


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\\^=\x1b", exclude_categories=["Cc", "Cs"]), max_size=9)
WORDS = TEXT.map(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    syntax=st.sampled_from(SYNTAXES),
    name=st.lists(WORDS, min_size=1, max_size=3),
    texts=st.lists(WORDS, max_size=2),
    comment=WORDS,
    numbers=st.lists(st.integers(0, 65535), max_size=3),
)
def test_any_text_comes_back_as_it_is_never_with_a_replaced_character(
    syntax: str, name: list[str], texts: list[str], comment: str, numbers: list[int]
) -> None:
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), name, strict=False))
    row = {
        "00100010": {"vr": "PN", "Value": [groups]},
        "00100020": {"vr": "LO", "Value": texts},
        "00104000": {"vr": "LT", "Value": [comment]},
        "00280010": {"vr": "US", "Value": numbers},
    }
    encoding = encoding_of(syntax)
    wanted = ("ISO_IR 100",)
    answer = Encoder(FIELDS, encoding, charsets=wanted).encode(row)
    charset = choose([*name, *texts, comment], wanted)
    assert answer == slow_encoder.encode(FIELDS, row, encoding, charset)
    ds = read(answer, syntax)
    assert str(ds.PatientName) == "=".join(name).rstrip("=").rstrip()
    assert ds.get("PatientComments", "") == comment


@pytest.mark.req("REQ-DCM-62")
@pytest.mark.parametrize(
    ("wanted", "name", "expected"),
    [
        ((), "DUPONT^Anne", None),
        (("ISO_IR 100",), "LEFÈVRE^Anaïs", "ISO_IR 100"),
        ((), "LEFÈVRE^Anaïs", "ISO_IR 192"),
        (("ISO_IR 6",), "LEFÈVRE^Anaïs", "ISO_IR 192"),
        (("ISO_IR 100",), "Cœurdevey^Zoé", "ISO_IR 192"),  # œ is not in Latin-1
        (("ISO_IR 203",), "LEFÈVRE^Anaïs", "ISO_IR 100"),  # read, never written
        (("ISO_IR 203",), "Cœurdevey^Zoé", "ISO_IR 192"),
        (("ISO_IR 144",), "Люкceмбypг", "ISO_IR 144"),
        (("ISO_IR 100",), "Люкceмбypг", "ISO_IR 192"),
        (("ISO_IR 192",), "山田^太郎", "ISO_IR 192"),
    ],
)
def test_the_answer_is_in_the_requesters_character_set_when_all_fits(
    wanted: tuple[str, ...], name: str, expected: str | None
) -> None:
    row = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}}
    answer = Encoder([Field(0x00100010, "PN")], encoding_of(EXPLICIT), charsets=wanted).encode(row)
    ds = read(answer, EXPLICIT)
    assert ds.get("SpecificCharacterSet") == expected
    assert str(ds.PatientName) == name
    assert "?" not in str(ds.PatientName)


def test_a_value_too_long_for_its_vr_is_written_as_un() -> None:
    row = {"00104000": {"vr": "LT", "Value": ["x" * 70000]}}
    answer = Encoder([Field(0x00104000, "LT")], encoding_of(EXPLICIT), charsets=()).encode(row)
    assert answer[4:6] == b"UN"
    assert len(answer) == 12 + 70000


def request() -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.QueryRetrieveLevel = "SERIES"
    ds.PatientName = "LEFÈVRE^*"
    ds.StudyInstanceUID = ["1.2.3", "1.2.4"]
    ds.SeriesNumber = None
    ds.Rows = 512
    item = Dataset()
    item.ScheduledProcedureStepID = "É1"
    item.RequestedProcedureID = ""
    ds.RequestAttributesSequence = Sequence([item])
    ds.ProcedureCodeSequence = Sequence([Dataset()])
    ds.ReferencedRequestSequence = Sequence()
    return ds


def encoded(ds: Dataset, syntax: str) -> bytes:
    encoding = encoding_of(syntax)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = encoding.implicit, encoding.little
    write_dataset(buffer, ds)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_request_is_read_in_every_syntax(syntax: str, undefined: bool) -> None:
    ds = request()
    for sequence in (ds["RequestAttributesSequence"], ds["ProcedureCodeSequence"]):
        sequence.is_undefined_length = undefined
        sequence.value[0].is_undefined_length_sequence_item = undefined
    identifier = decode(encoded(ds, syntax), encoding_of(syntax), default_charset="ISO_IR 6")
    assert identifier.charsets == ("ISO_IR 100",)
    asked = identifier.elements
    assert asked[0x00080052].text == "SERIES"
    assert asked[0x00100010] == Asked(0x00100010, "PN", "LEFÈVRE^*")
    assert asked[0x0020000D].text == "1.2.3\\1.2.4"
    assert asked[0x00200011].text == ""
    assert asked[0x00280010].text == "512"
    (item,) = asked[0x00400275].items or ()
    assert [inner.text for inner in item] == ["É1", ""]
    assert asked[0x00081032].items == ((),)
    assert asked[0x0040A370].items == ()


@pytest.mark.parametrize("charset", ["", "ISO_IR 100", "ISO_IR 192"])
def test_a_request_of_text_alone_is_read_as_any_other(charset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = Dataset()
    if charset:
        ds.SpecificCharacterSet = charset
    ds.QueryRetrieveLevel, ds.PatientName, ds.PatientID, ds.StudyDate = "STUDY", "LEFÈVRE^*", " 12 ", "20260101-"
    ds.StudyInstanceUID, ds.ModalitiesInStudy, ds.StudyDescription = ["1.2.3", "1.2.4"], ["CT", "MR"], "x" * 100
    for keyword in ("StudyTime", "AccessionNumber", "NumberOfStudyRelatedInstances"):
        setattr(ds, keyword, None)
    data = encoded(ds, IMPLICIT)
    quick = decode(data, IMPLICIT_LE, default_charset="ISO_IR 100")
    monkeypatch.setattr(module, "_values", lambda data: {})
    assert decode(data, IMPLICIT_LE, default_charset="ISO_IR 100") == quick
    assert quick.elements[0x00100010].text == "LEFÈVRE^*"


def test_without_a_character_set_the_sites_own_is_assumed() -> None:
    ds = request()
    data = encoded(ds, EXPLICIT).replace(b"\x08\0\x05\0CS\x0a\0ISO_IR 100", b"")
    identifier = decode(data, encoding_of(EXPLICIT), default_charset="ISO_IR 100")
    assert identifier.charsets == ()
    assert identifier.elements[0x00100010].text == "LEFÈVRE^*"


@pytest.mark.parametrize("data", [b"\x08\0\x52\0CS\xff\0STUDY ", b"garbage!garbage!!", b"\x08\0\x52\0CS\x06"])
def test_an_identifier_that_cannot_be_followed_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableInstance):
        decode(data, encoding_of(EXPLICIT), default_charset="ISO_IR 100")
