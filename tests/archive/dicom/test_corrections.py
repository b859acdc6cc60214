"""REQ-DCM-70: which corrections a header needs, and what they leave of it in metadata."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from archive.dicom.corrections import changes, identity, overlaid, said, unaffected
from archive.dicom.header import Header
from tests.archive.dicom.correcting import INS, corrections, element, pn
from tests.archive.dicom.reading import header_of
from tests.builders import ct_slice, data_set


def header(**different: Any) -> Header:
    ds = ct_slice(**different)
    return header_of(data_set(ds), str(ds.file_meta.TransferSyntaxUID))


def changed(attributes: dict[str, Any], **different: Any) -> set[str]:
    """Keys of what leaves changed."""
    found = changes(said(header(**different).levels), corrections(attributes), "")
    return {f"{tag:08X}" for tag in found.attributes} if found else set()


SAME = {
    "00100010": pn("DUPONT^Anne"),
    "00100020": element("LO", "IPP1"),
    "00100030": element("DA", "19700101"),
    "00100040": element("CS", "F"),
}
AUTHORITY = {
    "00100021": element("LO", "CABINET"),
    "00100022": element("CS", "TEXT"),
    "00100024": element("SQ", {"00400032": element("UT", "1.2.3"), "00400033": element("CS", "ISO")}),
}


@pytest.mark.req("REQ-DCM-70")
@pytest.mark.parametrize("name", ["DUPONT^Anne", "DUPONT^Anne^^^", "DUPONT ^Anne ", "DUPONT^Anne^^^="])
def test_a_header_that_says_the_same_needs_no_correction(name: str) -> None:
    assert changed(SAME, PatientName=name) == set()


@pytest.mark.req("REQ-DCM-70")
def test_an_issuer_absent_from_the_header_is_no_difference() -> None:
    assert changed(SAME | AUTHORITY) == set()
    assert changed(SAME | AUTHORITY, IssuerOfPatientID="CABINET") == set()
    assert changed(SAME | AUTHORITY, IssuerOfPatientID="HOPITAL") >= {"00100021"}


def test_what_the_index_does_not_keep_is_only_set_along() -> None:
    more = {"00101005": pn("MARTIN^Anne")}
    assert changed(SAME | more) == set()
    assert changed(SAME | more | {"00100040": element("CS", "M")}) == {"00100040", "00101005"}


@pytest.mark.req("REQ-DCM-70")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("00100010", pn("MARTIN^Anne")),
        ("00100010", pn("dupont^Anne")),
        ("00100010", pn("")),
        ("00100020", element("LO", "IPP2")),
        ("00100030", element("DA", "19700102")),
        ("00100030", element("DA")),
        ("00100040", element("CS", "O")),
        ("00101001", pn("MARTIN^Anne")),
        ("00101002", element("SQ", INS)),
        ("00080050", element("SH", "A2002")),
    ],
)
def test_one_difference_is_enough(key: str, value: dict[str, Any]) -> None:
    assert changed(SAME | {key: value}) == {key}


def test_an_old_date_is_the_same_day() -> None:
    assert changed({"00100030": element("DA", "19700101")}, PatientBirthDate="1970.01.01") == set()


def test_the_last_of_two_corrections_gives_moment_and_reason() -> None:
    patient = corrections({"00100010": pn("MARTIN^Anne")}, at=datetime(2026, 1, 1, tzinfo=UTC))
    study = corrections(
        {"00080050": element("SH", "A2")}, reason="CORRECT", at=datetime(2026, 2, 1, 13, 5, 7, tzinfo=UTC)
    )
    found = changes(said(header().levels), patient, study)
    assert found is not None
    assert (found.reason, found.moment) == ("CORRECT", "20260201130507.000000+0000")
    only_patient = changes(said(header(AccessionNumber="A2").levels), patient, study)
    assert only_patient is not None
    assert only_patient.reason == "COERCE"


def test_identity_is_what_the_header_says_of_patient_and_study() -> None:
    first = identity(header(number=1).levels)
    assert identity(header(number=2, SeriesDescription="Other").levels) == first
    assert len(first) == 32
    assert identity(header(PatientSex="M").levels) != first
    assert identity(header(AccessionNumber="A2").levels) != first


SIGNED = {"04000005": element("US", 1), "04000020": element("AT", "00080016", "7FE00010")}
NAME_SIGNED = {"04000005": element("US", 2), "04000020": element("AT", "00100010")}
UNKNOWN = {"04000005": element("US", 3)}


@pytest.mark.req("REQ-DCM-72")
def test_signatures_leave_only_when_nothing_they_sign_is_changed() -> None:
    parameters = [SIGNED, NAME_SIGNED, UNKNOWN]
    signatures = [{"04000005": element("US", number)} for number in (1, 2, 3, 4)] + [{}]
    assert unaffected(parameters, signatures, changed={0x00100010}) == ([0], [0])
    assert unaffected(parameters, signatures, changed={0x00100020}) == ([0, 1], [0, 1])
    assert unaffected(parameters, [], changed={0x00100010}) == ([0, 1, 2], [])


@pytest.mark.req("REQ-DCM-71", "REQ-DCM-72")
def test_metadata_tell_what_was_and_drop_signatures_over_it() -> None:
    found = changes(said(header().levels), corrections({"00100020": element("LO", "IPP2")}), "")
    assert found is not None
    earlier = {"04000563": element("LO", "ELSEWHERE")}
    before = {
        "00100020": element("LO", "IPP1"),
        "04000561": element("SQ", earlier),
        "4FFE0001": element("SQ", SIGNED, UNKNOWN),
        "FFFAFFFA": element("SQ", {"04000005": element("US", 1)}, {"04000005": element("US", 3)}),
    }
    after = overlaid(before, found, source="CT1")
    assert after["00100020"]["Value"] == ["IPP2"]
    assert after["04000561"]["Value"][0] == earlier
    item = after["04000561"]["Value"][1]
    assert item["04000550"]["Value"] == [{"00100020": element("LO", "IPP1"), "00100021": element("LO")}]
    assert [item[key]["Value"] for key in ("04000562", "04000563", "04000564", "04000565")] == [
        ["20260301083000.000000+0000"], ["MINIPACS"], ["CT1"], ["COERCE"]
    ]  # fmt: skip
    assert after["4FFE0001"]["Value"] == [SIGNED]
    assert after["FFFAFFFA"]["Value"] == [{"04000005": element("US", 1)}]
    unsigned = overlaid(before | {"4FFE0001": element("SQ", UNKNOWN)}, found, source="")
    assert "FFFAFFFA" not in unsigned
    assert unsigned["04000561"]["Value"][1]["04000564"] == {"vr": "LO"}
    assert list(after) == sorted(after)
