"""Facts that no image carries: a row and a line, before anybody is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, event, select
from sqlalchemy.exc import OperationalError

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import CommitInDoubt, NotFound, StorageFailed
from archive.journal import BadLine, Fact, FactJournal, Kind, fact_of, line_of, note, unwritten
from archive.schema import fact
from tests.crash.facts_child import commit_facts

AT = datetime(2026, 1, 5, 10, 15, tzinfo=UTC)


def say(subject: str, at: datetime = AT, **body: Any) -> Any:
    return lambda conn: note(conn, Kind.HOLD, subject, body, at=at)


def lines(archive: Archive) -> list[bytes]:
    """The file, as it lies there at this moment."""
    return [line for path in sorted(archive.journal.folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def rows(archive: Archive, column: Any = fact.c.subject) -> list[Any]:
    with archive.engine.connect() as conn:
        return list(conn.execute(select(column).order_by(fact.c.pk)).scalars())


@pytest.fixture
def broken(archive: Archive) -> Iterator[None]:
    """The folder cannot be written; rights do not stop root, a file in its place does."""
    away = archive.journal.folder.with_name("away")
    archive.journal.folder.rename(away)
    archive.journal.folder.write_bytes(b"")
    yield
    if archive.journal.folder.is_file():
        mend(archive)


def mend(archive: Archive) -> None:
    archive.journal.folder.unlink()
    archive.journal.folder.with_name("away").rename(archive.journal.folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    n=st.integers(1, 2**62),
    at=st.datetimes(datetime(1970, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC)),
    subject=st.text(st.characters(exclude_categories=["Cs"])),
    body=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), json_values, max_size=4),
)
def test_a_line_says_its_fact_whatever_it_holds(n: int, at: datetime, subject: str, body: dict[str, Any]) -> None:
    one = Fact(n, at, "hold", subject, body)
    line = line_of(one)
    assert line.count(b"\n") == 1
    assert fact_of(line) == one


@given(at=st.integers(min_value=0), bit=st.integers(0, 7), cut=st.integers(min_value=1))
def test_a_line_that_rotted_or_was_cut_is_not_believed(at: int, bit: int, cut: int) -> None:
    line = line_of(Fact(7, AT, "hold", "1.2.3", {"reason": 'a ","crc":"00000000"} in the text', "é": [1, None]}))
    rotten = bytearray(line[:-1])
    rotten[at % len(rotten)] ^= 1 << bit
    assert fact_of(bytes(rotten)) is None
    assert fact_of(line[: -(2 + cut % (len(line) - 1))]) is None  # more than its end of line


def test_the_line_is_there_when_run_returns(archive: Archive) -> None:
    for number in range(20):
        archive.commit.run(say(f"h{number}", number=number))
        (last,) = lines(archive)[-1:]
        assert fact_of(last) == Fact(number + 1, AT, "hold", f"h{number}", {"number": number})


def test_the_line_is_flushed_after_the_commit_and_before_the_release(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.commit.run(say("first"))  # the file of this year is there
    trace: list[str] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), trace.append("fdatasync")))
    event.listen(archive.engine, "commit", lambda conn: trace.append("COMMIT"))

    def write(conn: Connection) -> None:
        say("h")(conn)
        trace.append("write")

    archive.commit.run(write)
    trace.append("told")
    assert trace[trace.index("write") :][:4] == ["write", "COMMIT", "fdatasync", "told"]


def test_a_write_that_fails_leaves_neither_row_nor_line(archive: Archive) -> None:
    def refuses(conn: Connection) -> None:
        say("refused")(conn)
        raise NotFound("no")

    with pytest.raises(NotFound):
        archive.commit.run(refuses)
    archive.commit.run(say("kept"))
    assert rows(archive) == ["kept"]
    assert [one.subject for one in archive.journal.read()] == ["kept"]


def held_back(archive: Archive, writes: list[Any]) -> list[Any]:
    """Have all these writes in one batch; their futures."""
    running, gate = threading.Event(), threading.Event()

    def blocks(conn: Connection) -> None:
        running.set()
        gate.wait(60)

    with ThreadPoolExecutor(len(writes) + 1) as pool:
        first = pool.submit(archive.commit.run, blocks)
        running.wait(10)
        futures = [pool.submit(archive.commit.run, write) for write in writes]
        while archive.commit._queue.qsize() < len(writes):
            pass
        gate.set()
        first.result()
    return futures


def test_a_batch_that_is_run_again_says_each_fact_once(archive: Archive) -> None:
    def refuses(conn: Connection) -> None:
        say("refused")(conn)
        raise NotFound("no")

    futures = held_back(archive, [say("a"), refuses, say("b")])
    assert [future.exception() is None for future in futures] == [True, False, True]
    assert sorted(rows(archive)) == ["a", "b"]
    assert len(lines(archive)) == 2
    assert [one.subject for one in archive.journal.read()] == rows(archive)


def test_a_batch_of_facts_costs_one_flush(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), flushed.append(fd)))
    futures = held_back(archive, [say(f"h{number}") for number in range(30)])
    assert [future.result() for future in futures] == [None] * 30
    assert len(flushed) == 1
    assert len(lines(archive)) == 30


def test_each_year_has_its_file_and_the_order_is_that_of_the_facts(archive: Archive) -> None:
    for number, year in enumerate((2031, 2026, 2029)):
        archive.commit.run(say(f"h{number}", at=AT.replace(year=year)))
    assert sorted(path.name for path in archive.journal.folder.iterdir()) == ["2026.jsonl", "2029.jsonl", "2031.jsonl"]
    assert [(one.n, one.subject) for one in archive.journal.read()] == [(1, "h0"), (2, "h1"), (3, "h2")]


def test_facts_are_recorded_where_they_become_true_and_nowhere_else(archive: Archive) -> None:
    with archive.engine.connect() as conn, pytest.raises(RuntimeError):
        say("outside")(conn)

    def nested(conn: Connection) -> None:
        with conn.begin_nested():
            say("in a savepoint")(conn)

    with pytest.raises(RuntimeError):
        archive.commit.run(nested)
    assert rows(archive) == []


def test_a_line_that_power_cut_off_spoils_only_itself(archive: Archive) -> None:
    archive.commit.run(say("a"))
    (path,) = archive.journal.folder.iterdir()
    whole = path.read_bytes()
    for torn in (whole + whole[:-9], whole + b"\0" * 4096, whole + b"{"):
        path.write_bytes(torn)
        archive.journal.write([Fact(2, AT, "hold", "b", {})])
        found = list(archive.journal.lines())
        assert found[1] == BadLine("2026.jsonl", 2)
        assert [one.subject for one in archive.journal.read()] == ["a", "b"]


@pytest.mark.usefixtures("broken")
def test_a_fact_without_its_line_is_in_doubt_and_written_at_the_next_start(
    archive: Archive, settings: Settings
) -> None:
    with pytest.raises(CommitInDoubt):
        archive.commit.run(say("in doubt"))
    assert rows(archive) == ["in doubt"]
    archive.close()
    with pytest.raises(StorageFailed), open_archive(settings, process="test"):
        pass
    mend(archive)
    with open_archive(settings, process="test") as again:
        assert [one.subject for one in again.journal.read()] == ["in doubt"]
        assert rows(again, fact.c.journaled) == [1]


@pytest.mark.usefixtures("broken")
def test_what_was_in_doubt_is_written_before_the_next_fact_is_told(archive: Archive) -> None:
    for number in range(3):
        with pytest.raises(CommitInDoubt):
            archive.commit.run(say(f"in doubt {number}"))
    assert archive.journal.behind
    archive.commit.run(lambda conn: None)  # who has nothing to say is not held up
    assert archive.journal.behind
    mend(archive)
    archive.commit.run(say("told"))
    assert not archive.journal.behind
    assert [one.subject for one in archive.journal.read()] == ["in doubt 0", "in doubt 1", "in doubt 2", "told"]


def test_a_fact_whose_commit_came_true_unheard_is_written_with_the_next_commit(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the server has committed."""
    archive.commit.run(lambda conn: None)
    conn = archive.commit._conn
    assert conn is not None
    real = conn.commit

    def unheard() -> None:
        monkeypatch.undo()
        real()
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    monkeypatch.setattr(conn, "commit", unheard)
    with pytest.raises(CommitInDoubt):
        archive.commit.run(say("unheard"))
    assert lines(archive) == []
    assert archive.journal.behind
    archive.commit.run(lambda conn: None)
    assert [one.subject for one in archive.journal.read()] == ["unheard"]
    assert not archive.journal.behind


