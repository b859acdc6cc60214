"""Saying that images are not to be used any more, seeing what was rejected, and taking it back (IHE IOCM, Change
Requester; sheet 30 §9). What is said here becomes a rejection note that goes the way of every instance."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, select

from archive import retrieve
from archive.access import Action, Actor, demand
from archive.audit.record import Event, refused
from archive.core import Archive
from archive.dicom.equipment import equipment_of
from archive.dicom.rejection_note import TITLES, Rejected, rejection_note
from archive.errors import Conflict, Gone, InvalidRequest, NotAllowed, NotFound, StillKept
from archive.index.asked import audit_query
from archive.index.rejections import notes_among, of_note, revoke
from archive.ingest import ingest
from archive.instance import TAKEN_IN, Rejection
from archive.lifecycle.compute import explain
from archive.lifecycle.suspension import demanded_reason
from archive.outgoing import outgoing
from archive.policy import local_day
from archive.schema import instance, rejection
from archive.schema.types import AnyRow
from archive.storage.part10 import Part10
from archive.studies import describe
from archive.workflow.rejections import tell

BY_HAND = (Rejection.QUALITY, Rejection.WORKLIST, Rejection.SAFETY)  # retention writes 113039 by itself


@dataclass(frozen=True, slots=True)
class Named:
    """One instance that a note names."""

    sop_instance_uid: str
    applied: bool  # it is, or was, hidden; else it has not come yet


@dataclass(frozen=True, slots=True)
class Note:
    """One rejection note and what it rejects."""

    uid: str  # SOP Instance UID of the note
    code: str
    study_instance_uid: str
    at: datetime
    by: str
    instances: tuple[Named, ...]
    revoked_at: datetime | None
    revoked_by: str | None
    reason: str | None  # of the revocation

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` gives it."""
        return {
            "note": self.uid,
            "code": self.code,
            "meaning": TITLES[self.code],
            "study": self.study_instance_uid,
            "at": self.at,
            "by": self.by,
            "instances": [{"sop_instance_uid": one.sop_instance_uid, "applied": one.applied} for one in self.instances],
            "revoked_at": self.revoked_at,
            "revoked_by": self.revoked_by,
            "reason": self.reason,
        }


def reject(
    archive: Archive,
    study: str,
    *,
    code: str,
    reason: str,
    series: Collection[str] = (),
    instances: Collection[str] = (),
    actor: Actor,
) -> Note:
    """Reject a study, or of it the series and instances that are named, with a note that says why.

    Raises:
        NotAllowed: not with this role; it is audited.
        InvalidRequest: no such code, no reason, or the note of another rejection is meant.
        NotFound, Gone: nothing of that is there.
        Conflict: the note contradicts the record.
        Unavailable: nothing was done.
    """
    _demand(archive, actor, study)
    if code not in BY_HAND:
        raise InvalidRequest(f"the code of a rejection is one of {', '.join(BY_HAND)}")
    text = demanded_reason(reason)
    found = _chosen(archive, study, series, instances, quality=code != Rejection.QUALITY)
    with archive.reading() as conn:
        known = describe(conn, study)
    if known is None:
        raise NotFound("no such study")
    made = rejection_note(
        known.attributes,
        (Rejected(one.sop_instance_uid, one.series_instance_uid, one.sop_class_uid) for one in found),
        equipment=equipment_of(archive.settings),
        at=archive.clock(),
        text=text,
        title=(code, TITLES[code]),
    )
    file = Part10(archive.hot, at=archive.clock(), source_ae=archive.settings.dicom.ae_title)
    try:
        file.feed(made.content)
        incoming = file.finish()
    except BaseException:
        file.discard()
        raise
    if ingest(archive, incoming, actor=actor) not in TAKEN_IN:
        raise Conflict("the rejection note contradicts the record of the study, and was held back")
    with archive.reading() as conn:
        return _note(list(of_note(conn, made.sop_instance_uid)))


def dismiss(
    archive: Archive,
    study: str,
    *,
    code: str,
    reason: str,
    series: Collection[str] = (),
    instances: Collection[str] = (),
    actor: Actor,
) -> Note:
    """Reject what nothing keeps any more: what a DELETE means here. Files go at a purge, never by this.

    Raises:
        StillKept: the time of the study has not come; it is audited. `reject` takes images out of sight before.
        and as `reject`.
    """
    _demand(archive, actor, study)
    _chosen(archive, study, series, instances, quality=code != Rejection.QUALITY)
    kept = explain(archive, study)
    if kept["date"] is None or kept["date"] > local_day(archive.clock()).isoformat():
        why = "its time of keeping is not over"
        refused(archive.commit, actor, Event.INSTANCES_ACCESSED, "D", reason=why, study=study[:64])
        raise StillKept(
            f"{why}: nothing of it is deleted; what is not to be seen is rejected with a reason",
            until=kept["date"],
            reasons=kept["reasons"],
        )
    return reject(archive, study, code=code, reason=reason, series=series, instances=instances, actor=actor)


