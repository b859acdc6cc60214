"""Matching of PS3.4 C.2.2.2 as a table: what a key asks, and which values meet it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom.attributes import ATTRIBUTES
from archive.dicom.dictionary import holds_several
from archive.dicom.person_name import pattern
from archive.errors import InvalidQuery
from archive.index.match import Key, accepts, criterion, each_value, is_asking, row_meets

DA, TM, DT = 0x00080020, 0x00080030, 0x0040A13A


def meets(vr: str, asked: str, *values: Any) -> bool:
    wanted = criterion(Key(0x00080000, vr, asked))
    return wanted is None or accepts(wanted, vr, values)


@pytest.mark.req("REQ-DCM-32")
@pytest.mark.parametrize(
    ("vr", "asked", "value", "expected"),
    [
        # single value: letter by letter
        ("LO", "IPP1", "IPP1", True),
        ("LO", "ipp1", "IPP1", False),
        ("LO", "IPP", "IPP1", False),
        ("LO", " IPP1 ", "IPP1", True),
        ("SH", "A[1-2]%_", "A[1-2]%_", True),
        ("CS", "CT", "CT", True),
        ("CS", "ct", "CT", False),
        # wildcards
        ("LO", "IPP*", "IPP1", True),
        ("LO", "IPP*", "IPP", True),
        ("LO", "*P1", "IPP1", True),
        ("LO", "I?P1", "IPP1", True),
        ("LO", "IPP?", "IPP", False),
        ("LO", "I*1", "IPP2", False),
        ("LO", "100%*", "100% sûr", True),
        ("LO", "100%*", "1000", False),
        ("LO", "A_*", "A_1", True),
        ("LO", "A_*", "AB1", False),
        ("UT", "scanner*", "scanner\nthoracique", True),
        # universal, in any VR
        ("LO", "", "x", True),
        ("LO", "*", "x", True),
        ("UI", "*", "1.2", True),
        ("DA", "*", "20260105", True),
        # list of UID
        ("UI", "1.2.3", "1.2.3", True),
        ("UI", "1.2.3\0", "1.2.3", True),
        ("UI", "1.2", "1.2.3", False),
        ("UI", "1.2\\1.2.3", "1.2.3", True),
        ("UI", "1.2*", "1.2.3", False),  # no wildcard in a UID
        # a list is for UIDs: elsewhere the backslash is not a choice
        ("LO", "A\\B", "A", False),
        # dates
        ("DA", "20260105", "20260105", True),
        ("DA", "20260105", "20260106", False),
        ("DA", "2026.01.05", "20260105", True),
        ("DA", "20260105-20260107", "20260107", True),
        ("DA", "20260105-20260107", "20260108", False),
        ("DA", "20260105 - 20260107", "20260105", True),
        ("DA", "20260105-", "20990101", True),
        ("DA", "-20260105", "20260105", True),
        ("DA", "-20260105", "20260106", False),
        ("DA", "20260201-20260231", "20260228", True),
        ("DA", "20260105", "not a date", False),
        # times by their meaning
        ("TM", "2230", "223000", True),
        ("TM", "223000", "2230", True),
        ("TM", "2230", "22:30", True),
        ("TM", "22", "220000.000000", True),
        ("TM", "2230", "223001", False),
        ("TM", "223000.5", "223000.500", True),
        ("TM", "1000-1800", "100000", True),
        ("TM", "1000-1800", "180000", True),
        ("TM", "1000-1800", "180001", False),
        ("TM", "-235959", "235959.75", True),
        ("TM", "1000-", "0959", False),
        ("TM", "2200-0600", "2300", False),  # across midnight: not supported
        # date-times, with offsets in UTC
        ("DT", "20260105103000", "20260105103000.0000", True),
        ("DT", "20260105103000+0100", "20260105093000+0000", True),
        ("DT", "202601051030", "20260105103000", True),
        ("DT", "20260105-20260107", "20260107235959", True),
        ("DT", "2026-", "2027", True),
        ("DT", "-2026", "20261231235959", True),
        ("DT", "-2026", "20270101", False),
        ("DT", "20260105120000-0500-20260106120000-0500", "20260106165959+0000", True),
        ("DT", "20260105120000-0500-20260106120000-0500", "20260106170001+0000", False),
        # numbers
        ("IS", "5", 5, True),
        ("IS", "+05", 5, True),
        ("DS", "1.50", 1.5, True),
        ("US", "512", 512, True),
        ("IS", "5", 50, False),
    ],
)
def test_a_key_meets_a_value_or_not(vr: str, asked: str, value: Any, expected: bool) -> None:
    assert meets(vr, asked, value) is expected


@pytest.mark.req("REQ-DCM-33")
@pytest.mark.parametrize(
    ("asked", "stored", "expected"),
    [
        ("LEFEVRE^*", "LEFÈVRE^Anaïs", True),
        ("LEFÈVRE^anaïs", "lefevre^ANAIS", True),
        ("lefevre", "LEFÈVRE^Anaïs", False),  # without a wildcard the whole value
        ("LEFEVRE^*", "LEFÈVRE", True),  # trailing empty components count as empty
        ("LEFEVRE^ANAIS^^^", "LEFÈVRE^Anaïs", True),
        ("LEFEVRE*", "LEFÈVRE-MARTIN^Anaïs", True),
        ("lefevre martin^*", "LEFÈVRE-MARTIN^Anaïs", True),
        ("COEUR*", "Cœurdevey^Zoé", True),
        ("D'ARC^JEANNE", "D’Arc^Jeanne", True),
        ("FRANCOIS^?", "François^É", True),
        ("*anne", "DUPONT^Anne", True),
        ("DUPONT^ANN?", "DUPONT^Anne", True),
        ("DUP?NT", "DUPONT^Anne", False),
        ("YAMADA*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("山田*", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("=山田^太郎", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("SUZUKI=山田^太郎", "Yamada^Tarou=山田^太郎=やまだ^たろう", False),
        ("*", "", True),
        ("^*", "DUPONT", True),
    ],
)
def test_a_name_is_matched_without_case_and_accents(asked: str, stored: str, expected: bool) -> None:
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), stored.split("="), strict=False))
    assert meets("PN", asked, groups) is expected


@pytest.mark.parametrize(
    ("vr", "asked", "value", "expected"),
    [
        ("CS", "CT\\MR", "MR", True),
        ("CS", "CT\\MR", "US", False),
        ("CS", "CT\\M*", "MG", True),
        ("CS", "CT\\*", "US", True),
        ("PN", "DUPONT^*\\lefevre^*", {"Alphabetic": "LEFÈVRE^Anaïs"}, True),
        ("DA", "20260101-20260131\\20260301", "20260301", True),
        ("DA", "20260101-20260131\\20260301", "20260215", False),
        ("IS", "1\\2", 2, True),
        ("LT", "a\\b", "a\\b", True),  # a backslash is a letter of it
    ],
)
def test_several_values_are_a_choice_where_we_ask_so_ourselves(vr: str, asked: str, value: Any, expected: bool) -> None:
    wanted = criterion(Key(0x00080000, vr, asked, any_of=True))
    assert (wanted is None or accepts(wanted, vr, [value])) is expected


IMAGE_TYPE, NAMES, DIAGNOSES = 0x00080008, 0x00081060, 0x00081080
READERS = ({"Alphabetic": "LEFÈVRE^Anaïs"}, {"Alphabetic": "MARTIN^Luc"})


@pytest.mark.req("REQ-DCM-34")
@pytest.mark.parametrize(
    ("tag", "vr", "asked", "values", "expected"),
    [
        (IMAGE_TYPE, "CS", "PRIMARY\\ORIGINAL", ("ORIGINAL", "PRIMARY", "AXIAL"), True),  # any order, others beside
        (IMAGE_TYPE, "CS", "PRIMARY\\DERIVED", ("ORIGINAL", "PRIMARY", "AXIAL"), False),  # each of them: AND
        (IMAGE_TYPE, "CS", "PRIMARY\\PRIMARY", ("ORIGINAL", "PRIMARY"), True),
        (IMAGE_TYPE, "CS", "PRIMARY\\", ("ORIGINAL", "PRIMARY"), True),
        (IMAGE_TYPE, "CS", "PRIMARY\\AX*", ("ORIGINAL", "PRIMARY", "AXIAL"), True),
        (IMAGE_TYPE, "CS", "\\", ("ORIGINAL",), True),  # nothing is asked
        (NAMES, "PN", "martin^luc\\lefevre^anais", READERS, True),
        (NAMES, "PN", "martin^luc\\dupont^eve", READERS, False),
        (DIAGNOSES, "LO", "Toux\\Fièvre", ("Fièvre", "Toux"), True),
        (0x00080050, "SH", "A1\\A2", ("A1",), False),  # VM 1: a value like any other
        (0x00080050, "SH", "A1\\A2", ("A2", "A1"), False),
        (0x00080018, "UI", "1.2\\1.3", ("1.3",), True),  # a list of UID, as ever: one of them
        (0x00104000, "LT", "a\\b", ("a\\b",), True),  # a backslash is a letter of it
    ],
)
def test_each_of_several_values_has_to_be_there_where_that_was_agreed_upon(
    tag: int, vr: str, asked: str, values: tuple[Any, ...], expected: bool
) -> None:
    """PS3.4 C.2.2.2.8."""
    row = {f"{tag:08X}": {"vr": vr, "Value": list(values)}}
    assert row_meets(each_value(Key(tag, vr, asked)), row) is expected


@pytest.mark.req("REQ-DCM-34")
def test_of_a_sequence_one_item_has_to_have_each_value() -> None:
    stations = 0x00400001  # AE 1-n
    (key,) = each_value(Key(0x00400100, "SQ", items=(Key(stations, "AE", "CT1\\CT2"),)))
    for items, expected in (((["CT2", "CT1"],), True), ((["CT1"], ["CT2"]), False)):
        value = [{f"{stations:08X}": {"vr": "AE", "Value": one}} for one in items]
        assert row_meets([key], {key.name: {"vr": "SQ", "Value": value}}) is expected
    with pytest.raises(InvalidQuery):
        each_value(Key(IMAGE_TYPE, "CS", "\\".join(["A"] * 10_000)))


@pytest.mark.req("REQ-DCM-34")
def test_no_attribute_that_may_have_several_values_has_a_column() -> None:
    """A column is asked one thing; what may be asked several is matched on the rows."""
    assert [one.keyword for one in ATTRIBUTES if one.column and holds_several(one.tag)] == []


@pytest.mark.req("REQ-DCM-34")
def test_no_value_at_all_can_be_asked_for_where_that_was_negotiated() -> None:
    wanted = criterion(Key(DA, "DA", '""', empty=True))
    assert wanted is not None
    assert accepts(wanted, "DA", [])
    assert accepts(wanted, "DA", [None, ""])
    assert not accepts(wanted, "DA", ["20260105"])
    with pytest.raises(InvalidQuery):
        criterion(Key(DA, "DA", '""'))
    with pytest.raises(InvalidQuery):
        criterion(Key(DA, "DA", "\\".join(["20260105"] * 10_000), any_of=True))


def test_any_of_several_values_is_enough_and_none_meets_a_key_that_asks() -> None:
    assert meets("CS", "PRIMARY", "ORIGINAL", "PRIMARY")
    assert not meets("CS", "PRIMARY", "ORIGINAL", None)
    assert not meets("CS", "PRIMARY")
    assert meets("CS", "*")


@pytest.mark.parametrize(
    ("vr", "asked"),
    [
        ("DA", "2026"), ("DA", "yesterday"), ("DA", "20260105-soon"), ("DA", "-"), ("DA", "20261305"), ("DA", "2026*"),
        ("TM", "2500"), ("TM", "1"), ("TM", "10-18-20"), ("DT", "now"), ("IS", "one"), ("IS", "1\\2"), ("DS", "nan"),
        ("LO", "a\0b"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_of_its_vr_is_refused_with_its_tag(vr: str, asked: str) -> None:
    with pytest.raises(InvalidQuery) as refused:
        criterion(Key(0x00081234, vr, asked))
    assert refused.value.tag == 0x00081234


ROW = {
    "00400275": {
        "vr": "SQ",
        "Value": [
            {"00400009": {"vr": "SH", "Value": ["SPS1"]}, "00401001": {"vr": "SH", "Value": ["RP1"]}},
            {"00400009": {"vr": "SH", "Value": ["SPS2"]}, "00401001": {"vr": "SH", "Value": ["RP2"]}},
        ],
    }
}


def _request(step: str, procedure: str = "") -> Key:
    return Key(0x00400275, "SQ", items=(Key(0x00400009, "SH", step), Key(0x00401001, "SH", procedure)))


@pytest.mark.req("REQ-DCM-32")
def test_a_sequence_matches_when_one_item_meets_all_its_keys() -> None:
    assert row_meets([_request("SPS2")], ROW)
    assert row_meets([_request("SPS2", "RP2")], ROW)
    assert row_meets([_request("SPS*")], ROW)
    assert not row_meets([_request("SPS1", "RP2")], ROW)  # two items, one key each
    assert not row_meets([_request("SPS3")], ROW)
    assert row_meets([_request("")], {})  # asks nothing
    assert not row_meets([_request("SPS1")], {})


def test_a_key_that_asks_nothing_is_known_as_such() -> None:
    assert not is_asking(Key(DA, "DA", ""))
    assert not is_asking(Key(0x0020000D, "UI", "*"))
    assert not is_asking(_request("", "*"))
    assert is_asking(_request("", "RP"))
    with pytest.raises(InvalidQuery):
        is_asking(Key(0x00400275, "SQ", items=(Key(1, "SH", "x"), Key(TM, "TM", "noon"))))


@pytest.mark.parametrize("vr", ["UT", "PN"])
def test_a_pattern_of_many_wildcards_takes_no_time_that_grows_like_a_power(vr: str) -> None:
    """Whoever may search could stand still a whole process: matching holds the interpreter."""
    value = "ab" * 2000
    began = thread_time()
    assert not meets(vr, "*a?*b*a*?b*a*b*a*b*c", value)
    assert meets(vr, "*a?*b*a*?b*a*b*a*b", value)
    assert thread_time() - began < 1


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=10))
def test_wildcards_mean_what_they_mean_to_a_shell(asked: str, value: str) -> None:
    assert (pattern(asked).fullmatch(value) is not None) == fnmatchcase(value, asked)


def test_a_key_longer_than_any_value_is_refused() -> None:
    with pytest.raises(InvalidQuery):
        criterion(Key(0x00101010, "AS", "1" * 20_000))
