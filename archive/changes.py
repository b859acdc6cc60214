"""The feed of changes: what was stored, corrected, rejected, purged, under numbers that never change.

Nobody pays for it who does not read it: numbers are given when somebody asks, to what has been committed since. One
process at a time gives them, under a lock, so that a smaller number is never seen after a greater one. What is read are
the rows of instances and the journal of facts; a transaction that was long in the making is found too, since some rows
before the last one are looked at again.

Numbers belong to an index. One that was made anew (`minipacs rebuild-index`) begins a new feed, under another name.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, Select, and_, bindparam, func, select, text

from archive import journal
from archive.access import Action, Actor, demand
from archive.core import Archive
from archive.errors import Conflict
from archive.index.asked import audit_query
from archive.index.held import waiting
from archive.instance import State
from archive.schema import change, fact, instance, patient, series, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

BATCH = 1000  # of numbers given at once
ROUNDS = 10  # of them for one who asks
AGAIN = 1000  # rows before the last one that are looked at again
MOST = 1000  # changes of one answer


class Kind(StrEnum):
    """What became of a study."""

    STORED = "stored"  # an instance came
    UPDATED = "updated"  # images are others: replaced by lossy copies, accepted, taken back from a rejection
    REJECTED = "rejected"  # some of it, by a note
    CORRECTED = "corrected"  # it, or its patient: leaves with other attributes
    PURGED = "purged"
    NOTHING = "nothing"  # a fact that is about no study: its number is passed over
    BEGAN = "began"  # the feed: its number too


@dataclass(frozen=True, slots=True)
class Change:
    """One change. Series and instance are named where one instance came."""

    number: int
    at: datetime
    kind: Kind
    study_instance_uid: str
    series_instance_uid: str | None
    sop_instance_uid: str | None

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` gives it."""
        return {
            "seq": self.number,
            "at": self.at,
            "kind": str(self.kind),
            "study": self.study_instance_uid,
            "series": self.series_instance_uid,
            "instance": self.sop_instance_uid,
        }


@dataclass(frozen=True, slots=True)
class Page:
    """Some changes. `last` is what to ask from next; `done`: there were no more at that moment."""

    feed: str
    changes: list[Change]
    last: int
    done: bool


_OF_INSTANCES = and_(change.c.source == "instance", change.c.source_pk == instance.c.pk)
_NEW_INSTANCES: Select[Any] = (
    select(
        instance.c.pk,
        instance.c.received_at,
        instance.c.sop_instance_uid,
        series.c.series_instance_uid,
        study.c.study_instance_uid,
    )
    .select_from(instance.join(series).join(study).outerjoin(change, _OF_INSTANCES))
    # a copy in grace, and what is held back, is seen by nobody; that it is seen later is a fact
    .where(change.c.pk.is_(None), instance.c.state.not_in([State.PENDING, State.PURGING]), ~waiting())
    .order_by(instance.c.pk)
    .limit(BATCH)
)
_TOLD = {
    str(journal.Kind.STUDY): Kind.CORRECTED,
    str(journal.Kind.PATIENT): Kind.CORRECTED,
    str(journal.Kind.REJECTION): Kind.REJECTED,
    str(journal.Kind.REPLACED): Kind.UPDATED,
    str(journal.Kind.HELD): Kind.UPDATED,
    str(journal.Kind.CONFLICT): Kind.UPDATED,
    str(journal.Kind.PURGE): Kind.PURGED,
}
_OF_FACTS = and_(change.c.source == "fact", change.c.source_pk == fact.c.pk)
_NEW_FACTS: Select[Any] = (
    select(fact.c.pk, fact.c.at, fact.c.kind, fact.c.subject, fact.c.body)
    .select_from(fact.outerjoin(change, _OF_FACTS))
    .where(change.c.pk.is_(None), fact.c.kind.in_(sorted(_TOLD)))
    .order_by(fact.c.pk)
    .limit(BATCH)
)
_AFTER: Select[Any] = (
    select(change)
    .where(change.c.pk > bindparam("since"), change.c.kind.not_in([Kind.BEGAN, Kind.NOTHING]))
    .order_by(change.c.pk)
    .limit(bindparam("most"))
)
_BY_PATIENT = select(study.c.study_instance_uid).join_from(study, patient).order_by(study.c.pk)
_BY_INSTANCE = select(study.c.study_instance_uid).select_from(instance.join(series).join(study))


def changes(archive: Archive, *, since: int, limit: int, feed: str | None, actor: Actor) -> Page:
    """The changes after the number `since` (0: from the beginning), at most `limit` of them, in their order. That they
    were looked at is in the audit where there were any.

    Raises:
        NotAllowed: not with this role.
        Conflict: `since` is of another feed than the one there is: the index was made anew, begin at 0.
        Unavailable: the index cannot be read, or numbers not be given.
    """
    demand(actor, Action.FIND)
    page = read(archive, since=since, limit=limit, feed=feed)
    if page.changes:
        audit_query(archive.commit, actor, parameters={"query": {"changes": since, "found": len(page.changes)}})
    return page


