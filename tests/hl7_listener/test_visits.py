"""IHE PAM ITI-31: visits, their movements, accounts that move (sheet 20 §4.1, §5.2); which events are taken at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from sqlalchemy import delete

from archive.access import Actor
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.identity.visits import described
from archive.journal import Kind
from archive.schema import movement, visit
from archive.studies import describe
from hl7_listener.dispatch import known as taken
from hl7_listener.message import HL7Error
from tests.hl7_listener.saying import (
    ISSUER,
    apply,
    bytes_of,
    cx,
    facts,
    items,
    known,
    order,
    orders,
    pid,
    record,
    refused,
    row,
    say,
    store,
    told_again,
    with_ris,
)

INSERTS = ("A01", "A02", "A03", "A04", "A05", "A06", "A07", "A21", "A22", "A54")
CANCELS = {"A11": "A04", "A12": "A02", "A13": "A03", "A38": "A05", "A52": "A21", "A53": "A22", "A55": "A54"}


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(with_ris(settings), process="test") as opened:
        yield opened


def of(number: str, issuer: str = ISSUER) -> str:
    return f"{number}^^^{issuer}&2.25.171717001&ISO^VN"


def who(ipp: str = "R1", account: str = "D1", **more: str) -> str:
    return pid(ipp, **({"p18": of(account)} if account else {}), **more)


def pv1(number: str = "V1", patient_class: str = "O", location: str = "UF101^12^A") -> str:
    return f"PV1||{patient_class}|{location}" + "|" * 16 + (of(number) if number else "")


def zbe(
    number: str, action: str = "INSERT", *, at: str = "20260105083000", historic: str = "N", was: str = "",
    nature: str = "HMS",
) -> str:  # fmt: skip
    ward = "|Imagerie^^^^^CIM-RIVAGES^UF^^^UF101"
    return f"ZBE|{number}^{ISSUER}|{at}||{action}|{historic}|{was}{ward}{ward}|{nature}"


def seen(archive: Archive, number: str = "V1") -> dict[str, Any]:
    with archive.reading() as conn:
        return described(conn, number)


def state(archive: Archive, number: str = "V1") -> tuple[str, str, str]:
    found = seen(archive, number)
    return found["status"], found["class"], found["location"]


@pytest.mark.req("REQ-IHE-03")
def test_every_event_of_the_table_is_taken_and_no_other() -> None:
    """Sheet 20 §4.1; pending, temporary transfer and A41 are not claimed."""
    wanted = {*INSERTS, *CANCELS, "A08", "A24", "A28", "A31", "A37", "A40", "A44", "A47", "Z99"}
    refusals = {}
    for event in (*(f"A{number:02}" for number in range(1, 63)), "Z98", "Z99", "A99", "O01", ""):
        try:
            taken("ADT", event)
        except HL7Error as error:
            refusals[event] = (error.code, error.ack, error.location)
    assert wanted & set(refusals) == set()
    assert len(refusals) == 67 - len(wanted)
    assert set(refusals.values()) == {(201, "AR", "MSH^1^9")}


@pytest.mark.req("REQ-IHE-03")
def test_an_event_makes_patient_visit_and_movement(archive: Archive) -> None:
    for event in INSERTS:
        ipp, number = f"R{event}", f"V{event}"
        assert say(archive, event, who(ipp, p8="F"), pv1(number), zbe("M1")) == []
        assert record(archive, ipp).sex == "F"
        found = seen(archive, number)
        status = {"A05": "planned", "A03": "closed"}.get(event, "open")
        assert (found["status"], found["class"], found["location"]) == (status, "O", "UF101^12^A")
        assert (found["patient_id"], found["account"], found["issuer"]) == (ipp, "D1", ISSUER)
        (moved,) = found["movements"]
        assert (moved["id"], moved["event"], moved["start"]) == (f"M1^{ISSUER}", event, "20260105083000")
        assert (moved["care_ward"], moved["nature"], moved["cancelled"]) == ("UF101^Imagerie", "HMS", False)
        with archive.reading() as conn:
            (told, *_) = list_rows(conn, event="110110", limit=1).items
        assert (told["action"], told["patient"]) == ("U", f"{ipp}^^^{ISSUER}")


@pytest.mark.req("REQ-IHE-03")
def test_a_cancel_takes_its_movement_back_and_nothing_else(archive: Archive) -> None:
    """Without ZBE, the last movement of that kind is meant."""
    for event, was in CANCELS.items():
        for numbered in (True, False):
            ipp, number = f"R{event}{numbered}", f"V{event}{numbered}"
            before = "A04" if was != "A05" else "A05"
            say(archive, before, who(ipp), pv1(number), *([zbe("M1")] if numbered else []))
            if was != before:
                moved = [zbe("M2", at="20260105093000")] if numbered else []
                say(archive, was, who(ipp), pv1(number, "I", "UF2"), *moved)
            name = "M2" if was != before else "M1"
            taken_back = [zbe(name, "CANCEL", was=was)] if numbered else []
            assert say(archive, event, who(ipp, p8="M"), pv1(number), *taken_back) == []
            expected = ("cancelled" if was == before else "open", "O", "UF101^12^A")
            assert state(archive, number) == expected
            assert [one["cancelled"] for one in seen(archive, number)["movements"]][-1]
            assert record(archive, ipp).sex is None, "a cancel says nothing of the patient"
            again = say(archive, event, who(ipp), pv1(number), *taken_back)
            assert [one.code for one in again] == [204], "done before"
            assert state(archive, number) == expected


@pytest.mark.req("REQ-IHE-01")
def test_patients_are_registered_and_updated_in_2_3_1_too(archive: Archive) -> None:
    """RAD-1 and RAD-12 (sheet 30 §2)."""
    for event in ("A05", "A38", "A04", "A01", "A11", "A08", "A13"):
        apply(archive, bytes_of(event, who(p8="F"), pv1()).replace(b"|P|2.5|", b"|P|2.3.1|"))
    apply(archive, bytes_of("A40", pid("R2"), f"MRG|{cx('R1')}").replace(b"|P|2.5|", b"|P|2.3.1|"))
    assert (state(archive)[0], seen(archive)["patient_id"]) == ("open", "R2")


@pytest.mark.req("REQ-IHE-03")
def test_a_cancel_of_what_nobody_has_heard_of_does_nothing(archive: Archive) -> None:
    for event in (*CANCELS, "Z99"):
        action = "UPDATE" if event == "Z99" else "CANCEL"
        found = say(archive, event, who(), pv1(), zbe("M1", action))
        assert [(one.code, one.location) for one in found] == [(204, "ZBE^1^1")]
    assert not known(archive, "R1")
    assert seen(archive) == {"exists": False}
    say(archive, "A04", who(), pv1(), zbe("M1"))
    assert [one.code for one in say(archive, "A12", who(), pv1(), zbe("M7", "CANCEL"))] == [204]
    assert state(archive)[0] == "open"


@pytest.mark.req("REQ-IHE-03")
def test_a_cancelled_admission_cancels_what_came_after_and_a_new_one_opens_the_visit(archive: Archive) -> None:
    say(archive, "A05", who(), pv1(), zbe("M1"))
    assert state(archive)[0] == "planned"
    say(archive, "A01", who(), pv1(patient_class="I"), zbe("M2"))
    say(archive, "A02", who(), pv1(patient_class="I", location="UF2"), zbe("M3", at="20260105093000"))
    say(archive, "A11", who(), pv1(), zbe("M2", "CANCEL", was="A01"))
    assert state(archive)[0] == "cancelled"
    say(archive, "A04", who(), pv1(), zbe("M4", at="20260105103000"))
    assert state(archive)[:2] == ("open", "O")


@pytest.mark.req("REQ-IHE-03")
def test_a_historic_movement_changes_the_past_and_not_the_present(archive: Archive) -> None:
    say(archive, "A01", who(), pv1(patient_class="I", location="UF1"), zbe("M1"))
    say(archive, "A02", who(), pv1(patient_class="I", location="UF3"), zbe("M3", at="20260107080000"))
    late = zbe("M2", at="20260106080000", historic="Y")
    say(archive, "A02", who(), pv1(patient_class="I", location="UF2"), late)
    assert state(archive)[2] == "UF3"
    assert [one["historic"] for one in seen(archive)["movements"]] == [False, False, True]
    say(archive, "A12", who(), pv1(), zbe("M3", "CANCEL", was="A02"))
    assert state(archive)[2] == "UF2"


@pytest.mark.req("REQ-IHE-03")
def test_z99_corrects_a_movement_that_was_sent(archive: Archive) -> None:
    say(archive, "A01", who(), pv1(patient_class="I", location="UF1"), zbe("M1"))
    say(archive, "A02", who(), pv1(patient_class="I", location="UF2"), zbe("M2", at="20260106080000"))
    corrected = zbe("M2", "UPDATE", at="20260104080000", was="A02", nature="C")
    say(archive, "Z99", who(p8="M"), pv1(patient_class="I", location="UF9"), corrected)
    moved = seen(archive)["movements"][1]
    assert (moved["start"], moved["location"], moved["nature"]) == ("20260104080000", "UF9", "HMS")
    assert state(archive)[2] == "UF1", "it came before the admission"
    assert record(archive, "R1").sex is None


@pytest.mark.req("REQ-IHE-03")
def test_a_movement_that_is_sent_again_is_one_movement(archive: Archive) -> None:
    say(archive, "A04", who(), pv1(), zbe("M1"))
    say(archive, "A04", who(), pv1(location="UF2"), zbe("M1"))
    assert len(seen(archive)["movements"]) == 1
    assert state(archive)[2] == "UF2"


@pytest.mark.req("REQ-IHE-03")
def test_a_movement_is_known_by_each_of_its_ids(archive: Archive) -> None:
    def told(ids: str, action: str = "INSERT", at: str = "20260106080000") -> str:
        return zbe("M", action, at=at, was="" if action == "INSERT" else "A02").replace(f"|M^{ISSUER}|", f"|{ids}|")

    say(archive, "A01", who(), pv1(patient_class="I", location="UF1"), zbe("M1"))
    say(archive, "A02", who(), pv1(patient_class="I", location="UF2"), told("a^X~b^X"))
    say(archive, "A02", who(), pv1(patient_class="I", location="UF3"), told("b^X"))
    assert [one["location"] for one in seen(archive)["movements"]] == ["UF1", "UF3"], "sent again, it is one movement"
    assert say(archive, "Z99", who(), pv1(location="UF4"), told("c^X~a^X", "UPDATE")) == []
    archive.commit.run(lambda conn: (conn.execute(delete(movement)), conn.execute(delete(visit))))
    told_again(archive)
    assert state(archive)[2] == "UF4"
    assert "further_ids" not in seen(archive)["movements"][1]
    assert say(archive, "A12", who(), pv1(), told("c^X", "CANCEL")) == []
    assert state(archive)[2] == "UF1"


@pytest.mark.req("REQ-IHE-01")
def test_a_visit_without_number_is_its_account_and_without_account_none(archive: Archive) -> None:
    say(archive, "A04", who(), pv1(""))
    assert seen(archive, "D1")["status"] == "open"
    found = say(archive, "A04", who("R2", account=""), pv1(""))
    assert [(one.code, one.location) for one in found] == [(101, "PV1^1^19")]
    assert known(archive, "R2")
    say(archive, "A04", who("R2", account=""), pv1("V2"))
    assert (seen(archive, "V2")["patient_id"], seen(archive, "V2")["account"]) == ("R2", "")


@pytest.mark.req("REQ-IHE-03")
@pytest.mark.parametrize(
    ("event", "segments", "code", "location"),
    [
        ("A01", [who()], 100, "PV1^1"),
        ("Z99", [who(), pv1()], 100, "ZBE^1"),
        ("A01", [who("R2"), pv1(), zbe("M2")], 205, "PV1^1^19"),  # the visit of another patient
        ("A11", [who("R2"), pv1(), zbe("M1", "CANCEL")], 204, "PID^1^3"),
        ("A01", [who(), pv1(), zbe("M2", "CANCEL")], 103, "ZBE^1^4"),
        ("A11", [who(), pv1(), zbe("M1", "INSERT")], 103, "ZBE^1^4"),
        ("Z99", [who(), pv1(), zbe("M1", "REMOVE")], 103, "ZBE^1^4"),
        ("A01", [who(), pv1(), zbe("M2", at="20261301")], 102, "ZBE^1^2"),
        ("A01", [who(), pv1(), "ZBE||20260105||INSERT|N"], 101, "ZBE^1^1"),
        ("A01", [who(), pv1("V" * 65), zbe("M2")], 102, "PV1^1^19"),
        ("A01", [who(account="D" * 65), pv1(), zbe("M2")], 102, "PID^1^18"),
    ],
)
def test_what_is_wrong_with_a_visit_is_refused_where_it_stands(
    archive: Archive, event: str, segments: list[str], code: int, location: str
) -> None:
    say(archive, "A04", who(), pv1(), zbe("M1"))
    before = seen(archive)
    assert refused(archive, event, *segments) == (code, location)
    assert seen(archive) == before
    assert not known(archive, "R2")


@pytest.mark.req("REQ-IHE-03")
def test_codes_that_no_table_has_are_kept_with_a_warning(archive: Archive) -> None:
    found = say(archive, "A04", who(), pv1(patient_class="X"), zbe("M1", nature="Q"))
    assert [(one.code, one.location) for one in found] == [(103, "PV1^1^2"), (103, "ZBE^1^9")]
    assert seen(archive)["class"] == "X"


@pytest.mark.req("REQ-HL7-13")
def test_a_place_that_is_deleted_goes_and_one_that_is_not_said_stays(archive: Archive) -> None:
    say(archive, "A01", who(), pv1(patient_class="I", location="UF1"), zbe("M1"))
    say(archive, "A02", who(), pv1(patient_class="", location=""), zbe("M2", at="20260105093000"))
    assert state(archive) == ("open", "I", "UF1")
    say(archive, "A02", who(), pv1(patient_class="", location='""'), zbe("M3", at="20260105103000"))
    assert state(archive) == ("open", "I", "")


def test_what_no_database_can_keep_does_not_stop_a_visit(archive: Archive) -> None:
    say(archive, "A04", who(), pv1(patient_class="\0", location="U\0" + "F" * 300), zbe("M\0"))
    assert seen(archive)["location"] == "U\ufffd" + "F" * 248


@pytest.mark.req("REQ-HL7-40", "REQ-HL7-41", "REQ-HL7-P11")
def test_visits_follow_a_merge_and_a_change_of_identifier(archive: Archive) -> None:
    say(archive, "A04", who("TMP"), pv1(), zbe("M1"))
    say(archive, "A40", pid("R1"), f"MRG|{cx('TMP')}")
    say(archive, "A47", pid("R2"), f"MRG|{cx('R1')}")
    assert seen(archive)["patient_id"] == "R2"
    assert refused(archive, "A12", who("TMP"), pv1(), zbe("M1", "CANCEL")) == (204, "PID^1^3")
    say(archive, "A03", who("R2"), pv1(), zbe("M2", at="20260106080000"))
    assert state(archive)[0] == "closed"


@pytest.mark.req("REQ-IHE-03")
def test_a44_moves_visits_and_orders_of_an_account_and_leaves_images_to_a_person(
    archive: Archive, actor: Actor
) -> None:
    def placed(number: str, *segments: str) -> None:
        orc = f"ORC|NW|PL{number}^RIS|FI{number}^RIS||SC"
        obr = f"OBR|1|PL{number}^RIS|FI{number}^RIS|ZBQH001^Scanner^CCAM" + "|" * 14 + f"A{number}|RP|S{number}||||CT"
        order(archive, *segments, orc, obr)

    say(archive, "A01", who(), pv1(), zbe("M1"))
    placed("1", who(), pv1())  # in the visit
    placed("2", who(account="D2"), pv1("V2"))  # in another account
    placed("3", who(), "PV1||O")  # in the account, no visit said
    study = store(archive, actor, PatientID="R1", IssuerOfPatientID=ISSUER, AccessionNumber="A1")
    account = f"MRG|{cx('R1')}||{of('D1')}"
    assert say(archive, "A44", who("R2", p8="F"), account) == []
    assert record(archive, "R2").sex == "F", "nobody had heard of them"
    assert seen(archive)["patient_id"] == "R2"
    owners = {one.accession_number: one.patient_pk for one in orders(archive)}
    assert owners == {"A1": row(archive, "R2").pk, "A2": row(archive, "R1").pk, "A3": row(archive, "R2").pk}
    waiting = items(archive)["account_moved"]
    assert waiting["evidence"]["visits"] == [f"V1^^^{ISSUER}"]
    assert waiting["evidence"]["accessions"] == ["A1", "A3"]
    assert (waiting["patient"], waiting["study"]) == (f"R2^^^{ISSUER}", study)
    with archive.reading() as conn:
        found = describe(conn, study)
    assert found is not None
    assert found.patient == f"R1^^^{ISSUER}", "images stay"
    assert [one.location for one in say(archive, "A44", who("R2"), account)] == ["MRG^1^3"], "done before"


@pytest.mark.req("REQ-IHE-03")
@pytest.mark.parametrize(
    ("segments", "code", "location"),
    [
        ([who("R2")], 100, "MRG^1"),
        ([who("R1"), f"MRG|{cx('R1')}||{of('D1')}"], 205, "MRG^1^1"),
        ([who("R2", account=""), f"MRG|{cx('R1')}"], 101, "MRG^1^3"),
        ([who("OLD"), f"MRG|{cx('R1')}||{of('D1')}"], 204, "PID^1^3"),
        ([who("R2"), f"MRG|{cx('OLD')}||{of('D1')}"], 204, "MRG^1^1"),
    ],
)
def test_an_account_that_cannot_move_stays(archive: Archive, segments: list[str], code: int, location: str) -> None:
    say(archive, "A01", who(), pv1(), zbe("M1"))
    say(archive, "A40", pid("R1"), f"MRG|{cx('OLD')}")
    assert refused(archive, "A44", *segments) == (code, location)
    assert seen(archive)["patient_id"] == "R1"
    assert not known(archive, "R2")


def test_an_account_that_nobody_has_heard_of_moves_nothing(archive: Archive) -> None:
    found = say(archive, "A44", who("R2"), f"MRG|{cx('R1')}||{of('D1')}")
    assert [one.location for one in found] == ["MRG^1^3"]
    assert not known(archive, "R2")
    assert items(archive) == {}


def test_facts_alone_make_visits_again(archive: Archive) -> None:
    say(archive, "A01", who(), pv1(patient_class="I", location="UF1"), zbe("M1"))
    say(archive, "A02", who(), pv1(patient_class="I", location="UF2"), zbe("M2", at="20260106080000"))
    say(archive, "A12", who(), pv1(), zbe("M2", "CANCEL", was="A02"))
    say(archive, "A04", who("R3", account="D3"), pv1("V3"), zbe("M3"))
    say(archive, "A40", pid("R9"), f"MRG|{cx('R3')}")
    say(archive, "A44", who("R2"), f"MRG|{cx('R1')}||{of('D1')}")
    before = {number: seen(archive, number) for number in ("V1", "V3")}
    assert {one["patient_id"] for one in before.values()} == {"R2", "R9"}
    assert set(facts(archive, Kind.VISIT)) == {f"V1^^^{ISSUER}", f"V3^^^{ISSUER}"}
    archive.commit.run(lambda conn: (conn.execute(delete(movement)), conn.execute(delete(visit))))
    for _ in range(2):
        told_again(archive)
        assert {number: seen(archive, number) for number in ("V1", "V3")} == before


def test_orders_remember_their_visit_and_account(archive: Archive) -> None:
    """An order that is changed by a message without them keeps them."""
    orc, obr = "ORC|{}|PL1^RIS|FI1^RIS||SC", "OBR|1|PL1^RIS|FI1^RIS|ZBQH001^Scanner^CCAM" + "|" * 14 + "A1|RP|S1||||CT"
    order(archive, who(), pv1(), orc.format("NW"), obr)
    order(archive, pid("R1"), "PV1||O", orc.format("XO"), obr)
    (found,) = orders(archive)
    kept = orjson.loads(found.record)
    assert (kept["visit"], kept["account"]) == (f"V1^^^{ISSUER}", f"D1^^^{ISSUER}")
