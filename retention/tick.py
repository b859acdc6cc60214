"""One tick: what is due today, a study at a time (sheet 00 §8). Retention decides, the archive enforces.

Everything that removes asks again inside its transaction; so a tick may be stopped, killed, or run twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from archive.core import Archive
from archive.errors import Busy, IndexUnavailable
from archive.leases import Lease, leased
from archive.lifecycle import failures
from archive.lifecycle.announce import announce, withdraw_stale
from archive.lifecycle.compute import Due, compute_due, due_for_announcement, due_for_purge, policy_of
from archive.lifecycle.finish import finish_purges
from archive.lifecycle.guard import Blocker
from archive.lifecycle.overdue import overdue
from archive.lifecycle.remove import finish_removals
from archive.lifecycle.suspension import Kind, suspensions, watch_clock
from archive.policy import local_day

log = structlog.get_logger(__name__)

LEASE = "tick"
_LISTED = 10_000  # studies that a step looks at, at most; the next tick goes on

Progress = Callable[[int, int], None]  # studies done, studies found so far


@dataclass(slots=True)
class Ticked:
    """What a tick did."""

    migrated: int = 0  # studies whose copies in cold storage are made and verified
    derived: int = 0  # lossy copies made
    kept_lossless: int = 0  # images that stay lossless in cold storage
    announced: int = 0  # studies
    purged: int = 0  # studies
    reasons: Counter[str] = field(default_factory=Counter)  # why studies that are due stay

    @property
    def blocked(self) -> int:
        """Studies that are due and stay."""
        return self.reasons.total()

    def counts(self) -> dict[str, Any]:
        """As commands and `/api/v1` give it."""
        return {
            "migrated": self.migrated,
            "derived": self.derived,
            "kept_lossless": self.kept_lossless,
            "announced": self.announced,
            "purged": self.purged,
            "blocked": self.blocked,
            "reasons": dict(sorted(self.reasons.items())),
        }


def tick(
    archive: Archive,
    *,
    stopping: threading.Event | None = None,
    patience_seconds: float = 0.0,
    progress: Progress | None = None,
) -> Ticked:
    """Do what is due, under the lease of ticks; `stopping` ends it between two studies.

    A study that a step fails for is tried again later and later; the others go on (`archive.lifecycle.failures`).

    Raises:
        Busy: another process is at it for all of `patience_seconds`, or took over.
        Unavailable: the database is away; what was done stays done.
    """
    stop = stopping or threading.Event()
    with leased(archive, LEASE, patience_seconds=patience_seconds, stopping=stop) as lease:
        return _Tick(archive, lease, stop, progress).run()


class _Tick:
    """The steps, in their order."""

    def __init__(self, archive: Archive, lease: Lease, stop: threading.Event, progress: Progress | None) -> None:
        self._archive = archive
        self._lease = lease
        self._stop = stop
        self._progress = progress
        self._done = self._found = 0
        self.did = Ticked()

    def run(self) -> Ticked:
        finish_purges(self._archive)
        self._finish_removals()
        watch_clock(self._archive)
        compute_due(self._archive)
        self._announce()
        self._purge()
        return self.did

    def _finish_removals(self) -> None:
        """What power, or a volume, left half done. Its failure stops nothing else: what is marked stays marked."""
        try:
            finish_removals(self._archive)
        except IndexUnavailable:
            raise
        except Exception as error:
            log.error("removals cannot be finished", error=type(error).__name__)

    def _announce(self) -> None:
        """Not while the clock is in doubt: the notice would be counted from a wrong day."""
        version = policy_of(self._archive.settings).version
        withdraw_stale(self._archive, policy_version=version)
        with self._archive.reading() as conn:
            if any(one.kind == Kind.CLOCK for one in suspensions(conn)):
                return

        def act(due: Due) -> None:
            blocker = announce(self._archive, due.pk, policy_version=version)
            if blocker is None:
                self.did.announced += 1
            elif blocker is not Blocker.CHANGED:
                self.did.reasons[blocker] += 1

        self._each("announce", self._due(due_for_announcement), act)

    def _purge(self) -> None:
        from archive.lifecycle.purge import purge_study

        cap = self._archive.settings.retention.purge_cap

        def act(due: Due) -> None:
            blocker = Blocker.CAP if self.did.purged >= cap else purge_study(self._archive, due.pk)
            if blocker is None:
                self.did.purged += 1
            else:
                self.did.reasons[blocker] += 1

        self._each("purge", self._due(due_for_purge), act)
        with self._archive.reading() as conn:
            today = local_day(self._archive.clock())
            self.did.reasons.update(overdue(conn, policy_of(self._archive.settings), today=today))

    def _due(self, look_up: Callable[..., list[Due]], *, limit: int = _LISTED) -> list[Due]:
        archive = self._archive
        with archive.reading() as conn:
            return look_up(
                conn,
                policy_of(archive.settings),
                today=local_day(archive.clock()),
                real_now=archive.real_clock(),
                limit=limit,
            )

    def _each(self, step: str, dues: Sequence[Due], act: Callable[[Due], None]) -> None:
        """One study after the other; what fails for one does not keep the others (FIELD, pain 3)."""
        self._found += len(dues)
        with self._archive.reading() as conn:
            limping = failures.limping(conn, step)
        for due in dues:
            if self._stop.is_set():
                return
            if not self._lease.held:
                raise Busy("another process took over the tick")
            try:
                act(due)
            except (Busy, IndexUnavailable):
                raise
            except Exception as error:
                failures.failed(self._archive, due.pk, step, error)
                self.did.reasons[Blocker.FAILED] += 1
            else:
                if due.pk in limping:
                    failures.worked(self._archive, due.pk, step)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._found)
        resting = limping.difference(due.pk for due in dues)
        if resting:
            self.did.reasons[Blocker.FAILED] += len(resting)
