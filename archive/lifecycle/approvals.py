"""`retention.purge_approval = "two-person"`: an announced purge also waits for two approvals, by two distinct persons.

An approval is of one announcement: it counts for nothing after the purge was withdrawn and announced anew.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

from sqlalchemy import Connection, func, select

from archive.access import Action, Actor, demand
from archive.audit.record import Event, record, refused
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import Conflict, NotAllowed, NotFound
from archive.lifecycle.suspension import demanded_reason
from archive.schema import patient, purge_approval, study
from archive.schema.upsert import insert

NEEDED = 2


def approve(archive: Archive, study_instance_uid: str, *, reason: str, actor: Actor) -> int:
    """Approve the announced purge of a study; how many distinct persons have now.

    Whoever approves twice counts once. Safe to repeat.

    Raises:
        NotAllowed: not with this role. InvalidRequest: without a reason.
        NotFound: no such study. Conflict: its purge is not announced.
    """
    text = demanded_reason(reason)
    uid = study_instance_uid[:64]
    try:
        demand(actor, Action.RETENTION)
        return archive.commit.run(partial(_approve, uid=uid, reason=text, actor=actor, at=archive.clock()))
    except (NotAllowed, NotFound, Conflict) as error:
        refused(
            archive.commit, actor, Event.INSTANCES_ACCESSED, "U", reason=str(error), study=uid,
            detail={"retention": "approve"},
        )  # fmt: skip
        raise


def _approve(conn: Connection, *, uid: str, reason: str, actor: Actor, at: datetime) -> int:
    row = conn.execute(
        select(study.c.announced_at, study.c.purge_on, patient.c.patient_id, patient.c.issuer)
        .join_from(study, patient)
        .where(study.c.study_instance_uid == uid)
        .with_for_update(of=study)
    ).one_or_none()
    if row is None:
        raise NotFound("no such study")
    if row.announced_at is None:
        raise Conflict("its purge is not announced: there is nothing to approve")
    added = insert(conn, purge_approval).values(study_instance_uid=uid, user=actor.user, reason=reason, at=at)
    conn.execute(
        added.on_conflict_do_update(index_elements=["study_instance_uid", "user"], set_={"reason": reason, "at": at})
    )
    count = len(approvals(conn, uid, since=row.announced_at))
    said = {"retention": "approve", "purge_on": row.purge_on, "reason": reason, "approvals": count}
    record(conn, actor, Event.INSTANCES_ACCESSED, "U", patient=cx(row.patient_id, row.issuer), study=uid, detail=said)
    return count


def approvals(conn: Connection, study_instance_uid: str, *, since: datetime) -> list[dict[str, str]]:
    """Who approved the purge announced at `since`, as a certificate names them: `user`, `at`, `reason`."""
    rows = conn.execute(
        select(purge_approval.c.user, purge_approval.c.reason, purge_approval.c.at)
        .where(purge_approval.c.study_instance_uid == study_instance_uid, purge_approval.c.at >= since)
        .order_by(purge_approval.c.at, purge_approval.c.pk)
    )
    return [{"user": row.user, "at": row.at.isoformat(), "reason": row.reason} for row in rows]


def approved(conn: Connection, study_instance_uid: str, *, since: datetime) -> int:
    """How many distinct persons approved the purge announced at `since`."""
    return int(
        conn.execute(
            select(func.count(purge_approval.c.user.distinct())).where(
                purge_approval.c.study_instance_uid == study_instance_uid, purge_approval.c.at >= since
            )
        ).scalar_one()
    )
