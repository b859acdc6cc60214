"""A person settles what waited for one; who, when, how and why stays with it and in the audit."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from archive.access import Actor
from archive.audit.record import Event, record
from archive.errors import InvalidRequest
from archive.work_items import How, Kind, settle_item

_ORDERS = frozenset({Kind.ORDER_CLOSED_WITH_IMAGES, Kind.ORDER_UNMATCHED, Kind.STUDY_UID_CHANGED})
MAX_REASON = 2000  # characters


def settle(conn: Connection, item: int, *, how: str, reason: str, actor: Actor, at: datetime) -> None:
    """Close the work item numbered `item`. It opens again when its cause comes up again.

    Raises:
        InvalidRequest: no such way of settling, or no reason.
        NotFound: no such item.
        Conflict: it is closed already, or bytes are held back because of it.
    """
    if how not in list(How):
        raise InvalidRequest(f"an item is settled as one of: {', '.join(How)}")
    if not reason.strip() or len(reason) > MAX_REASON:
        raise InvalidRequest(f"give a reason, of {MAX_REASON} characters at most")
    found = settle_item(conn, item, how=How(how), reason=reason.strip(), at=at, by=actor.user)
    event = Event.ORDER_RECORD if found.kind in _ORDERS else Event.PATIENT_RECORD
    detail = {"work_item": item, "kind": found.kind, "as": how, "reason": reason.strip()}
    record(conn, actor, event, "U", patient=found.patient, study=found.study, detail=detail)
