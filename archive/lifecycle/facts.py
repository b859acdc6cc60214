"""What the index knows that the dates of a study depend on (`archive.policy.Facts`): few statements, many studies.

Lossy copies and companions that the archive made are no part of the exam: its dates and receptions are those of the
originals, also when only their rows are left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import orjson
from sqlalchemy import BindParameter, Connection, Select, bindparam, exists, func, literal, select, union_all

from archive.config import Settings
from archive.identity.record import of_json
from archive.index.conditions import constant
from archive.index.functions import first_value, unindexed
from archive.index.held import waiting
from archive.instance import CopyState, State
from archive.policy import DOSE_REPORTS, Facts, Hold, SeriesFacts, add_days, local_day, sound_day
from archive.schema import hold, instance, location, patient, series, study
from archive.schema.types import AnyRow
from archive.sites import site_of

_SERIES_DATE, _STATION_NAME, _INSTITUTION_NAME, _BIRTH_DATE = "00080021", "00081010", "00080080", "00100030"
_ACQUISITION_DATE, _CONTENT_DATE = "00080022", "00080023"

_PKS: BindParameter[Sequence[int]] = bindparam("pks", expanding=True)
HOT = exists().where(  # of a study: it has images that may leave the hot tier one day
    series.c.study_pk == study.c.pk,
    instance.c.series_pk == series.c.pk,
    instance.c.state == constant(str(State.STORED)),
    location.c.instance_pk == instance.c.pk,
    unindexed(location.c.tier) == "hot",
    location.c.state != CopyState.PURGING,
)
_HELD_BACK = exists().where(series.c.study_pk == study.c.pk, instance.c.series_pk == series.c.pk, waiting())
_STUDIES: Select[Any] = (
    select(
        study.c.pk,
        study.c.patient_pk,
        study.c.study_instance_uid,
        study.c.study_date,
        study.c.first_received_at,
        study.c.grace_until,
        study.c.announced_at,
        study.c.purge_on,
        patient.c.attributes,
        patient.c.record,
        HOT.label("hot"),
        _HELD_BACK.label("held_back"),
    )
    .join_from(study, patient)
    .where(study.c.pk.in_(_PKS))
    .order_by(study.c.pk)
)
_SERIES = (
    select(
        series.c.pk,
        series.c.study_pk,
        series.c.modality,
        series.c.pps_start_date,
        first_value(series.c.attributes, _SERIES_DATE).label("series_date"),
        first_value(series.c.attributes, _STATION_NAME).label("station"),
        first_value(series.c.attributes, _INSTITUTION_NAME).label("institution"),
    )
    .where(series.c.study_pk.in_(_PKS))
    .order_by(series.c.pk)
)
_IMAGES = (
    select(
        instance.c.series_pk,
        instance.c.sop_class_uid,
        instance.c.source,
        first_value(instance.c.attributes, _ACQUISITION_DATE).label("acquisition_date"),
        first_value(instance.c.attributes, _CONTENT_DATE).label("content_date"),
        func.min(instance.c.pk).label("first_pk"),
        func.min(instance.c.received_at).label("first_received"),
        func.max(instance.c.received_at).label("last_received"),
    )
    .join_from(instance, series)
    .where(
        series.c.study_pk.in_(_PKS), unindexed(instance.c.derived_from_pk).is_(None), instance.c.state != State.PURGING
    )
    .group_by("series_pk", "sop_class_uid", "source", "acquisition_date", "content_date")
)
_HOLDS = (
    select(hold.c.study_instance_uid, hold.c.placed_at, hold.c.until, hold.c.removed_at)
    .where(hold.c.study_instance_uid.in_(bindparam("uids", expanding=True)))
    .order_by(hold.c.pk)
)
_VISITS = union_all(  # each day on which a patient was there, and the last reception of an exam of that day
    select(
        study.c.patient_pk,
        study.c.study_date.label("day"),
        func.max(study.c.first_received_at).label("received"),
        literal(0).label("step"),
    )
    .where(study.c.patient_pk.in_(_PKS))
    .group_by(study.c.patient_pk, study.c.study_date),
    select(study.c.patient_pk, series.c.pps_start_date, func.max(series.c.created_at), literal(1))
    .join_from(series, study)
    .where(study.c.patient_pk.in_(_PKS), series.c.pps_start_date.is_not(None))
    .group_by(study.c.patient_pk, series.c.pps_start_date),
)


@dataclass(frozen=True, slots=True)
class Known:
    """One study: its facts, and where its life stands. Days are YYYYMMDD."""

    pk: int
    study_instance_uid: str
    facts: Facts
    hot: bool  # it has images on the hot tier that others see
    held_back: bool  # it has images that contradict the record: perhaps another patient's
    grace_until: datetime | None
    announced_at: datetime | None
    purge_on: str | None


def gather(conn: Connection, settings: Settings, pks: Sequence[int]) -> list[Known]:
    """The facts of these studies, in the order of their keys: five statements, however many studies and images."""
    if not pks:
        return []
    rows = conn.execute(_STUDIES, {"pks": pks}).all()
    parts: dict[int, list[AnyRow]] = defaultdict(list)
    for part in conn.execute(_SERIES, {"pks": pks}):
        parts[part.study_pk].append(part)
    images: dict[int, list[AnyRow]] = defaultdict(list)
    for some in conn.execute(_IMAGES, {"pks": pks}):
        images[some.series_pk].append(some)
    holds = _holds(conn, [row.study_instance_uid for row in rows])
    visits = _visits(conn, {row.patient_pk for row in rows})
    return [
        _known(
            row,
            settings,
            parts=parts[row.pk],
            images=images,
            holds=holds.get(row.study_instance_uid, ()),
            last_visit=visits.get(row.patient_pk),
        )
        for row in rows
    ]


def _known(
    row: AnyRow,
    settings: Settings,
    *,
    parts: Sequence[AnyRow],
    images: Mapping[int, Sequence[AnyRow]],
    holds: Sequence[Hold],
    last_visit: date | None,
) -> Known:
    exam = [part for part in parts if part.pk in images]
    everything = [some for part in exam for some in images[part.pk]]
    first = min(everything, key=lambda some: some.first_pk, default=None)
    site = site_of(
        settings.all_sites,
        source="" if first is None else first.source,
        stations=[part.station for part in exam if part.station],
        institutions=[part.institution for part in exam if part.institution],
    )
    birth_date, death_date = _life(row)
    facts = Facts(
        profile=site.profile,
        site=site.id,
        study_date=row.study_date or "",
        series=tuple(_series(part, images[part.pk]) for part in exam),
        first_received=min((some.first_received for some in everything), default=row.first_received_at),
        last_received=max((some.last_received for some in everything), default=row.first_received_at),
        birth_date=birth_date,
        death_date=death_date,
        last_visit=last_visit,
        holds=tuple(holds),
        dose_only=bool(everything) and all(some.sop_class_uid in DOSE_REPORTS for some in everything),
    )
    return Known(
        pk=row.pk,
        study_instance_uid=row.study_instance_uid,
        facts=facts,
        hot=bool(row.hot),
        held_back=bool(row.held_back),
        grace_until=row.grace_until,
        announced_at=row.announced_at,
        purge_on=row.purge_on,
    )


def _series(part: AnyRow, images: Sequence[AnyRow]) -> SeriesFacts:
    dates = {part.series_date, part.pps_start_date}
    for some in images:
        dates.update((some.acquisition_date, some.content_date))
    return SeriesFacts(
        modality=part.modality or "",
        dates=tuple(sorted(day for day in dates if day)),
        first_received=min(some.first_received for some in images),
    )


def _life(row: AnyRow) -> tuple[str, str]:
    """Birth and death as the RIS says them, else birth as the images do."""
    shown = orjson.loads(row.attributes).get(_BIRTH_DATE) or {}
    birth_date = str((shown.get("Value") or ("",))[0])
    if not row.record:
        return birth_date, ""
    record = of_json(row.record)
    return record.birth_date or birth_date, record.death_date


def _holds(conn: Connection, uids: Collection[str]) -> dict[str, list[Hold]]:
    found: dict[str, list[Hold]] = defaultdict(list)
    for row in conn.execute(_HOLDS, {"uids": list(uids)}):
        found[row.study_instance_uid].append(hold_of(row.placed_at, row.until, row.removed_at))
    return found


def hold_of(placed_at: datetime, until: str | None, removed_at: datetime | None) -> Hold:
    """A row of `hold` as the policy sees it. `until` is its last day, YYYYMMDD."""
    ends = [] if until is None else [after(until)]
    if removed_at is not None:
        ends.append(local_day(removed_at))
    return Hold(local_day(placed_at), min(ends, default=None), removed=removed_at is not None)


def after(day: str) -> date:
    """The day after YYYYMMDD."""
    return add_days(date.fromisoformat(day), 1)


def _visits(conn: Connection, patient_pks: Collection[int]) -> dict[int, date]:
    """The last day on which each patient was there: the latest exam, by its date, else by its reception."""
    found: dict[int, date] = {}
    for row in conn.execute(_VISITS, {"pks": sorted(patient_pks)}):
        day = sound_day(row.day or "", row.received)
        if day is None and not row.step:
            day = local_day(row.received)
        if day is not None:
            found[row.patient_pk] = max(day, found.get(row.patient_pk, day))
    return found
