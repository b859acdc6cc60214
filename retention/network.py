"""What is owed to the network and asks for no connection of its own: audit messages to their repository, the clock
beside time servers. A thread each, in one retention process at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from archive import repository, timekeeping
from archive.audit.syslog import NotDelivered
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, Busy
from archive.leases import Lease, leased

log = structlog.get_logger(__name__)

Work = Callable[[Archive, threading.Event, Lease], None]

LOOK_SECONDS = 1.0  # between two looks for new rows
THOROUGH_SECONDS = 30.0  # between two looks for rows that were committed after those of higher numbers
AWAY_SECONDS = 5.0  # before a repository that is away is tried again
RETRY_SECONDS = 5.0  # before the lease of another process, or a database that is away, is tried again


@contextmanager
def at_work(archive: Archive, stopping: threading.Event) -> Iterator[None]:
    """Run what the settings ask for until `stopping` is set; returns when all of it has ended."""
    duties: list[tuple[str, Work]] = []
    if archive.settings.audit.repository.host:
        duties.append(("repository", send_audit))
    if archive.settings.time.servers:
        duties.append(("time", keep_time))
    threads = [
        threading.Thread(target=_under_lease, args=(archive, stopping, name, work), name=name) for name, work in duties
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def send_audit(archive: Archive, stopping: threading.Event, lease: Lease) -> None:
    """Send what waits, and then what comes. Raises Unavailable."""
    sent_to, looked = -1, 0.0
    while lease.held and not stopping.is_set():
        newest = repository.newest(archive)
        if newest == sent_to and monotonic() - looked < THOROUGH_SECONDS:
            stopping.wait(LOOK_SECONDS)
            continue
        try:
            if not repository.send(archive):
                sent_to, looked = newest, monotonic()
        except NotDelivered:
            stopping.wait(AWAY_SECONDS)


def keep_time(archive: Archive, stopping: threading.Event, lease: Lease) -> None:
    """Compare the clock now and then. Raises Unavailable."""
    while lease.held and not stopping.is_set():
        timekeeping.check(archive)
        stopping.wait(archive.settings.time.check_seconds)


def _under_lease(archive: Archive, stopping: threading.Event, name: str, work: Work) -> None:
    while not stopping.is_set():
        try:
            with leased(archive, name, stopping=stopping) as lease:
                work(archive, stopping, lease)
        except Busy:
            pass
        except ArchiveError as error:
            log.error("a duty to the network waits", duty=name, error=type(error).__name__)
        except Exception:  # a bug: the next attempt may get further
            log.exception("a duty to the network broke down", duty=name)
        stopping.wait(RETRY_SECONDS)
