"""What a process remembers of those who knock: who was recognised just now, and who failed too often.

Memory alone, bounded, thread-safe; one per `Archive`. The rules are used by `archive.accounts`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from archive.access import Action
from archive.clock import monotonic

REMEMBER_SECONDS = 3.0  # a cached decision dies within five seconds of its revocation (law 4)
_GRANTS = 4096
_FAILURES = 10_000
_FORGET_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Grant:
    """A secret that was good a moment ago: whose it is, what it opens, and until when at most."""

    user: str
    may: frozenset[Action]
    expires_at: datetime | None


class Grants:
    """Grants by the hash of their secret, for `REMEMBER_SECONDS` from before they were read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grants: OrderedDict[str, tuple[float, Grant]] = OrderedDict()

    def get(self, secret_hash: str, at: datetime) -> Grant | None:
        """The grant, if it was read just now and has not expired `at` that real time."""
        with self._lock:
            dies, grant = self._grants.get(secret_hash, (0.0, None))
        if grant is None or monotonic() >= dies:
            return None
        return None if grant.expires_at is not None and grant.expires_at <= at else grant

    def keep(self, secret_hash: str, grant: Grant, *, read_at: float) -> None:
        """Remember a grant; `read_at` is the monotonic time before it was read."""
        with self._lock:
            self._grants[secret_hash] = (read_at + REMEMBER_SECONDS, grant)
            self._grants.move_to_end(secret_hash)
            while len(self._grants) > _GRANTS:
                self._grants.popitem(last=False)

    def forget(self) -> None:
        """Everybody is looked up again: something was revoked here."""
        with self._lock:
            self._grants.clear()


@dataclass(slots=True)
class _Failures:
    count: int
    last: float
    barred_until: float


class Throttle:
    """Makes guessing slow: after some failures in a row, each further one bars for twice as long (REQ-SEC-24).

    A name is barred from one source after 5 failures, for up to 15 minutes; from everywhere after 20, for up to one
    minute, so that a stranger can slow somebody down, not lock them out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: OrderedDict[tuple[str, str | None], _Failures] = OrderedDict()

    def barred_seconds(self, name: str, source: str) -> float:
        """How long this name has to wait, from this source; 0: it may try."""
        now = monotonic()
        with self._lock:
            waits = [
                found.barred_until - now
                for key in ((name, source), (name, None))
                if (found := self._failures.get(key)) is not None
            ]
        return max(0.0, *waits, 0.0)

    def failed(self, name: str, source: str) -> None:
        """One more wrong password."""
        self._count((name, source), free=5, longest=900.0)
        self._count((name, None), free=20, longest=60.0)

    def succeeded(self, name: str, source: str) -> None:
        """The right one: the count from this source begins anew."""
        with self._lock:
            self._failures.pop((name, source), None)

    def _count(self, key: tuple[str, str | None], *, free: int, longest: float) -> None:
        now = monotonic()
        with self._lock:
            found = self._failures.get(key)
            if found is None or now - found.last > _FORGET_SECONDS:
                found = self._failures[key] = _Failures(0, now, 0.0)
            found.count += 1
            found.last = now
            if found.count >= free:
                found.barred_until = now + min(longest, 2.0 ** min(found.count - free, 30))
            self._failures.move_to_end(key)
            while len(self._failures) > _FAILURES:
                self._failures.popitem(last=False)


class Recognition:
    """The memory of one process."""

    def __init__(self) -> None:
        self.grants = Grants()
        self.throttle = Throttle()
        self.hashing = threading.BoundedSemaphore(2)  # each takes 32 MiB and a core
