"""What the archive holds of one study: its series, and every copy with its digest and its last check (sheet 60 §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Connection, Row, Select, bindparam, func, select

from archive.dicom.patient_id import cx
from archive.instance import CURRENT, Availability, CopyState, availability
from archive.schema import instance, location, patient, series, study

_STUDY = (
    select(
        study.c.pk,
        study.c.study_instance_uid,
        study.c.first_received_at,
        study.c.attributes.label("study_attributes"),
        patient.c.attributes.label("patient_attributes"),
        patient.c.patient_id,
        patient.c.issuer,
    )
    .join_from(study, patient)
    .where(study.c.study_instance_uid == bindparam("study_instance_uid"))
)
_COPIES: Select[Any] = (
    select(
        series.c.pk.label("series_pk"),
        series.c.series_instance_uid,
        series.c.attributes.label("series_attributes"),
        instance.c.pk,
        instance.c.sop_instance_uid,
        instance.c.sop_class_uid,
        instance.c.attributes,
        instance.c.digest.label("received_digest"),
        instance.c.source,
        instance.c.received_at,
        location.c.tier,
        location.c.state.label("copy_state"),
        location.c.transfer_syntax_uid,
        location.c.digest,
        location.c.file_bytes,
        location.c.verified_at,
    )
    .select_from(series.join(instance).outerjoin(location, location.c.instance_pk == instance.c.pk))
    .where(series.c.study_pk == bindparam("study_pk"), instance.c.state.in_(sorted(CURRENT)))
    .order_by(
        func.coalesce(series.c.series_number, 1 << 30),
        series.c.pk,
        func.coalesce(instance.c.instance_number, 1 << 30),
        instance.c.pk,
        location.c.pk,
    )
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of an instance, on one tier."""

    tier: str
    state: str
    transfer_syntax_uid: str
    digest: str
    file_bytes: int
    verified_at: datetime | None


@dataclass(frozen=True, slots=True)
class Instance:
    """One current instance and all its copies. `attributes` is DICOM JSON."""

    sop_instance_uid: str
    sop_class_uid: str
    attributes: dict[str, Any]
    digest: str  # as received
    source: str
    received_at: datetime
    copies: tuple[Copy, ...]

    @property
    def availability(self) -> Availability:
        """Of its best good copy."""
        good = {copy.tier for copy in self.copies if copy.state == CopyState.OK}
        return availability("hot" if "hot" in good else next(iter(good), None))


@dataclass(frozen=True, slots=True)
class Series:
    """One series. `attributes` is DICOM JSON."""

    series_instance_uid: str
    attributes: dict[str, Any]
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """One study that others may see. `attributes` is DICOM JSON of the patient and the study."""

    study_instance_uid: str
    attributes: dict[str, Any]
    patient: str  # as the audit names it
    received_at: datetime  # its first instance
    series: tuple[Series, ...]

    @property
    def instances(self) -> tuple[Instance, ...]:
        return tuple(one for part in self.series for one in part.instances)

    @property
    def availability(self) -> Availability:
        """The worst among its instances (REQ-DCM-31)."""
        order = list(Availability)
        return max((one.availability for one in self.instances), key=order.index)

    @property
    def tier(self) -> str:
        """Where its good copies are: `hot`, `cold`, `mixed`; `none` when no good one is left."""
        tiers = {copy.tier for one in self.instances for copy in one.copies if copy.state == CopyState.OK}
        return tiers.pop() if len(tiers) == 1 else "mixed" if tiers else "none"


def describe(conn: Connection, study_instance_uid: str) -> Study | None:
    """The study, or None when there is none with a current instance."""
    row = conn.execute(_STUDY, {"study_instance_uid": study_instance_uid}).one_or_none()
    if row is None:
        return None
    rows: Sequence[Row[Any]] = conn.execute(_COPIES, {"study_pk": row.pk}).all()
    if not rows:
        return None
    return Study(
        study_instance_uid=row.study_instance_uid,
        attributes={**orjson.loads(row.patient_attributes), **orjson.loads(row.study_attributes)},
        patient=cx(row.patient_id, row.issuer),
        received_at=row.first_received_at,
        series=tuple(_series(list(part)) for _, part in groupby(rows, key=lambda one: one.series_pk)),
    )


def _series(rows: Sequence[Row[Any]]) -> Series:
    return Series(
        series_instance_uid=rows[0].series_instance_uid,
        attributes=orjson.loads(rows[0].series_attributes),
        instances=tuple(_instance(list(copies)) for _, copies in groupby(rows, key=lambda one: one.pk)),
    )


def _instance(rows: Sequence[Row[Any]]) -> Instance:
    first = rows[0]
    return Instance(
        sop_instance_uid=first.sop_instance_uid,
        sop_class_uid=first.sop_class_uid,
        attributes=orjson.loads(first.attributes),
        digest=first.received_digest,
        source=first.source,
        received_at=first.received_at,
        copies=tuple(_copy(one) for one in rows if one.tier is not None),
    )


def _copy(row: Row[Any]) -> Copy:
    return Copy(
        tier=row.tier,
        state=row.copy_state,
        transfer_syntax_uid=row.transfer_syntax_uid,
        digest=row.digest,
        file_bytes=row.file_bytes,
        verified_at=row.verified_at,
    )
