"""Processes that are alive, and the clock that they follow together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from archive import heartbeat
from archive.access import Actor, Door
from archive.config import EDGES, Settings
from archive.core import Archive, open_archive
from archive.errors import Busy, InvalidRequest, NotAllowed, NotFound
from archive.heartbeat import Heartbeat, ready
from archive.schema import audit, process
from archive.testbed import advance, moved_on, read_clock, release, set_clock

NEW_YEAR = datetime(2026, 1, 5, 8, tzinfo=UTC)


@pytest.fixture
def testbed(settings: Settings) -> Settings:
    return settings.model_copy(update={"test_mode": True})


def rows(archive: Archive) -> list[object]:
    with archive.engine.connect() as conn:
        return list(conn.execute(select(process)))


def eventually(check: Callable[[], bool], *, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_process_has_a_row_while_it_runs(archive: Archive) -> None:
    with Heartbeat(archive, "api"):
        assert [(row.edge, row.pid, row.listening) for row in rows(archive)] == [("api", os.getpid(), 0)]
    assert rows(archive) == []


def test_readiness_names_what_is_missing(archive: Archive) -> None:
    assert ready(archive) == [f"{edge}: no process is alive" for edge in ("dicom", "hl7", "api", "retention")]
    with ExitStack() as parts:
        beats = {edge: parts.enter_context(Heartbeat(archive, edge)) for edge in EDGES}
        assert ready(archive) == [f"{edge}: starting, not listening yet" for edge in EDGES]
        for beat in beats.values():
            beat.listening()
        eventually(lambda: ready(archive) == [])
        beats["api"].listening(False)
        eventually(lambda: ready(archive) == ["api: starting, not listening yet"])


def test_a_process_that_no_longer_beats_is_not_alive(archive: Archive) -> None:
    with Heartbeat(archive, "api") as beating:
        beating.listening()
        eventually(lambda: ready(archive, ["api"]) == [])
        old = archive.real_clock() - timedelta(seconds=heartbeat.FRESH_SECONDS + 1)
        archive.commit.run(lambda conn: conn.execute(update(process).values(beat_at=old)))
        assert ready(archive, ["api"]) == ["api: no process is alive"]


def test_a_process_of_this_host_whose_pid_is_gone_is_not_alive(archive: Archive) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    with Heartbeat(archive, "api") as beating:
        beating.listening()
        eventually(lambda: ready(archive, ["api"]) == [])
        archive.commit.run(lambda conn: conn.execute(update(process).values(pid=gone.pid)))
        assert ready(archive, ["api"]) == ["api: no process is alive"]
        archive.commit.run(lambda conn: conn.execute(update(process).values(host="another host")))
        assert ready(archive, ["api"]) == []


def test_the_beat_goes_on_and_comes_back_when_its_row_was_removed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    with Heartbeat(archive, "api"):
        first = rows(archive)[0].beat_at
        eventually(lambda: rows(archive)[0].beat_at > first)
        archive.commit.run(lambda conn: conn.execute(process.delete()))
        eventually(lambda: len(rows(archive)) == 1)


def test_rows_of_processes_that_died_long_ago_are_forgotten(archive: Archive) -> None:
    with Heartbeat(archive, "api"):
        old = archive.real_clock() - timedelta(hours=2)
        archive.commit.run(lambda conn: conn.execute(update(process).values(beat_at=old, id="old")))
        with Heartbeat(archive, "dicom"):
            assert "old" not in [row.id for row in rows(archive)]


@pytest.mark.parametrize(
    ("start", "step", "end"),
    [
        ("2026-01-05T08:00:00+00:00", "3y1d", "2029-01-06T08:00:00+00:00"),
        ("2024-02-29T08:00:00+00:00", "1y", "2025-02-28T08:00:00+00:00"),
        ("2024-02-29T08:00:00+00:00", "4y", "2028-02-29T08:00:00+00:00"),
        ("2026-01-31T00:00:00+00:00", "1m", "2026-02-28T00:00:00+00:00"),
        ("2026-11-30T00:00:00+00:00", "14m", "2028-01-30T00:00:00+00:00"),
        ("2026-01-05T08:00:00+00:00", "2w36h", "2026-01-20T20:00:00+00:00"),
        ("2026-01-05T08:00:00+00:00", "5min30s", "2026-01-05T08:05:30+00:00"),
    ],
)
def test_a_step_is_taken_on_the_calendar(start: str, step: str, end: str) -> None:
    assert moved_on(datetime.fromisoformat(start), step) == datetime.fromisoformat(end)


@pytest.mark.parametrize("step", ["", "3", "y", "1d3y", "-1d", "3 years", "9000y", "99999999999999999w"])
def test_a_step_that_means_nothing_is_refused(step: str) -> None:
    with pytest.raises(InvalidRequest):
        moved_on(NEW_YEAR, step)


def test_moving_the_clock_moves_every_process(testbed: Settings, actor: Actor) -> None:
    with (
        open_archive(testbed, process="dicom") as one,
        open_archive(testbed, process="api") as other,
        open_archive(testbed, process="command") as command,
        Heartbeat(one, "dicom") as dicom,
        Heartbeat(other, "api") as api,
    ):
        dicom.listening()
        api.listening()
        set_clock(command, NEW_YEAR, actor=actor)
        for archive in (one, other, command):
            assert timedelta(0) <= archive.clock() - NEW_YEAR < timedelta(seconds=10)
            assert abs(archive.real_clock() - datetime.now(UTC)) < timedelta(seconds=10)
        eventually(lambda: ready(command, ["dicom", "api"]) == [])

        advance(command, "3y1d", actor=actor)
        for archive in (one, other, command):
            assert timedelta(0) <= archive.clock() - datetime(2029, 1, 6, 8, tzinfo=UTC) < timedelta(seconds=20)
        assert read_clock(other).generation == 2

        release(command, actor=actor)
        for archive in (one, other, command):
            assert abs(archive.clock() - datetime.now(UTC)) < timedelta(seconds=10)
        assert read_clock(one).shown is None


def test_a_process_that_starts_later_begins_with_the_moved_clock(testbed: Settings, actor: Actor) -> None:
    with open_archive(testbed, process="command") as command:
        set_clock(command, NEW_YEAR, actor=actor)
    with open_archive(testbed, process="api") as late, Heartbeat(late, "api"):
        assert timedelta(0) <= late.clock() - NEW_YEAR < timedelta(seconds=10)
        assert rows(late)[0].clock_generation == 1


def test_a_process_that_does_not_follow_is_named_in_time(
    testbed: Settings, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive.testbed.PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(heartbeat, "FOLLOW_SECONDS", 3600)
    with open_archive(testbed, process="dicom") as one, Heartbeat(one, "dicom"):
        with open_archive(testbed, process="command") as command, pytest.raises(Busy, match="dicom"):
            set_clock(command, NEW_YEAR, actor=actor)
        assert read_clock(one).shown == NEW_YEAR
        assert "does not follow" in ready(one, ["dicom"])[0] or "not listening" in ready(one, ["dicom"])[0]


def test_each_move_of_the_clock_is_audited(testbed: Settings, actor: Actor) -> None:
    with open_archive(testbed, process="command") as command:
        set_clock(command, NEW_YEAR, actor=actor)
        with command.engine.connect() as conn:
            found = conn.execute(select(audit)).one()
        assert (found.event, found.action, found.outcome, found.user) == ("110113", "U", 0, "tester")
        assert "2026-01-05" in found.detail


def test_start_and_stop_of_a_process_are_audited(archive: Archive) -> None:
    with Heartbeat(archive, "dicom"):
        pass
    with archive.engine.connect() as conn:
        found = conn.execute(select(audit).order_by(audit.c.seq)).all()
    assert [(row.event, row.action, row.user) for row in found] == [("110100", "E", "minipacs")] * 2
    assert ["110120" in found[0].detail, "110121" in found[1].detail] == [True, True]


def test_outside_the_test_bed_the_clock_cannot_be_moved_nor_read(archive: Archive, actor: Actor) -> None:
    with pytest.raises(NotFound):
        set_clock(archive, NEW_YEAR, actor=actor)
    with pytest.raises(NotFound):
        read_clock(archive)


def test_outside_the_test_bed_a_moved_clock_left_in_the_database_is_not_followed(
    settings: Settings, testbed: Settings, actor: Actor
) -> None:
    with open_archive(testbed, process="command") as command:
        set_clock(command, NEW_YEAR, actor=actor)
    with open_archive(settings, process="api") as archive, Heartbeat(archive, "api") as beating:
        beating.listening()
        assert abs(archive.clock() - datetime.now(UTC)) < timedelta(seconds=10)
        eventually(lambda: ready(archive, ["api"]) == [])


def test_who_may_not_use_the_test_bed_is_refused(testbed: Settings) -> None:
    nobody = Actor(user="nobody", source="here", door=Door.API, may=frozenset())
    with open_archive(testbed, process="command") as command:
        with pytest.raises(NotAllowed):
            set_clock(command, NEW_YEAR, actor=nobody)
        assert read_clock(command).generation == 0
