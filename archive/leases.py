"""Who may do alone what only one process may do at a time: a named lease, on real time (law 6).

A lease is taken for a minute and renewed in the background while its holder lives. A holder that died on this host is
succeeded at once, one that hangs, or died elsewhere, when its minute is over; so whatever is done under a lease checks
again inside its transactions.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import structlog
from sqlalchemy import Connection, delete, or_, select, update

from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, Busy
from archive.host import is_gone, this_host
from archive.schema import lease
from archive.schema.upsert import insert

log = structlog.get_logger(__name__)

LEASE_SECONDS = 60.0
_RETRY_SECONDS = 0.2  # between two looks at a lease that another holds


class Lease:
    """A lease that this process holds, until it is let go or lost."""

    def __init__(self, archive: Archive, name: str, seconds: float) -> None:
        self.name = name
        self.holder = str(uuid.uuid4())
        self._archive = archive
        self._seconds = seconds
        self._until = 0.0  # monotonic
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    @property
    def held(self) -> bool:
        """Whether nobody else can hold it now."""
        return monotonic() < self._until

    def take(self) -> bool:
        """Take it, or renew it; False: another holds it."""
        until = monotonic() + self._seconds  # before the write: never later than what others read
        taken = self._archive.commit.run(self._write)
        self._until = until if taken else 0.0
        return taken

    def watch(self) -> None:
        """Renew it in the background."""
        self._thread.start()

    def let_go(self) -> None:
        """Have the next one wait no longer."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.held:
            self._until = 0.0
            with suppress(ArchiveError):  # then it runs out
                self._archive.commit.run(self._delete)

    def _write(self, conn: Connection) -> bool:
        now = self._archive.real_clock()
        values = {
            "holder": self.holder,
            "until": now + timedelta(seconds=self._seconds),
            "host": this_host(),
            "pid": os.getpid(),
        }
        free = or_(lease.c.holder == self.holder, lease.c.until < now, lease.c.holder == self._dead_holder(conn))
        if conn.execute(update(lease).where(lease.c.name == self.name, free).values(values)).rowcount == 1:
            return True
        made = insert(conn, lease).values(name=self.name, **values).on_conflict_do_nothing(index_elements=["name"])
        return conn.execute(made.returning(lease.c.name)).first() is not None

    def _dead_holder(self, conn: Connection) -> str:
        """The holder, if it died on this host; else ""."""
        row = conn.execute(select(lease.c.holder, lease.c.host, lease.c.pid).where(lease.c.name == self.name)).first()
        return row.holder if row is not None and is_gone(row.host, row.pid) else ""

    def _delete(self, conn: Connection) -> None:
        conn.execute(delete(lease).where(lease.c.name == self.name, lease.c.holder == self.holder))

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            try:
                if not self.take():
                    log.error("a lease is lost", lease=self.name)
                    return
            except ArchiveError as error:  # the database is away: tried again until the lease is over
                log.warning("a lease is not renewed", lease=self.name, error=type(error).__name__)


@contextmanager
def leased(
    archive: Archive,
    name: str,
    *,
    patience_seconds: float = 0.0,
    seconds: float = LEASE_SECONDS,
    stopping: threading.Event | None = None,
) -> Iterator[Lease]:
    """Hold the lease called `name` (32 characters at most) inside the block.

    Raises:
        Busy: another held it for all of `patience_seconds`, or `stopping` was set meanwhile.
    """
    held = Lease(archive, name, seconds)
    deadline = monotonic() + patience_seconds
    pause = stopping or threading.Event()
    while not held.take():
        if monotonic() >= deadline or pause.wait(_RETRY_SECONDS):
            raise Busy(f"another process is at it: {name}")
    held.watch()
    try:
        yield held
    finally:
        held.let_go()
