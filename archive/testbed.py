"""The clock of the test bed: moving it, for every process at once (sheet 60 §4). Only in `test_mode`."""

from __future__ import annotations

import re
import time
from calendar import monthrange
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, update

from archive.access import Action, Actor, demand
from archive.audit.record import Event, EventType, record
from archive.clock import Simulation, monotonic
from archive.core import Archive
from archive.errors import Busy, InvalidRequest, NotFound
from archive.heartbeat import SIMULATION, alive, follow, simulation
from archive.schema import simulated_clock

PATIENCE_SECONDS = 10.0  # for the live processes to follow a move of the clock

_STEP = re.compile(r"(?=.)(?:(\d+)y)?(?:(\d+)m(?!i))?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)min)?(?:(\d+)s)?")


def read_clock(archive: Archive) -> Simulation:
    """Where the clock of the test bed is. Raises NotFound outside `test_mode`."""
    _demand_testbed(archive)
    with archive.reading() as conn:
        return simulation(conn)


def set_clock(archive: Archive, instant: datetime, *, actor: Actor) -> Simulation:
    """Make the clock of every process show `instant` (aware); from there it runs at normal speed.

    Returns when all live processes follow.

    Raises:
        NotFound: outside `test_mode`. NotAllowed: not with this role.
        Busy: a live process did not follow within ten seconds; the clock is moved all the same.
    """
    return _move(archive, lambda _now: instant, actor=actor)


def advance(archive: Archive, step: str, *, actor: Actor) -> Simulation:
    """Move the clock on by `3y1d`, `6m`, `36h`… Raises as `set_clock`, and InvalidRequest for another `step`."""
    return _move(archive, lambda now: moved_on(now, step), actor=actor)


def release(archive: Archive, *, actor: Actor) -> Simulation:
    """Let the clock follow the system again. Raises as `set_clock`."""
    return _move(archive, lambda _now: None, actor=actor)


def moved_on(instant: datetime, step: str) -> datetime:
    """`instant` moved on by years, months (`m`), weeks, days, hours, minutes (`min`) and seconds, in this order.

    Years and months are those of the calendar (UTC); 29 February plus a year is 28 February.

    Raises:
        InvalidRequest: the step is not written like that, or leads out of the calendar.
    """
    found = _STEP.fullmatch(step.strip())
    if found is None:
        raise InvalidRequest(f"{step!r} is not a step like 3y1d, 6m, 2w, 36h or 30min")
    years, months, weeks, days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    month = instant.month - 1 + months
    year, month = instant.year + years + month // 12, month % 12 + 1
    try:
        day = min(instant.day, monthrange(year, month)[1])
        moved = instant.replace(year=year, month=month, day=day)
        return moved + timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    except (OverflowError, ValueError) as error:
        raise InvalidRequest(f"{step!r} leads out of the calendar") from error


def _demand_testbed(archive: Archive) -> None:
    if not archive.settings.test_mode:
        raise NotFound("there is no test bed: test_mode is off")


def _move(archive: Archive, target: Callable[[datetime], datetime | None], *, actor: Actor) -> Simulation:
    _demand_testbed(archive)
    demand(actor, Action.TESTBED)

    def write(conn: Connection) -> Simulation:
        real = archive.real_clock()
        conn.execute(SIMULATION.with_for_update())  # two moves at once get two generations
        found = simulation(conn)
        shown = target(real + found.offset())
        moved = Simulation(found.generation + 1, None if shown is None else real, shown)
        values = {"generation": moved.generation, "real_anchor": moved.real_anchor, "shown": moved.shown}
        if conn.execute(update(simulated_clock).where(simulated_clock.c.pk == 1).values(values)).rowcount == 0:
            conn.execute(insert(simulated_clock).values(pk=1, **values))
        detail = {"type": EventType.SOFTWARE_CONFIGURATION, "clock": "released" if shown is None else shown.isoformat()}
        record(conn, actor, Event.SECURITY_ALERT, "U", detail=detail)
        return moved

    moved = archive.commit.run(write)
    follow(archive)
    _await_all(archive, moved.generation)
    return moved


def _await_all(archive: Archive, generation: int) -> None:
    deadline = monotonic() + PATIENCE_SECONDS
    while True:
        with archive.reading() as conn:
            behind = [one for one in alive(conn, at=archive.real_clock()) if one.clock_generation < generation]
        if not behind:
            return
        if monotonic() > deadline:
            names = ", ".join(f"{one.edge} (pid {one.pid})" for one in behind)
            raise Busy(f"the clock is moved, but these processes do not follow: {names}")
        time.sleep(0.1)
