"""Accesses that last: an opening row before the first byte, a closing row with the counts (law 4).

600 frames of a study, asked for one by one by the same person, are one access: two rows. The ledger of the open ones
lives in memory, one per process; a thread closes those that have been quiet for five minutes. A process that is killed
loses the counts of what was open, never an opening row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from archive import waiting
from archive.access import Actor
from archive.audit.chain import time_text
from archive.audit.record import Event, Outcome, record
from archive.clock import Clock, monotonic
from archive.commit import GroupCommit
from archive.errors import Busy

log = structlog.get_logger(__name__)

QUIET_SECONDS = 300.0
LIMIT = 20_000  # open accesses in memory; above it the quietest are closed early
_BATCH = 500  # closing rows in one transaction

Key = tuple[str, str, str, str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is told at the end of an access, or of a part of it."""

    since: str
    instances: int
    bytes: int
    failed: int

    def __bool__(self) -> bool:
        return bool(self.instances or self.failed)


class Access:
    """One person or machine, at one study, through one door. Thread-safe; made by `Accesses.access`."""

    __slots__ = (
        "_bytes",
        "_ended",
        "_failed",
        "_instances",
        "_last",
        "_lock",
        "_opened",
        "_opening",
        "_owner",
        "_recorded",
        "_since",
        "action",
        "actor",
        "destination",
        "event",
        "key",
        "patient",
        "scope",
        "study",
    )

    def __init__(
        self,
        owner: Accesses,
        actor: Actor,
        event: Event,
        action: str,
        *,
        study: str,
        patient: str | None,
        scope: str,
        destination: str,
    ) -> None:
        self.actor = actor
        self.event = event
        self.action = action
        self.study = study
        self.patient = patient
        self.scope = scope
        self.destination = destination
        self.key: Key = _key(actor, event, action, study=study, scope=scope, destination=destination)
        self._owner = owner
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._opened = False
        self._recorded = False  # in the transaction that the commit thread is running
        self._ended = False
        self._since = owner.now_text()
        self._instances = self._bytes = self._failed = 0
        self._last = monotonic()

    @property
    def opened(self) -> bool:
        """Whether the opening row is durable: then bytes may leave."""
        return self._opened

    def record_opening(self, conn: Connection) -> None:
        """Add the opening row to the transaction of `conn`, unless it is there already. Safe to run twice.

        `opened` becomes true when that transaction is committed.
        """
        if self._opened or self._recorded:
            return
        detail = {"phase": "open", **self.named()}
        record(
            conn,
            self.actor,
            self.event,
            self.action,
            patient=self.patient,
            study=self.study or None,
            detail=detail,
            settled=self._settled,
        )
        self._recorded = True

    def named(self) -> dict[str, str]:
        """What both rows say of the access beside its columns."""
        return {name: value for name, value in (("scope", self.scope), ("destination", self.destination)) if value}

    def open(self) -> None:
        """Have the opening row durable when this returns. Those who come together wait for one row.

        Raises:
            Unavailable: nothing may be sent.
            WouldWait: nobody may wait here.
        """
        if self._opened:
            return
        waiting.demand()
        with self._opening:
            if not self._opened:
                self._owner.commit.run(self.record_opening)

    def count(self, instances: int = 1, bytes: int = 0, *, failed: int = 0) -> None:
        """Add to what the closing row will tell. Cheap: memory only."""
        with self._lock:
            if not self._ended:
                self._instances += instances
                self._bytes += bytes
                self._failed += failed
                self._last = monotonic()
                return
        self._owner.count_late(self, instances, bytes, failed)

    def _settled(self, committed: bool) -> None:
        self._recorded = False
        if committed:
            self._opened = True

    def _quiet_since(self) -> float:
        return self._last

    def _end(self) -> _Counts:
        with self._lock:
            self._ended = True
            counts = _Counts(self._since, self._instances, self._bytes, self._failed)
            self._instances = self._bytes = self._failed = 0
            return counts

    def _resume(self) -> None:
        with self._lock:
            self._ended = False
            self._since = self._owner.now_text()
            self._last = monotonic()


