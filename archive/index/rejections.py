"""Rejections (IHE IOCM, sheet 30 §9): which notes reject which instances, and the state that follows from it.

The rows of `rejection` are the truth; `instance.state` of what they name follows them, in the same transaction. An
original and its lossy copy are one image: whichever a note names, both are hidden. A note of (113039, DCM), and one
that was revoked, are hidden themselves. Everything here runs inside a write of `archive.commit`, safe to run twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import BindParameter, Connection, bindparam, delete, func, or_, select, update

from archive.dicom.document import KeyObject
from archive.errors import Gone, RejectedBefore
from archive.instance import HIDDEN, Rejection, State, hidden_as
from archive.journal import Kind, note
from archive.schema import instance, rejection, series, study
from archive.schema.prepared import Prepared
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

T = TypeVar("T")
WAITS = timedelta(days=30)  # for an instance that a note names and that has not come
_BATCH = 500
_UIDS: BindParameter[Sequence[str]] = bindparam("uids", expanding=True)
_PKS: BindParameter[Sequence[int]] = bindparam("pks", expanding=True)
_MEMBER = (
    select(
        instance.c.pk,
        instance.c.sop_instance_uid,
        instance.c.state,
        instance.c.state_before,
        instance.c.derived_from_pk,
        instance.c.received_at,
        study.c.study_instance_uid,
    )
    .select_from(instance.join(series).join(study))
    .where(instance.c.state.not_in([State.PURGING, State.PENDING]))  # a copy in grace is unknown at every door
)
_STANDING = select(rejection).where(rejection.c.sop_instance_uid.in_(_UIDS), rejection.c.revoked_at.is_(None))
_NOTES = select(rejection.c.note_uid).where(
    rejection.c.note_uid.in_(_UIDS), or_(rejection.c.code == Rejection.EXPIRED, rejection.c.revoked_at.is_not(None))
)
_APPLIED = (
    update(rejection)
    .where(rejection.c.pk.in_(_PKS), rejection.c.applied_at.is_(None))
    .values(applied_at=bindparam("now"))
)
_STATE = update(instance).where(instance.c.pk == bindparam("of_pk"))
_HIDE = _STATE.values(state=bindparam("new_state"), state_before=bindparam("before"))
_of_note = rejection.alias("of_note")
_REJECTED_NOTES = (  # notes whose rejections stand although they are hidden by another one
    select(rejection.c.note_uid, func.min(_of_note.c.note_uid).label("by_note"))
    .join_from(rejection, _of_note, _of_note.c.sop_instance_uid == rejection.c.note_uid)
    .where(
        rejection.c.note_uid.in_(_UIDS),
        rejection.c.code != Rejection.EXPIRED,
        rejection.c.revoked_at.is_(None),
        _of_note.c.applied_at.is_not(None),
        _of_note.c.revoked_at.is_(None),
    )
    .group_by(rejection.c.note_uid)
)
_LOCK = (  # against receptions, which share it (archive.lifecycle.compute): whoever comes second sees the other
    select(study.c.pk).where(study.c.study_instance_uid.in_(_UIDS)).order_by(study.c.pk).with_for_update(of=study)
)
_FORGET = update(study).where(study.c.study_instance_uid.in_(_UIDS)).values(policy_version=None)
_ANY = Prepared(select(rejection.c.pk).where(rejection.c.sop_instance_uid == bindparam("uid")))
_OF_NOTE = select(rejection).where(rejection.c.note_uid == bindparam("note")).order_by(rejection.c.pk)


def notes_among(conn: Connection, uids: Iterable[str]) -> set[str]:
    """Those of these instances that are rejection notes, whatever became of what they say."""
    found: set[str] = set()
    listed = sorted(uids)
    for start in range(0, len(listed), _BATCH):
        some = {"uids": listed[start : start + _BATCH]}
        found.update(conn.execute(select(rejection.c.note_uid).where(rejection.c.note_uid.in_(_UIDS)), some).scalars())
    return found


def refuse_again(conn: Connection, sop_instance_uid: str) -> None:
    """Raise when an instance that comes again was rejected for good, in whichever form.

    Raises:
        Gone: its retention is over (113039).
        RejectedBefore: 113037 or 113038.
    """
    members = [row for image in _images(conn, [sop_instance_uid]).values() for row in image]
    codes = {row.code for row in conn.execute(_STANDING, {"uids": [row.sop_instance_uid for row in members]})}
    if Rejection.EXPIRED in codes:
        raise Gone("it was rejected at the end of its retention")
    for code in (Rejection.SAFETY, Rejection.WORKLIST):
        if code in codes:
            raise RejectedBefore(f"it was rejected ({code}) and is not taken again", code=code)


def add_note(
    conn: Connection, note_uid: str, found: KeyObject, *, study_instance_uid: str, by: str, at: datetime
) -> None:
    """File what a rejection note names, and hide what of it is here."""
    added = insert(conn, rejection).on_conflict_do_nothing(index_elements=["note_uid", "sop_instance_uid"])
    rows = [
        {
            "note_uid": note_uid,
            "code": found.title,
            "note_study": study_instance_uid,
            "study_instance_uid": one.study_instance_uid,
            "sop_instance_uid": one.sop_instance_uid,
            "rejected_at": at,
            "rejected_by": by,
        }
        for one in found.named
    ]
    if rows:
        _lock(conn, {study_instance_uid, *(one.study_instance_uid for one in found.named)})
        conn.execute(added, rows)
        named = [note_uid, *(one.sop_instance_uid for one in found.named)]
        settle(conn, named, at=at)
        _revoke_rejected(conn, named, at=at)


def _revoke_rejected(conn: Connection, uids: Sequence[str], *, at: datetime) -> None:
    """A note that is rejected itself rejects no more, but for one of (113039, DCM)."""
    for some in _batches(uids):
        for row in conn.execute(_REJECTED_NOTES, {"uids": some}).all():
            revoke(conn, row.note_uid, by=row.by_note, reason="rejected", at=at)


def settle_arrival(conn: Connection, sop_instance_uid: str, *, at: datetime) -> None:
    """Hide an instance that has just come, where a note that came before it says so."""
    if _ANY.first(conn, {"uid": sop_instance_uid}) is not None:
        settle(conn, [sop_instance_uid], at=at)


def _lock(conn: Connection, study_uids: Iterable[str]) -> None:
    """Have the dates of these studies computed anew, and keep everybody else from changing what is in them."""
    for some in _batches(sorted(set(study_uids))):
        conn.execute(_LOCK, {"uids": some}).all()
        conn.execute(_FORGET, {"uids": some})


def revoked_with(conn: Connection, note_uid: str) -> list[str]:
    """The notes that were revoked when this one came: those that it rejects, or itself, rejected before it came."""
    by_it = select(rejection.c.note_uid).where(rejection.c.revoked_by == note_uid)
    it = select(rejection.c.note_uid).where(rejection.c.note_uid == note_uid, rejection.c.revoked_at.is_not(None))
    return sorted(set(conn.execute(by_it).scalars()) | set(conn.execute(it).scalars()))


def revoke(conn: Connection, note_uid: str, *, by: str, reason: str, at: datetime) -> None:
    """End the rejections of a note: what it hid is what it was before, unless another note hides it too."""
    mine = (rejection.c.note_uid == note_uid) & rejection.c.revoked_at.is_(None)
    conn.execute(update(rejection).where(mine).values(revoked_at=at, revoked_by=by, reason=reason))
    settle(conn, [note_uid, *(row.sop_instance_uid for row in of_note(conn, note_uid))], at=at)


def settle(conn: Connection, uids: Iterable[str], *, at: datetime) -> None:
    """Give instances, and the other form of the same images, the state that follows from the notes."""
    for some in _batches(dict.fromkeys(uids)):
        _settle(conn, some, at)


def _settle(conn: Connection, uids: list[str], at: datetime) -> None:
    images = _images(conn, uids)
    if not images:
        return
    _lock(conn, (row.study_instance_uid for image in images.values() for row in image))
    images = _images(conn, uids)  # as they are, now that nobody switches them
    members = [row for image in images.values() for row in image]
    named = [row.sop_instance_uid for row in members]
    codes: dict[str, list[AnyRow]] = defaultdict(list)
    for some in _batches(named):
        for row in conn.execute(_STANDING, {"uids": some}):
            codes[row.sop_instance_uid].append(row)
    evidence = {uid for some in _batches(named) for uid in conn.execute(_NOTES, {"uids": some}).scalars()}
    changes: list[dict[str, Any]] = []
    applied: set[int] = set()
    for image in images.values():
        received = min(row.received_at for row in image)
        standing = [one for row in image for one in codes[row.sop_instance_uid] if _applies(one, row, received)]
        applied.update(one.pk for one in standing if one.applied_at is None)
        wanted = hidden_as([one.code for one in standing])
        changes += [
            change
            for row in image
            if (change := _change(row, State.REJECTED if row.sop_instance_uid in evidence else wanted)) is not None
        ]
    if changes:
        conn.execute(_HIDE, changes)
    for some in _batches(applied):
        conn.execute(_APPLIED, {"pks": some, "now": at})


def _applies(one: AnyRow, row: AnyRow, received: datetime) -> bool:
    """Whether a rejection is of this instance: of its study, and not older than a note waits for what it names."""
    in_time = one.applied_at is not None or received - one.rejected_at <= WAITS
    return in_time and bool(one.study_instance_uid == row.study_instance_uid)


def _change(row: AnyRow, wanted: State | None) -> dict[str, Any] | None:
    hidden = row.state in HIDDEN
    if wanted is None:
        return {"of_pk": row.pk, "new_state": row.state_before or State.STORED, "before": None} if hidden else None
    before = row.state_before if hidden else row.state
    if before == State.HELD:  # perhaps another patient's: whoever judges quality does not see it either
        wanted = State.REJECTED
    return None if row.state == wanted else {"of_pk": row.pk, "new_state": wanted, "before": before}


def _images(conn: Connection, uids: list[str]) -> dict[int, list[AnyRow]]:
    """The instances with these UIDs, each with the other form of the same image, by the key of what came."""
    found = {row.pk: row for row in conn.execute(_MEMBER.where(instance.c.sop_instance_uid.in_(_UIDS)), {"uids": uids})}
    originals = [row.derived_from_pk or row.pk for row in found.values()]
    for some in _batches(dict.fromkeys(originals)):
        family = or_(instance.c.pk.in_(_PKS), instance.c.derived_from_pk.in_(_PKS))
        found |= {row.pk: row for row in conn.execute(_MEMBER.where(family), {"pks": some})}
    images: dict[int, list[AnyRow]] = defaultdict(list)
    for pk in sorted(found):
        images[found[pk].derived_from_pk or pk].append(found[pk])
    return images


def show(conn: Connection, sop_instance_uid: str) -> None:
    """Give a hidden image the state that it had, for as long as it is filed once more; then `settle` hides it again."""
    changes = [
        change
        for image in _images(conn, [sop_instance_uid]).values()
        for row in image
        if (change := _change(row, None)) is not None
    ]
    if changes:
        conn.execute(_HIDE, changes)


def lift_expired(conn: Connection, sop_instance_uid: str, *, by: str, reason: str, at: datetime) -> list[AnyRow]:
    """What retention removed, or hid, is brought back: the notes of (113039, DCM) that name it, in whichever form, do
    so no more. Returns their rows: `note_uid`, `study_instance_uid`."""
    members = [row.sop_instance_uid for image in _images(conn, [sop_instance_uid]).values() for row in image]
    uids = members or [sop_instance_uid]
    expired = _STANDING.where(rejection.c.code == Rejection.EXPIRED)
    rows = list(conn.execute(expired, {"uids": uids}))
    if rows:
        values = {"revoked_at": at, "revoked_by": by, "reason": reason}
        conn.execute(update(rejection).where(rejection.c.pk.in_([row.pk for row in rows])).values(values))
        settle(conn, uids, at=at)
    return rows


def note_rejection(conn: Connection, note_uid: str, *, at: datetime) -> None:
    """Record the fact: what a note rejects, and what of it was revoked."""
    if rows := of_note(conn, note_uid):
        note(conn, Kind.REJECTION, note_uid, body_of(rows), at=at)


def of_note(conn: Connection, note_uid: str) -> Sequence[AnyRow]:
    """The rows of a note, in its order."""
    return conn.execute(_OF_NOTE, {"note": note_uid}).all()


def body_of(rows: Sequence[AnyRow]) -> dict[str, Any]:
    """All that `restore_rejection` needs to make these rows of one note again."""
    first = rows[0]
    return {
        "code": first.code,
        "study": first.note_study,
        "at": first.rejected_at.isoformat(),
        "by": first.rejected_by,
        "instances": [
            {
                "study": row.study_instance_uid,
                "uid": row.sop_instance_uid,
                "applied_at": _written(row.applied_at),
                "revoked_at": _written(row.revoked_at),
                "revoked_by": row.revoked_by,
                "reason": row.reason,
            }
            for row in rows
        ],
    }


def restore_rejection(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make it true again what the note `subject` rejects (`minipacs rebuild-index`). Idempotent."""
    conn.execute(delete(rejection).where(rejection.c.note_uid == subject))
    rows = [
        {
            "note_uid": subject,
            "code": body["code"],
            "note_study": body["study"],
            "study_instance_uid": one["study"],
            "sop_instance_uid": one["uid"],
            "rejected_at": datetime.fromisoformat(body["at"]),
            "rejected_by": body["by"],
            "applied_at": _read(one["applied_at"]),
            "revoked_at": _read(one["revoked_at"]),
            "revoked_by": one["revoked_by"],
            "reason": one["reason"],
        }
        for one in body["instances"]
    ]
    if rows:
        conn.execute(rejection.insert(), rows)
    settle(conn, [subject, *(one["uid"] for one in body["instances"])], at=at)


def _written(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _read(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _batches(things: Collection[T] | Mapping[T, Any]) -> Iterator[list[T]]:
    listed = list(things)
    return (listed[start : start + _BATCH] for start in range(0, len(listed), _BATCH))
