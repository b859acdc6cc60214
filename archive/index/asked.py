"""The audit row of a query (PS3.15 A.5.3.10, law 4): who asked what, and nothing of the answers."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from archive.access import Actor
from archive.audit.record import Event, Outcome, record
from archive.commit import GroupCommit


def audit_query(
    commit: GroupCommit,
    actor: Actor,
    *,
    parameters: Mapping[str, object],
    outcome: Outcome = Outcome.SUCCESS,
    patient: str | None = None,
    study: str | None = None,
) -> None:
    """Queue the row; it is committed within a second. Call it before the first answer leaves.

    `parameters` holds what was asked, under `query` (of C-FIND and QIDO-RS as it came, in base64); it may name
    patients. `patient` and `study` only where one study was asked for. Raises Busy when the archive stops.
    """

    def write(conn: Connection) -> None:
        record(conn, actor, Event.QUERY, "E", outcome=outcome, patient=patient, study=study, detail=parameters)

    commit.later(write)
