from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom.charset import TABLE, choose, decode, encode, fits, term, terms
from tests.archive.dicom.conftest import shared

SETS = {
    "ISO_IR 100": (b"LEF\xc8VRE", "LEFÈVRE"),
    "ISO_IR 101": (b"Wa\xb3\xeasa", "Wałęsa"),
    "ISO_IR 109": (b"\xe6usti", "ĉusti"),
    "ISO_IR 110": (b"\xe5\xe0", "åā"),
    "ISO_IR 144": (b"\xbb\xee\xdace\xdc\xd1yp\xd3", "Люкceмбypг"),
    "ISO_IR 127": (b"\xe2\xc8\xc7\xe6\xea", "قباني"),
    "ISO_IR 126": (b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    "ISO_IR 138": (b"\xf9\xf8\xe5\xef", "שרון"),
    "ISO_IR 148": (b"\xdeahin", "Şahin"),
    "ISO_IR 166": (b"\xb9\xd2\xc2", "นาย"),
    "ISO_IR 13": (b"\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ"),
    "ISO_IR 192": ("Wang=王^小東".encode(), "Wang=王^小東"),
    "ISO_IR 203": (b"C\xbdurdevey 5 \xa4", "Cœurdevey 5 €"),
    "GB18030": (b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
    "GBK": (b"\xcd\xf5^\xd0\xa1\xb6\xab", "王^小东"),
    "\\ISO 2022 IR 87": (b"Yamada=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada=山田^太郎"),
    "ISO 2022 IR 13\\ISO 2022 IR 87": (b"\xd4\xcf=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J", "ﾔﾏ=山田^太郎"),
    "\\ISO 2022 IR 159": (b"\x1b$(D0\x21\x1b(B", "丂"),
    "\\ISO 2022 IR 149": (b"Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce", "Hong=洪^吉"),
    "\\ISO 2022 IR 58": (b"Zhang^\x1b$)A\xd5\xc5", "Zhang^张"),
    "ISO 2022 IR 100\\ISO 2022 IR 126": (b"\xe9t\xe9 \x1b-F\xc4\xe9^\xe9", "été Δι^é"),
    "ISO 2022 IR 6\\ISO 2022 IR 203": (b"\x1b-b\xbd", "œ"),
}


@pytest.mark.req("REQ-DCM-60")
@pytest.mark.parametrize("charset", SETS)
def test_each_character_set_is_read(charset: str) -> None:
    raw, text = SETS[charset]
    assert decode(raw, tuple(charset.split("\\")), person_name=True) == text


@pytest.mark.req("REQ-DCM-60")
@pytest.mark.parametrize("charset", [name for name in SETS if "203" not in name])
def test_each_character_set_is_written_for_who_asks_in_it(charset: str) -> None:
    text = SETS[charset][1]
    wanted = tuple(charset.split("\\"))
    used = choose([text], wanted)
    raw = encode(text, used, person_name=True)
    assert used == charset
    assert decode(raw, wanted, person_name=True) == text


@pytest.mark.req("REQ-DCM-61")
def test_latin_9_is_read_and_never_emitted() -> None:
    assert decode(b"C\xbdurdevey \xa4", ("ISO_IR 203",)) == "Cœurdevey €"
    assert choose(["Cœurdevey", "€"], ("ISO_IR 203",)) == "ISO_IR 192"
    assert choose(["LEFÈVRE"], ("ISO_IR 203",)) == "ISO_IR 100"
    assert "203" not in choose(["Cœurdevey"], ("ISO 2022 IR 100", "ISO 2022 IR 203"))
    assert choose(["ŠšŽžŸ"], ("ISO_IR 100",)) == "ISO_IR 192"


@pytest.mark.req("REQ-DCM-62")
@pytest.mark.parametrize(
    ("text", "wanted", "used"),
    [
        ("DUPONT", (), ""),
        ("DUPONT", ("ISO_IR 100",), "ISO_IR 100"),
        ("LEFÈVRE", ("ISO_IR 100",), "ISO_IR 100"),
        ("LEFÈVRE", (), "ISO_IR 192"),
        ("LEFÈVRE", ("ISO_IR 6",), "ISO_IR 192"),
        ("Œuvrard", ("ISO_IR 100",), "ISO_IR 192"),
        ("LEFÈVRE", ("no such set",), "ISO_IR 192"),
        ("LEFÈVRE", ("ISO 2022 IR 100", "ISO 2022 IR 87"), "ISO_IR 100"),
        ("LEFÈVRE 山", ("ISO 2022 IR 100", "ISO 2022 IR 87"), "ISO 2022 IR 100\\ISO 2022 IR 87"),
        ("洪", ("ISO 2022 IR 149",), "\\ISO 2022 IR 149"),
    ],
)
def test_answers_use_the_requesters_set_or_utf_8(text: str, wanted: tuple[str, ...], used: str) -> None:
    assert choose([text], wanted) == used
    assert decode(encode(text, used), tuple(used.split("\\"))) == text


@pytest.mark.req("REQ-DCM-60")
def test_bytes_beyond_ascii_without_a_charset_are_read_as_the_site_says() -> None:
    assert decode(b"LEF\xc8VRE", ()) == "LEFÈVRE"
    assert decode(b"\xb3", (), fallback="ISO_IR 101") == "ł"
    assert decode(b"LEF\xc8VRE", ("ISO_IR 192",)) == "LEFÈVRE"  # declared wrong: nothing is lost
    assert decode(b"LEF\xc8VRE", ("klingon",)) == "LEFÈVRE"


def test_misspelt_terms_are_understood() -> None:
    for written in ("ISO IR 100", "ISO-IR 100", "iso_ir 100 ", "ISO8859-1", "8859/1", "IR_100"):
        assert term(written) == "ISO_IR 100"
    assert term("ISO2022 IR 87") == "ISO 2022 IR 87"
    assert term("UTF-8") == "ISO_IR 192"
    assert term("ISO_IR 999") is None
    assert terms(b"\\ISO 2022 IR 87 ") == ("", "ISO 2022 IR 87")
    assert terms(b" ") == ()


def test_a_backslash_inside_a_two_byte_character_does_not_separate_values() -> None:
    raw = "誠".encode("gbk")
    assert raw[1:] == b"\\"
    assert decode(raw, ("GBK",)) == "誠"


@given(st.binary(max_size=60), st.lists(st.sampled_from([*TABLE, "nonsense"]), max_size=3), st.booleans())
def test_reading_never_fails(raw: bytes, charsets: list[str], person_name: bool) -> None:
    assert isinstance(decode(raw, tuple(charsets), person_name=person_name), str)


@pytest.mark.req("REQ-DCM-62")
@given(st.text(max_size=20), st.lists(st.sampled_from([*TABLE]), max_size=3))
def test_nothing_is_ever_replaced(text: str, charsets: list[str]) -> None:
    text = "".join(letter for letter in text if not 0xD800 <= ord(letter) < 0xE000 and letter != "\x1b")
    used = choose([text], tuple(charsets))
    raw = encode(text, used, person_name=True)
    assert fits(text, used)
    assert decode(raw, tuple(used.split("\\")), person_name=True) == text


@pytest.mark.req("REQ-DCM-60")
def test_names_of_real_files_read_as_pydicom_reads_them() -> None:
    folder = shared("data/charsets")
    seen = 0
    for path in sorted(Path(folder).iterdir()):
        ds = pydicom.dcmread(path)
        raw = pydicom.dcmread(path).get_item(0x00100010)
        if raw is None or not raw.value:
            continue
        charsets = ds.get("SpecificCharacterSet", "")
        charsets = (charsets,) if isinstance(charsets, str) else tuple(charsets)
        assert decode(raw.value, charsets, person_name=True).rstrip(" =") == str(ds.PatientName).rstrip(" =")
        seen += 1
    assert seen >= 12
