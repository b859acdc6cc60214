"""The index made anew from files and journal alone (`minipacs rebuild-index`), and a database that is older than the
journal brought up to date (docs/storage.md).

Both go the same way. The lines of the journal become rows of `fact` that say that they are not applied yet. Then:
identities, orders and tombstones; every file without a row, hot, then cold, in the order in which they were received;
then what is said of studies, holds, and which lossy copies stand for their originals. Each step may be repeated, so a
run that was killed is simply run again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import Connection, Table, select, update

from archive.access import Actor
from archive.audit.record import Event, EventType, record
from archive.core import Archive, complete_journal
from archive.errors import Busy, Conflict, IndexUnavailable
from archive.heartbeat import alive
from archive.journal import Kind as Fact
from archive.journal import is_waiting
from archive.lifecycle.suspension import Kind, suspend
from archive.rebuild.facts import BEFORE_FILES, apply, count_on, read_journal, waiting
from archive.rebuild.files import take_in
from archive.rebuild.tally import NotTaken, Progress, Rebuilt, Steps
from archive.recovery import unfiled
from archive.schema import fact, instance, location, patient, purge, quarantined, study, suspension, tombstone
from archive.storage import marker

__all__ = ["NotTaken", "Rebuilt", "catch_up", "rebuild"]

log = structlog.get_logger(__name__)

_INDEX: tuple[Table, ...] = (patient, study, instance, location, quarantined, purge, tombstone, fact)
_OLDER = "the database was older than the journal of facts"
_BEGUN = "rebuild-index has begun, and is not finished: run it again"


def rebuild(archive: Archive, *, actor: Actor, progress: Progress | None = None) -> Rebuilt:
    """Make the index of an empty database from the files of both tiers and the journal of facts. Accounts and audit
    rows may be there. Removal is suspended from the first moment on, until a person confirms.

    A run that was killed goes on when it is run again.

    Raises:
        Conflict: the index is not empty, or a process of the archive is running.
        Unavailable: database or volume failed; run it again.
    """
    with archive.reading() as conn:
        running = alive(conn, at=archive.real_clock())
        begun = _is_unfinished(conn)
        filled = [table.name for table in _INDEX if conn.execute(select(table.c.pk).limit(1)).first()]
    if running:
        raise Conflict(f"the archive is running ({', '.join(sorted({one.edge for one in running}))}): stop it first")
    if filled and not begun:
        raise Conflict(f"the index is not empty ({', '.join(filled)}): rebuild-index needs an empty database")
    with _alone(archive, wait=False):
        archive.commit.run(partial(_begin, actor=actor, at=archive.clock()))
        rebuilt = Rebuilt()
        _bring_up(archive, rebuilt, progress)
        archive.commit.run(partial(_finish, actor=actor, rebuilt=rebuilt, at=archive.clock()))
    return rebuilt


def catch_up(archive: Archive) -> int:
    """Bring a database that is older than the journal (a backup that was restored) up to date; how many facts it did
    not know. Then removal is suspended, and files without rows were taken in. To be called before any edge starts.

    Raises:
        IndexUnavailable: the database is empty and the tiers are not, or `rebuild-index` was not finished.
        Unavailable: database or volume failed.
    """
    with archive.reading() as conn:
        unfinished = _is_unfinished(conn)
        empty = not any(conn.execute(select(table.c.pk).limit(1)).first() for table in _INDEX)
        left = waiting(conn)
    if unfinished:
        raise IndexUnavailable(_BEGUN)
    if empty and (archive.journal.ahead or any(marker.has_files(tier.root) for tier in (archive.hot, archive.cold))):
        raise IndexUnavailable(
            "the database knows nothing, and there are files: «minipacs rebuild-index» makes it from them"
        )
    if not archive.journal.ahead and not left:
        return 0
    with _alone(archive, wait=True):
        complete_journal(archive)  # who was waited for has done it
        if archive.journal.ahead:
            archive.commit.run(lambda conn: suspend(conn, Kind.REBUILT, _OLDER, at=archive.clock()))
        rebuilt = Rebuilt()
        _bring_up(archive, rebuilt, None)
    for one in rebuilt.not_taken:
        log.error("not taken in while the database was brought up to date", path=one.path, error=one.reason)
    if rebuilt.facts:
        log.warning(
            "the database was older than the journal of facts",
            facts=rebuilt.facts,
            stored=rebuilt.stored,
            cold=rebuilt.cold_copies,
        )
    return rebuilt.facts


@contextmanager
def _alone(archive: Archive, *, wait: bool) -> Iterator[None]:
    """One process at a time; one that was killed holds up nobody. Raises Busy when another is at it."""
    fd = os.open(archive.hot.root / marker.NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Busy("another process makes the index anew") from error
    finally:
        os.close(fd)


def _is_unfinished(conn: Connection) -> bool:
    begun = select(suspension.c.pk).where(suspension.c.kind == Kind.REBUILT, suspension.c.detail == _BEGUN)
    return conn.execute(begun.limit(1)).first() is not None


def _begin(conn: Connection, *, actor: Actor, at: datetime) -> None:
    if not _is_unfinished(conn) and not suspend(conn, Kind.REBUILT, _BEGUN, at=at, actor=actor):
        conn.execute(update(suspension).where(suspension.c.kind == Kind.REBUILT).values(detail=_BEGUN))


def _finish(conn: Connection, *, actor: Actor, rebuilt: Rebuilt, at: datetime) -> None:
    counts = rebuilt.counts()
    said = "rebuild-index: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    conn.execute(update(suspension).where(suspension.c.detail == _BEGUN).values(detail=said))
    suspend(conn, Kind.REBUILT, said, at=at, actor=actor)  # when somebody lifted it meanwhile
    detail = {"type": EventType.SOFTWARE_CONFIGURATION, "index": "rebuilt", **counts}
    record(conn, actor, Event.SECURITY_ALERT, "E", detail=detail)


def _bring_up(archive: Archive, rebuilt: Rebuilt, progress: Progress | None) -> None:
    """Files and facts, as the head of this module says."""
    os.sync()  # whoever put the files back may not have flushed them (law 1)
    tiers = (archive.hot, archive.cold)
    for tier in tiers:
        marker.need(tier.root)
    read_journal(archive, rebuilt)
    steps = Steps(progress, 0 if progress is None else _total(archive))
    apply(archive, rebuilt, steps, BEFORE_FILES)
    for tier in tiers:
        take_in(archive, tier, rebuilt, steps)
    apply(archive, rebuilt, steps, tuple(kind for kind in Fact if kind not in BEFORE_FILES))
    apply(archive, rebuilt, steps, None)
    archive.commit.run(count_on)
    with archive.reading() as conn:
        archive.journal.ahead = is_waiting(conn)


def _total(archive: Archive) -> int:
    with archive.reading() as conn:
        facts = waiting(conn)
    return facts + sum(1 for tier in (archive.hot, archive.cold) for _ in unfiled(archive, tier))
