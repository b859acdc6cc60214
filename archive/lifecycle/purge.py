"""The end of a study's life: its images go, what proves that they went stays (sheet 00 §8, rule 4).

One transaction asks everything again and decides: tombstones, the row of the purge with its certificate, the audit, the
fact; from its COMMIT on no door knows the images. Then law 2: unlink, drop the rows, say that it is done. Power that
fails in between leaves a purge that is begun: the next tick finishes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial

import orjson
from sqlalchemy import Connection, bindparam, insert, select, update

from archive.access import SYSTEM
from archive.audit.record import Event, record
from archive.config import Settings
from archive.core import Archive
from archive.dicom.equipment import equipment_of
from archive.dicom.rejection_note import Rejected, rejection_note
from archive.instance import HIDDEN, State
from archive.lifecycle.announce import withdraw
from archive.lifecycle.certificate import certificate
from archive.lifecycle.compute import decide_one, dose_reports_until, policy_of
from archive.lifecycle.evidence import OtherNote, keep, keep_notes
from archive.lifecycle.finish import finish_purge, note_purge
from archive.lifecycle.guard import Blocker, Terms, forbids, is_due, keeps, terms
from archive.lifecycle.remove import mark_instances
from archive.lifecycle.tombstones import Remains, add_tombstones
from archive.notification import owe
from archive.policy import DOSE_REPORTS, local_day
from archive.schema import instance, patient, purge, quarantined, series, study

# A study with images that wait for a person stays (guard.keeps): those held that are left were rejected. What was
# rejected goes with its study, never before.
GOES = (State.STORED, State.PENDING, State.REPLACED, State.HELD, *HIDDEN)

_CONTENT = (
    select(
        instance.c.sop_instance_uid,
        series.c.series_instance_uid,
        instance.c.sop_class_uid,
        instance.c.digest,
        instance.c.pk,
        instance.c.state,
        instance.c.derived_from_pk,
    )
    .join_from(instance, series)
    .where(series.c.study_pk == bindparam("study_pk"), instance.c.state.in_([str(state) for state in GOES]))
    .order_by(series.c.pk, instance.c.pk)
)
_NAMES = (
    select(patient.c.attributes.label("patient_attributes"), study.c.attributes.label("study_attributes"))
    .join_from(study, patient)
    .where(study.c.pk == bindparam("study_pk"))
)
_QUARANTINED = select(
    quarantined.c.pk, quarantined.c.sop_instance_uid, quarantined.c.digest, quarantined.c.path
).order_by(quarantined.c.pk)


@dataclass(frozen=True, slots=True)
class Going(Remains):
    """An instance that goes."""

    pk: int
    state: str
    derived_from_pk: int | None


@dataclass(frozen=True, slots=True)
class Aside:
    """Other content under the UID of one that goes: kept in quarantine until now."""

    pk: int
    sop_instance_uid: str
    digest: str
    path: str


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is to go, as it was when the note was written; the transaction compares."""

    id: str
    known: Terms
    instances: tuple[Going, ...]
    aside: tuple[Aside, ...]
    note_uid: str
    note_path: str
    note_digest: str
    others: tuple[OtherNote, ...]


def purge_study(archive: Archive, study_pk: int) -> Blocker | None:
    """Purge a study whose notice is over; what keeps it, or None: it is gone.

    Raises:
        StorageFull, StorageFailed: the note cannot be kept, and nothing happened; or a file cannot be removed, and the
            next tick goes on.
        Unavailable: the index did not answer.
    """
    at = archive.clock()
    with archive.reading() as conn:
        found = _read(conn, archive.settings, study_pk, at=at)
    if found is Blocker.CHANGED:
        return archive.commit.run(partial(_keep_longer, study_pk=study_pk))
    if isinstance(found, Blocker):
        return found
    prepared = _prepare(archive, *found, at=at)
    # should this raise, the note stays: whether it was committed may be unknown (law 7)
    blocker = archive.commit.run(
        partial(_begin, prepared=prepared, settings=archive.settings, at=at, now=archive.real_clock())
    )
    if blocker is not None:
        for path in (prepared.note_path, *(one.path for one in prepared.others)):
            archive.hot.unlink(path)  # it tells of nothing
        return blocker
    finish_purge(archive, prepared.id)
    return None


def _read(
    conn: Connection, settings: Settings, study_pk: int, *, at: datetime, lock: bool = False
) -> Blocker | tuple[Terms, tuple[Going, ...], tuple[Aside, ...]]:
    """What is to go, if nothing keeps it."""
    known = terms(conn, study_pk, lock=lock)
    on = local_day(at)
    if known is None:
        return Blocker.CHANGED
    if blocker := _keeps(conn, settings, known, on=on):
        return blocker
    instances = _goes(conn, settings, known, on=on)
    if not instances:
        return Blocker.CHANGED
    return known, instances, _aside(conn, instances)


