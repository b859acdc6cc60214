"""Whatever is merged in whatever order, every tombstone names an active survivor (REQ-HL7-40)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from archive.access import SYSTEM
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import IdentifierInUse, MergedAway
from archive.identity.acts import Act, PatientKey
from archive.identity.merge import Pair, merge
from archive.identity.restore import restore_patient
from archive.journal import Kind
from archive.schema import patient, patient_revision, work_item
from migrations import upgrade

KEYS = [PatientKey(letter, "A") for letter in "ABCDEF"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """One database for every example; each empties it."""
    folder: Path = tmp_path_factory.mktemp("merge")
    url = f"sqlite:///{folder / 'index.sqlite3'}"
    upgrade(url)
    told = Settings.model_validate({"data_dir": folder, "database": {"url": url}, "storage": {"reserve_bytes": 0}})
    with open_archive(told, process="test") as opened:
        yield opened


def empty(conn: Connection) -> None:
    for table in (work_item, patient_revision, patient):
        conn.execute(table.delete())


def state(archive: Archive) -> dict[str, tuple[str | None, str | None]]:
    """Of each identifier its tombstone and its survivor."""
    with archive.reading() as conn:
        rows = conn.execute(select(patient)).all()
    names = {row.pk: row.patient_id for row in rows}
    return {row.patient_id: (row.tombstone, names.get(row.merged_into_pk)) for row in rows}


@pytest.mark.req("REQ-HL7-40")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS)), max_size=12))
def test_merges_make_a_forest_of_one_level_and_its_facts_alone_make_it_again(
    shared: Archive, pairs: list[tuple[PatientKey, PatientKey]]
) -> None:
    shared.commit.run(empty)
    lines = len(shared.journal.read())
    expected: dict[str, str] = {}  # an identifier and who it stands for
    for survivor, loser in pairs:
        act = Act(shared.clock(), SYSTEM, "A40", shared.authorities)
        legal = (
            survivor != loser
            and expected.get(survivor.patient_id, survivor.patient_id) == survivor.patient_id
            and expected.get(loser.patient_id, loser.patient_id) in (loser.patient_id, survivor.patient_id)
        )
        pair = Pair(survivor, loser)
        if not legal:
            with pytest.raises((MergedAway, IdentifierInUse)):
                shared.commit.run(lambda conn, pair=pair, act=act: merge(conn, pair, act=act))
            continue
        shared.commit.run(lambda conn, pair=pair, act=act: merge(conn, pair, act=act))
        expected.setdefault(survivor.patient_id, survivor.patient_id)
        for name, stands_for in [*expected.items(), (loser.patient_id, loser.patient_id)]:
            if stands_for == loser.patient_id:
                expected[name] = survivor.patient_id
    wanted = {
        name: (None, None) if stands_for == name else ("merged", stands_for) for name, stands_for in expected.items()
    }
    assert state(shared) == wanted

    told = shared.journal.read()[lines:]
    last = {one.subject: one for one in told if one.kind == Kind.PATIENT}
    shared.commit.run(empty)
    for _ in range(2):
        for one in last.values():
            shared.commit.run(lambda conn, one=one: restore_patient(conn, one.subject, one.body, one.at))
    assert state(shared) == wanted
