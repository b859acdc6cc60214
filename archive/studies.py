"""What the archive holds of one study: its series, and every copy with its digest and its last check (sheet 60 §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Connection, Row, Select, and_, bindparam, func, select

from archive.dicom.patient_id import cx
from archive.index.conditions import constant
from archive.instance import CURRENT, Availability, CopyState, State, availability
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
_original = instance.alias("original")
_copy = instance.alias("copy")
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
        instance.c.derivation,
        _original.c.sop_instance_uid.label("original"),
        location.c.tier,
        location.c.state.label("copy_state"),
        location.c.transfer_syntax_uid,
        location.c.digest,
        location.c.file_bytes,
        location.c.verified_at,
    )
    .select_from(
        series.join(instance)
        .outerjoin(_original, _original.c.pk == instance.c.derived_from_pk)
        .outerjoin(location, and_(location.c.instance_pk == instance.c.pk, location.c.state != CopyState.PURGING))
    )
    .where(series.c.study_pk == bindparam("study_pk"), instance.c.state.in_(sorted(CURRENT)))
    .order_by(
        func.coalesce(series.c.series_number, 1 << 30),
        series.c.pk,
        func.coalesce(instance.c.instance_number, 1 << 30),
        instance.c.pk,
        location.c.pk,
    )
)
_REPLACED: Select[Any] = (
    select(
        instance.c.sop_instance_uid,
        instance.c.sop_class_uid,
        series.c.series_instance_uid,
        instance.c.digest,
        instance.c.received_at,
        _copy.c.sop_instance_uid.label("alternate"),
    )
    .select_from(
        series.join(instance).outerjoin(
            _copy, and_(_copy.c.derived_from_pk == instance.c.pk, _copy.c.state.in_(sorted(CURRENT)))
        )
    )
    .where(series.c.study_pk == bindparam("study_pk"), instance.c.state == constant(str(State.REPLACED)))
    .order_by(
        func.coalesce(series.c.series_number, 1 << 30),
        series.c.pk,
        func.coalesce(instance.c.instance_number, 1 << 30),
        instance.c.pk,
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
    """One current instance and all its copies. `attributes` is DICOM JSON.

    `derivation`: of a lossy copy, how it was made and what its gate measured (REQ-DCM-86); of an image that stays
    without loss in cold storage, why (`kept`); {} of any other.
    """

    sop_instance_uid: str
    sop_class_uid: str
    attributes: dict[str, Any]
    digest: str  # as received
    source: str
    received_at: datetime
    copies: tuple[Copy, ...]
    original: str = ""  # SOP Instance UID of the original that it was derived from
    derivation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tier(self) -> str | None:
        """That of its best good copy."""
        good = {copy.tier for copy in self.copies if copy.state == CopyState.OK}
        return "hot" if "hot" in good else next(iter(good), None)

    @property
    def availability(self) -> Availability:
        """Of its best good copy."""
        return availability(self.tier)


@dataclass(frozen=True, slots=True)
class Replaced:
    """An original that only its lossy copy, `alternate`, is left of."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    digest: str  # of what was received
    received_at: datetime
    alternate: str  # "" when that is lost


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
    replaced: tuple[Replaced, ...] = ()

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
        """Where the best good copies of its instances are: `hot`, `cold`, `mixed`; `none` when no good one is left."""
        tiers = {one.tier for one in self.instances if one.tier is not None}
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
        replaced=tuple(_replaced(one) for one in conn.execute(_REPLACED, {"study_pk": row.pk})),
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
        copies=tuple(_copy_of(one) for one in rows if one.tier is not None),
        original=first.original or "",
        derivation=orjson.loads(first.derivation) if first.derivation else {},
    )


def _replaced(row: Row[Any]) -> Replaced:
    return Replaced(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=row.series_instance_uid,
        digest=row.digest,
        received_at=row.received_at,
        alternate=row.alternate or "",
    )


def _copy_of(row: Row[Any]) -> Copy:
    return Copy(
        tier=row.tier,
        state=row.copy_state,
        transfer_syntax_uid=row.transfer_syntax_uid,
        digest=row.digest,
        file_bytes=row.file_bytes,
        verified_at=row.verified_at,
    )
