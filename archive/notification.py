"""Telling peers which instances of a study are available, and from where (PS3.4 Annex R, IHE RAD-49, REQ-DCM-55).

A study to tell of has a time in `notify_at`: a while after its last image (`archive.index.write`), or at once
(`archive.workflow.availability`). When that has come, each peer with `notify` is owed one job; what it is told is read
when it is told, so that a peer that was away hears how things stand then, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, null, select, union_all, update

from archive import jobs
from archive.access import SYSTEM
from archive.audit.record import Event, record
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.index.conditions import constant
from archive.index.held import held_back
from archive.instance import CURRENT, UNSEEN, Availability, CopyState, availability
from archive.schema import instance, location, patient, series, study, tombstone
from archive.sections import Dicom

JOB = "dicom.availability"
_AT_ONCE = 100

_DUE = (
    select(study.c.pk)
    .where(study.c.notify_at <= bindparam("now"))
    .order_by(study.c.notify_at, study.c.pk)
    .limit(_AT_ONCE)
)
# FOR UPDATE waits for images that are being filed (archive.index.write): they are told of, or set a new time
_STUDY = (
    select(study.c.study_instance_uid, patient.c.patient_id, patient.c.issuer)
    .join_from(study, patient)
    .where(study.c.pk == bindparam("study_pk"), study.c.notify_at <= bindparam("now"))
    .with_for_update(of=study)
)
_TOLD = update(study).where(study.c.pk == bindparam("study_pk")).values(notify_at=None)
_best = (
    select(func.max(location.c.tier))  # hot before cold
    .where(location.c.instance_pk == instance.c.pk, location.c.state == constant(str(CopyState.OK)))
    .scalar_subquery()
)
_OF_STUDY: Select[Any] = (
    select(
        series.c.series_instance_uid,
        instance.c.sop_class_uid,
        instance.c.sop_instance_uid,
        instance.c.state,
        _best.label("tier"),
    )
    .select_from(instance.join(series).join(study))
    .where(study.c.study_instance_uid == bindparam("uid"), instance.c.state.not_in(sorted(UNSEEN)), ~held_back())
)
_PURGED: Select[Any] = select(
    tombstone.c.series_instance_uid,
    tombstone.c.sop_class_uid,
    tombstone.c.sop_instance_uid,
    constant(""),
    null(),
).where(
    tombstone.c.study_instance_uid == bindparam("uid"),
    ~select(instance.c.pk).where(instance.c.sop_instance_uid == tombstone.c.sop_instance_uid).exists(),
)
_INSTANCES = union_all(_OF_STUDY, _PURGED).order_by("series_instance_uid", "sop_instance_uid")


@dataclass(frozen=True, slots=True)
class Told:
    """An instance, and what becomes of whoever asks for it."""

    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    availability: Availability


def owe_due(archive: Archive) -> int:
    """Owe the peers a job for each study whose time has come; how many studies there were.

    Raises:
        IndexUnavailable: it is tried again.
    """
    now = archive.real_clock()
    with archive.reading() as conn:
        pks = conn.execute(_DUE, {"now": now}).scalars().all()
    for pk in pks:
        archive.commit.run(partial(_owe_one, settings=archive.settings.dicom, study_pk=pk, now=now))
    return len(pks)


def _owe_one(conn: Connection, *, settings: Dicom, study_pk: int, now: datetime) -> None:
    row = conn.execute(_STUDY, {"study_pk": study_pk, "now": now}).first()
    if row is None:  # another process was quicker, or more images came
        return
    conn.execute(_TOLD, {"study_pk": study_pk})
    owe(conn, settings, row.study_instance_uid, patient=cx(row.patient_id, row.issuer), at=now)


def owe(conn: Connection, settings: Dicom, study_instance_uid: str, *, patient: str, at: datetime) -> None:
    """Owe each peer that wants to know a job for a study, in a write. `at` is real time, `patient` for the audit.

    For what changes a study that may be dropped before its time comes; else `archive.workflow.availability`.
    """
    peers = settings.listeners()
    for ae_title in peers:
        jobs.put(conn, JOB, {"study": study_instance_uid, "peer": ae_title}, at=at, once=True)
    if peers:
        detail = {"notification": peers}
        record(conn, SYSTEM, Event.INSTANCES_ACCESSED, "R", patient=patient, study=study_instance_uid, detail=detail)


def instances(archive: Archive, study_instance_uid: str) -> list[Told]:
    """What peers are told of a study, by series.

    Raises:
        IndexUnavailable: the database failed.
    """
    with archive.reading() as conn:
        return [
            Told(
                row.series_instance_uid,
                row.sop_class_uid,
                row.sop_instance_uid,
                availability(row.tier if row.state in CURRENT else None),
            )
            for row in conn.execute(_INSTANCES, {"uid": study_instance_uid})
        ]