def test_facts_that_rows_alone_hold_are_completed_by_thousands(archive: Archive, settings: Settings) -> None:
    many = [{"at": AT, "kind": "hold", "subject": f"h{number}", "body": "{}", "journaled": 0} for number in range(1201)]
    archive.commit.run(lambda conn: conn.execute(fact.insert(), many))
    archive.close()
    with open_archive(settings, process="test") as again:
        assert [one.n for one in again.journal.read()] == list(range(1, 1202))
        with again.reading() as conn:
            assert unwritten(conn) == []


def test_rows_say_that_their_lines_stand_when_the_process_ends(archive: Archive) -> None:
    archive.commit.run(say("a"))
    archive.close()
    assert rows(archive, fact.c.journaled) == [1]


def test_a_database_older_than_the_journal_takes_no_new_facts(archive: Archive, settings: Settings) -> None:
    """A backup was restored: a new fact would get the number of one that it does not know."""
    archive.commit.run(say("before the backup"))
    archive.close()
    FactJournal(archive.journal.folder).write([Fact(2, AT, "hold", "after the backup", {"long": "x" * 200_000})])
    with open_archive(settings, process="test") as restored:
        assert restored.journal.ahead
        with pytest.raises(StorageFailed):
            restored.commit.run(say("new"))
        assert rows(restored) == ["before the backup"]
        assert len(lines(restored)) == 2


def test_a_database_that_knows_every_line_is_not_older(archive: Archive, settings: Settings) -> None:
    for number in range(3):
        archive.commit.run(say(f"h{number}", at=AT + timedelta(days=400 * number), text="x" * 100_000))
    archive.close()
    with open_archive(settings, process="test") as again:
        assert not again.journal.ahead


def test_several_processes_append_whole_lines(archive: Archive, settings: Settings, tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.crash.facts_child",
                str(settings.data_dir),
                settings.database_url,
                name,
                "60",
            ],
            stdout=subprocess.PIPE,
        )
        for name in ("a", "b")
    ]
    mine = commit_facts(archive, "c", 60)
    told = {int(n) for child in children for n in child.communicate(timeout=120)[0].split()} | set(mine)
    assert [child.returncode for child in children] == [0, 0]
    assert len(told) == 180
    found = archive.journal.read()
    assert {one.n for one in found} == told
    assert not any(isinstance(line, BadLine) for line in archive.journal.lines())
    by_writer = [[one.body["number"] for one in found if one.subject == name] for name in "abc"]
    assert by_writer == [list(range(60))] * 3
