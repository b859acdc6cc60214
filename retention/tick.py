"""One tick: what is due today, a study at a time (sheet 00 §8). Retention decides, the archive enforces.

Everything that removes asks again inside its transaction; so a tick may be stopped, killed, or run twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from archive.core import Archive
from archive.leases import leased
from archive.lifecycle.remove import finish_removals
from archive.lifecycle.suspension import watch_clock

LEASE = "tick"

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
    """Do what is due.

    Raises:
        Busy: another process is at it, for all of `patience_seconds`.
        Unavailable: the database, or a volume, is away; what was done stays done.
    """
    with leased(archive, LEASE, patience_seconds=patience_seconds, stopping=stopping):
        finish_removals(archive)
        watch_clock(archive)
        return Ticked()
