"""A person settles what waited for one; who, when, how and why stays with it and in the audit.

What is held back or kept aside is settled by what becomes of it (REQ-DCM-15, 19): `archive.index.held` and
`archive.index.aside` say what each way does. Its decision, its audit and its fact are one transaction; what is
discarded goes after it by law 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, select

from archive.access import Actor
from archive.audit.record import Event, record
from archive.core import Archive
from archive.dicom.uids import KEY_OBJECTS
from archive.errors import Conflict, InvalidRequest, Rejected, StorageFailed
from archive.index.arrival import Arrival
from archive.index.aside import keep_first, replace_first, set_aside
from archive.index.conditions import constant
from archive.index.held import settle_held
from archive.index.write import apply_note
from archive.ingest import arrival_of
from archive.instance import CopyState
from archive.lifecycle.remove import finish_removals
from archive.schema import instance, location
from archive.work_items import How, Item, Kind, Resolved, close_item, item_of, ways
from archive.workflow.availability import announce
from archive.workflow.rejections import rejected

log = structlog.get_logger(__name__)

_ORDERS = frozenset({Kind.ORDER_CLOSED_WITH_IMAGES, Kind.ORDER_UNMATCHED, Kind.STUDY_UID_CHANGED})
MAX_REASON = 2000  # characters
_HELD_DOCUMENTS = (
    select(location.c.path, location.c.tier, instance.c.source)
    .join_from(instance, location)
    .where(
        instance.c.held_for == bindparam("subject"),
        instance.c.sop_class_uid == KEY_OBJECTS,
        location.c.state == constant(str(CopyState.OK)),
    )
    .order_by(instance.c.pk, location.c.pk)
)


def settle(archive: Archive, item: int, *, how: str, reason: str, actor: Actor) -> None:
    """Settle and close the work item numbered `item`. It opens again when its cause comes up again.

    Raises:
        InvalidRequest: an item of its kind is not settled like this, or no reason.
        NotFound: no such item.
        Conflict: it is closed already, or what is kept aside cannot stand for the first.
        Unavailable: a volume or the index is away.
    """
    if not reason.strip() or len(reason) > MAX_REASON:
        raise InvalidRequest(f"give a reason, of {MAX_REASON} characters at most")
    with archive.reading() as conn:
        found = item_of(conn, item)
    if how not in ways(found.kind):
        raise InvalidRequest(f"an item of this kind is settled as one of: {', '.join(ways(found.kind))}")
    new = _last_aside(archive, found.subject) if how == How.REPLACE else None
    notes = _held_notes(archive, found.subject) if how == How.ACCEPT else []
    write = partial(_settle, item=item, how=How(how), reason=reason.strip(), actor=actor, new=new, notes=notes)
    archive.commit.run(partial(write, at=archive.clock(), now=archive.real_clock()))
    if found.kind == Kind.UID_CONFLICT:
        try:
            finish_removals(archive)
        except StorageFailed as error:  # it is settled all the same
            log.error("what a person discarded cannot be removed: the next tick tries again", why=str(error))


def _last_aside(archive: Archive, uid: str) -> Arrival:
    """What came last under this UID, read to its end."""
    with archive.reading() as conn:
        rows = [row for row in set_aside(conn, uid) if not row.former]
    if not rows:
        raise Conflict("nothing is kept aside under this UID any more")
    try:
        arrival = arrival_of(archive, rows[-1].path)
    except OSError as error:
        raise StorageFailed(f"what is kept aside cannot be read: {error.strerror}") from error
    except Rejected as error:
        raise Conflict("what is kept aside is damaged: it cannot stand for the first") from error
    if arrival.digest != rows[-1].digest:
        raise Conflict("what is kept aside is damaged: it cannot stand for the first")
    return arrival


def _held_notes(archive: Archive, subject: str) -> list[Arrival]:
    """The rejection notes that wait for the work item about `subject`: accepted, they reject."""
    with archive.reading() as conn:
        rows = conn.execute(_HELD_DOCUMENTS, {"subject": subject}).all()
    try:
        arrivals = [replace(arrival_of(archive, row.path, tier=row.tier), source=row.source) for row in rows]
    except OSError as error:
        raise StorageFailed(f"what is held back cannot be read: {error.strerror}") from error
    return [arrival for arrival in arrivals if arrival.said.rejects]


def _settle(
    conn: Connection,
    *,
    item: int,
    how: How,
    reason: str,
    actor: Actor,
    new: Arrival | None,
    notes: Sequence[Arrival],
    at: datetime,
    now: datetime,
) -> None:
    found = item_of(conn, item)
    resolved = Resolved(at, actor.user, f"{how}: {reason}")
    if not close_item(conn, Kind(found.kind), found.subject, at=at, **resolved.said):
        raise Conflict("this work item is closed already")
    became: dict[str, Any] = {}
    if how in (How.ACCEPT, How.REJECT):
        accept = how == How.ACCEPT
        rows = settle_held(conn, found.subject, resolved, study_instance_uid=found.study, accept=accept)
        became["instances"] = len(rows)
        for uid in sorted({row.study_instance_uid for row in rows} if accept else ()):
            announce(conn, uid, at=now)
        for arrival in notes:
            apply_note(conn, replace(arrival, at=at))
            rejected(conn, arrival.header.sop_instance_uid, actor=actor, at=at, now=now)
    elif how == How.KEEP:
        became = keep_first(conn, found.subject, resolved)
    elif new is not None:
        became = replace_first(conn, new, resolved)
    detail = {"work_item": item, "kind": found.kind, "as": how, "reason": reason, **became}
    record(conn, actor, _event(found), "U", patient=found.patient, study=found.study, detail=detail)


def _event(found: Item) -> Event:
    if found.kind in (Kind.IDENTITY_CONFLICT, Kind.UID_CONFLICT):
        return Event.INSTANCES_ACCESSED
    return Event.ORDER_RECORD if found.kind in _ORDERS else Event.PATIENT_RECORD
