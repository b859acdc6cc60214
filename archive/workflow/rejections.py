"""A rejection, told: its fact, its audit. Inside the write of `archive.commit` that makes it true.

Whoever else has to learn of a rejection, or of its end, is told in `tell`: both ways lead through it.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from sqlalchemy import Connection

from archive.access import Actor
from archive.audit.record import Event, record
from archive.index.patients import owner_of
from archive.index.rejections import note_rejection, of_note, revoked_with
from archive.workflow.availability import announce

_TOLD = 100  # UIDs in one audit row; the note has them all


def rejected(conn: Connection, note_uid: str, *, actor: Actor, at: datetime, now: datetime) -> None:
    """A note was filed and what it names is hidden. Notes that were revoked by it are told too. `now` is real time."""
    tell(conn, note_uid, actor=actor, at=at, now=now)
    for other in revoked_with(conn, note_uid):
        tell(conn, other, actor=actor, at=at, now=now, revoked=True)


def tell(
    conn: Connection,
    note_uid: str,
    *,
    actor: Actor,
    at: datetime,
    now: datetime,
    revoked: bool = False,
    reason: str = "",
) -> None:
    """Record what a note hides, or that it hides it no more: the fact, a row of the audit for each study, and that
    peers are to be told what is available of it (REQ-DCM-55)."""
    note_rejection(conn, note_uid, at=at)
    by_study: dict[str, list[str]] = defaultdict(list)
    code = ""
    for row in of_note(conn, note_uid):
        code = row.code
        by_study[row.study_instance_uid].append(row.sop_instance_uid)
    for uid, instances in by_study.items():
        announce(conn, uid, at=now)
        said = {
            "rejection": "revoked" if revoked else "rejected",
            "code": code,
            "note": note_uid,
            "count": len(instances),
            "instances": instances[:_TOLD],
            **({"reason": reason} if reason else {}),
        }
        record(
            conn,
            actor,
            Event.INSTANCES_ACCESSED,
            "U" if revoked else "D",
            patient=owner_of(conn, uid),
            study=uid,
            detail=said,
        )
