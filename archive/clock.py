"""The only place that reads the system clock (law 6).

`Clock.now` is the archive's time: policy, dates, audit. In the test bed it can be moved; from there it runs at
normal speed. `Clock.real` never moves: leases, timeouts, tokens, the age of leftovers.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Simulation:
    """Where the test bed put the clock: at `real_anchor` it showed `shown`. `generation` counts the moves."""

    generation: int
    real_anchor: datetime | None
    shown: datetime | None

    def offset(self) -> timedelta:
        if self.real_anchor is None or self.shown is None:
            return timedelta(0)
        return self.shown - self.real_anchor


class Clock:
    """A process's view of time; `simulate` is called by whoever watches the database for a move of the test bed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._simulation = Simulation(0, None, None)

    def real(self) -> datetime:
        """The system's time, aware, UTC."""
        return datetime.now(UTC)

    def now(self) -> datetime:
        """The archive's time, aware, UTC."""
        return self.real() + self._simulation.offset()

    @property
    def generation(self) -> int:
        return self._simulation.generation

    @property
    def simulated(self) -> bool:
        return self._simulation.shown is not None

    def simulate(self, simulation: Simulation) -> None:
        with self._lock:
            self._simulation = simulation


def monotonic() -> float:
    """Seconds for durations and deadlines; means nothing outside this process."""
    return time.monotonic()
