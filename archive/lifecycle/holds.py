"""Legal holds: somebody forbids that a study goes, or becomes lossy, until a day or until further notice.

A hold takes effect in its own transaction: the study's date is unknown from then on, an announced purge is withdrawn,
and a purge that has not begun finds the hold when it looks again. In grace, the originals stay and the tick removes the
derived copies. Holds belong to the Study Instance UID and outlive the index (`Kind.HOLD` in the journal of facts).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select, update

from archive.access import Action, Actor, demand
from archive.audit.record import Event, Outcome, record, refused
from archive.core import Archive
from archive.errors import Gone, InvalidRequest, NotAllowed, NotFound
from archive.index.asked import audit_query
from archive.instance import State
from archive.journal import Kind, note
from archive.lifecycle.announce import withdraw
from archive.lifecycle.guard import Terms, standing, terms
from archive.lifecycle.suspension import demanded_reason
from archive.policy import local_day
from archive.schema import hold, instance, series, study, tombstone
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

_FORGET = update(study).values(policy_version=None)
_LEFT = (
    select(instance.c.pk)
    .join_from(instance, series)
    .where(series.c.study_pk == bindparam("study_pk"), instance.c.state != State.PURGING)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold. `until` is its last day; None: until it is removed."""

    id: str
    study_instance_uid: str
    reason: str
    until: date | None
    placed_by: str
    placed_at: datetime
    removed_by: str | None = None
    removed_at: datetime | None = None

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` and the commands give it."""
        return {
            "id": self.id,
            "study": self.study_instance_uid,
            "reason": self.reason,
            "until": None if self.until is None else self.until.isoformat(),
            "placed_by": self.placed_by,
            "placed_at": self.placed_at.isoformat(),
            "removed_by": self.removed_by,
            "removed_at": None if self.removed_at is None else self.removed_at.isoformat(),
        }

    def body(self) -> dict[str, Any]:
        """As the journal keeps it: all but the id, which is the subject."""
        return {name: value for name, value in self.shape().items() if name != "id"}


def add_hold(archive: Archive, study_instance_uid: str, *, reason: str, until: date | None, actor: Actor) -> Hold:
    """Forbid that a study goes, or becomes lossy, up to and including `until`, or for good.

    Raises:
        NotAllowed: not with this role. InvalidRequest: no reason, or a last day that is over.
        NotFound: no such study. Gone: it was purged, or its purge has begun.
    """
    at = archive.clock()
    uid = study_instance_uid[:64]
    text = demanded_reason(reason)
    if until is not None and until < local_day(at):
        raise InvalidRequest("the last day of the hold is over")
    placed = Hold(str(uuid.uuid4()), uid, text, until, actor.user, at)
    try:
        demand(actor, Action.HOLD)
        archive.commit.run(partial(_add, placed=placed, actor=actor))
    except (NotAllowed, NotFound, Gone) as error:
        _refused(archive, actor, error, study=uid, act="placed")
        raise
    return placed


def _add(conn: Connection, *, placed: Hold, actor: Actor) -> None:
    known = _locked(conn, placed.study_instance_uid)
    if known is None or not _stands(conn, known.pk):
        purged = select(tombstone.c.pk).where(tombstone.c.study_instance_uid == placed.study_instance_uid).limit(1)
        if conn.execute(purged).first() is not None:
            raise Gone("the study was purged: there is nothing left to hold")
        raise NotFound("no such study")
    conn.execute(insert(conn, hold).values(_row(placed)))
    conn.execute(_FORGET.where(study.c.pk == known.pk))
    if known.announced_at is not None:
        withdraw(conn, known, "hold")
    _tell(conn, placed, known, actor, act="placed")


def remove_hold(archive: Archive, hold_id: str, *, actor: Actor) -> Hold:
    """End a hold. The study's dates count again; hospital clocks stood still meanwhile (CSP R.1112-7).

    Raises:
        NotAllowed: not with this role. NotFound: no such hold, or it is removed already.
    """
    try:
        demand(actor, Action.HOLD)
        return archive.commit.run(partial(_remove, hold_id=hold_id[:36], actor=actor, at=archive.clock()))
    except (NotAllowed, NotFound) as error:
        _refused(archive, actor, error, study=None, act="removed")
        raise


def _remove(conn: Connection, *, hold_id: str, actor: Actor, at: datetime) -> Hold:
    standing = (hold.c.id == hold_id, hold.c.removed_at.is_(None))
    row = conn.execute(select(hold).where(*standing).with_for_update()).one_or_none()
    if row is None:
        raise NotFound("no such hold")
    removed = {"removed_by": actor.user, "removed_at": at}
    conn.execute(update(hold).where(*standing).values(removed))
    ended = _hold(conn.execute(select(hold).where(hold.c.id == hold_id)).one())
    known = _locked(conn, ended.study_instance_uid)
    if known is not None:
        conn.execute(_FORGET.where(study.c.pk == known.pk))
    _tell(conn, ended, known, actor, act="removed")
    return ended


def holds(
    archive: Archive,
    *,
    study_instance_uid: str | None = None,
    everything: bool = False,
    after: str = "",
    limit: int | None = None,
    actor: Actor,
) -> list[Hold]:
    """Holds that stand today, or with `everything` also those that ended; the oldest first, after the id `after`. The
    look is in the audit within a second.

    Raises:
        NotAllowed: not with this role.
    """
    demand(actor, Action.FORESEE)
    with archive.reading() as conn:
        found = list_holds(
            conn,
            study_instance_uid=study_instance_uid,
            everything=everything,
            after=after,
            limit=limit,
            today=local_day(archive.clock()),
        )
    asked = {"query": {"holds": study_instance_uid or "all"}}
    audit_query(archive.commit, actor, parameters=asked, study=study_instance_uid)
    return found


def list_holds(
    conn: Connection,
    *,
    study_instance_uid: str | None = None,
    everything: bool = False,
    after: str = "",
    limit: int | None = None,
    today: date,
) -> list[Hold]:
    """The same, for whoever has looked at the study already."""
    found: Select[Any] = select(hold).order_by(hold.c.pk).limit(limit)
    if study_instance_uid is not None:
        found = found.where(hold.c.study_instance_uid == study_instance_uid)
    if not everything:
        found = found.where(standing(today))
    if after:
        found = found.where(hold.c.pk > select(hold.c.pk).where(hold.c.id == after).scalar_subquery())
    return [_hold(row) for row in conn.execute(found)]


def restore_hold(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make a hold, or its end, true again from its fact (`minipacs rebuild-index`). `subject` is its id. Idempotent."""
    values = _row(
        Hold(
            id=subject,
            study_instance_uid=body["study"],
            reason=body["reason"],
            until=None if body["until"] is None else date.fromisoformat(body["until"]),
            placed_by=body["placed_by"],
            placed_at=datetime.fromisoformat(body["placed_at"]),
            removed_by=body["removed_by"],
            removed_at=None if body["removed_at"] is None else datetime.fromisoformat(body["removed_at"]),
        )
    )
    conn.execute(insert(conn, hold).values(values).on_conflict_do_update(index_elements=["id"], set_=values))
    conn.execute(_FORGET.where(study.c.study_instance_uid == body["study"]))


def _locked(conn: Connection, study_instance_uid: str) -> Terms | None:
    pk = conn.execute(select(study.c.pk).where(study.c.study_instance_uid == study_instance_uid)).scalar()
    return None if pk is None else terms(conn, pk, lock=True)


def _stands(conn: Connection, study_pk: int) -> bool:
    """Whether anything of a study is there that is not being removed."""
    return conn.execute(_LEFT, {"study_pk": study_pk}).first() is not None


def _tell(conn: Connection, one: Hold, known: Terms | None, actor: Actor, *, act: str) -> None:
    note(conn, Kind.HOLD, one.id, one.body(), at=one.removed_at or one.placed_at)
    said = {"hold": act, "id": one.id, "reason": one.reason, "until": one.body()["until"]}
    patient = None if known is None else known.patient
    record(conn, actor, Event.INSTANCES_ACCESSED, "U", patient=patient, study=one.study_instance_uid, detail=said)


def _refused(archive: Archive, actor: Actor, error: Exception, *, study: str | None, act: str) -> None:
    outcome = Outcome.SERIOUS_FAILURE if isinstance(error, NotAllowed) else Outcome.MINOR_FAILURE
    said = {"hold": act}
    refused(
        archive.commit,
        actor,
        Event.INSTANCES_ACCESSED,
        "U",
        reason=str(error),
        outcome=outcome,
        study=study,
        detail=said,
    )


def _row(one: Hold) -> dict[str, Any]:
    return {
        "id": one.id,
        "study_instance_uid": one.study_instance_uid,
        "reason": one.reason,
        "until": None if one.until is None else f"{one.until:%Y%m%d}",
        "placed_by": one.placed_by,
        "placed_at": one.placed_at,
        "removed_by": one.removed_by,
        "removed_at": one.removed_at,
    }


def _hold(row: AnyRow) -> Hold:
    return Hold(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        reason=row.reason,
        until=None if row.until is None else date.fromisoformat(row.until),
        placed_by=row.placed_by,
        placed_at=row.placed_at,
        removed_by=row.removed_by,
        removed_at=row.removed_at,
    )
