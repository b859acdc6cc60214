"""Telling the DRIMbox that a study with a manifest changed (REQ-DRIM-05, REQ-HL7-99): images were rejected, came, went,
or leave with other attributes.

What changed is read off the feed of changes. In one transaction the jobs are owed, `hl7.omi` for a message and
`dicom.send` for rejection notes, and the number is kept up to which was told: none is lost, whoever stops when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Connection, select, update

from archive import jobs, sending
from archive.access import SYSTEM
from archive.audit.record import Event, record
from archive.changes import Change, Kind, read
from archive.config import Settings
from archive.core import Archive
from archive.errors import Conflict
from archive.identity.demographics import Found, found_of
from archive.index.patients import owner_of
from archive.schema import imaging_order, instance, manifest, rejection, series, sharing_told, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

OMI = "hl7.omi"
QUIET = timedelta(seconds=30)  # what follows within it is told at once
_DOUBT = timedelta(seconds=60)  # a transaction that was long in the making, before the manifest: told once too often
_PAGE = 500  # changes in one transaction
_PAGES = 20  # at one look: an old archive is read through within minutes


@dataclass(frozen=True, slots=True)
class Exam:
    """A study as a message tells of it. `order` are the attributes of its order by keyword, {} without one."""

    study_instance_uid: str
    patient: Found
    accession_number: str
    modality: str
    placer_number: str
    filler_number: str
    step_id: str
    order: Mapping[str, Any]


def tell_due(archive: Archive) -> int:
    """Owe the DRIMbox what it is to be told of the changes since the last time; how many were looked at.

    Raises:
        Unavailable: it is tried again.
    """
    if not archive.settings.sharing.tells:
        return 0
    seen = 0
    for _ in range(_PAGES):
        looked, done = _look(archive)
        seen += looked
        if done:
            break
    return seen


def _look(archive: Archive) -> tuple[int, bool]:
    """The same of one page; whether there was no more."""
    with archive.reading() as conn:
        before = conn.execute(select(sharing_told)).first()
    feed, since = (None, 0) if before is None else (before.feed, before.number)
    try:
        page = read(archive, since=since, limit=_PAGE, feed=feed)
    except Conflict:  # the index was made anew
        page = read(archive, since=0, limit=_PAGE, feed=None)
    if page.feed and (page.feed, page.last) != (feed, since):
        archive.commit.run(
            partial(
                _owe,
                settings=archive.settings,
                before=before,
                told={"feed": page.feed, "number": page.last},
                changes=page.changes,
                at=archive.real_clock(),
            )
        )
    return len(page.changes), page.done


def _owe(
    conn: Connection,
    *,
    settings: Settings,
    before: AnyRow | None,
    told: Mapping[str, Any],
    changes: Sequence[Change],
    at: datetime,
) -> None:
    if before is None:
        moved = conn.execute(insert(conn, sharing_told).values(pk=1, **told).on_conflict_do_nothing())
    else:
        mine = (sharing_told.c.feed == before.feed) & (sharing_told.c.number == before.number)
        moved = conn.execute(update(sharing_told).where(mine).values(**told))
    if moved.rowcount != 1:  # another process was quicker
        return
    for uid, some in groupby(sorted(changes, key=_study), key=_study):
        latest = select(manifest).where(manifest.c.study_instance_uid == uid).order_by(manifest.c.number.desc())
        published = conn.execute(latest.limit(1)).first()
        if published is not None and (news := [one for one in some if _is_news(one, published)]):
            _owe_one(conn, settings, uid, {one.kind for one in news}, since=published.made_at - _DOUBT, at=at)


def _study(one: Change) -> str:
    return one.study_instance_uid


def _is_news(one: Change, published: AnyRow) -> bool:
    """Whether the last manifest does not say it yet."""
    if one.kind is Kind.STORED:
        return one.sop_instance_uid not in orjson.loads(published.listed)
    return bool(one.at >= published.made_at - _DOUBT)


def _owe_one(
    conn: Connection, settings: Settings, uid: str, kinds: set[Kind], *, since: datetime, at: datetime
) -> None:
    sharing = settings.sharing
    to = []
    if sharing.omi.host:
        jobs.put(conn, OMI, {"study": uid}, at=at, after=QUIET, once=True)
        to.append("OMI^O23")
    if sharing.rejections_to and Kind.REJECTED in kinds:
        standing = (rejection.c.study_instance_uid == uid, rejection.c.revoked_at.is_(None))
        notes = select(rejection.c.note_uid).distinct().where(*standing, rejection.c.rejected_at >= since)
        found = [one for one in conn.execute(notes).scalars() if _is_here(conn, one)]
        if sending.owe_notes(conn, sharing.rejections_to, study=uid, notes=found, at=at):
            to.append(f"IOCM {sharing.rejections_to}")
    if to:
        detail = {"sharing": to, "changes": sorted(kinds)}
        record(conn, SYSTEM, Event.INSTANCES_ACCESSED, "R", patient=owner_of(conn, uid), study=uid, detail=detail)


def _is_here(conn: Connection, uid: str) -> bool:
    """A note of a purge is evidence, not an instance."""
    return conn.execute(select(instance.c.pk).where(instance.c.sop_instance_uid == uid)).first() is not None


def exam(archive: Archive, study_uid: str) -> Exam | None:
    """A study as it is now, by its order where it has one; None: nobody knows any more whose it was.

    Raises:
        IndexUnavailable: the database failed.
    """
    with archive.reading() as conn:
        row = conn.execute(select(study).where(study.c.study_instance_uid == study_uid)).first()
        accession = "" if row is None else row.accession_number or ""
        same = imaging_order.c.study_instance_uid == study_uid
        if accession:
            same = same | (imaging_order.c.accession_number == accession)
        mine = same if row is None else same & (imaging_order.c.patient_pk == row.patient_pk)
        order = conn.execute(select(imaging_order).where(mine).order_by(imaging_order.c.pk).limit(1)).first()
        if row is None and order is None:
            return None
        owner = found_of(conn, order.patient_pk if row is None else row.patient_pk)  # type: ignore[union-attr]
        assert owner is not None
        if row is not None:
            first = select(series.c.modality).where(series.c.study_pk == row.pk).order_by(series.c.pk).limit(1)
            modality = conn.execute(first).scalar() or ""
        else:
            modality = ""
        said = {} if order is None else orjson.loads(order.record)["dicom"]
    return Exam(
        study_instance_uid=study_uid,
        patient=owner,
        accession_number=accession or ("" if order is None else order.accession_number),
        modality=modality or str(said.get("Modality", "")),
        placer_number="" if order is None else order.placer_number,
        filler_number="" if order is None else order.filler_number,
        step_id="" if order is None else order.step_id,
        order=said,
    )
