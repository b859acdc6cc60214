"""Acknowledgements: what is swapped, what comes back, how a problem is told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message

from archive import errors
from hl7_listener import ack
from hl7_listener.ack import BUG, Problem, Verdict, accepted, build, refusal, repeat
from hl7_listener.context import Warning
from hl7_listener.message import MEANINGS, HL7Error, head
from tests.hl7_listener.conftest import MSH, Answer, a28, lines

AT = datetime(2026, 1, 5, 8, 30, tzinfo=UTC)
REFUSED = refusal(HL7Error(101, "PID^1^3", "no identifier"))


def said(raw: bytes, verdict: Verdict, codec: str = "utf-8") -> list[str]:
    return build(head(raw), verdict, at=AT).decode(codec).rstrip("\r").split("\r")


@pytest.mark.req("REQ-HL7-21")
def test_sender_and_receiver_are_swapped_and_the_rest_comes_back() -> None:
    msh, msa = said(a28("ID-7"), accepted([]))
    fields = msh.split("|")
    assert fields[:7] == ["MSH", "^~\\&", "PACS", "CABINET", "RIS", "CABINET", "20260105083000+0000"]
    assert fields[8] == "ACK^A28^ACK"
    assert 1 <= len(fields[9]) <= 20
    assert fields[10:12] == ["P", "2.5^FRA^2.11"]
    assert fields[16:18] == ["FRA", "UNICODE UTF-8"]
    assert msa == "MSA|AA|ID-7"


@pytest.mark.req("REQ-HL7-21")
def test_each_ack_has_a_control_id_of_its_own() -> None:
    ids = {said(a28(), accepted([]))[0].split("|")[9] for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.req("REQ-HL7-20")
def test_the_mode_is_original_whatever_the_sender_asks_for() -> None:
    msh = MSH.replace("|||||FRA|", "|||AL|AL|FRA|")
    assert said(a28(msh=msh), accepted([]))[1] == "MSA|AA|1"


@pytest.mark.req("REQ-HL7-22")
@pytest.mark.parametrize("version", ["2.5", "2.5.1", "2.6"])
def test_a_problem_has_its_place_its_code_and_a_text(version: str) -> None:
    found = said(a28(msh=MSH.replace("2.5^FRA^2.11", version)), REFUSED)
    assert found[1] == "MSA|AE|1"
    assert found[2] == "ERR||PID^1^3|101^Required field missing^HL70357|E||||no identifier"


@pytest.mark.req("REQ-HL7-22")
@pytest.mark.parametrize("version", ["2.3", "2.3.1", "2.4"])
def test_older_versions_have_the_code_behind_the_place(version: str) -> None:
    raw = a28(msh=MSH.replace("2.5^FRA^2.11", version))
    assert said(raw, REFUSED)[2:] == ["ERR|PID^1^3^101&Required field missing&HL70357"]
    assert said(raw, refusal(HL7Error(100, "EVN^1")))[2] == "ERR|EVN^1^^100&Segment sequence error&HL70357"
    assert said(raw, accepted([Warning(103, "PID^1^32", "unknown status")]))[2:] == []


@pytest.mark.req("REQ-HL7-22")
def test_a_reservation_is_told_as_a_warning_beside_success() -> None:
    found = Answer.of(build(head(a28()), accepted([Warning(103, "PID^1^32", "unknown status")]), at=AT))
    assert (found.code, found.errors) == ("AA", [("103", "PID^1^32", "W")])


def test_there_is_an_err_for_each_problem() -> None:
    found = said(a28(), Verdict("AE", (Problem(101, "PID^1^3", "a"), Problem(102, "PID^1^7", "b"))))
    assert [one.split("|")[2] for one in found[2:]] == ["PID^1^3", "PID^1^7"]


@pytest.mark.req("REQ-HL7-10", "REQ-HL7-21")
def test_the_answer_has_the_usual_delimiters_and_the_charset_of_the_message() -> None:
    raw = lines("MSH#*@!%#RIS*1.2*ISO#É|^~#PACS%1#P!F!#2026##ADT*A28#é1\\#P#2.5*FRA######8859/1@ASCII", codec="latin-1")
    found = said(raw, refusal(HL7Error(102, "PID^1^7", "a # in 50% | more")), "latin-1")
    head_of = found[0].split("|")
    assert head_of[1:6] == ["^~\\&", "PACS&1", "P#", "RIS^1.2^ISO", r"É\F\\S\\R\ ".rstrip()]
    assert (head_of[8], head_of[10], head_of[11], head_of[17]) == ("ACK^A28^ACK", "P", "2.5^FRA", "8859/1~ASCII")
    assert found[1] == r"MSA|AE|é1\E\ ".rstrip()
    assert found[2] == r"ERR||PID^1^7|102^Data type error^HL70357|E||||a # in 50% \F\ more"


def test_delimiters_that_the_message_does_without_are_the_usual() -> None:
    found = said(lines("MSH|^|R~1|F|P|P|2026||ADT^A28|1|P|2.3"), refusal(HL7Error(101, "PID^1^3")))
    assert found[0].split("|")[1] == "^~\\&"
    assert found[0].split("|")[4] == r"R\R\1"
    assert found[2] == "ERR|PID^1^3^101&Required field missing&HL70357"


@pytest.mark.parametrize("raw", [b"", b"garbage", b"MSH", b"\xff\x00", "MSH".encode("utf-16")])
def test_what_has_no_msh_is_answered_all_the_same(raw: bytes) -> None:
    found = said(raw, refusal(HL7Error(100, "MSH^1", "unreadable")))
    assert found[0].split("|")[8] == "ACK"
    assert found[1] == "MSA|AE"
    assert found[2].startswith("ERR||MSH^1|100^")


def test_no_control_id_in_leaves_msa_2_empty() -> None:
    assert said(a28(""), refusal(HL7Error(101, "MSH^1^10")))[1] == "MSA|AE"


def test_undecodable_names_come_back_byte_by_byte() -> None:
    raw = a28().replace(b"|RIS|", b"|R\xffS|")
    assert b"|R\xffS|" in build(head(raw), REFUSED, at=AT)


def test_a_repeated_answer_says_the_same_under_a_new_head() -> None:
    first = build(head(a28()), REFUSED, at=AT)
    again = repeat(head(a28()), first, at=AT.replace(hour=9))
    assert first.split(b"\r")[1:] == again.split(b"\r")[1:]
    assert first.split(b"\r")[0] != again.split(b"\r")[0]
    assert b"20260105093000" in again


@pytest.mark.req("REQ-HL7-21", "REQ-HL7-22")
@pytest.mark.parametrize("version", ["2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6"])
def test_another_parser_finds_each_part_of_the_answer(version: str) -> None:
    raw = build(head(a28("X-1", msh=MSH.replace("2.5^FRA^2.11", version))), REFUSED, at=AT).decode()
    parsed = parse_message(raw, validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False)
    assert [one.name for one in parsed.children] == ["MSH", "MSA", "ERR"]
    assert parsed.msa.msa_1.to_er7() == "AE"
    assert parsed.msa.msa_2.to_er7() == "X-1"
    assert parsed.msh.msh_9.msh_9_1.to_er7() == "ACK"


@pytest.mark.req("REQ-HL7-23")
def test_no_error_that_may_pass_is_an_ae_and_none_that_stays_is_an_ar() -> None:
    for kind, (code, condition) in ack.OF_ERROR.items():
        if issubclass(kind, errors.Unavailable):
            assert (code, condition) in (("AR", 206), ("AR", 207)), kind
        elif issubclass(kind, errors.Unsupported):
            assert (code, condition) == ("AR", 200)
        elif issubclass(kind, errors.Rejected):
            assert code == "AE", kind
        assert condition in MEANINGS


def test_an_error_of_the_archive_is_said_in_its_own_words() -> None:
    verdict = refusal(errors.StorageFull("the free space is below storage.reserve_bytes"))
    assert verdict == Verdict("AR", (Problem(207, "", "the free space is below storage.reserve_bytes"),))
    assert BUG.code == "AR"


def test_the_journal_is_told_the_code_and_the_place_alone() -> None:
    assert REFUSED.error == "101 PID^1^3"
    assert accepted([Warning(103, "PID^1^32", "x")]).error is None


@pytest.mark.req("REQ-HL7-01", "REQ-HL7-21")
@pytest.mark.parametrize("field", ["RIS", "MSG-1"])
def test_nothing_that_comes_back_ends_or_begins_the_frame_of_the_answer(field: str) -> None:
    raw = a28("MSG-1").replace(field.encode(), field.encode() + b"\x1c\x0b")
    answer = build(head(raw), accepted([]), at=AT)
    assert not {0x0B, 0x1C} & set(answer)
    assert Answer.of(answer).of_message.strip() == "MSG-1"