def _keeps(conn: Connection, settings: Settings, known: Terms, *, on: date) -> Blocker | None:
    """Everything is asked again, and the date computed again from the facts as they are now."""
    if not is_due(known, policy_version=policy_of(settings).version, on=on) or known.announced_at is None:
        return Blocker.CHANGED
    if known.purge_on is None or known.purge_on > f"{on:%Y%m%d}":
        return Blocker.CHANGED
    if blocker := keeps(conn, known, on=on):
        return blocker
    decided = decide_one(conn, settings, known.pk)
    if decided is None or decided[1].keep_until is None or decided[1].keep_until > on:
        return Blocker.CHANGED
    return forbids(conn, known, settings)


def _goes(conn: Connection, settings: Settings, known: Terms, *, on: date) -> tuple[Going, ...]:
    """Its images; radiation dose reports stay as long as they have to (sheet 30 §7)."""
    found = tuple(Going(*row) for row in conn.execute(_CONTENT, {"study_pk": known.pk}))
    if any(one.sop_class_uid in DOSE_REPORTS for one in found):
        until = dose_reports_until(conn, settings, known.pk)
        if until is None or until > on:
            return tuple(one for one in found if one.sop_class_uid not in DOSE_REPORTS)
    return found


def _dose_reports(conn: Connection, study_pk: int, going: Sequence[Going]) -> list[str]:
    """The dose reports that stay."""
    gone = {one.pk for one in going}
    found = (Going(*row) for row in conn.execute(_CONTENT, {"study_pk": study_pk}))
    return [one.sop_instance_uid for one in found if one.pk not in gone]


def _aside(conn: Connection, going: Sequence[Going]) -> tuple[Aside, ...]:
    found: list[Aside] = []
    for start in range(0, len(going), 1000):
        uids = [one.sop_instance_uid for one in going[start : start + 1000]]
        rows = conn.execute(_QUARANTINED.where(quarantined.c.sop_instance_uid.in_(uids)))
        found += [Aside(*row) for row in rows]
    return tuple(found)


def _prepare(
    archive: Archive, known: Terms, instances: tuple[Going, ...], aside: tuple[Aside, ...], *, at: datetime
) -> _Prepared:
    """Write the rejection note, durably, before the decision (law 1)."""
    with archive.reading() as conn:
        row = conn.execute(_NAMES, {"study_pk": known.pk}).one()
    made = rejection_note(
        {**orjson.loads(row.patient_attributes), **orjson.loads(row.study_attributes)},
        (Rejected(one.sop_instance_uid, one.series_instance_uid, one.sop_class_uid) for one in instances),
        equipment=equipment_of(archive.settings),
        at=at,
    )
    path, digest = keep(archive, made.content)
    others = keep_notes(archive, known.study_instance_uid)
    return _Prepared(str(uuid.uuid4()), known, instances, aside, made.sop_instance_uid, path, digest, others)


def _begin(conn: Connection, *, prepared: _Prepared, settings: Settings, at: datetime, now: datetime) -> Blocker | None:
    """The transaction that decides."""
    if conn.execute(select(purge.c.pk).where(purge.c.id == prepared.id)).first() is not None:
        return None  # an earlier try was committed, whatever its caller was told
    found = _read(conn, settings, prepared.known.pk, at=at, lock=True)
    if isinstance(found, Blocker):
        return _keep_longer(conn, prepared.known.pk) if found is Blocker.CHANGED else found
    known, instances, aside = found
    if (instances, aside) != (prepared.instances, prepared.aside):
        return Blocker.CHANGED
    uid = known.study_instance_uid
    paper = certificate(
        conn,
        settings,
        purge_id=prepared.id,
        known=known,
        instances=instances,
        aside=aside,
        note_uid=prepared.note_uid,
        note_digest=prepared.note_digest,
        others=prepared.others,
        dose_reports=_dose_reports(conn, known.pk, instances),
        at=at,
    )
    conn.execute(
        insert(purge).values(
            id=prepared.id,
            study_instance_uid=uid,
            patient=known.patient,
            state="purging",
            begun_at=at,
            certificate=orjson.dumps(paper).decode(),
            note_uid=prepared.note_uid,
            note_path=prepared.note_path,
            note_digest=prepared.note_digest,
        )
    )
    add_tombstones(conn, prepared.id, uid, instances, at=at)
    mark_instances(conn, [one.pk for one in instances])
    conn.execute(
        update(study)
        .where(study.c.pk == known.pk)
        .values(policy_version=None, announced_at=None, purge_on=None, grace_until=None)
    )
    note_purge(conn, prepared.id, at=at)
    said = {
        "purge": prepared.id,
        "instances": len(instances),
        "keep_until": known.keep_until,
        "announced_at": known.announced_at.isoformat() if known.announced_at else None,
        "policy_version": known.policy_version,
        "rejection_note": prepared.note_uid,
    }
    record(conn, SYSTEM, Event.STUDY_DELETED, "D", patient=known.patient, study=uid, detail=said)
    owe(conn, settings.dicom, uid, patient=known.patient, at=now)
    return None


def _keep_longer(conn: Connection, study_pk: int) -> Blocker:
    """A fact changed and nobody said so: the date is computed anew, and announced anew."""
    known = terms(conn, study_pk, lock=True)
    if known is not None:
        if known.announced_at is not None:
            withdraw(conn, known, str(Blocker.CHANGED))
        conn.execute(update(study).where(study.c.pk == study_pk).values(policy_version=None))
    return Blocker.CHANGED
