"""An access that lasts is two rows: one before the first byte, one with the counts (law 4)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from archive.access import Actor, Door
from archive.audit import accesses as module
from archive.audit.accesses import Access, Accesses
from archive.audit.record import Event
from archive.audit.verify import verify
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy, NotFound, Unavailable
from archive.schema import audit

QUIET = 0.4


@pytest.fixture
def accesses(archive: Archive) -> Iterator[Accesses]:
    """Accesses that are closed after 0.4 quiet seconds."""
    quick = Accesses(archive.commit, archive.time, quiet_seconds=QUIET)
    yield quick
    quick.close()


def begin(accesses: Accesses, actor: Actor, study: str = "1.2.3", *, scope: str = "") -> Access:
    return accesses.access(actor, Event.INSTANCES_TRANSFERRED, "R", study=study, patient="IPP1^^^HOPITAL", scope=scope)


def rows(archive: Archive) -> list[Any]:
    with archive.engine.connect() as conn:
        return list(conn.execute(select(audit).order_by(audit.c.pk)))


def phases(archive: Archive) -> list[dict[str, Any]]:
    return [json.loads(row.detail) for row in rows(archive)]


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_the_opening_row_is_durable_before_the_first_byte(archive: Archive, actor: Actor) -> None:
    access = begin(archive.accesses, actor)
    assert not access.opened
    access.open()
    assert access.opened
    (row,) = rows(archive)
    assert (row.event, row.action, row.patient, row.study) == ("110104", "R", "IPP1^^^HOPITAL", "1.2.3")
    assert json.loads(row.detail) == {"phase": "open"}


def test_six_hundred_frames_are_two_rows(archive: Archive, accesses: Accesses, actor: Actor) -> None:
    def frame(_: int) -> None:
        access = begin(accesses, actor)
        access.open()
        access.count(1, 1000)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(frame, range(600)))
    wait_for(lambda: len(rows(archive)) == 2)
    opening, closing = phases(archive)
    assert opening == {"phase": "open"}
    assert (closing["phase"], closing["instances"], closing["bytes"]) == ("close", 600, 600_000)
    assert rows(archive)[1].patient == "IPP1^^^HOPITAL"


def test_who_asks_again_after_the_silence_opens_anew(archive: Archive, accesses: Accesses, actor: Actor) -> None:
    first = begin(accesses, actor)
    first.open()
    assert begin(accesses, actor) is first
    wait_for(lambda: len(rows(archive)) == 2)
    second = begin(accesses, actor)
    assert second is not first
    second.open()
    assert [phase["phase"] for phase in phases(archive)] == ["open", "close", "open"]


def test_other_people_studies_doors_and_scopes_are_other_accesses(archive: Archive, actor: Actor) -> None:
    made = [
        begin(archive.accesses, actor),
        begin(archive.accesses, replace(actor, user="other")),
        begin(archive.accesses, replace(actor, source="10.0.0.1")),
        begin(archive.accesses, replace(actor, door=Door.DICOM)),
        begin(archive.accesses, actor, "1.2.4"),
        begin(archive.accesses, actor, scope="association 1"),
    ]
    assert len(set(map(id, made))) == 6


def test_the_opening_of_a_store_is_in_the_transaction_of_its_first_instance(archive: Archive, actor: Actor) -> None:
    access = begin(archive.accesses, actor, scope="a")

    def store(conn: Connection, *, fail: bool) -> None:
        access.record_opening(conn)
        if fail:
            raise NotFound("no")

    with pytest.raises(NotFound):
        archive.commit.run(lambda conn: store(conn, fail=True))
    assert not access.opened and rows(archive) == []
    archive.commit.run(lambda conn: store(conn, fail=False))
    archive.commit.run(lambda conn: store(conn, fail=False))
    assert access.opened
    assert phases(archive) == [{"phase": "open", "scope": "a"}]


def test_stores_of_one_association_that_share_a_commit_record_one_opening(archive: Archive, actor: Actor) -> None:
    access = begin(archive.accesses, actor, scope="a")
    running, gate = threading.Event(), threading.Event()

    def blocks(conn: Connection) -> None:
        running.set()
        gate.wait(60)

    def store(conn: Connection, number: int) -> None:
        access.record_opening(conn)
        if number == 5:
            raise NotFound("no")

    with ThreadPoolExecutor(21) as pool:
        blocked = pool.submit(archive.commit.run, blocks)
        assert running.wait(10)  # alone in its transaction: the others can only wait
        others = [pool.submit(archive.commit.run, lambda conn, n=n: store(conn, n)) for n in range(20)]
        wait_for(lambda: archive.commit._queue.qsize() == 20)
        gate.set()
        blocked.result()
        assert [n for n, other in enumerate(others) if other.exception()] == [5]
    assert phases(archive) == [{"phase": "open", "scope": "a"}]


def test_the_end_of_an_association_closes_its_accesses_at_once(archive: Archive, actor: Actor) -> None:
    for study in ("1.2.3", "1.2.4"):
        access = begin(archive.accesses, actor, study, scope="a")
        access.open()
        access.count(2, 10)
    begin(archive.accesses, actor, scope="b").open()
    archive.accesses.end_scope("a")
    wait_for(lambda: len(rows(archive)) == 5)
    assert [(row.study, json.loads(row.detail)["instances"]) for row in rows(archive)[3:]] == [
        ("1.2.3", 2),
        ("1.2.4", 2),
    ]


def test_failures_show_in_the_outcome(archive: Archive, actor: Actor) -> None:
    for study, sent, failed in (("1.1", 3, 1), ("1.2", 0, 2), ("1.3", 1, 0)):
        access = begin(archive.accesses, actor, study)
        access.open()
        access.count(sent, 10 * sent, failed=failed)
    archive.accesses.close()
    assert [(row.outcome, json.loads(row.detail).get("failed")) for row in rows(archive)[3:]] == [
        (4, 1),
        (8, 2),
        (0, None),
    ]


def test_closing_the_archive_closes_every_access(settings: Settings, actor: Actor) -> None:
    with open_archive(settings, process="api") as archive:
        for number in range(5):
            access = begin(archive.accesses, actor, f"1.{number}")
            access.open()
            access.count()
        begin(archive.accesses, actor, "never opened")
    with open_archive(settings, process="look") as archive:
        assert [phase["phase"] for phase in phases(archive)] == ["open"] * 5 + ["close"] * 5
        with archive.engine.connect() as conn:
            assert verify(conn).ok
    with pytest.raises(Busy):
        begin(archive.accesses, actor)


def test_an_access_used_after_its_silence_goes_on(archive: Archive, accesses: Accesses, actor: Actor) -> None:
    access = begin(accesses, actor)
    access.open()
    access.count(1, 5)
    wait_for(lambda: len(rows(archive)) == 2)
    access.count(2, 7)
    wait_for(lambda: len(rows(archive)) == 3)
    assert [phase.get("instances") for phase in phases(archive)] == [None, 1, 2]


def test_closing_rows_that_cannot_be_written_wait(archive: Archive, accesses: Accesses, actor: Actor) -> None:
    access = begin(accesses, actor)
    access.open()
    access.count(4, 40)
    rename(archive, "audit", "away")
    with pytest.raises(Unavailable):
        begin(accesses, actor, "1.9").open()
    time.sleep(3 * QUIET)  # the thread tries, and fails
    rename(archive, "away", "audit")
    wait_for(lambda: len(rows(archive)) == 2)
    assert phases(archive)[1]["instances"] == 4


def rename(archive: Archive, old: str, new: str) -> None:
    with archive.engine.connect().execution_options(minipacs_write=True) as conn:
        conn.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
        conn.commit()


def test_memory_is_bounded(archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 40)
    for number in range(100):
        access = begin(archive.accesses, actor, f"1.{number}")
        access.count()
    assert len(archive.accesses._open) <= 41
    archive.accesses.close()
    assert len(rows(archive)) == 100
