"""Which processes are alive, and how each follows the clock of the test bed (sheet 60 §4).

Each process keeps one row: it beats every few seconds, says whether it listens and which move of the clock it
follows. `/readyz` and `archive.testbed` read the same rows. A process that died without a word is not alive: its beat
is old, or its pid is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType

import structlog
from sqlalchemy import Connection, delete, insert, select, update

from archive.access import SYSTEM
from archive.audit.record import Event, EventType, record
from archive.clock import Simulation, monotonic
from archive.config import EDGES
from archive.core import Archive
from archive.errors import ArchiveError
from archive.host import is_gone, this_host
from archive.schema import process, simulated_clock

log = structlog.get_logger(__name__)

BEAT_SECONDS = 5.0
FOLLOW_SECONDS = 0.5  # how often a process of a test bed looks for a move of the clock
FRESH_SECONDS = 15.0  # an older beat is the last trace of a process that is gone, or hangs
FORGET = timedelta(hours=1)  # rows of processes that died without a word go after this

SIMULATION = select(simulated_clock.c.generation, simulated_clock.c.real_anchor, simulated_clock.c.shown)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is alive."""

    id: str
    edge: str
    host: str
    pid: int
    started_at: datetime
    beat_at: datetime
    clock_generation: int
    listening: bool


def simulation(conn: Connection) -> Simulation:
    """Where the test bed put the clock, as the database has it."""
    row = conn.execute(SIMULATION).one_or_none()
    return Simulation(0, None, None) if row is None else Simulation(row.generation, row.real_anchor, row.shown)


def follow(archive: Archive) -> None:
    """Take over a move of the test bed's clock, if there was one. Outside `test_mode` time is the system's."""
    if not archive.settings.test_mode:
        return
    with archive.reading() as conn:
        found = simulation(conn)
    if found.generation != archive.time.generation:
        archive.time.simulate(found)


def alive(conn: Connection, *, at: datetime) -> list[Process]:
    """The processes that are alive at `at` (real time), the oldest first."""
    rows = conn.execute(select(process).order_by(process.c.started_at, process.c.id)).all()
    return [
        Process(
            id=row.id,
            edge=row.edge,
            host=row.host,
            pid=row.pid,
            started_at=row.started_at,
            beat_at=row.beat_at,
            clock_generation=row.clock_generation,
            listening=bool(row.listening),
        )
        for row in rows
        if at - row.beat_at < timedelta(seconds=FRESH_SECONDS) and not is_gone(row.host, row.pid)
    ]


def ready(archive: Archive, edges: Iterable[str] = EDGES) -> list[str]:
    """Why the archive is not ready, in words; empty: every edge listens (`/readyz`).

    Raises:
        IndexUnavailable: the database cannot be reached; the caller says so.
    """
    with archive.reading() as conn:
        there = alive(conn, at=archive.real_clock())
        moved = simulation(conn).generation if archive.settings.test_mode else 0
    reasons = []
    for edge in edges:
        mine = [one for one in there if one.edge == edge]
        if not mine:
            reasons.append(f"{edge}: no process is alive")
        elif not any(one.listening for one in mine):
            reasons.append(f"{edge}: starting, not listening yet")
        elif any(one.clock_generation != moved for one in mine):
            reasons.append(f"{edge}: does not follow the clock of the test bed yet")
    return reasons


class Heartbeat:
    """The row of this process. Enter it when the process starts; leave it when it stops.

    Entering raises Unavailable when the first beat cannot be written. Later, a beat that fails is logged once and
    tried again: the process goes on, and `/readyz` shows that it is not heard.
    """

    def __init__(self, archive: Archive, edge: str) -> None:
        self._archive = archive
        self._edge = edge
        self._id = str(uuid.uuid4())
        self._started_at = archive.real_clock()
        self._listening = False
        self._unheard = False
        self._due = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        follow(self._archive)
        self._archive.commit.run(self._enter)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._due.set()
        self._thread.join()
        with contextlib.suppress(ArchiveError):  # the database is gone: the row grows old and is forgotten
            self._archive.commit.run(self._leave)

    def listening(self, yes: bool = True) -> None:
        """Say, at once, that this process takes connections, or no longer does."""
        self._listening = yes
        self._due.set()

    def _work(self) -> None:
        step = FOLLOW_SECONDS if self._archive.settings.test_mode else BEAT_SECONDS
        next_beat = monotonic() + BEAT_SECONDS
        while not self._over.is_set():
            called = self._due.wait(step)
            self._due.clear()
            before = self._archive.time.generation
            try:
                follow(self._archive)
                if called or self._archive.time.generation != before or monotonic() >= next_beat:
                    self._archive.commit.run(self._beat)
                    next_beat = monotonic() + BEAT_SECONDS
            except ArchiveError as error:
                next_beat = 0.0
                if not self._unheard:
                    log.error("the heartbeat is not heard", edge=self._edge, error=type(error).__name__)
                self._unheard = True
            else:
                if self._unheard:
                    log.info("the heartbeat is heard again", edge=self._edge)
                self._unheard = False

    def _enter(self, conn: Connection) -> None:
        conn.execute(delete(process).where(process.c.beat_at < self._archive.real_clock() - FORGET))
        self._beat(conn)
        self._record(conn, EventType.START)

    def _beat(self, conn: Connection) -> None:
        said = {
            "beat_at": self._archive.real_clock(),
            "clock_generation": self._archive.time.generation,
            "listening": int(self._listening),
        }
        if conn.execute(update(process).where(process.c.id == self._id).values(said)).rowcount == 0:
            conn.execute(
                insert(process).values(
                    id=self._id,
                    edge=self._edge,
                    host=this_host(),
                    pid=os.getpid(),
                    started_at=self._started_at,
                    **said,
                )
            )

    def _leave(self, conn: Connection) -> None:
        conn.execute(delete(process).where(process.c.id == self._id))
        self._record(conn, EventType.STOP)

    def _record(self, conn: Connection, kind: EventType) -> None:
        """Application Activity (PS3.15 A.5.3.1): starting and stopping are part of the audit."""
        actor = replace(SYSTEM, source=socket.gethostname())
        record(conn, actor, Event.APPLICATION_ACTIVITY, "E", detail={"type": kind, "edge": self._edge})
