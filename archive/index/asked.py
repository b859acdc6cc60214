"""The audit row of a query (PS3.15 A.5.3.10, law 4): who asked what, and nothing of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from sqlalchemy import Connection

from archive.access import Actor
from archive.audit.record import Event, Outcome, record
from archive.commit import GroupCommit


def audit_query(
    commit: GroupCommit, actor: Actor, *, parameters: Mapping[str, object], outcome: Outcome = Outcome.SUCCESS
) -> None:
    """Queue the row; it is committed within a second. Call it before the first answer leaves.

    `parameters` may name patients: what was asked goes in encoded, as it came. Raises Busy when the archive stops.
    """
    commit.later(partial(_record, actor, parameters, outcome))


def _record(actor: Actor, parameters: Mapping[str, object], outcome: Outcome, conn: Connection) -> None:
    record(conn, actor, Event.QUERY, "E", outcome=outcome, detail=parameters)
