"""The loop of a retention process: at start, now and then, and when it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select

from archive import jobs
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import Busy
from archive.leases import leased
from archive.schema import job, last_tick, purge
from retention.serve import serve
from retention.tick import LEASE
from tests.builders import new_uid
from tests.retention.life import put_clock, receive_exam, study_row

UID = new_uid("study")

pytestmark = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


@contextmanager
def process(archive: Archive) -> Iterator[threading.Thread]:
    stopping = threading.Event()
    thread = threading.Thread(target=serve, args=(archive, None, stopping))
    thread.start()
    try:
        yield thread
    finally:
        stopping.set()
        thread.join(30)
        assert not thread.is_alive()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "it does not come"
        threading.Event().wait(0.02)


def ticked_at(archive: Archive) -> object:
    with archive.reading() as conn:
        return conn.execute(select(last_tick.c.real_at)).scalar()


def test_a_tick_runs_at_start(archive: Archive) -> None:
    receive_exam(archive)
    put_clock(archive, "2031-01-05T09:00:00")
    with process(archive):
        until(lambda: study_row(archive, UID).announced_at)


def test_moving_the_clock_starts_no_tick_and_a_job_does(archive: Archive) -> None:
    receive_exam(archive)
    with process(archive):
        until(lambda: ticked_at(archive))
        assert jobs.ask(archive, "retention.run", {}, seconds=30)["announced"] == 0
        put_clock(archive, "2031-01-05T09:00:00")
        # a tick that the move had started would run before the job, and leave it nothing to announce
        assert jobs.ask(archive, "retention.run", {}, seconds=30)["announced"] == 1


def test_ticks_come_by_real_time(with_retention: Callable[..., Archive]) -> None:
    archive = with_retention(tick_seconds=1)
    with process(archive):
        until(lambda: ticked_at(archive))
        first = ticked_at(archive)
        until(lambda: ticked_at(archive) != first)


def test_a_tick_that_fails_is_told_to_who_asked_and_the_process_lives(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retention.schedule.PATIENCE_SECONDS", 0.2)
    with process(archive) as thread:
        until(lambda: ticked_at(archive))
        jobs.ask(archive, "retention.run", {}, seconds=30)
        with leased(archive, LEASE), pytest.raises(Busy, match="another process is at it"):
            jobs.ask(archive, "retention.run", {}, seconds=30)
        assert jobs.ask(archive, "retention.run", {}, seconds=30)["purged"] == 0
        assert thread.is_alive()
    with archive.reading() as conn:
        assert sorted(conn.execute(select(job.c.state)).scalars()) == ["dead", "done", "done"]


def test_jobs_of_other_edges_are_left_alone(archive: Archive) -> None:
    id = archive.commit.run(lambda conn: jobs.put(conn, "dicom.echo", {}, at=archive.real_clock()))
    with process(archive):
        jobs.ask(archive, "retention.run", {}, seconds=30)
        assert jobs.wait(archive, id, seconds=0).state == "due"
    with archive.reading() as conn:
        assert conn.execute(select(purge)).first() is None
