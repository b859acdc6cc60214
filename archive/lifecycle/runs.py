"""Somebody wants a tick now, from the command line or the API: who may, and that they did (law 4)."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Connection

from archive import jobs
from archive.access import Action, Actor, demand
from archive.audit.record import Event, record, refused
from archive.core import Archive
from archive.errors import Busy, NotAllowed
from archive.heartbeat import alive

EDGE = "retention"  # the process that does it
RUN = "retention.run"  # the job


def order_run(archive: Archive, *, actor: Actor) -> None:
    """Write down that `actor` runs a tick; it follows. Raises NotAllowed."""
    _demand(archive, actor)
    archive.commit.run(partial(_record, actor=actor))


def ask_run(archive: Archive, *, actor: Actor, seconds: float) -> dict[str, Any]:
    """Have the retention process run a tick, and wait for what it did.

    Raises:
        NotAllowed: not with this role.
        Busy: no retention process is alive, it takes longer than `seconds`, or it failed.
    """
    _demand(archive, actor)
    with archive.reading() as conn:
        if not any(one.edge == EDGE for one in alive(conn, at=archive.real_clock())):
            raise Busy("no retention process is running")
    return jobs.ask(archive, RUN, {"by": actor.user}, seconds=seconds, also=partial(_record, actor=actor))


def _demand(archive: Archive, actor: Actor) -> None:
    try:
        demand(actor, Action.RETENTION)
    except NotAllowed as error:
        refused(archive.commit, actor, Event.APPLICATION_ACTIVITY, "E", reason=str(error), detail={"retention": "run"})
        raise


def _record(conn: Connection, *, actor: Actor) -> None:
    record(conn, actor, Event.APPLICATION_ACTIVITY, "E", detail={"retention": "run"})