def read(archive: Archive, *, since: int, limit: int, feed: str | None) -> Page:
    """The same for the archive itself, which writes down what it does with them. Raises as `changes`."""
    with archive.reading() as conn:
        name, last = _known(conn)
        behind = not name or bool(_unnumbered(conn))
    complete = not behind
    for _ in range(ROUNDS):
        if complete:
            break
        complete = archive.commit.run(partial(_number, at=archive.clock())) < BATCH
    with archive.reading() as conn:
        name, last = _known(conn)
        if since > last or (feed and feed != name):
            raise Conflict("the index was made anew, and its feed of changes too: begin at 0")
        rows = conn.execute(_AFTER, {"since": since, "most": limit + 1}).all()
    found = [_change(row) for row in rows[:limit]]
    if len(rows) > limit:
        return Page(name, found, found[-1].number, done=False)
    return Page(name, found, last, complete)


def _known(conn: Connection) -> tuple[str, int]:
    """The name of the feed and its last number; "" when there is none yet."""
    name = conn.execute(select(change.c.study_instance_uid).where(change.c.kind == Kind.BEGAN).limit(1)).scalar()
    return name or "", conn.execute(select(func.max(change.c.pk))).scalar() or 0


def _unnumbered(conn: Connection) -> list[dict[str, Any]]:
    """What has no number yet, as rows; the first some of it."""
    rows = [
        {
            "at": row.received_at,
            "kind": Kind.STORED,
            "study_instance_uid": row.study_instance_uid,
            "series_instance_uid": row.series_instance_uid,
            "sop_instance_uid": row.sop_instance_uid,
            "source": "instance",
            "source_pk": row.pk,
        }
        for row in conn.execute(_NEW_INSTANCES.where(instance.c.pk > _from(conn, "instance")))
    ]
    for row in conn.execute(_NEW_FACTS.where(fact.c.pk > _from(conn, "fact"))).all():
        kind, studies = _told(conn, row)
        rows += [
            {
                "at": row.at,
                "kind": kind if studies else Kind.NOTHING,
                "study_instance_uid": uid,
                "series_instance_uid": None,
                "sop_instance_uid": None,
                "source": "fact",
                "source_pk": row.pk,
            }
            for uid in dict.fromkeys(studies or [""])
        ]
    return sorted(rows, key=lambda row: (row["at"], row["source"] == "fact", row["source_pk"]))


def _from(conn: Connection, source: str) -> int:
    """Behind which row of a source to look."""
    last = conn.execute(select(func.max(change.c.source_pk)).where(change.c.source == source)).scalar() or 0
    return int(last) - AGAIN


def _told(conn: Connection, row: AnyRow) -> tuple[Kind, Sequence[str]]:
    """What a fact means for which studies; for none, where it is not for others."""
    body = orjson.loads(row.body)
    kind = _TOLD[row.kind]
    if kind is Kind.REJECTED:
        standing = [one for one in body["instances"] if one["revoked_at"] is None]
        return (kind if standing else Kind.UPDATED), [one["study"] for one in standing or body["instances"]]
    if kind is Kind.PURGED:
        return kind, [body["study"]] if body["done_at"] else []
    if row.kind == journal.Kind.PATIENT:
        return kind, _uids(conn, _BY_PATIENT.where(patient.c.identity_key == row.subject))
    if row.kind in (journal.Kind.STUDY, journal.Kind.REPLACED):
        return kind, [row.subject]
    return kind, _uids(conn, _BY_INSTANCE.where(instance.c.sop_instance_uid == row.subject))


def _uids(conn: Connection, statement: Select[Any]) -> Sequence[str]:
    return conn.execute(statement).scalars().all()


def _number(conn: Connection, *, at: datetime) -> int:
    """Give numbers to what has none, inside a write of `archive.commit`; how many were given."""
    if conn.dialect.name == "postgresql":  # SQLite has one writer anyway
        conn.execute(text("LOCK TABLE change IN EXCLUSIVE MODE"))
    name, _ = _known(conn)
    if not name:
        began = {"at": at, "kind": Kind.BEGAN, "study_instance_uid": uuid.uuid4().hex, "source": "feed", "source_pk": 0}
        conn.execute(insert(conn, change).values(began))
    rows = _unnumbered(conn)
    if rows:
        conn.execute(insert(conn, change).on_conflict_do_nothing(), rows)
    return len(rows)


def _change(row: AnyRow) -> Change:
    return Change(
        number=row.pk,
        at=row.at,
        kind=Kind(row.kind),
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
    )
