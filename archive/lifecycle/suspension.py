"""What suspends every removal until a person confirms: a fault of the system's clock (DD-26), an index that was made
anew without its journal (sheet 00 §8). Copies are still made, dates still computed; nothing goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

import structlog
from sqlalchemy import Connection, insert, select, update

from archive.access import SYSTEM, Action, Actor, demand
from archive.audit.record import Event, EventType, Outcome, record, refused
from archive.core import Archive
from archive.errors import InvalidRequest, NotAllowed
from archive.schema import last_tick, suspension

log = structlog.get_logger(__name__)

AHEAD = timedelta(days=1)  # more between two ticks is a jump, or an archive that was off: a person knows which
SLEW = timedelta(minutes=1)  # less backwards is the work of NTP
REASON_CHARACTERS = 500


class Kind(StrEnum):
    """Why removal is suspended."""

    CLOCK = "clock"
    REBUILT = "rebuilt"


@dataclass(frozen=True, slots=True)
class Suspension:
    """One that is not lifted."""

    kind: str
    detail: str
    since: datetime


def suspend(conn: Connection, kind: Kind, detail: str, *, at: datetime, actor: Actor = SYSTEM) -> bool:
    """Suspend removal, inside a write of `archive.commit`; False: it is already, for this kind of reason."""
    standing = select(suspension.c.pk).where(suspension.c.kind == kind, suspension.c.lifted_at.is_(None))
    if conn.execute(standing.limit(1)).first() is not None:
        return False
    conn.execute(insert(suspension).values(kind=kind, detail=detail, since=at))
    said = {"type": EventType.SOFTWARE_CONFIGURATION, "removal": "suspended", "why": kind, "detail": detail}
    record(conn, actor, Event.SECURITY_ALERT, "E", outcome=Outcome.MINOR_FAILURE, detail=said)
    return True


def suspensions(conn: Connection) -> list[Suspension]:
    """Those that are not lifted, the oldest first; empty: what is due may go."""
    rows = conn.execute(select(suspension).where(suspension.c.lifted_at.is_(None)).order_by(suspension.c.pk))
    return [Suspension(row.kind, row.detail, row.since) for row in rows]


def resume(archive: Archive, *, reason: str, actor: Actor) -> list[Suspension]:
    """Confirm that all is well: lifts every suspension; those that were lifted.

    Raises:
        NotAllowed: not with this role. InvalidRequest: without a reason.
    """
    text = demanded_reason(reason)
    try:
        demand(actor, Action.RETENTION)
    except NotAllowed as error:
        refused(archive.commit, actor, Event.SECURITY_ALERT, "E", reason=str(error), detail={"removal": "resume"})
        raise
    return archive.commit.run(partial(_resume, reason=text, actor=actor, at=archive.clock()))


def _resume(conn: Connection, *, reason: str, actor: Actor, at: datetime) -> list[Suspension]:
    lifted = suspensions(conn)
    values = {"lifted_by": actor.user, "lifted_at": at, "reason": reason}
    conn.execute(update(suspension).where(suspension.c.lifted_at.is_(None)).values(values))
    said = {
        "type": EventType.SOFTWARE_CONFIGURATION,
        "removal": "resumed",
        "reason": reason,
        "lifted": [one.kind for one in lifted],
    }
    record(conn, actor, Event.SECURITY_ALERT, "E", detail=said)
    return lifted


def demanded_reason(text: str) -> str:
    """A reason that somebody gave, of some length. Raises InvalidRequest when it is empty or too long."""
    text = text.strip()
    if not text:
        raise InvalidRequest("a reason is needed: it is kept in the audit")
    if len(text) > REASON_CHARACTERS:
        raise InvalidRequest(f"a reason has {REASON_CHARACTERS} characters at most")
    return text


def watch_clock(archive: Archive) -> str:
    """Compare the system's clock with the last tick's, and remember it for the next one (DD-26).

    Backwards, or more than a day ahead, suspends removal; what is wrong is returned, "" when nothing is. Moves of a
    test bed's clock are trusted: the system's clock stays where it is.
    """
    now = archive.real_clock()
    fault = archive.commit.run(partial(_watch_clock, now=now, at=archive.clock()))
    if fault:
        log.error("removal is suspended: a fault of the clock", fault=fault)
    return fault


def _watch_clock(conn: Connection, *, now: datetime, at: datetime) -> str:
    last: datetime | None = conn.execute(select(last_tick.c.real_at).with_for_update()).scalar()
    fault = "" if last is None else clock_fault(last, now)
    if fault:
        suspend(conn, Kind.CLOCK, fault, at=at)
    if last is None:
        conn.execute(insert(last_tick).values(pk=1, real_at=now))
    else:
        conn.execute(update(last_tick).values(real_at=now))
    return fault


def clock_fault(last: datetime, now: datetime) -> str:
    """What is wrong with a clock that showed `last` at one tick and `now` at the next; "" for nothing. Pure."""
    if last - now > SLEW:
        return f"the system's clock went back from {_iso(last)} to {_iso(now)}"
    if now - last > AHEAD:
        return f"the system's clock went from {_iso(last)} to {_iso(now)} between two ticks"
    return ""


def _iso(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds")
