"""A47, A24, A37: identifiers that change, and patients who may be one (sheet 20 §4.1, §4.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson
import pytest

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.attributes import Level
from archive.identity import demographics, dicom
from archive.identity.acts import PatientKey
from archive.identity.links import of_patient
from archive.identity.patients import history
from archive.identity.shown import described
from archive.index.match import Key
from archive.index.query import Query, find
from archive.schema import patient_link
from archive.studies import describe
from tests.hl7_listener.saying import (
    ISSUER,
    cx,
    facts,
    ins,
    items,
    known,
    pid,
    record,
    refused,
    row,
    say,
    store,
    told_again,
    with_ris,
)

OLD_INS, NEW_INS = "285073599990118", "185073599990762"
TRAITS = {"p7": "19850712", "p8": "F", "p11": "^^RENNES^^^FRA^BDL^^35999", "p32": "VALI"}
L = "LE GOFF^ANNE-MARIE^ANNE-MARIE LOUISE^^Mme^^L"


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(with_ris(settings), process="test") as opened:
        yield opened


@pytest.fixture
def send(archive: Archive, actor: Actor) -> Callable[..., str]:
    return partial(store, archive, actor)


def seen(archive: Archive, ipp: str) -> dict[str, Any]:
    with archive.reading() as conn:
        return described(conn, PatientKey(ipp, ISSUER))


def held_by(archive: Archive, identifier: str) -> list[str]:
    """Whom a query for an identifier finds."""
    asked = demographics.Asked(identifiers=((demographics.Wanted(identifier),),))
    with archive.reading() as conn:
        return [one.identifiers[0].value for one in demographics.find(conn, asked)]


def linked(archive: Archive, ipp: str) -> list[str]:
    with archive.reading() as conn:
        return of_patient(conn, row(archive, ipp).pk)


def owner(archive: Archive, study: str) -> str | None:
    with archive.reading() as conn:
        found = describe(conn, study)
    return found.patient if found is not None else None


@pytest.mark.req("REQ-HL7-41", "REQ-HL7-95")
def test_a47_takes_record_studies_and_images_to_come_to_the_new_identifier(
    archive: Archive, send: Callable[..., str]
) -> None:
    say(archive, "A28", pid("TMP", "MULLER^X^^^^^L", p13="^PRN^PH^^^^^^^^^0600000001", p32="PROV~FICT"))
    study = send(PatientID="TMP", IssuerOfPatientID=ISSUER)
    say(archive, "A47", pid("R1", "MÜLLER^Jean^^^^^L", p7="1954", p32="PROV"), f"MRG|{cx('TMP')}")
    found = seen(archive, "R1")
    assert (found["alias_of"], found["merged_from"]) == (["TMP"], [])
    assert (found["family_birth"], found["birth_date"], found["phone"]) == ("MÜLLER", "1954", "0600000001")
    assert seen(archive, "TMP")["merged_into"] == "R1"
    assert [one.value for one in record(archive, "R1").identifiers] == ["R1"], "the old one has left"
    assert owner(archive, study) == f"R1^^^{ISSUER}"
    later = send(PatientID="TMP", IssuerOfPatientID=ISSUER)
    assert owner(archive, later) == f"R1^^^{ISSUER}"
    keys = (Key(0x00100020, "LO", "TMP"),)
    with archive.reading() as conn:
        studies = list(find(conn, Query(Level.STUDY, keys, want=frozenset({0x0020000D}))))
        versions = [one["version"] for one in history(conn, row(archive, "R1").pk)]
    assert {one["0020000D"]["Value"][0] for one in studies} == {study, later}
    assert versions == [1, 2]


@pytest.mark.req("REQ-HL7-41")
def test_a47_of_somebody_whom_only_images_know_keeps_what_they_say(archive: Archive, send: Callable[..., str]) -> None:
    send(PatientID="TMP", IssuerOfPatientID=ISSUER, PatientName="INCONNU^X", PatientBirthDate="19600615")
    assert items(archive).keys() == {"unknown_patient"}
    say(archive, "A47", pid("R1", "DUPONT^Anne^^^^^L"), f"MRG|{cx('TMP')}")
    shown = dicom.by_keyword(orjson.loads(row(archive, "R1").attributes))
    assert (shown["PatientName"], shown["PatientBirthDate"]) == ("DUPONT^Anne", "19600615")
    assert items(archive) == {}


@pytest.mark.req("REQ-HL7-41")
def test_a47_of_somebody_unknown_makes_them(archive: Archive) -> None:
    assert say(archive, "A47", pid("R1"), f"MRG|{cx('TMP')}") == []
    assert record(archive, "R1").birth_name.family == "DUPONT"
    assert seen(archive, "R1")["alias_of"] == ["TMP"]


@pytest.mark.req("REQ-HL7-41")
def test_a47_takes_an_identifier_that_only_images_have(archive: Archive, send: Callable[..., str]) -> None:
    study = send(PatientID="R1", IssuerOfPatientID=ISSUER)
    say(archive, "A28", pid("TMP"))
    say(archive, "A47", pid("R1"), f"MRG|{cx('TMP')}")
    assert owner(archive, study) == f"R1^^^{ISSUER}"
    assert items(archive) == {}


@pytest.mark.req("REQ-HL7-41")
@pytest.mark.parametrize("before", ["done", "only the new one is known"])
def test_a47_that_has_nothing_to_do_is_acknowledged(archive: Archive, before: str) -> None:
    if before == "done":
        say(archive, "A28", pid("TMP"))
        say(archive, "A47", pid("R1"), f"MRG|{cx('TMP')}")
    else:
        say(archive, "A28", pid("R1"))
    version = row(archive, "R1").version
    found = say(archive, "A47", pid("R1", "AUTRE^Nom^^^^^L"), f"MRG|{cx('TMP')}")
    assert [one.location for one in found] == ["MRG^1^1"]
    assert row(archive, "R1").version == version


@pytest.mark.req("REQ-HL7-41")
@pytest.mark.parametrize(
    ("new", "mrg", "code", "location", "kind"),
    [
        ("R1", f"MRG|{cx('R1')}", 205, "MRG^1^1", ""),
        ("R2", f"MRG|{cx('R1')}", 205, "PID^1^3", ""),  # an active patient has it
        ("R9", f"MRG|{cx('OLD')}", 204, "MRG^1^1", "merge_conflict"),  # an alias of R1
        ("OLD", f"MRG|{cx('R2')}", 204, "PID^1^3", "merge_conflict"),
        ("R9", "MRG|", 101, "MRG^1^1", ""),
        ("R9", "MRG|X1^^^HOPITAL^PI", 204, "MRG^1^1", ""),
        ("R9", f"MRG|{ins(OLD_INS)}", 204, "MRG^1^1", ""),  # neither is known
    ],
)
def test_a47_that_cannot_be_is_refused_and_changes_nothing(
    archive: Archive, new: str, mrg: str, code: int, location: str, kind: str
) -> None:
    say(archive, "A28", pid("OLD"))
    say(archive, "A47", pid("R1"), f"MRG|{cx('OLD')}")
    say(archive, "A28", pid("R2"))
    before = facts(archive)
    assert refused(archive, "A47", pid(new), mrg) == (code, location)
    assert items(archive).keys() == ({kind} if kind else set())
    assert facts(archive) == before
    assert not known(archive, "R9")


@pytest.mark.req("REQ-HL7-41", "REQ-HL7-P11")
def test_a_message_with_a_former_identifier_is_refused(archive: Archive) -> None:
    """The sender may have given it to somebody else."""
    say(archive, "A47", pid("R1"), f"MRG|{cx('TMP')}")
    assert refused(archive, "A31", pid("TMP", "AUTRE^X^^^^^L")) == (204, "PID^1^3")
    assert items(archive)["merged_id_used"]["evidence"]["merged_into"] == f"R1^^^{ISSUER}"


@pytest.mark.req("REQ-HL7-41")
def test_identifiers_that_changed_twice_and_back_lead_to_the_patient(archive: Archive) -> None:
    say(archive, "A28", pid("A", "DUPONT^Anne^^^^^L"))
    say(archive, "A47", pid("B"), f"MRG|{cx('A')}")
    say(archive, "A47", pid("C"), f"MRG|{cx('B')}")
    assert seen(archive, "C")["alias_of"] == ["A", "B"]
    say(archive, "A47", pid("B", "DURAND^Anne^^^^^L"), f"MRG|{cx('C')}")
    assert sorted(seen(archive, "B")["alias_of"]) == ["A", "C"]
    assert seen(archive, "B")["family_birth"] == "DURAND"
    before = {ipp: seen(archive, ipp) for ipp in "ABC"}
    told_again(archive)
    assert {ipp: seen(archive, ipp) for ipp in "ABC"} == before


@pytest.mark.req("REQ-HL7-41", "REQ-HL7-91")
def test_an_identifier_that_is_taken_back_after_a47_finds_nobody(archive: Archive) -> None:
    say(archive, "A28", pid("A", p3="X^^^HOPITAL^PI"))
    say(archive, "A47", pid("B"), f"MRG|{cx('A')}")
    assert held_by(archive, "X") == ["B"]
    say(archive, "A47", pid("B", p3="Y^^^HOPITAL^PI"), "MRG|X^^^HOPITAL^PI")
    say(archive, "A40", pid("C"), f"MRG|{cx('B')}")  # now the alias is a tombstone like any other
    for _ in range(2):
        assert [held_by(archive, one) for one in ("X", "Y", "A", "B")] == [[], ["C"], ["C"], ["C"]]
        told_again(archive)


@pytest.mark.req("REQ-HL7-41", "REQ-HL7-91")
def test_a_late_a47_takes_names_and_identifiers_along(archive: Archive) -> None:
    """What it says of the patient is older than what is known (PID-33), and is not applied."""
    names = "DUPONT^Anne^^^^^L~MARTIN^Anne^^^^^D"
    say(archive, "A28", pid("A", names, p3="X^^^HOPITAL^PI", p33="20260105"))
    say(archive, "A47", pid("B", p33="20250105"), f"MRG|{cx('A')}")
    assert items(archive).keys() == {"stale_update"}
    for _ in range(2):
        with archive.reading() as conn:
            [found] = demographics.find(conn, demographics.Asked(family="MARTIN"))
        assert [one.value for one in found.identifiers] == ["B", "X"]
        assert held_by(archive, "X") == ["B"]
        told_again(archive)


@pytest.mark.req("REQ-HL7-P6", "REQ-HL7-41")
def test_a47_changes_an_identifier_of_another_authority(archive: Archive) -> None:
    say(archive, "A28", pid("R1", p3="X1^^^HOPITAL^PI"))
    say(archive, "A47", pid("R1", p3="X2^^^HOPITAL^PI"), "MRG|X1^^^HOPITAL^PI")
    assert {(one.value, one.issuer) for one in record(archive, "R1").identifiers} == {("R1", ISSUER), ("X2", "HOPITAL")}


@pytest.mark.req("REQ-HL7-41", "REQ-HL7-67")
def test_a47_replaces_an_ins(archive: Archive) -> None:
    say(archive, "A28", pid("R1", L, p3=ins(OLD_INS), **TRAITS))
    changed = TRAITS | {"p8": "M"}
    say(archive, "A47", pid("R1", "LE GOFF^ANTOINE^^^M.^^L", p3=ins(NEW_INS), **changed), f"MRG|{ins(OLD_INS)}")
    assert row(archive, "R1").ins == f"{NEW_INS}^1.2.250.1.213.1.4.10"
    assert record(archive, "R1").sex == "M"
    assert [one.event for one in record(archive, "R1").ins_history] == ["accepted", "replaced", "accepted"]


@pytest.mark.req("REQ-HL7-41", "REQ-HL7-64")
def test_a47_removes_every_ins(archive: Archive) -> None:
    """Status VALI stays where the message says so."""
    say(archive, "A28", pid("R1", L, p3=ins(OLD_INS), **TRAITS))
    say(archive, "A47", pid("R1", L, p3=ins('""'), **TRAITS), f"MRG|{ins(OLD_INS)}")
    assert row(archive, "R1").ins is None
    assert record(archive, "R1").level == "validée"
    assert "Value" not in orjson.loads(row(archive, "R1").attributes)["00101002"]
    found = say(archive, "A47", pid("R1", L, p3=ins('""'), p32="PROV"), f"MRG|{ins(OLD_INS)}")
    assert [one.location for one in found] == ["MRG^1^1"], "not held any more"


@pytest.mark.req("REQ-HL7-41")
def test_a47_about_the_ins_of_another_patient_is_refused(archive: Archive) -> None:
    say(archive, "A28", pid("R1", L, p3=ins(OLD_INS), **TRAITS))
    say(archive, "A28", pid("R2"))
    assert refused(archive, "A47", pid("R2", p3=ins('""')), f"MRG|{ins(OLD_INS)}") == (204, "MRG^1^1")
    assert items(archive).keys() == {"merge_conflict"}
    assert row(archive, "R1").ins


@pytest.mark.req("REQ-IHE-03")
def test_a_link_moves_nothing_and_follows_a_merge(archive: Archive, send: Callable[..., str]) -> None:
    study = send(PatientID="R1", IssuerOfPatientID=ISSUER)
    two = (pid("R1"), pid("R2", "DUPOND^Anne^^^^^L"))
    assert say(archive, "A24", *two) == []
    assert (linked(archive, "R1"), linked(archive, "R2")) == (["R2"], ["R1"])
    assert owner(archive, study) == f"R1^^^{ISSUER}"
    assert [one.location for one in say(archive, "A24", *two)] == ["PID^2^3"], "so already"
    say(archive, "A40", pid("R3"), f"MRG|{cx('R2')}")
    after = (linked(archive, "R1"), linked(archive, "R3"), linked(archive, "R2"))
    assert after == (["R3"], ["R1"], [])
    archive.commit.run(lambda conn: conn.execute(patient_link.delete()))
    told_again(archive)
    assert (linked(archive, "R1"), linked(archive, "R3"), linked(archive, "R2")) == after
    say(archive, "A37", pid("R3"), pid("R1"))
    assert linked(archive, "R1") == []
    told_again(archive)
    assert linked(archive, "R1") == []


def test_patients_who_are_one_have_no_link(archive: Archive) -> None:
    say(archive, "A24", pid("R1"), pid("R2"))
    say(archive, "A40", pid("R1"), f"MRG|{cx('R2')}")
    assert linked(archive, "R1") == []
    assert refused(archive, "A24", pid("R1"), pid("R1")) == (205, "PID^2^3")
    assert refused(archive, "A24", pid("R1"), pid("R2")) == (204, "PID^2^3")
    assert refused(archive, "A24", pid("R1")) == (100, "PID^2")
    assert refused(archive, "A37", pid("R1"), pid("R3"), pid("R4")) == (100, "PID^3")
    assert [one.location for one in say(archive, "A37", pid("R1"), pid("R3"))] == ["PID^2^3"]
    assert not known(archive, "R3")
