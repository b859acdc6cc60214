"""One tick: what is due today, a study at a time (sheet 00 §8). Retention decides, the archive enforces.

Everything that removes asks again inside its transaction; so a tick may be stopped, killed, or run twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import structlog

from archive.core import Archive
from archive.errors import Busy, IndexUnavailable, StorageFailed
from archive.leases import Lease, leased
from archive.lifecycle import companions, failures
from archive.lifecycle.announce import announce, withdraw_stale
from archive.lifecycle.cold import Stays
from archive.lifecycle.compute import (
    Due,
    compute_due,
    due_for_announcement,
    due_for_migration,
    due_for_purge,
    policy_of,
)
from archive.lifecycle.finish import finish_purges
from archive.lifecycle.guard import Blocker
from archive.lifecycle.migrate import migrate
from archive.lifecycle.overdue import overdue
from archive.lifecycle.purge import purge_study
from archive.lifecycle.remove import finish_removals
from archive.lifecycle.suspension import SLEW, Kind, suspensions, watch_clock
from archive.lifecycle.switch import due_for_switch, switch, to_undo, undo_grace
from archive.policy import Policy, local_day

log = structlog.get_logger(__name__)

LEASE = "tick"
_LISTED = 10_000  # studies that a step looks at, at most; the next tick goes on
_HEAVY = 200  # the same of steps that read and write images

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
            "reasons": {str(why): count for why, count in sorted(self.reasons.items())},
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
        self._looked = archive.real_clock()  # at the clock itself
        self._blocked: dict[int, str] = {}  # studies that are due and stay, and the last reason
        self.did = Ticked()

    def run(self) -> Ticked:
        finish_purges(self._archive)
        self._finish_removals()
        watch_clock(self._archive)
        if not self._companions():
            return self.did  # dates that are not computed anew keep everything
        compute_due(self._archive)
        self._undo()
        self._switch()
        self._migrate()
        self._announce()
        self._purge()
        self.did.reasons = Counter(self._blocked.values())
        return self.did

    def _finish_removals(self) -> None:
        """What power, or a volume, left half done. Its failure stops nothing else: what is marked stays marked."""
        try:
            finish_removals(self._archive)
        except IndexUnavailable:
            raise
        except Exception as error:
            log.error("removals cannot be finished", error=type(error).__name__)

    def _companions(self) -> bool:
        """Of what came for studies that were switched. Before their dates are computed: that forgets that it came.
        False: some of it is left for the next tick."""

        def act(pk: int) -> None:
            companions.complete(self._archive, pk)

        with self._archive.reading() as conn:
            pks = companions.lacking(conn, real_now=self._archive.real_clock(), limit=_LISTED)
        return self._each(companions.STEP, pks, act) and len(pks) < _LISTED

    def _undo(self) -> None:
        """A hold, or a fact that changed, during the grace period: the lossy copies go, and were never seen."""

        def act(pk: int) -> None:
            undo_grace(self._archive, pk, reason="on hold, or kept longer on site")

        with self._archive.reading() as conn:
            real_now = self._archive.real_clock()
            pks = to_undo(conn, self._policy, today=self._today(), real_now=real_now, limit=_HEAVY)
        self._each("undo", pks, act)

    def _switch(self) -> None:
        def act(pk: int) -> None:
            done = switch(self._archive, pk, proceed=self._goes_on)
            if done.stays in (Stays.SUSPENDED, Stays.HOLD):
                self._blocked[pk] = done.stays

        with self._archive.reading() as conn:
            now, real_now = self._archive.clock(), self._archive.real_clock()
            pks = due_for_switch(conn, self._policy, today=self._today(), at=now, real_now=real_now, limit=_HEAVY)
        self._each("switch", pks, act)

    def _migrate(self) -> None:
        """Not while the clock is in doubt: the grace period would count from a wrong day."""
        if self._clock_in_doubt():
            return

        def act(pk: int) -> None:
            done = migrate(self._archive, pk, proceed=self._goes_on)
            if done.grace_until is None and done.stays is None:
                raise StorageFailed("its images are damaged: there is nothing to copy")
            self.did.migrated += done.grace_until is not None
            self.did.derived += done.derived
            self.did.kept_lossless += done.kept_lossless

        self._each("migrate", self._due(due_for_migration, limit=_HEAVY), act)

    def _announce(self) -> None:
        """Not while the clock is in doubt: the notice would be counted from a wrong day."""
        version = self._policy.version
        withdraw_stale(self._archive, policy_version=version)
        if self._clock_in_doubt():
            return

        def act(pk: int) -> None:
            blocker = announce(self._archive, pk, policy_version=version)
            if blocker is None:
                self.did.announced += 1
            elif blocker is not Blocker.CHANGED:
                self._blocked[pk] = blocker

        self._each("announce", self._due(due_for_announcement), act)

    def _purge(self) -> None:
        cap = self._archive.settings.retention.purge_cap

        def act(pk: int) -> None:
            blocker = Blocker.CAP if self.did.purged >= cap else purge_study(self._archive, pk)
            if blocker is None:
                self.did.purged += 1
            else:
                self._blocked[pk] = blocker

        self._each("purge", self._due(due_for_purge), act)
        with self._archive.reading() as conn:
            self._blocked.update(overdue(conn, self._policy, today=self._today()))

    def _clock_jumped(self) -> bool:
        """Looked at again every minute: a clock may be put wrong inside a tick too; and a tick may last for days."""
        now = self._archive.real_clock()
        if abs(now - self._looked) < SLEW:
            return False
        self._looked = now
        return bool(watch_clock(self._archive))

    def _clock_in_doubt(self) -> bool:
        with self._archive.reading() as conn:
            return any(one.kind == Kind.CLOCK for one in suspensions(conn))

    @property
    def _policy(self) -> Policy:
        return policy_of(self._archive.settings)

    def _today(self) -> date:
        return local_day(self._archive.clock())

    def _goes_on(self) -> bool:
        return not self._stop.is_set() and self._lease.held

    def _due(self, look_up: Callable[..., list[Due]], *, limit: int = _LISTED) -> list[int]:
        now = self._archive.real_clock()
        with self._archive.reading() as conn:
            found = look_up(conn, self._policy, today=self._today(), real_now=now, limit=limit)
        return [one.pk for one in found]

    def _each(self, step: str, pks: Sequence[int], act: Callable[[int], None]) -> bool:
        """One study after the other; what fails for one does not keep the others (FIELD, pain 3). False: it was
        stopped."""
        with self._archive.reading() as conn:
            limping = failures.limping(conn, step, now=self._archive.real_clock())
        self._blocked.update({pk: Blocker.FAILED for pk, rests in limping.items() if rests})
        tried = [pk for pk in pks if not limping.get(pk)]
        self._found += len(tried)
        for pk in tried:
            if self._stop.is_set():
                return False
            if not self._lease.held:
                raise Busy("another process took over the tick")
            if self._clock_jumped():
                return False
            try:
                act(pk)
            except (Busy, IndexUnavailable):
                raise
            except Exception as error:
                failures.failed(self._archive, pk, step, error)
                self._blocked[pk] = Blocker.FAILED
            else:
                if pk in limping:
                    failures.worked(self._archive, pk, step)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._found)
        return True
