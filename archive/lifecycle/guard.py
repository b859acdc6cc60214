"""What stands between a study and its removal. Asked inside the transaction that announces, and again inside the one
that purges: whatever was decided before, in doubt it is kept (law 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

import orjson
from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select

from archive.config import Settings
from archive.dicom.patient_id import cx
from archive.instance import State
from archive.lifecycle.approvals import NEEDED, approved
from archive.lifecycle.suspension import suspensions
from archive.schema import hold, instance, patient, series, study
from archive.schema.types import AnyRow


class Blocker(StrEnum):
    """Why a study that is due does not go. In the words of a report."""

    SUSPENDED = "removal is suspended"
    HOLD = "hold"
    HELD_BACK = "instances held back"  # they contradict the record: perhaps another patient's
    APPROVALS = "approvals are missing"
    CHANGED = "a fact changed"  # its date is computed anew first
    FAILED = "a step failed"  # tried again later
    CAP = "the cap of this tick"  # the next one goes on


@dataclass(frozen=True, slots=True)
class Terms:
    """A study's dates, as the index has them. Days are YYYYMMDD."""

    pk: int
    study_instance_uid: str
    patient: str  # as the audit names it
    policy_version: str | None
    keep_until: str | None
    keep_reasons: list[object]
    announced_at: datetime | None
    purge_on: str | None
    online_until: str | None
    grace_until: datetime | None


def terms(conn: Connection, study_pk: int, *, lock: bool = False) -> Terms | None:
    """Of one study, locked against a change of facts if so asked; None: it is not there any more."""
    found = (
        select(
            study.c.pk,
            study.c.study_instance_uid,
            study.c.policy_version,
            study.c.keep_until,
            study.c.keep_reasons,
            study.c.announced_at,
            study.c.purge_on,
            study.c.online_until,
            study.c.grace_until,
            patient.c.patient_id,
            patient.c.issuer,
        )
        .join_from(study, patient)
        .where(study.c.pk == study_pk)
    )
    row = conn.execute(found.with_for_update(of=study) if lock else found).one_or_none()
    return None if row is None else _terms(row)


def _terms(row: AnyRow) -> Terms:
    return Terms(
        pk=row.pk,
        study_instance_uid=row.study_instance_uid,
        patient=cx(row.patient_id, row.issuer),
        policy_version=row.policy_version,
        keep_until=row.keep_until,
        keep_reasons=orjson.loads(row.keep_reasons or "[]"),
        announced_at=row.announced_at,
        purge_on=row.purge_on,
        online_until=row.online_until,
        grace_until=row.grace_until,
    )


def standing(on: date) -> ColumnElement[bool]:
    """A condition on `hold`: it is in force on that day; its last day is one of them."""
    return and_(hold.c.removed_at.is_(None), or_(hold.c.until.is_(None), hold.c.until >= f"{on:%Y%m%d}"))


def on_hold(on: date) -> ColumnElement[bool]:
    """A condition on `study`: somebody forbids that it goes, or becomes lossy."""
    return exists().where(hold.c.study_instance_uid == study.c.study_instance_uid, standing(on))


def is_on_hold(conn: Connection, study_pk: int, on: date) -> bool:
    """The same of one study."""
    return conn.execute(select(study.c.pk).where(study.c.pk == study_pk, on_hold(on))).first() is not None


def is_due(known: Terms, *, policy_version: str, on: date) -> bool:
    """Whether its date, computed from the facts and the policy as they are, has come."""
    current = known.policy_version is not None and known.policy_version == policy_version
    return current and known.keep_until is not None and known.keep_until <= f"{on:%Y%m%d}"


def keeps(conn: Connection, known: Terms, *, on: date) -> Blocker | None:
    """What keeps a study that is due from being announced."""
    if is_on_hold(conn, known.pk, on):
        return Blocker.HOLD
    if _holds_back(conn, known.pk):
        return Blocker.HELD_BACK
    return None


def forbids(conn: Connection, known: Terms, settings: Settings) -> Blocker | None:
    """What keeps a study whose notice is over from being purged, besides what `keeps` says."""
    if suspensions(conn):
        return Blocker.SUSPENDED
    if settings.retention.purge_approval == "two-person":
        assert known.announced_at is not None
        if approved(conn, known.study_instance_uid, since=known.announced_at) < NEEDED:
            return Blocker.APPROVALS
    return None


def _holds_back(conn: Connection, study_pk: int) -> bool:
    there = select(instance.c.pk).join_from(instance, series).where(series.c.study_pk == study_pk)
    held = or_(instance.c.state == State.HELD, instance.c.state_before == State.HELD)  # rejected, and still unsettled
    return conn.execute(there.where(held).limit(1)).first() is not None
