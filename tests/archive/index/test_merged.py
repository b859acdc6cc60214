"""REQ-DCM-37: an identifier that was merged away, or the INS, finds the patient as they are known now."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import select, update

from archive.access import Actor
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.index.correct import correct_patient, move_studies
from archive.index.query import Query, Search, count
from archive.schema import patient
from tests.archive.dicom.correcting import INS, element, pn
from tests.archive.index.filling import ask, fill, key, names, study, value

AT = datetime(2026, 3, 1, tzinfo=UTC)
pytestmark = pytest.mark.req("REQ-DCM-37")


def merge(archive: Archive, loser: str, survivor: str) -> None:
    """What A40 leaves of two patients."""

    def write(conn):  # type: ignore[no-untyped-def]
        pks = {
            one: conn.execute(select(patient.c.pk).where(patient.c.patient_id == one)).scalar_one()
            for one in (loser, survivor)
        }
        move_studies(conn, loser_pk=pks[loser], survivor_pk=pks[survivor])
        gone = update(patient).where((patient.c.pk == pks[loser]) | (patient.c.merged_into_pk == pks[loser]))
        conn.execute(gone.values(merged_into_pk=pks[survivor], tombstone="merged"))
        correct_patient(
            conn,
            pks[survivor],
            {"00100020": element("LO", survivor), "00100010": pn("MARTIN^Anne"), "00101002": element("SQ", INS)},
            reason="COERCE",
            at=AT,
        )

    archive.commit.run(write)


@pytest.fixture
def merged(archive: Archive, actor: Actor) -> Archive:
    """A was merged into B; C is somebody else."""
    fill(archive, actor, study("A", IssuerOfPatientID="CABINET"), study("B", IssuerOfPatientID="CABINET"), study("C"))
    merge(archive, "A", "B")
    return archive


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("identifier", ["A", "B"])
def test_the_old_identifier_finds_what_the_new_one_finds(merged: Archive, level: Level, identifier: str) -> None:
    rows = ask(merged, level, key("PatientID", identifier), want=("PatientID", "PatientName", "IssuerOfPatientID"))
    assert len(rows) == (1 if level is Level.PATIENT else 2)
    assert {value(row, "PatientID") for row in rows} == {"B"}
    assert {value(row, "PatientName")["Alphabetic"] for row in rows} == {"MARTIN^Anne"}
    asked = Query(level, (key("PatientID", identifier),))
    with merged.engine.connect() as conn:
        assert count(conn, asked, at_most=100) == len(rows)


def test_a_search_prepared_before_a_merge_follows_it(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study("A"), study("B"))
    search = Search(Query(Level.STUDY, (key("PatientID", "A"),), frozenset({0x00100020})))

    def found() -> list[str]:
        with archive.reading() as conn:
            return [value(row, "PatientID") for row in search.rows(conn)]

    assert found() == found() == ["A"]
    merge(archive, "A", "B")
    assert found() == found() == ["B", "B"]


def test_other_keys_and_paging_count_along(merged: Archive) -> None:
    old = key("PatientID", "A")
    assert names(ask(merged, Level.STUDY, old, key("StudyDescription", "B"))) == ["B"]
    assert names(ask(merged, Level.STUDY, old, key("PatientName", "MARTIN*"))) == ["B", "A"]
    assert names(ask(merged, Level.STUDY, old, key("PatientName", "DUPONT*"))) == []
    assert names(ask(merged, Level.STUDY, old, limit=1, offset=1)) == ["A"]
    assert names(ask(merged, Level.STUDY, old, key("AccessionNumber", "A1001"), key("StudyInstanceUID", "1.2"))) == []


def test_the_issuer_asked_for_is_that_of_the_old_identifier(merged: Archive) -> None:
    assert len(ask(merged, Level.STUDY, key("PatientID", "A"), key("IssuerOfPatientID", "CABINET"))) == 2
    assert len(ask(merged, Level.STUDY, key("PatientID", "A"), key("IssuerOfPatientID", "CAB*"))) == 2
    assert ask(merged, Level.STUDY, key("PatientID", "A"), key("IssuerOfPatientID", "HOPITAL")) == []


def test_merged_twice_it_finds_who_is_left(merged: Archive) -> None:
    merge(merged, "B", "C")
    for identifier in "ABC":
        rows = ask(merged, Level.STUDY, key("PatientID", identifier), want=("PatientID",))
        assert [value(row, "PatientID") for row in rows] == ["C"] * 3


def test_whoever_has_the_same_identifier_elsewhere_is_found_too(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study("A", IssuerOfPatientID="X"), study("B"))
    merge(archive, "A", "B")
    elsewhere = study("A2", PatientID="A", IssuerOfPatientID="Y")
    fill(archive, actor, elsewhere)
    assert sorted(names(ask(archive, Level.STUDY, key("PatientID", "A")))) == ["A", "A2", "B"]
    assert names(ask(archive, Level.STUDY, key("PatientID", "A"), key("IssuerOfPatientID", "Y"))) == ["A2"]


def test_a_wildcard_means_identifiers_that_are_in_use(merged: Archive) -> None:
    assert names(ask(merged, Level.STUDY, key("PatientID", "A*"))) == []


@pytest.mark.parametrize("level", [Level.PATIENT, Level.STUDY])
def test_the_national_identity_finds_its_patient(merged: Archive, level: Level) -> None:
    item = (key("PatientID", "180013112345678"), key("IssuerOfPatientID", "ASIP-SANTE-INS-NIR"))
    rows = ask(merged, level, key("OtherPatientIDsSequence", "", *item), want=("PatientID", "OtherPatientIDsSequence"))
    assert {value(row, "PatientID") for row in rows} == {"B"}
    assert value(rows[0], "OtherPatientIDsSequence")["00100020"]["Value"] == ["180013112345678"]
    other = (key("PatientID", "180013112345679"), item[1])
    assert ask(merged, level, key("OtherPatientIDsSequence", "", *other)) == []
