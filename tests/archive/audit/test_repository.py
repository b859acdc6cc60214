"""Audit messages to a real rsyslog: over TLS, in order, none lost while it is away (REQ-IHE-08, REQ-SEC-02 to 04)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from archive import repository
from archive.access import Actor
from archive.audit import syslog
from archive.audit.chain import time_text
from archive.audit.record import Event, record
from archive.audit.syslog import NotDelivered
from archive.config import ConfigError, Settings
from archive.core import Archive, open_archive
from archive.schema import audit, audit_chain
from tests.audit_messages import Rsyslog, demand_valid
from tests.certificates import Authority

BOTH = pytest.mark.parametrize("rsyslog", ["ossl", "gtls"], indirect=True)  # they end a connection differently


@pytest.fixture
def rsyslog(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[Rsyslog]:
    """With one of its TLS drivers."""
    running = Rsyslog(tmp_path, authority, getattr(request, "param", "ossl"))
    running.start()
    yield running
    running.kill()


@pytest.fixture
def opened(settings: Settings, rsyslog: Rsyslog, authority: Authority) -> Iterator[Archive]:
    told = {"repository": {"host": "127.0.0.1", "port": rsyslog.port}, "source_id": "PACS1"}
    values = {**settings.model_dump(), "tls": authority.settings(), "audit": told}
    with open_archive(Settings.model_validate(values), process="test") as archive:
        yield archive


def record_of(message: bytes) -> bytes:
    return syslog.record(message, time="2026-01-05T10:15:00.000000Z", host="pacs 1", process="")


def write(archive: Archive, actor: Actor, names: range) -> None:
    def rows(conn: Any) -> None:
        for name in names:
            record(conn, actor, Event.QUERY, "E", detail={"query": {"number": name}})

    archive.commit.run(rows)


def send_all(archive: Archive) -> int:
    sent = 0
    while some := repository.send(archive):
        sent += some
    return sent


@BOTH
@pytest.mark.req("REQ-SEC-02", "REQ-SEC-03", "REQ-IHE-08")
def test_every_row_arrives_as_a_message_of_the_standard(
    opened: Archive, rsyslog: Rsyslog, actor: Actor, tmp_path: Path
) -> None:
    write(opened, actor, range(250))
    assert send_all(opened) == 250
    assert send_all(opened) == 0
    found = rsyslog.wait(250)
    assert len(found) == 250
    with opened.reading() as conn:
        rows = conn.execute(select(audit).order_by(audit.c.pk)).all()
    assert [one["chain"] for one in found] == [row.chain for row in rows]
    assert [one["time"] for one in found] == [f"{row.time:%Y-%m-%dT%H:%M:%S.%f}Z" for row in rows]
    messages = demand_valid([one["xml"] for one in found[:20]], tmp_path)
    assert messages[0].find("AuditSourceIdentification").attrib["AuditSourceID"] == "PACS1"  # type: ignore[union-attr]


def _whole(rsyslog: Rsyslog) -> set[str]:
    """The different messages that stand whole in a file whose writer was killed: a line may break off, and the next be
    written behind it."""
    messages = {f"<?xml{line.rpartition('<?xml')[2]}" for line in rsyslog.lines() if "<?xml" in line}
    return {message for message in messages if message.endswith("</AuditMessage>")}


@BOTH
@pytest.mark.req("REQ-SEC-04", "REQ-IHE-08")
def test_none_is_lost_while_the_repository_is_killed_again_and_again(
    opened: Archive, rsyslog: Rsyslog, actor: Actor
) -> None:
    """Rows may come twice, never not at all."""
    stop = threading.Event()
    refused = 0

    def sends() -> None:
        nonlocal refused
        while not stop.is_set():
            try:
                repository.send(opened)
            except NotDelivered:
                refused += 1

    thread = threading.Thread(target=sends)
    thread.start()
    try:
        for _ in range(3):
            write(opened, actor, range(300))
            rsyslog.kill()
            before = refused
            write(opened, actor, range(300, 310))
            until = time.monotonic() + 20
            while refused == before:
                assert time.monotonic() < until, "it did not try while the repository was away"
                time.sleep(0.01)
            rsyslog.start()
    finally:
        stop.set()
        thread.join()
    send_all(opened)
    with opened.reading() as conn:
        rows = [time_text(row.time) for row in conn.execute(select(audit).order_by(audit.c.seq))]
        assert repository.state(conn).waiting == 0
    deadline = time.monotonic() + 20
    while len(arrived := _whole(rsyslog)) < 930 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(arrived) == len(rows) == 930
    with opened.reading() as conn:  # a connection that breaks is no doubt about who is there
        assert conn.execute(select(audit).where(audit.c.event == Event.SECURITY_ALERT)).first() is None


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.req("REQ-SEC-04")
def test_who_ends_a_connection_without_a_word_has_to_be_there_still(stays: bool) -> None:
    """A program that is killed with a batch in its memory ends the connection as one that wrote it does."""
    read = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def takes() -> None:
            while True:
                conn = listening.accept()[0]
                if not stays:
                    listening.close()
                with conn:
                    read.append(b"".join(iter(partial(conn.recv, 4096), b"")))
                if not read[-1] or not stays:
                    return

        thread = threading.Thread(target=takes)
        thread.start()
        port = listening.getsockname()[1]
        if stays:
            syslog.deliver([b"1", b"2"], "127.0.0.1", port, tls=None)
        else:
            with pytest.raises(NotDelivered):
                syslog.deliver([b"1", b"2"], "127.0.0.1", port, tls=None)
        thread.join()
    assert read == ([b"12", b""] if stays else [b"12"])


@pytest.mark.req("REQ-SEC-04")
def test_rows_of_other_processes_that_are_committed_later_are_sent_too(
    opened: Archive, rsyslog: Rsyslog, actor: Actor
) -> None:
    """The number of a row says nothing of when it became visible: each chain is counted by itself."""
    with open_archive(opened.settings, process="other") as other:
        gate, inside = threading.Event(), threading.Event()

        def slow(conn: Any) -> None:
            record(conn, actor, Event.EXPORT, "R")
            inside.set()
            gate.wait(20)

        if opened.engine.dialect.name == "postgresql":
            late = threading.Thread(target=other.commit.run, args=(slow,))
            late.start()
            assert inside.wait(20)
            write(opened, actor, range(3))
            assert send_all(opened) == 3
            gate.set()
            late.join()
        else:  # one writer at a time
            write(opened, actor, range(3))
            assert send_all(opened) == 3
            gate.set()
            other.commit.run(slow)
        assert send_all(opened) == 1
    by_chain = defaultdict(int)
    for one in rsyslog.wait(4):
        by_chain[one["chain"]] += 1
    assert sorted(by_chain.values()) == [1, 3]


def test_a_repository_that_is_away_is_written_down_once_and_warned_of(
    opened: Archive, rsyslog: Rsyslog, actor: Actor
) -> None:
    write(opened, actor, range(2))
    assert repository.warnings(opened) == []
    rsyslog.kill()
    for _ in range(2):
        with pytest.raises(NotDelivered):
            repository.send(opened)
    (warning,) = repository.warnings(opened)
    assert "2 messages wait" in warning and "127.0.0.1" not in warning
    with opened.reading() as conn:
        assert "refused" in (repository.state(conn).why or "")
    rsyslog.start()
    assert repository.send(opened) == 2
    assert repository.warnings(opened) == []


@pytest.mark.req("REQ-SEC-01", "REQ-SEC-03")
def test_a_repository_that_is_not_believed_is_told_nothing(opened: Archive, rsyslog: Rsyslog, actor: Actor) -> None:
    """Another certificate than the pinned one; an authority that nobody knows; ours, that it does not believe."""
    write(opened, actor, range(1))
    values = opened.settings.model_dump()

    def sent(**change: Any) -> None:
        changed = Settings.model_validate({**values, **change})
        repository._deliver(changed, [record_of(b"<a/>")])

    stranger = Authority(rsyslog.folder / "stranger")
    stranger.folder.mkdir()
    pins = {"repository": {**values["audit"]["repository"], "fingerprints": ["ab" * 32]}}
    with pytest.raises(NotDelivered, match="fingerprints"):
        sent(audit=pins)
    with open_archive(Settings.model_validate({**values, "audit": pins}), process="pinned") as pinned:
        for _ in range(2):  # told once
            with pytest.raises(NotDelivered, match="fingerprints"):
                repository.send(pinned)
    with opened.reading() as conn:
        (alert,) = conn.execute(select(audit).where(audit.c.event == Event.SECURITY_ALERT)).all()
    assert (alert.outcome, json.loads(alert.detail)["type"]) == (8, "110126")
    with pytest.raises(NotDelivered, match="not believed"):
        sent(tls=stranger.settings())
    both = rsyslog.folder / "both.pem"
    both.write_text(stranger.root.cert.read_text() + rsyslog.authority.root.cert.read_text())
    for _ in range(10):  # it may close before it reads, or after
        with pytest.raises(NotDelivered):
            sent(tls={**stranger.settings(), "ca": both})
    assert rsyslog.lines() == []
    good = {"repository": {**pins["repository"], "fingerprints": [rsyslog.authority.issue("repository").fingerprint]}}
    sent(audit=good)


def test_rows_that_vanished_stop_nothing(opened: Archive, rsyslog: Rsyslog, actor: Actor) -> None:
    """Whoever removes the tail of a chain is named by verify-audit; the rest is sent all the same."""
    write(opened, actor, range(5))
    with opened.engine.begin() as conn:
        conn.execute(delete(audit).where(audit.c.seq == 2))
        conn.execute(update(audit_chain).values(rows=9))
    assert send_all(opened) == 4
    assert repository.send(opened) == 0
    assert len(rsyslog.wait(4)) == 4


def test_a_chain_longer_than_a_batch_is_sent_in_its_order(opened: Archive, rsyslog: Rsyslog, actor: Actor) -> None:
    write(opened, actor, range(repository.BATCH * 2 + 1))
    assert [repository.send(opened) for _ in range(4)] == [repository.BATCH, repository.BATCH, 1, 0]
    times = [one["time"] for one in rsyslog.wait(repository.BATCH * 2 + 1)]
    assert times == sorted(times)


def test_a_large_backlog_leaves_in_batches_that_a_slow_line_carries(
    archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt is awaited for a few seconds: a batch has a size that 1 Mbit/s carries meanwhile."""
    assert repository.BATCH_BYTES * 8 < 5 * 1_000_000
    sent: list[Sequence[bytes]] = []
    monkeypatch.setattr(repository, "_deliver", lambda settings, records: sent.append(records))
    write(archive, actor, range(7))
    with archive.reading() as conn:
        every = repository._next(conn, archive.settings).records
    monkeypatch.setattr(repository, "BATCH_BYTES", sum(map(len, every[:2])) + len(every[0]) // 2)
    assert [repository.send(archive) for _ in range(5)] == [2, 2, 2, 1, 0]
    assert [record for batch in sent for record in batch] == list(every)
    monkeypatch.setattr(repository, "BATCH_BYTES", 1)  # what is longer than a batch leaves by itself
    write(archive, actor, range(7, 9))
    assert [repository.send(archive) for _ in range(3)] == [1, 1, 0]


def test_in_clear_text_it_leaves_for_this_machine_alone(
    tmp_path: Path, authority: Authority, settings: Settings
) -> None:
    values = settings.model_dump()
    for told, words in (
        ({"host": "arr.example", "transport": "tcp"}, "for this machine alone"),
        ({"host": "arr.example"}, "needs tls.ca"),
    ):
        with pytest.raises(ValueError, match=words):
            Settings.model_validate({**values, "audit": {"repository": told}})
    plain = Rsyslog(tmp_path, authority, "")
    plain.start()
    try:
        local = {"repository": {"host": "127.0.0.1", "port": plain.port, "transport": "tcp"}}
        repository._deliver(Settings.model_validate({**values, "audit": local}), [record_of(b"<a/>")] * 3)
        deadline = time.monotonic() + 20
        while len(plain.lines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert plain.lines() == [record_of(b"<a/>").partition(b" ")[2].decode()] * 3
    finally:
        plain.kill()


def test_a_missing_certificate_file_waits_as_the_repository_does(opened: Archive, actor: Actor, tmp_path: Path) -> None:
    values = {**opened.settings.model_dump(), "tls": {"ca": tmp_path / "none.pem"}}
    write(opened, actor, range(1))
    with pytest.raises(ConfigError):
        repository.knock(Settings.model_validate(values))
    with open_archive(Settings.model_validate(values), process="test") as other, pytest.raises(NotDelivered):
        repository.send(other)
