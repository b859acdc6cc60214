"""Group commit: many writes, one COMMIT; a bad one fails alone."""

from __future__ import annotations

import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import Connection, event, func, select, text, update
from sqlalchemy.exc import IntegrityError

from archive import engines
from archive.access import Actor
from archive.audit.chain import AuditChain
from archive.audit.record import Event, record
from archive.clock import Clock
from archive.commit import LATER_BATCH, GroupCommit
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy, CommitInDoubt, IndexUnavailable, NotFound
from archive.schema import account

NOW = Clock().real()


def add(name: str) -> Callable[[Connection], str]:
    def write(conn: Connection) -> str:
        conn.execute(
            account.insert(),
            {"name": name, "password_hash": "x", "roles": "[]", "disabled": 0, "created_at": NOW},
        )
        return name

    return write


def names(archive: Archive) -> list[str]:
    with archive.engine.connect() as conn:
        return sorted(conn.execute(select(account.c.name)).scalars())


def test_a_write_is_visible_when_run_returns(archive: Archive) -> None:
    assert archive.commit.run(add("a")) == "a"
    assert names(archive) == ["a"]


def test_writes_that_wait_share_a_commit(archive: Archive) -> None:
    commits: list[int] = []
    event.listen(archive.engine, "commit", lambda conn: commits.append(1))
    running, gate = threading.Event(), threading.Event()

    def blocks(conn: Connection) -> None:
        running.set()
        gate.wait(60)

    with ThreadPoolExecutor(21) as pool:
        first = pool.submit(archive.commit.run, blocks)
        running.wait(10)  # alone: those that come now wait
        others = [pool.submit(archive.commit.run, add(f"n{i}")) for i in range(20)]
        while archive.commit._queue.qsize() < 20:
            pass
        gate.set()
        first.result()
        assert sorted(other.result() for other in others) == sorted(f"n{i}" for i in range(20))
    assert len(commits) == 1  # the first write touched nothing, the twenty others share one
    assert len(names(archive)) == 20


def test_a_bad_write_fails_alone(archive: Archive) -> None:
    running, gate = threading.Event(), threading.Event()

    def blocks(conn: Connection) -> None:
        running.set()
        gate.wait(60)

    def refuses(conn: Connection) -> None:
        raise NotFound("no such thing")

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(archive.commit.run, blocks)
        running.wait(10)
        good = [pool.submit(archive.commit.run, add("a")), pool.submit(archive.commit.run, add("b"))]
        bad = pool.submit(archive.commit.run, refuses)
        while archive.commit._queue.qsize() < 3:
            pass
        gate.set()
        first.result()
        assert [future.result() for future in good] == ["a", "b"]
        with pytest.raises(NotFound):
            bad.result()
    assert names(archive) == ["a", "b"]


@pytest.mark.req("REQ-SEC-11")
def test_the_traceback_of_a_database_error_quotes_no_value(archive: Archive) -> None:
    twice = add(name := "DUPONT^Anne")
    archive.commit.run(twice)
    with pytest.raises(IntegrityError) as caught:
        archive.commit.run(twice)
    told = "".join(traceback.format_exception(caught.value))
    assert "unique" in told.lower()
    assert name not in told


def test_writes_of_several_processes_that_wait_for_each_other_all_go_through(
    archive: Archive, settings: Settings
) -> None:
    """Three of them lock the same rows in different orders: PostgreSQL ends some, and they go again."""
    for name in "abc":
        archive.commit.run(add(name))

    def locks(order: str) -> Callable[[Connection], None]:
        def write(conn: Connection) -> None:
            for name in order:
                conn.execute(update(account).where(account.c.name == name).values(roles=f'["{order}"]'))
                time.sleep(0.02)

        return write

    orders = ("abc", "bca", "cab")
    with ExitStack() as parts, ThreadPoolExecutor(3) as pool:
        opened = [parts.enter_context(open_archive(settings, process=order)) for order in orders]
        for _ in range(4):
            waiting = [pool.submit(one.commit.run, locks(order)) for one, order in zip(opened, orders, strict=True)]
            for one in waiting:
                one.result(60)
    with archive.engine.connect() as conn:
        assert len(set(conn.execute(select(account.c.roles)).scalars())) == 1


def test_a_failed_write_leaves_nothing(archive: Archive) -> None:
    def half(conn: Connection) -> None:
        add("half")(conn)
        raise NotFound("no")

    with pytest.raises(NotFound):
        archive.commit.run(half)
    assert names(archive) == []


def test_folders_are_flushed_before_the_commit_and_once(archive: Archive) -> None:
    trace: list[str] = []
    archive.commit._folders._flush = trace.append
    event.listen(archive.engine, "commit", lambda conn: trace.append("COMMIT"))
    archive.commit.run(add("a"), directories=["/x", "/x", "/y"])
    assert trace == ["/x", "/y", "COMMIT"]