class Accesses:
    """The open accesses of this process."""

    def __init__(self, commit: GroupCommit, time: Clock, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self.commit = commit
        self._time = time
        self._quiet_seconds = quiet_seconds
        self._lock = threading.Lock()
        self._open: dict[Key, Access] = {}
        self._scopes: dict[str, dict[Key, Access]] = {}  # in the order of their opening
        self._ending: list[tuple[Access, _Counts]] = []
        self._wake = threading.Event()
        self._writing = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None

    def access(
        self,
        actor: Actor,
        event: Event,
        action: str,
        *,
        study: str,
        patient: str | None,
        scope: str = "",
        destination: str = "",
    ) -> Access:
        """The open access of this actor to this study, made if there is none.

        `destination` is where the images go when that is somebody else than the actor (C-MOVE).
        `scope` keeps the accesses of an association, or of a request, apart; empty: those of five minutes are one.
        The actor's user, source and door count, not what it may do. Raises Busy while the archive stops.
        """
        key = _key(actor, event, action, study=study, scope=scope, destination=destination)
        with self._lock:
            if self._closed:
                raise Busy("the archive is stopping")
            found = self._open.get(key)
            if found is not None:
                return found
            made = Access(
                self, actor, event, action, study=study, patient=patient, scope=scope, destination=destination
            )
            self._enlist(made)
            if len(self._open) > LIMIT:
                self._shed()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="accesses", daemon=True)
                self._thread.start()
            return made

    def is_open(self, actor: Actor, event: Event, action: str, *, study: str) -> bool:
        """Whether this actor has the access to this study open that has neither scope nor destination, durably."""
        found = self._open.get(_key(actor, event, action, study=study, scope="", destination=""))
        return found is not None and found.opened

    def end_scope(self, scope: str) -> None:
        """Close what was opened under `scope`, now: its association or request is over."""
        with self._lock:
            ending = self._scopes.get(scope)
            if not ending:
                return
            self._finish(list(ending.values()))
        self._wake.set()

    def close(self) -> None:
        """Close everything; called before the commit thread stops. Safe to call twice."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._finish(list(self._open.values()))
        self._wake.set()
        if thread is not None:
            thread.join()
        self._write()
        with self._lock:
            lost, self._ending = self._ending, []
        for access, counts in lost:
            log.error("the closing row of an access is lost", study=access.study, **_facts(counts))

    def now_text(self) -> str:
        return time_text(self._time.now())

    def count_late(self, access: Access, instances: int, bytes: int, failed: int) -> None:
        """Count for somebody who held an access through five quiet minutes: it goes on, and is closed again."""
        with self._lock:
            if self._closed:
                log.error("an access was used after the audit was closed", study=access.study, instances=instances)
                return
            current = self._open.get(access.key)
            if current is None:
                access._resume()
                self._enlist(access)
                current = access
        current.count(instances, bytes, failed=failed)

    def _enlist(self, access: Access) -> None:
        self._open[access.key] = access
        if access.scope:
            self._scopes.setdefault(access.scope, {})[access.key] = access

    def _finish(self, accesses: Iterable[Access]) -> None:
        """Take them off the list of open ones; the thread writes their rows."""
        for access in accesses:
            del self._open[access.key]
            if access.scope:
                keys = self._scopes[access.scope]
                keys.pop(access.key, None)
                if not keys:
                    del self._scopes[access.scope]
            counts = access._end()
            if access.opened or counts:
                self._ending.append((access, counts))

    def _shed(self) -> None:
        quietest = sorted(self._open.values(), key=Access._quiet_since)
        self._finish(quietest[: LIMIT // 8])
        self._wake.set()

    def _work(self) -> None:
        pause = max(0.05, min(15.0, self._quiet_seconds / 10))
        while not self._closed:
            self._wake.wait(pause)
            self._wake.clear()
            before = monotonic() - self._quiet_seconds
            with self._lock:
                self._finish([access for access in self._open.values() if access._quiet_since() <= before])
            self._write()

    def _write(self) -> None:
        """Commit the closing rows that wait. What cannot be written waits for the next time."""
        with self._writing:
            while True:
                with self._lock:
                    batch, self._ending = self._ending[:_BATCH], self._ending[_BATCH:]
                if not batch:
                    return
                try:
                    self.commit.run(lambda conn, rows=batch: _record_endings(conn, rows))  # type: ignore[misc]
                except Exception as error:  # the thread must live on, and nothing be lost
                    log.error("closing rows of accesses wait", rows=len(batch), error=type(error).__name__)
                    with self._lock:
                        self._ending = batch + self._ending
                    return


def _key(actor: Actor, event: Event, action: str, *, study: str, scope: str, destination: str) -> Key:
    return actor.user, actor.source, actor.door, event, action, study, scope, destination


def _facts(counts: _Counts) -> dict[str, object]:
    facts: dict[str, object] = {"instances": counts.instances, "bytes": counts.bytes}
    return {**facts, "failed": counts.failed} if counts.failed else facts


def _record_endings(conn: Connection, endings: list[tuple[Access, _Counts]]) -> None:
    for access, counts in endings:
        detail = {"phase": "close", "since": counts.since, **_facts(counts), **access.named()}
        outcome = Outcome.SUCCESS
        if counts.failed:
            outcome = Outcome.MINOR_FAILURE if counts.instances else Outcome.SERIOUS_FAILURE
        record(
            conn,
            access.actor,
            access.event,
            access.action,
            outcome=outcome,
            patient=access.patient,
            study=access.study or None,
            detail=detail,
        )
