"""Reading the audit: who saw what, and what somebody saw (REQ-SEC-20). Reading it is itself audited, by the caller."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from archive.audit.chain import time_text
from archive.errors import InvalidRequest
from archive.schema import audit

MOST_ROWS = 1000

_ROWS = select(
    audit.c.pk,
    audit.c.time,
    audit.c.event,
    audit.c.action,
    audit.c.outcome,
    audit.c.user,
    audit.c.source,
    audit.c.door,
    audit.c.patient,
    audit.c.study,
    audit.c.detail,
).order_by(audit.c.pk.desc())


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows of the audit, the latest first; `next` is the cursor of the rest, None at the end."""

    items: list[dict[str, object]]
    next: str | None


@dataclass(frozen=True, slots=True)
class PatientSeen:
    """A patient whom a user had to do with: how many rows, and when first and last."""

    patient: str
    rows: int
    first: datetime
    last: datetime


def list_rows(
    conn: Connection,
    *,
    patient: str | None = None,
    user: str | None = None,
    study: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    event: str | None = None,
    action: str | None = None,
    outcome: int | None = None,
    number: int | None = None,
    limit: int = 100,
    after: str | None = None,
) -> AuditPage:
    """The rows that meet every given condition, in the reverse order of their writing.

    `patient` is an identifier as CX (`ID^^^issuer`), or the ID alone for every issuer of it; `user` a login, token
    name or AE title; `event` a code of DCM (`110104`); `since` is included, `until` is not; `number` is the `id` of one
    row. Items have the fields of sheet 60 §4 (`time, event, action, outcome, user, source, patient, study`), and `id`,
    `door` and `detail`.

    Raises InvalidRequest: `limit` is not 1 to 1000, or `after` is no cursor.
    """
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidRequest(f"limit is 1 to {MOST_ROWS}")
    given = {
        audit.c.user: user,
        audit.c.study: study,
        audit.c.event: event,
        audit.c.action: action,
        audit.c.outcome: outcome,
        audit.c.pk: number,
    }
    conditions: list[ColumnElement[bool]] = [column == value for column, value in given.items() if value is not None]
    conditions += _between(since, until)
    if patient is not None:
        conditions.append(_is_patient(patient))
    if after is not None:
        conditions.append(audit.c.pk < _cursor(after))
    rows = conn.execute(_ROWS.where(and_(True, *conditions)).limit(limit + 1)).mappings().all()
    items = [
        {
            "id": row["pk"],
            "time": time_text(row["time"]),
            "event": row["event"],
            "action": row["action"],
            "outcome": row["outcome"],
            "user": row["user"],
            "source": row["source"],
            "door": row["door"],
            "patient": row["patient"],
            "study": row["study"],
            "detail": _detail(row["detail"]),
        }
        for row in rows[:limit]
    ]
    return AuditPage(items, str(rows[limit - 1]["pk"]) if len(rows) > limit else None)


def patients_of(
    conn: Connection, user: str, *, since: datetime | None = None, until: datetime | None = None
) -> Sequence[PatientSeen]:
    """The patients whom a user had to do with, the latest first (REQ-SEC-20)."""
    last = func.max(audit.c.time)
    rows = conn.execute(
        select(audit.c.patient, func.count().label("rows"), func.min(audit.c.time).label("first"), last.label("last"))
        .where(audit.c.user == user, audit.c.patient.is_not(None), *_between(since, until))
        .group_by(audit.c.patient)
        .order_by(last.desc(), audit.c.patient)
    ).mappings()
    return [PatientSeen(row["patient"], row["rows"], row["first"], row["last"]) for row in rows]


def _detail(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # not as it was written: shown as it is, and verify-audit names the row
        return text


def _between(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(audit.c.time >= since)
    if until is not None:
        conditions.append(audit.c.time < until)
    return conditions


def _is_patient(patient: str) -> ColumnElement[bool]:
    """Exactly this identifier; or, without issuer, the ID under any issuer (`_` is what follows `^` bytewise)."""
    exactly = audit.c.patient == patient
    if "^" in patient:
        return exactly
    return or_(exactly, and_(audit.c.patient >= f"{patient}^^^", audit.c.patient < f"{patient}^^_"))


def _cursor(after: str) -> int:
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise InvalidRequest("this is no cursor of an earlier answer")
    return int(after)
