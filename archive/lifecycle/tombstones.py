"""What a purge leaves of each instance: its UIDs and digest, so that a late copy is refused (C0F2).

Only `minipacs import --restore-purged` lifts one: for an instance that is brought back, by somebody who says why.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select

from archive.access import Action, Actor, demand
from archive.audit.record import Event, record
from archive.core import Archive
from archive.errors import Conflict
from archive.index.rejections import lift_expired, note_rejection
from archive.journal import Kind, note
from archive.lifecycle.suspension import demanded_reason
from archive.schema import purge, tombstone
from archive.schema.upsert import insert
from archive.workflow.availability import announce

_OF_INSTANCE = (
    select(tombstone, purge.c.state, purge.c.patient)
    .select_from(tombstone.outerjoin(purge, purge.c.id == tombstone.c.purge_id))
    .where(tombstone.c.sop_instance_uid == bindparam("uid"))
    .with_for_update(of=tombstone)
)


def purged(conn: Connection, sop_instance_uid: str) -> bool:
    """Whether this instance was purged."""
    found = select(tombstone.c.pk).where(tombstone.c.sop_instance_uid == sop_instance_uid)
    return conn.execute(found).first() is not None


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of one instance; the digest is that of the data set as it was received (law 3)."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    digest: str


@dataclass(frozen=True, slots=True)
class Lifted:
    """A tombstone that was lifted, and of which purge it was."""

    remains: Remains
    study_instance_uid: str
    purge_id: str
    at: datetime  # of the purge


def add_tombstones(
    conn: Connection, purge_id: str, study_instance_uid: str, instances: Sequence[Remains], *, at: datetime
) -> None:
    """Leave one for each of `instances`. Those that are there stay."""
    if not instances:
        return
    added = insert(conn, tombstone).on_conflict_do_nothing(index_elements=["sop_instance_uid"])
    conn.execute(
        added,
        [
            {
                "sop_instance_uid": one.sop_instance_uid,
                "series_instance_uid": one.series_instance_uid,
                "study_instance_uid": study_instance_uid,
                "sop_class_uid": one.sop_class_uid,
                "digest": one.digest,
                "purge_id": purge_id,
                "at": at,
            }
            for one in instances
        ],
    )


class Lifting:
    """Lifts tombstones for one import: one audit row for each study, in its first instance's transaction (law 4).

    Thread-safe. Raises NotAllowed or InvalidRequest when it is made: not with this role, or without a reason.
    """

    def __init__(self, archive: Archive, *, reason: str, actor: Actor) -> None:
        demand(actor, Action.STORE)
        demand(actor, Action.RETENTION)
        self._archive = archive
        self._reason = demanded_reason(reason)
        self._actor = actor
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def lift(self, sop_instance_uid: str) -> Lifted | None:
        """Lift the tombstone of an instance that is about to be brought back; None: there is none.

        Raises:
            Conflict: its purge is not finished yet.
        """
        with self._lock:
            at = self._archive.clock()
            now = self._archive.real_clock()
            lifted = self._archive.commit.run(partial(self._lift, uid=sop_instance_uid, at=at, now=now))
            if lifted is not None:
                self._told.add(lifted.study_instance_uid)
            return lifted

    def put_back(self, lifted: Lifted) -> None:
        """It could not be brought back: late copies are refused as before."""
        self._archive.commit.run(partial(_put_back, lifted=lifted, now=self._archive.clock()))

    def _lift(self, conn: Connection, *, uid: str, at: datetime, now: datetime) -> Lifted | None:
        row = conn.execute(_OF_INSTANCE, {"uid": uid}).one_or_none()
        expired = lift_expired(conn, uid, by=self._actor.user, reason=self._reason, at=at)
        for note_uid in {one.note_uid for one in expired}:
            note_rejection(conn, note_uid, at=at)
        for study_uid in {one.study_instance_uid for one in expired}:
            announce(conn, study_uid, at=now)
        if row is None:
            self._tell(conn, next((one.study_instance_uid for one in expired), None), None, None)
            return None
        if row.state == "purging":
            raise Conflict("its purge is not finished: try again after the next tick")
        remains = Remains(uid, row.series_instance_uid, row.sop_class_uid, row.digest)
        lifted = Lifted(remains, row.study_instance_uid, row.purge_id, row.at)
        conn.execute(delete(tombstone).where(tombstone.c.sop_instance_uid == uid))
        _note(conn, lifted, lifted_now=True, at=at)
        self._tell(conn, lifted.study_instance_uid, row.patient or None, lifted.purge_id)
        return lifted

    def _tell(self, conn: Connection, study: str | None, patient: str | None, purge_id: str | None) -> None:
        """Once for each study: of which purge it is lifted (None: it was only rejected), and why."""
        if study is not None and study not in self._told:
            said = {"retention": "restore purged", "purge": purge_id, "reason": self._reason}
            record(conn, self._actor, Event.INSTANCES_ACCESSED, "C", patient=patient, study=study, detail=said)


def _put_back(conn: Connection, *, lifted: Lifted, now: datetime) -> None:
    add_tombstones(conn, lifted.purge_id, lifted.study_instance_uid, [lifted.remains], at=lifted.at)
    _note(conn, lifted, lifted_now=False, at=now)


def _note(conn: Connection, lifted: Lifted, *, lifted_now: bool, at: datetime) -> None:
    remains = lifted.remains
    body = {
        "purge": lifted.purge_id,
        "study": lifted.study_instance_uid,
        "series": remains.series_instance_uid,
        "sop_class": remains.sop_class_uid,
        "digest": remains.digest,
        "purged_at": lifted.at.isoformat(),
        "lifted": lifted_now,
    }
    note(conn, Kind.RESTORED, remains.sop_instance_uid, body, at=at)


def restore_restored(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make true again that a tombstone was lifted, or put back (`minipacs rebuild-index`), after its purge was made
    true again. `subject` is its SOP Instance UID. Safe to repeat."""
    if body["lifted"]:
        of_purge = tombstone.c.purge_id == body["purge"]  # a later purge's stands
        conn.execute(delete(tombstone).where(tombstone.c.sop_instance_uid == subject, of_purge))
        return
    remains = Remains(subject, body["series"], body["sop_class"], body["digest"])
    purged_at = datetime.fromisoformat(body["purged_at"])
    add_tombstones(conn, body["purge"], body["study"], [remains], at=purged_at)
