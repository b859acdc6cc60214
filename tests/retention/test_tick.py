"""One tick: announced, kept back, purged, each on its day, whatever fails on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from archive.access import Actor
from archive.core import Archive
from archive.errors import Busy
from archive.instance import State
from archive.integrity import verify
from archive.leases import leased
from archive.lifecycle import failures, suspension
from archive.lifecycle.approvals import approve
from archive.lifecycle.holds import add_hold, remove_hold
from archive.lifecycle.suspension import Kind, resume, suspensions
from archive.schema import hold, instance, last_tick, life_failure, location, purge, study
from retention.tick import LEASE, tick
from tests.builders import ct_slice, new_uid
from tests.retention.life import (
    audited,
    hot_files,
    image_files,
    move_clock,
    put_clock,
    receive,
    receive_exam,
    rows,
    study_row,
)

DUE = "2031-01-05T09:00:00"  # five years after the exam
NOTICE_OVER = "2031-02-04T08:00:00"  # the 30th day after; its originals, if copied on DUE, have an hour of grace left
UID = new_uid("study")

quick = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # rules that no database has a part in


def counts(archive: Archive) -> tuple[int, int, int]:
    ticked = tick(archive)
    return ticked.announced, ticked.purged, ticked.blocked


def announced(archive: Archive) -> None:
    """An exam that waits for the end of its notice."""
    receive_exam(archive)
    put_clock(archive, DUE)
    assert counts(archive) == (1, 0, 0)


class TestTime:
    @pytest.mark.req("REQ-CDC-04")
    def test_announced_on_its_day_and_purged_when_the_notice_is_over(self, archive: Archive) -> None:
        receive_exam(archive)
        put_clock(archive, "2031-01-04T22:30:00")  # 23:30 in Paris, the last day
        assert counts(archive) == (0, 0, 0)
        put_clock(archive, "2031-01-04T23:30:00")  # 00:30 in Paris
        assert counts(archive) == (1, 0, 0)
        row = study_row(archive, UID)
        assert (row.keep_until, row.purge_on) == ("20310105", "20310204")
        put_clock(archive, "2031-02-03T22:30:00")
        assert counts(archive) == (0, 0, 0)
        put_clock(archive, "2031-02-03T23:30:00")
        assert counts(archive) == (0, 1, 0)
        assert study_row(archive, UID) is None
        assert image_files(archive) == []
        assert counts(archive) == (0, 0, 0)

    @quick
    def test_the_notice_counts_from_the_announcement_however_late_it_was(self, archive: Archive) -> None:
        receive_exam(archive)
        put_clock(archive, "2034-06-01T09:00:00")
        assert counts(archive) == (1, 0, 0)
        assert study_row(archive, UID).purge_on == "20340701"
        move_clock(archive, 29)
        assert counts(archive) == (0, 0, 0)
        move_clock(archive, 1)
        assert counts(archive) == (0, 1, 0)

    @quick
    def test_an_old_exam_that_was_just_received_is_not_announced_before_ninety_days(self, archive: Archive) -> None:
        put_clock(archive, "2034-06-01T09:00:00")
        receive_exam(archive)
        move_clock(archive, 89)
        assert counts(archive) == (0, 0, 0)
        move_clock(archive, 1)
        assert counts(archive) == (1, 0, 0)

    @quick
    def test_a_cap_ends_the_purges_of_a_tick_not_those_of_the_next(
        self, with_retention: Callable[..., Archive]
    ) -> None:
        archive = with_retention(purge_cap=2)
        for number in range(5):
            receive_exam(archive, study=f"study {number}", images=1)
        put_clock(archive, DUE)
        assert counts(archive) == (5, 0, 0)
        put_clock(archive, NOTICE_OVER)
        assert counts(archive) == (0, 2, 3)
        assert counts(archive) == (0, 2, 1)
        assert counts(archive) == (0, 1, 0)


class TestWhatKeeps:
    def test_a_hold_before_the_announcement_keeps_and_is_counted(self, archive: Archive, actor: Actor) -> None:
        receive_exam(archive)
        add_hold(archive, UID, reason="expertise", until=None, actor=actor)
        put_clock(archive, DUE)
        ticked = tick(archive)
        assert (ticked.announced, ticked.reasons) == (0, {"hold": 1})

    def test_a_hold_during_the_notice_withdraws_and_the_notice_starts_anew(
        self, archive: Archive, actor: Actor
    ) -> None:
        announced(archive)
        put_clock(archive, "2031-02-03T09:00:00")  # the last day
        placed = add_hold(archive, UID, reason="expertise", until=None, actor=actor)
        assert study_row(archive, UID).announced_at is None
        put_clock(archive, NOTICE_OVER)
        assert counts(archive) == (0, 0, 1)
        move_clock(archive, 400)
        assert counts(archive) == (0, 0, 1)
        remove_hold(archive, placed.id, actor=actor)
        assert counts(archive) == (1, 0, 0)
        move_clock(archive, 29)
        assert counts(archive) == (0, 0, 0)
        move_clock(archive, 1)
        assert counts(archive) == (0, 1, 0)

    def test_a_hold_that_nobody_told_retention_of_keeps_too(self, archive: Archive) -> None:
        """The row alone: whoever places a hold also forgets the date, but the purge does not rely on it."""
        announced(archive)
        put_clock(archive, NOTICE_OVER)
        placed = {"id": "h1", "study_instance_uid": UID, "reason": "x", "placed_by": "x", "placed_at": archive.clock()}
        archive.commit.run(lambda conn: conn.execute(hold.insert(), placed))
        assert counts(archive)[1] == 0
        assert len(hot_files(archive)) == 2
        assert study_row(archive, UID).announced_at is None

    def test_a_slice_that_comes_late_withdraws_the_announcement(self, archive: Archive) -> None:
        announced(archive)
        put_clock(archive, "2031-02-03T09:00:00")
        receive(archive, ct_slice(StudyInstanceUID=UID, SeriesInstanceUID=new_uid(), SOPInstanceUID=new_uid()))
        put_clock(archive, NOTICE_OVER)
        assert counts(archive)[1] == 0
        assert len(hot_files(archive)) == 3
        assert study_row(archive, UID).announced_at is None
        told = [json.loads(row.detail).get("retention") for row in audited(archive, "110103", study=UID)]
        assert [word for word in told if word] == ["announced", "withdrawn"]

    def test_a_date_that_would_be_another_today_is_computed_again_first(self, archive: Archive) -> None:
        """Whoever changed a fact without a word: the transaction asks the facts, not what is written."""
        announced(archive)
        put_clock(archive, NOTICE_OVER)
        archive.commit.run(lambda conn: conn.execute(update(instance).values(received_at=archive.clock())))
        assert counts(archive) == (0, 0, 1)
        assert study_row(archive, UID).policy_version is None
        assert counts(archive) == (0, 0, 0)
        assert study_row(archive, UID).keep_until == "20310505"
        assert len(hot_files(archive)) == 2

    def test_an_image_that_is_held_back_keeps_its_study(self, archive: Archive) -> None:
        receive_exam(archive)
        receive(archive, ct_slice(StudyInstanceUID=UID, SOPInstanceUID=new_uid(), PatientID="SOMEBODY ELSE"))
        put_clock(archive, "2032-01-01T09:00:00")
        ticked = tick(archive)
        assert (ticked.announced, ticked.reasons) == (0, {"instances held back": 1})

    def test_two_distinct_persons_have_to_approve_when_the_practice_wants_it(
        self, with_retention: Callable[..., Archive], actor: Actor
    ) -> None:
        archive = with_retention(purge_approval="two-person")
        announced(archive)
        marie = Actor(user="marie", source="x", door=actor.door, may=actor.may)
        assert approve(archive, UID, reason="vu", actor=actor) == 1
        assert approve(archive, UID, reason="revu", actor=actor) == 1
        put_clock(archive, NOTICE_OVER)
        ticked = tick(archive)
        assert (ticked.purged, ticked.reasons) == (0, {"approvals are missing": 1})
        assert approve(archive, UID, reason="d'accord", actor=marie) == 2
        assert counts(archive) == (0, 1, 0)

    def test_approvals_are_of_one_announcement(self, with_retention: Callable[..., Archive], actor: Actor) -> None:
        archive = with_retention(purge_approval="two-person")
        announced(archive)
        for user in ("marie", "jean"):
            approve(archive, UID, reason="vu", actor=Actor(user=user, source="x", door=actor.door, may=actor.may))
        placed = add_hold(archive, UID, reason="expertise", until=None, actor=actor)
        remove_hold(archive, placed.id, actor=actor)
        move_clock(archive, 1)
        assert counts(archive) == (1, 0, 0)
        move_clock(archive, 31)
        assert counts(archive) == (0, 0, 1)


class TestSuspension:
    def test_nothing_is_removed_until_somebody_confirms(self, archive: Archive, actor: Actor) -> None:
        announced(archive)
        archive.commit.run(
            lambda conn: suspension.suspend(conn, Kind.REBUILT, "no journal", at=archive.clock(), actor=actor)
        )
        put_clock(archive, NOTICE_OVER)
        ticked = tick(archive)
        assert (ticked.purged, ticked.reasons) == (0, {"removal is suspended": 1})
        assert [one.kind for one in resume(archive, reason="vérifié", actor=actor)] == ["rebuilt"]
        assert counts(archive) == (0, 1, 0)
        assert resume(archive, reason="vérifié", actor=actor) == []

    @pytest.mark.parametrize("jump", [timedelta(days=1, minutes=1), timedelta(minutes=-2)], ids=["ahead", "back"])
    def test_a_jump_of_the_systems_clock_suspends(
        self, archive: Archive, actor: Actor, jump: timedelta, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """DD-26."""
        announced(archive)
        receive_exam(archive, study="other", StudyDate="20200101")
        real = archive.time.real
        monkeypatch.setattr(archive.time, "real", lambda: real() + jump)
        put_clock(archive, "2031-06-04T09:00:00")
        ticked = tick(archive)
        assert (ticked.migrated, ticked.announced, ticked.purged) == (0, 0, 0)
        assert ticked.reasons == {"removal is suspended": 1}
        with archive.reading() as conn:
            assert [one.kind for one in suspensions(conn)] == ["clock"]
        assert [row.outcome for row in audited(archive, "110113")] == [4]
        assert tick(archive).purged == 0  # not lifted because the clock goes on from there
        resume(archive, reason="horloge vérifiée", actor=actor)
        ticked = tick(archive)
        assert (ticked.announced, ticked.purged) == (1, 1)

    @quick
    def test_a_jump_inside_a_tick_suspends_what_is_left_of_it(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        announced(archive)
        for name in ("second", "third"):
            receive_exam(archive, study=name, images=1, StudyDate="20200101")
        put_clock(archive, "2031-01-30T09:00:00")
        real = archive.time.real

        def jump(_done: int, _found: int) -> None:
            monkeypatch.setattr(archive.time, "real", lambda: real() + timedelta(days=40))
            put_clock(archive, "2031-03-11T09:00:00")

        ticked = tick(archive, progress=jump)
        assert (ticked.migrated + ticked.announced, ticked.purged) == (1, 0)
        with archive.reading() as conn:
            assert [one.kind for one in suspensions(conn)] == ["clock"]
        assert tick(archive).purged == 0

    @quick
    def test_a_tick_that_lasts_longer_than_a_day_is_no_jump(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(3):
            receive_exam(archive, study=f"study {number}", images=1)
        put_clock(archive, DUE)
        real, passed = archive.time.real, [timedelta(0)]
        monkeypatch.setattr(archive.time, "real", lambda: real() + passed[0])

        def work(_done: int, _found: int) -> None:
            passed[0] += timedelta(hours=13)

        assert tick(archive, progress=work).announced == 3
        tick(archive)
        with archive.reading() as conn:
            assert suspensions(conn) == []

    @pytest.mark.parametrize("jump", [timedelta(hours=23), timedelta(seconds=-30)])
    @quick
    def test_a_day_without_ticks_and_the_work_of_ntp_are_no_jumps(
        self, archive: Archive, jump: timedelta, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        announced(archive)
        real = archive.time.real
        monkeypatch.setattr(archive.time, "real", lambda: real() + jump)
        put_clock(archive, NOTICE_OVER)
        assert counts(archive) == (0, 1, 0)

    @quick
    def test_the_last_tick_is_remembered_in_real_time(self, archive: Archive) -> None:
        tick(archive)
        put_clock(archive, "2040-01-01T00:00:00")
        tick(archive)
        with archive.reading() as conn:
            last = conn.execute(select(last_tick.c.real_at)).scalar_one()
        assert abs(last - archive.real_clock()) < timedelta(minutes=1)


class TestFailures:
    def test_one_bad_study_does_not_keep_the_others(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(3):
            receive_exam(archive, study=f"study {number}", images=1)
        put_clock(archive, DUE)
        assert counts(archive) == (3, 0, 0)
        bad = new_uid("study 0")
        broken = update(study).where(study.c.study_instance_uid == bad)
        kept = study_row(archive, bad).attributes
        archive.commit.run(lambda conn: conn.execute(broken.values(attributes="{")))
        put_clock(archive, NOTICE_OVER)
        ticked = tick(archive)
        assert (ticked.purged, ticked.reasons) == (2, {"a step failed": 1})
        # it rests, and is tried again later and later
        ticked = tick(archive)
        assert (ticked.purged, ticked.reasons) == (0, {"a step failed": 1})
        assert failure(archive) == (1, failures.FIRST_PAUSE)
        real = archive.time.real
        monkeypatch.setattr(archive.time, "real", lambda: real() + timedelta(seconds=61))
        tick(archive)
        assert failure(archive) == (2, 2 * failures.FIRST_PAUSE)
        monkeypatch.setattr(archive.time, "real", lambda: real() + timedelta(seconds=200))
        archive.commit.run(lambda conn: conn.execute(broken.values(attributes=kept)))
        assert counts(archive) == (0, 1, 0)
        assert rows(archive, life_failure) == 0

    @quick
    def test_studies_that_rest_take_no_place_of_others(
        self, archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("retention.tick._HEAVY", 1)  # of each step in one tick
        for name in ("bad", "good"):
            receive_exam(archive, study=name, images=1)
        with archive.reading() as conn:
            lies = select(location.c.path).join_from(location, instance).order_by(instance.c.pk)
            path = Path(archive.hot.path(conn.execute(lies).scalars().first()))
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"?")
        put_clock(archive, "2029-01-06T09:00:00")
        assert tick(archive).reasons == {"a step failed": 1}  # nothing of it can be copied
        assert tick(archive).migrated == 1
        path.write_bytes(content)
        verify(archive, everything=True)
        real = archive.time.real
        monkeypatch.setattr(archive.time, "real", lambda: real() + timedelta(seconds=61))
        assert tick(archive).migrated == 1

        bad, good = (study_row(archive, new_uid(name)) for name in ("bad", "good"))
        assert bad.grace_until is not None
        assert good.grace_until is not None
        archive.commit.run(lambda conn: conn.execute(update(study).values(grace_until=bad.grace_until)))
        failures.failed(archive, bad.pk, "switch", OSError())
        put_clock(archive, "2029-03-06T09:00:00")
        tick(archive)
        assert [study_row(archive, new_uid(name)).grace_until is None for name in ("bad", "good")] == [False, True]

    def test_what_was_left_half_done_is_finished_by_the_next_tick(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        announced(archive)
        put_clock(archive, NOTICE_OVER)

        def fail(name: str) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(archive.hot, "unlink", fail)
        ticked = tick(archive)
        assert (ticked.purged, ticked.reasons) == (0, {"a step failed": 1})
        with archive.reading() as conn:
            assert list(conn.execute(select(instance.c.state)).scalars()) == [State.PURGING] * 2
            assert conn.execute(select(purge.c.state)).scalar_one() == "purging"
        assert len(image_files(archive)) == 2
        tick(archive)  # fails again, and stops nothing
        monkeypatch.undo()
        tick(archive)
        assert image_files(archive) == []
        assert study_row(archive, UID) is None
        with archive.reading() as conn:
            assert conn.execute(select(purge.c.state)).scalar_one() == "done"

    @quick
    def test_a_cold_volume_that_is_away_is_named_and_nothing_is_built_in_its_place(self, archive: Archive) -> None:
        receive_exam(archive, images=1)
        put_clock(archive, "2029-01-06T09:00:00")
        away = archive.cold.root.with_name("away")
        archive.cold.root.rename(away)
        archive.cold.root.mkdir()  # a mount point
        assert tick(archive).reasons == {"a step failed": 1}
        assert list(archive.cold.root.iterdir()) == []
        with archive.reading() as conn:
            assert "the cold volume failed" in conn.execute(select(life_failure.c.error)).scalar_one()
        archive.cold.root.rmdir()
        away.rename(archive.cold.root)
        archive.commit.run(lambda conn: conn.execute(life_failure.delete()))
        assert tick(archive).migrated == 1

    def test_two_ticks_at_once_are_one(self, archive: Archive) -> None:
        with leased(archive, LEASE), pytest.raises(Busy):
            tick(archive)
        assert tick(archive).blocked == 0

    @quick
    def test_a_stop_ends_it_between_two_studies_and_progress_tells_how_many(self, archive: Archive) -> None:
        for number in range(3):
            receive_exam(archive, study=f"study {number}", images=1)
        put_clock(archive, "2029-01-06T09:00:00")
        stopping = threading.Event()
        seen: list[tuple[int, int]] = []

        def progress(done: int, found: int) -> None:
            seen.append((done, found))
            stopping.set()

        assert tick(archive, stopping=stopping, progress=progress).migrated == 1
        assert seen == [(1, 3)]
        assert tick(archive).migrated == 2


def failure(archive: Archive) -> tuple[int, timedelta]:
    """Attempts, and the pause after the last one."""
    with archive.reading() as conn:
        row = conn.execute(select(life_failure)).one()
    pause = row.retry_at - archive.real_clock()
    return row.attempts, timedelta(seconds=round((pause + timedelta(seconds=15)).total_seconds() // 30 * 30))