@pytest.mark.parametrize("patience", [30, 0.05])
def test_a_transaction_waits_a_moment_for_who_is_flushing_a_folder(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr("archive.commit.JOIN_SECONDS", patience)
    commits: list[int] = []
    event.listen(archive.engine, "commit", lambda conn: commits.append(1))
    flushing, gate = threading.Event(), threading.Event()

    def flush(path: str) -> None:
        flushing.set()
        gate.wait(30)

    group = GroupCommit(archive.engine, AuditChain("test", Clock()), flush=flush)
    try:
        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(group.run, add("slow"), directories=["/folder"])
            assert flushing.wait(30)
            quick = pool.submit(group.run, add("quick"))
            if patience > 1:
                with pytest.raises(TimeoutError):
                    quick.result(0.2)
                gate.set()
            assert quick.result(30) == "quick"
            gate.set()
            assert slow.result(30) == "slow"
    finally:
        group.close()
    assert len(commits) == (1 if patience > 1 else 2)


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_a_program_that_takes_no_turns_is_waited_for(archive: Archive) -> None:
    """SQLite's own lock counts, whoever has it."""
    path = archive.engine.url.database
    assert path
    stranger = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stranger.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(archive.commit.run, add("n"))
        with pytest.raises(TimeoutError):
            waits.result(0.2)
        stranger.execute("ROLLBACK")
        assert waits.result(10) == "n"
    stranger.close()


def test_a_write_nobody_awaits_is_committed_within_a_second(archive: Archive) -> None:
    archive.commit.later(add("later"))
    deadline = threading.Event()
    for _ in range(20):
        if names(archive) == ["later"]:
            break
        deadline.wait(0.1)
    assert names(archive) == ["later"]


def test_a_write_nobody_awaits_does_not_wait_for_those_that_follow(archive: Archive) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 6:  # somebody searches every tenth of a second
        archive.commit.later(lambda conn: None)
        if time.monotonic() - began < 0.1:
            archive.commit.later(add("early"))
        time.sleep(0.1)
        if names(archive) == ["early"]:
            break
    assert time.monotonic() - began < 5


def test_writes_nobody_awaits_wake_the_thread_once_and_share_a_commit(archive: Archive) -> None:
    archive.commit.run(lambda conn: None)  # the thread waits
    commits: list[int] = []
    event.listen(archive.engine, "commit", lambda conn: commits.append(1))
    ran: list[int] = []
    for number in range(50):
        archive.commit.later(lambda conn, number=number: ran.append(number))  # type: ignore[misc]
    assert archive.commit._queue.qsize() <= 1
    archive.commit.run(add("awaited"))  # takes them along, in front
    assert ran == list(range(50))
    assert len(commits) == 1


def test_no_write_is_forgotten_whoever_hands_in_at_the_same_time(archive: Archive) -> None:
    ran: list[int] = []

    def hand_in(first: int) -> None:
        for number in range(first, first + 500):
            archive.commit.later(lambda conn: ran.append(number))  # noqa: B023 - how many is what counts
            if number % 50 == 0:
                archive.commit.run(lambda conn: None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hand_in, range(0, 2000, 500)))
    deadline = time.monotonic() + 10
    while len(ran) < 2000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(ran) == 2000


def test_many_writes_nobody_awaits_do_not_wait_for_their_time(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive.commit.LATER_SECONDS", 3600)
    for number in range(LATER_BATCH):
        archive.commit.later(add(f"n{number}"))
    deadline = time.monotonic() + 30
    while len(names(archive)) < LATER_BATCH and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(names(archive)) == LATER_BATCH


def test_closing_finishes_what_was_handed_in_and_refuses_more(archive: Archive) -> None:
    for i in range(50):
        archive.commit.later(add(f"n{i}"))
    archive.commit.close()
    with archive.engine.connect() as conn:
        assert conn.execute(select(func.count()).select_from(account)).scalar_one() == 50
    with pytest.raises(Busy):
        archive.commit.run(add("late"))


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # PostgreSQL has many writers
def test_a_writer_takes_its_turn_soon_after_another_process_has_ended(settings: Settings) -> None:
    """SQLite's own patience would sleep for a tenth of a second between two looks."""
    with open_archive(settings, process="a") as one, open_archive(settings, process="b") as other:
        waits = []
        for number in range(10):
            holds, ends = threading.Event(), []

            def hold(conn: Connection, holds: threading.Event = holds, ends: list[float] = ends) -> None:
                conn.begin()
                holds.set()
                time.sleep(0.15)
                ends.append(time.monotonic())

            with ThreadPoolExecutor(1) as pool:
                held = pool.submit(one.commit.run, hold)
                holds.wait(10)
                other.commit.run(add(f"n{number}"))
                waits.append(time.monotonic() - ends[0])
                held.result()
        assert min(waits) < 0.05


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # PostgreSQL has many writers
def test_a_writer_whose_turn_never_comes_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.2)
    with open_archive(settings, process="a") as one, open_archive(settings, process="b") as other:
        holds, gate = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(one.commit.run, lambda conn: (conn.begin(), holds.set(), gate.wait(30)))
            holds.wait(10)
            with pytest.raises(IndexUnavailable):
                other.commit.run(add("n"))
            gate.set()
            held.result()

        def breaks(conn: Connection) -> None:
            add("half")(conn)
            raise NotFound("the rest of it")

        with pytest.raises(NotFound):
            other.commit.run(breaks)
        assert other.commit.run(add("n")) == "n"
        assert names(other) == ["n"], "what failed left nothing, also after a BEGIN that failed"


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_after_a_connection_that_was_lost_at_its_commit_everything_can_be_written_again(
    archive: Archive, actor: Actor
) -> None:
    def lost(conn: Connection) -> None:
        add("lost")(conn)
        pid = conn.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with archive.engine.connect() as another:
            another.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            another.commit()
        time.sleep(0.2)

    def audited(conn: Connection) -> None:
        add("kept")(conn)
        record(conn, actor, Event.QUERY, "E")

    with pytest.raises(CommitInDoubt):
        archive.commit.run(lost)
    archive.commit.run(audited)
    assert names(archive) == ["kept"]
