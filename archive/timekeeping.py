"""The clock of this machine beside time servers (IHE CT, Time Client): compared now and then, each time in the audit.

What is wrong is an alert (110113), and a warning of `/readyz`; it stops nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, select

from archive import ntp
from archive.access import SYSTEM
from archive.audit.record import Event, EventType, Outcome, record
from archive.config import Settings
from archive.core import Archive
from archive.schema import clock_check
from archive.schema.upsert import insert

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Checked:
    """The last comparison. `offset_seconds` is the servers' time from ours, None when none answered; `why` what is
    wrong, None for nothing."""

    at: datetime
    offset_seconds: float | None
    servers: int
    why: str | None

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` gives it."""
        return {"at": self.at, "offset_seconds": self.offset_seconds, "servers": self.servers, "why": self.why}


def check(archive: Archive) -> Checked:
    """Compare now, with `time.servers`, and write it down. Raises Unavailable: the database is away."""
    compared = ntp.compare(archive.settings.time.servers, archive.time)
    why = fault(compared, archive.settings)
    found = Checked(archive.real_clock(), compared.offset_seconds, compared.answered, why)
    archive.commit.run(partial(_record, found=found, silent=compared.silent))
    if why is not None:
        log.warning("the clock of this machine is in doubt", why=why)
    return found


def fault(compared: ntp.Comparison, settings: Settings) -> str | None:
    """What is wrong with the clock; None: nothing. Pure."""
    if compared.offset_seconds is None:
        return f"no time server answers ({'; '.join(compared.silent)})"
    if abs(compared.offset_seconds) > settings.time.limit_seconds:
        side = "behind" if compared.offset_seconds > 0 else "ahead of"
        return f"it is {abs(compared.offset_seconds):.3f} s {side} the time servers"
    return None


def last(conn: Connection) -> Checked | None:
    """The last comparison, by whichever process."""
    row = conn.execute(select(clock_check)).one_or_none()
    return None if row is None else Checked(row.at, row.offset_seconds, row.servers, row.why)


def warnings(archive: Archive) -> list[str]:
    """What `/readyz` says beside its reasons, to anybody."""
    if not archive.settings.time.servers:
        return []
    with archive.reading() as conn:
        found = last(conn)
    if found is None or found.why is None:
        return []
    return [f"clock: {found.why if found.offset_seconds is not None else 'no time server answers'}"]


def _record(conn: Connection, *, found: Checked, silent: tuple[str, ...]) -> None:
    values = {"at": found.at, "offset_seconds": found.offset_seconds, "servers": found.servers, "why": found.why}
    adding = insert(conn, clock_check).values(pk=1, **values)
    conn.execute(adding.on_conflict_do_update(index_elements=["pk"], set_=values))
    said: dict[str, object] = {"clock": "compared", "offset_seconds": found.offset_seconds, "servers": found.servers}
    if silent:
        said["silent"] = list(silent)
    if found.why is None:
        record(conn, SYSTEM, Event.APPLICATION_ACTIVITY, "E", detail=said)
    else:
        said |= {"type": EventType.SOFTWARE_CONFIGURATION, "reason": found.why}
        record(conn, SYSTEM, Event.SECURITY_ALERT, "E", outcome=Outcome.MINOR_FAILURE, detail=said)
