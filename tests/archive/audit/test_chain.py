"""Every act has its row, in the transaction of the act, linked to the row before (law 4, REQ-SEC-04)."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, select, text, update
from sqlalchemy.exc import OperationalError

from archive.access import Actor
from archive.audit.chain import digest_of, time_text
from archive.audit.record import Event, Outcome, record, refused
from archive.audit.verify import verify
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.patient_id import cx
from archive.engines import make_engine
from archive.errors import CommitInDoubt, NotFound, Unavailable
from archive.schema import account, audit, audit_chain


def query(archive: Archive, actor: Actor, **more: Any) -> None:
    archive.commit.run(lambda conn: record(conn, actor, Event.QUERY, "E", **more))


def rows(archive: Archive) -> list[Any]:
    with archive.engine.connect() as conn:
        return list(conn.execute(select(audit).order_by(audit.c.pk)))


def assert_whole(archive: Archive) -> None:
    with archive.engine.connect() as conn:
        verdict = verify(conn)
    assert verdict.ok, verdict


def test_a_row_tells_who_did_what_to_whom_from_where(archive: Archive, actor: Actor) -> None:
    query(archive, actor, outcome=Outcome.MINOR_FAILURE, patient=cx("IPP1", "HÔPITAL"), study="1.2.3", detail={"n": 1})
    (row,) = rows(archive)
    assert (row.event, row.action, row.outcome) == ("110112", "E", 4)
    assert (row.user, row.source, row.door) == ("tester", "127.0.0.1", "system")
    assert (row.patient, row.study, json.loads(row.detail)) == ("IPP1^^^HÔPITAL", "1.2.3", {"n": 1})


def test_rows_are_linked_by_their_hashes(archive: Archive, actor: Actor) -> None:
    for _ in range(3):
        query(archive, actor)
    first, second, third = rows(archive)
    assert [row.seq for row in (first, second, third)] == [0, 1, 2]
    assert (second.previous, third.previous) == (first.hash, second.hash)
    with archive.engine.connect() as conn:
        head = conn.execute(select(audit_chain)).one()
    assert (head.rows, head.head, head.process) == (3, third.hash, "test")


def test_a_process_that_records_nothing_leaves_no_chain(archive: Archive) -> None:
    archive.commit.run(lambda conn: None)
    with archive.engine.connect() as conn:
        assert conn.execute(select(func.count()).select_from(audit_chain)).scalar() == 0


def test_text_that_no_database_keeps_is_made_storable(archive: Archive, actor: Actor) -> None:
    query(archive, actor, patient="A\0B\ud800", detail={"text": "x\0\ud800é"})
    (row,) = rows(archive)
    assert row.patient == "A\ufffdB?"
    assert_whole(archive)


def test_recording_outside_a_commit_is_a_mistake(archive: Archive, actor: Actor) -> None:
    with archive.engine.connect() as conn, pytest.raises(RuntimeError, match="commit"):
        record(conn, actor, Event.QUERY, "E")


@pytest.mark.parametrize("wrong", [{"action": "X"}, {"outcome": 3}])
def test_codes_that_do_not_exist_are_a_mistake(archive: Archive, actor: Actor, wrong: dict[str, Any]) -> None:
    values = {"action": "E", "outcome": 0, **wrong}
    with pytest.raises(ValueError, match="no such action or outcome"):
        archive.commit.run(lambda conn: record(conn, actor, Event.QUERY, values["action"], outcome=values["outcome"]))
    assert rows(archive) == []


def test_a_write_that_fails_takes_its_row_along_and_leaves_no_gap(archive: Archive, actor: Actor) -> None:
    """Also for those that shared its transaction: they run again, and are recorded once."""

    def act(conn: Connection, number: int) -> None:
        record(conn, actor, Event.QUERY, "E", detail={"number": number})
        if number % 7 == 3:
            raise NotFound("nothing there")

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(archive.commit.run, lambda conn, n=n: act(conn, n)) for n in range(60)]
        failed = {n for n, future in enumerate(futures) if future.exception() is not None}

    assert failed == {n for n in range(60) if n % 7 == 3}
    assert sorted(json.loads(row.detail)["number"] for row in rows(archive)) == sorted(set(range(60)) - failed)
    assert_whole(archive)


def test_the_act_and_its_row_are_one_transaction(archive: Archive, actor: Actor) -> None:
    def act(conn: Connection) -> None:
        conn.execute(
            account.insert().values(name="a", password_hash="", roles="[]", disabled=0, created_at=archive.clock())
        )
        record(conn, actor, Event.SECURITY_ALERT, "E", detail={"no": {1, 2}})  # no JSON: fails after the act

    with pytest.raises(TypeError):
        archive.commit.run(act)
    with archive.engine.connect() as conn:
        assert conn.execute(select(account.c.pk)).first() is None
    assert rows(archive) == []


@pytest.mark.parametrize("before", [0, 2])
def test_a_commit_whose_answer_was_lost_leaves_a_whole_chain(
    archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """It did happen: the next row goes on after it, or in a chain of its own."""
    for _ in range(before):
        query(archive, actor)
    with monkeypatch.context() as patch:
        honest = archive.engine.dialect.do_commit

        def commit_and_lose_the_answer(dbapi: Any) -> None:
            honest(dbapi)
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

        patch.setattr(archive.engine.dialect, "do_commit", commit_and_lose_the_answer)
        with pytest.raises(CommitInDoubt):
            query(archive, actor, detail={"in": "doubt"})
    query(archive, actor)
    assert len(rows(archive)) == before + 2
    assert_whole(archive)


@pytest.mark.parametrize("touch", [update(audit_chain).values(rows=0), delete(audit_chain)])
def test_an_act_is_recorded_even_when_somebody_spoilt_the_chain(archive: Archive, actor: Actor, touch: Any) -> None:
    """In a chain of its own; what was spoilt stays a finding."""
    query(archive, actor)
    with archive.engine.connect().execution_options(minipacs_write=True) as conn:
        conn.execute(touch)
        conn.commit()
    query(archive, actor)
    query(archive, actor)
    assert [row.seq for row in rows(archive)] == [0, 0, 1]
    with archive.engine.connect() as conn:
        verdict = verify(conn)
    assert not verdict.ok
    assert verdict.row is not None and verdict.row.chain == rows(archive)[0].chain


def test_a_refusal_is_durable_before_it_is_said(settings: Settings, archive: Archive, actor: Actor) -> None:
    refused(archive.commit, actor, Event.QUERY, "E", reason="role", patient="IPP1")
    stranger = make_engine(settings.database_url)
    with stranger.connect() as conn:
        row = conn.execute(select(audit)).one()
    stranger.dispose()
    assert (row.outcome, row.patient, json.loads(row.detail)) == (8, "IPP1", {"reason": "role"})


def test_a_refusal_that_cannot_be_recorded_is_not_said(archive: Archive, actor: Actor) -> None:
    with archive.engine.connect().execution_options(minipacs_write=True) as conn:
        conn.execute(text("ALTER TABLE audit RENAME TO away"))
        conn.commit()
    with pytest.raises(Unavailable):
        refused(archive.commit, actor, Event.QUERY, "E", reason="role")


def start_writer(settings: Settings, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.archive.audit.writer", settings.model_dump_json(), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def acknowledged(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(line) for line in process.stdout if line.endswith("\n")]


@pytest.mark.req("REQ-SEC-04")
def test_two_processes_killed_while_they_write_leave_two_whole_chains(settings: Settings) -> None:
    """kill -9 in the middle: everything acknowledged is there, and nothing is broken."""
    names = ["one", "two"]
    writers = [start_writer(settings, name) for name in names]
    for writer, wanted in zip(writers, (15, 40), strict=True):
        assert writer.stdout is not None
        done = [int(line) for line in itertools.islice(writer.stdout, wanted)]
        assert done == list(range(wanted))
        writer.kill()
    told = [wanted + len(acknowledged(writer)) for writer, wanted in zip(writers, (15, 40), strict=True)]
    for writer in writers:
        writer.wait()

    with open_archive(settings, process="look") as archive:
        assert_whole(archive)
        found = rows(archive)
        assert len({row.chain for row in found}) == 2
        for name, count in zip(names, told, strict=True):
            own = [row for row in found if row.user == name]
            assert [json.loads(row.detail)["number"] for row in own] == list(range(len(own)))
            assert len(own) - count in (0, 1)  # at most one was committed and not told


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(), max_size=40),  # lone surrogates too: a row may have been altered
            st.sampled_from(['\x00\x1f\x7f"\\/\b\f\n\r\t', "é\u2028\u2029\ufeff😀", ""]),
            st.integers(-(2**70), 2**70),
            st.none(),
        ),
        max_size=14,
    )
)
def test_the_hash_is_of_the_json_that_is_documented(values: list[str | int | None]) -> None:
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    assert digest_of(values) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def test_times_have_one_form() -> None:
    paris = timezone(timedelta(hours=2))
    assert time_text(datetime(2026, 1, 5, 12, 15, tzinfo=paris)) == "2026-01-05T10:15:00.000000Z"
    assert time_text(datetime(2026, 1, 5, 10, 15, 7, 42, tzinfo=UTC)) == "2026-01-05T10:15:07.000042Z"
