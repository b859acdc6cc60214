"""The cost of a query follows its matches, not the size of the index: what the database says that it will do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from archive.core import Archive
from archive.dicom.attributes import Level
from archive.identity import demographics
from archive.identity.demographics import Asked
from archive.index.aliases import survivors
from archive.index.match import Key
from archive.index.statements import Form, prepared, statement
from archive.schema.index import SPARSE
from tests.archive.index.filling import ask, key
from tests.builders import new_uid

WANT = (
    "PatientName", "PatientID", "StudyDate", "StudyInstanceUID", "ModalitiesInStudy", "InstanceAvailability",
    "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
)  # fmt: skip


# SQLite plans without statistics; PostgreSQL's plans for small tables say nothing of large ones
pytestmark = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


def plan(archive: Archive, level: Level, *keys: Key, limit: int = 100) -> list[str]:
    """The steps of the statements of a query."""
    with told(archive) as texts:
        ask(archive, level, *keys, want=WANT, limit=limit)
    return steps_of(archive, [text for text in texts if "merged_into_pk" not in text])  # a look by the same key


@contextmanager
def told(archive: Archive) -> Iterator[list[str]]:
    """The SELECTs that SQLite runs meanwhile, with their values in the text."""
    with archive.engine.connect() as conn:  # the one connection of the pool
        driver: Any = conn.connection.dbapi_connection
    texts: list[str] = []
    driver.set_trace_callback(lambda text: texts.append(text) if text.startswith("SELECT") else None)
    try:
        yield texts
    finally:
        driver.set_trace_callback(None)


def steps_of(archive: Archive, texts: list[str]) -> list[str]:
    with archive.engine.connect() as conn:
        return [str(row[3]) for text in texts for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]


def scans(steps: list[str]) -> list[str]:
    return [step for step in steps if step.startswith("SCAN") and step != "SCAN page"]


@pytest.mark.parametrize(
    ("keys", "index"),
    [
        ([("PatientID", "IPP1")], "ix_patient_patient_id"),
        ([("PatientName", "DUP*")], "ix_patient_patient_name"),
        ([("PatientName", "DUPONT^ANNE")], "ix_patient_patient_name"),
        ([("PatientName", "DUPONT^*")], "ix_patient_patient_name"),
        ([("AccessionNumber", "A1001")], "ix_study_accession_number"),
        ([("AccessionNumber", "A10*")], "ix_study_accession_number"),
        ([("StudyInstanceUID", "1.2.3\\1.2.4")], "study_instance_uid=?"),
        ([("StudyDate", "20260105")], "ix_study_study_date_study_time"),
        ([("StudyDate", "20260105-"), ("ModalitiesInStudy", "CT")], "ix_study_study_date_study_time"),
        # several keys: the best leads, whatever the order of asking
        ([("StudyDate", "20260105-"), ("PatientName", "DUPONT*")], "ix_patient_patient_name"),
        ([("StudyID", "1"), ("PatientID", "IPP1"), ("PatientName", "D*")], "ix_patient_patient_id"),
        ([("PatientName", "D*"), ("StudyDate", "20260105")], "ix_study_study_date_study_time"),
    ],
)
def test_a_study_query_starts_from_the_index_of_its_best_key(
    archive: Archive, keys: list[tuple[str, str]], index: str
) -> None:
    steps = plan(archive, Level.STUDY, *(key(*one) for one in keys))
    assert not scans(steps), steps
    first = next(step for step in steps if step.startswith("SEARCH"))
    assert index in first, steps


@pytest.mark.parametrize("keys", [[], [("ModalitiesInStudy", "MR")], [("StudyDate", "20200101-20261231")]])
def test_without_a_selective_key_studies_are_read_in_the_order_of_their_index(
    archive: Archive, keys: list[tuple[str, str]]
) -> None:
    steps = plan(archive, Level.STUDY, *(key(*one) for one in keys))
    assert "study USING INDEX ix_study_study_date_study_time" in next(step for step in steps if " study " in step)
    assert not [step for step in steps if "ORDER BY" in step], steps


def test_series_and_instances_of_a_study_start_from_its_uid(archive: Archive) -> None:
    for level in (Level.SERIES, Level.IMAGE):
        steps = plan(archive, level, key("StudyInstanceUID", new_uid("A")), key("Modality", "CT"))
        assert not scans(steps), steps
        assert "study_instance_uid=?" in next(step for step in steps if step.startswith("SEARCH"))


def test_a_wildcard_in_front_reads_names_and_not_studies(archive: Archive) -> None:
    steps = plan(archive, Level.STUDY, key("PatientName", "*ANNE"))
    assert scans(steps) == ["SCAN patient USING COVERING INDEX ix_patient_patient_name"]


def test_an_identifier_is_looked_up_among_those_merged_away_by_its_index(archive: Archive) -> None:
    with told(archive) as texts, archive.engine.connect() as conn:
        assert survivors(conn, ["IPP1"], issued=lambda issuer: True) is None
    assert steps_of(archive, texts) == ["SEARCH patient USING INDEX ix_patient_patient_id (patient_id=?)"]


NAMED = [
    "SEARCH patient USING INDEX ix_patient_patient_name (patient_name>? AND patient_name<?)",
    "SEARCH patient USING INDEX ix_patient_other_names (other_names>? AND other_names<?)",
]
NUMBERED = ["SEARCH patient USING INTEGER PRIMARY KEY (rowid=?)"]


@pytest.mark.parametrize("after", [0, 200])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(family="DUPONT"), NAMED),
        (Asked(family="dup*", given=("Anne",), born=("19700101", "19700101"), sexes=frozenset({"F", ""})), NAMED),
        (Asked(pks=(1, 2)), NUMBERED),
        (Asked(pks=(1, 2), family="DUP*", born=("19700101", "19701231")), NUMBERED),
    ],
)
def test_a_query_of_patients_starts_from_what_names_them(
    archive: Archive, asked: Asked, after: int, expected: list[str]
) -> None:
    """PDQ and PDQm (REQ-HL7-91)."""
    with told(archive) as texts, archive.engine.connect() as conn:
        assert list(demographics.find(conn, asked, after=after)) == []
    steps = steps_of(archive, texts)
    assert [step for step in steps if step.startswith(("SEARCH", "SCAN"))] == expected, steps


def test_a_survivor_is_reached_by_the_key_of_the_row(archive: Archive) -> None:
    keyed = statement(Form(Level.STUDY, (("in", "patient.pk", "p0"),), (), (), (), selective=True, paged=False))
    with told(archive) as texts, archive.engine.connect() as conn:
        conn.execute(keyed, {"p0": [1, 2]}).all()
    steps = steps_of(archive, texts)
    assert not scans(steps), steps
    assert "ix_study_patient_pk" in " ".join(steps), steps


def test_the_text_of_a_statement_does_not_depend_on_the_values(archive: Archive) -> None:
    prepared.cache_clear()
    for name in ("DUPONT*", "Martin-D*", "100%*", "O'Brien*", "Lefèvre*"):
        ask(archive, Level.STUDY, key("PatientName", name), key("StudyDate", "20260105"))
    assert prepared.cache_info().currsize == 1


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in SPARSE.items() for column in columns]
)
def test_an_index_without_the_empty_values_is_used_by_whoever_asks_for_one(
    archive: Archive, table: str, column: str
) -> None:
    for comparison in ("= '7'", "IN ('7', '8')", "<= '7'", "IS NOT NULL"):
        (step,) = steps_of(archive, [f"SELECT pk FROM {table} WHERE {column} {comparison}"])
        assert f"ix_{table}_{column}" in step, comparison