def _chosen(
    archive: Archive, study: str, series: Collection[str], instances: Collection[str], *, quality: bool
) -> list[retrieve.Stored]:
    """What is seen of what is named; all of the study when nothing is."""
    everything = retrieve.select(archive, study_uids=[study], quality=quality)
    with archive.reading() as conn:
        notes = notes_among(conn, {one.sop_instance_uid for one in everything})
    if not series and not instances:
        found = [one for one in everything if one.sop_instance_uid not in notes]
    else:
        if notes & set(instances):
            raise InvalidRequest("this is a rejection note: it is revoked, not rejected")
        found = [
            one
            for one in everything
            if one.sop_instance_uid in instances
            or (one.series_instance_uid in series and one.sop_instance_uid not in notes)
        ]
        there = {one.sop_instance_uid for one in found} | {one.series_instance_uid for one in found}
        if missing := {*series, *instances} - there:
            raise NotFound(f"{len(missing)} of what is named is not there")
    if found:
        return found
    if why := retrieve.why_gone(archive, study_uid=study):
        raise Gone(f"nothing of this study is there to be rejected: it {why}")
    raise NotFound("nothing of this study is there to be rejected")


def rejections(archive: Archive, study: str, *, actor: Actor) -> list[Note]:
    """The notes that reject something of a study, the oldest first, those that were revoked among them. That it was
    looked at is in the audit within a second.

    Raises:
        NotAllowed: not with this role.
    """
    demand(actor, Action.REVIEW)
    found = select(rejection).where(rejection.c.study_instance_uid == study[:64])
    with archive.reading() as conn:
        rows = conn.execute(found.order_by(rejection.c.note_uid, rejection.c.pk)).all()
    audit_query(archive.commit, actor, parameters={"query": {"rejections": study[:64]}}, study=study[:64])
    notes = [_note(list(some)) for _, some in groupby(rows, key=lambda row: row.note_uid)]
    return sorted(notes, key=lambda one: (one.at, one.uid))


def revoke_note(archive: Archive, note_uid: str, *, reason: str, actor: Actor) -> None:
    """Take a rejection back: what the note hid is what it was before, unless another note hides it too; the note itself
    is seen no more.

    Raises:
        NotAllowed: not with this role; it is audited.
        InvalidRequest: no reason.
        NotFound: no such note, or it is revoked already.
        Conflict: its images went, or go, by retention (113039): a hold keeps them, an import brings them back.
    """
    _demand(archive, actor, None)
    text = demanded_reason(reason)
    at, now = archive.clock(), archive.real_clock()
    archive.commit.run(partial(_revoke, note_uid=note_uid[:64], reason=text, actor=actor, at=at, now=now))


def _revoke(conn: Connection, *, note_uid: str, reason: str, actor: Actor, at: datetime, now: datetime) -> None:
    standing = [row for row in of_note(conn, note_uid) if row.revoked_at is None]
    if not standing:
        raise NotFound("no such rejection note, or it is revoked already")
    if standing[0].code == Rejection.EXPIRED:
        raise Conflict("what was rejected at the end of its retention is kept by a hold, or brought back by an import")
    revoke(conn, note_uid, by=actor.user, reason=reason, at=at)
    tell(conn, note_uid, actor=actor, at=at, now=now, revoked=True, reason=reason)


def note_file(archive: Archive, note_uid: str, *, actor: Actor) -> Iterator[bytes]:
    """A rejection note as a PS3.10 file, in pieces, also where queries do not show it. Its handing over is audited.

    Raises:
        NotAllowed: not with this role. NotFound: no such note. StorageFailed: no good copy is left.
    """
    demand(actor, Action.REVIEW)
    with archive.reading() as conn:
        there = conn.execute(
            select(instance.c.pk)
            .where(instance.c.sop_instance_uid == note_uid[:64], instance.c.sop_instance_uid == rejection.c.note_uid)
            .limit(1)
        ).first()
    found = retrieve.select(archive, instance_uids=[note_uid[:64]], hidden=True) if there else []
    if not found:
        raise NotFound("no such rejection note")
    os.close(found[0].open())  # whether its copy is there is known before it is promised
    access = retrieve.open_access(archive, found, actor=actor)
    access.count(found[0], found[0].data_set_bytes)
    return outgoing(archive, found[0]).file(found[0].transfer_syntax_uid)


def _demand(archive: Archive, actor: Actor, study: str | None) -> None:
    try:
        demand(actor, Action.REJECT)
    except NotAllowed as error:
        refused(archive.commit, actor, Event.INSTANCES_ACCESSED, "D", reason=str(error), study=study and study[:64])
        raise


def _note(rows: list[AnyRow]) -> Note:
    first = rows[0]
    standing = any(row.revoked_at is None for row in rows)
    return Note(
        uid=first.note_uid,
        code=first.code,
        study_instance_uid=first.note_study,
        at=first.rejected_at,
        by=first.rejected_by,
        instances=tuple(Named(row.sop_instance_uid, row.applied_at is not None) for row in rows),
        revoked_at=None if standing else first.revoked_at,
        revoked_by=None if standing else first.revoked_by,
        reason=None if standing else first.reason,
    )
