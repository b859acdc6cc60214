"""Figures of radiation dose reports, beside their rows (IHE REM): of one study, and of all exams of a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from sqlalchemy import BindParameter, Connection, Select, bindparam, exists, select

from archive.dicom.document import text_of
from archive.dicom.dose import Dose
from archive.instance import CURRENT
from archive.schema import dose, instance, patient, series, study
from archive.schema.types import AnyRow

_PKS: BindParameter[Sequence[int]] = bindparam("pks", expanding=True)
_DOSES = select(dose).where(dose.c.instance_pk.in_(_PKS)).order_by(dose.c.instance_pk, dose.c.number)
_part = series.alias("part")
_REPORTS: Select[Any] = (
    select(
        instance.c.pk,
        instance.c.sop_instance_uid,
        instance.c.sop_class_uid,
        series.c.series_instance_uid,
        study.c.study_instance_uid,
        study.c.study_date,
        study.c.attributes.label("study_attributes"),
        patient.c.patient_id,
        patient.c.issuer,
        patient.c.birth_date,
        patient.c.sex,
    )
    .select_from(instance.join(series).join(study).join(patient))
    .where(instance.c.state.in_(sorted(CURRENT)), exists().where(dose.c.instance_pk == instance.c.pk))
)


@dataclass(frozen=True, slots=True)
class Report:
    """One dose report with its figures. `number` orders reports; days are YYYYMMDD."""

    number: int
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    study_date: str
    accession: str
    description: str
    patient_id: str
    issuer: str
    birth_date: str
    sex: str
    totals: Dose
    events: tuple[Dose, ...]


def add_doses(conn: Connection, instance_pk: int, found: Iterable[Dose]) -> None:
    """File the figures of the report `instance_pk`. Inside a write of `archive.commit`."""
    rows = [
        {"instance_pk": instance_pk, **{name: None if value == "" else value for name, value in asdict(one).items()}}
        for one in found
    ]
    if rows:
        conn.execute(dose.insert(), rows)


def reports_of(conn: Connection, study_instance_uid: str) -> list[Report]:
    """The dose reports of a study, in the order in which they came."""
    found = _REPORTS.where(study.c.study_instance_uid == study_instance_uid).order_by(instance.c.pk)
    return _reports(conn, conn.execute(found).all())


def list_reports(
    conn: Connection, *, since: str = "", until: str = "", modality: str = "", after: int = 0, limit: int
) -> list[Report]:
    """Reports of exams of these days (YYYYMMDD, both included), of studies with this modality, after `after`."""
    found = _REPORTS.where(instance.c.pk > after)
    if since:
        found = found.where(study.c.study_date >= since)
    if until:
        found = found.where(study.c.study_date <= until)
    if modality:
        found = found.where(exists().where(_part.c.study_pk == study.c.pk, _part.c.modality == modality))
    return _reports(conn, conn.execute(found.order_by(instance.c.pk).limit(limit)).all())


def _reports(conn: Connection, rows: Sequence[AnyRow]) -> list[Report]:
    figures: dict[int, list[Dose]] = defaultdict(list)
    for row in conn.execute(_DOSES, {"pks": [row.pk for row in rows]}):
        figures[row.instance_pk].append(_dose(row))
    return [_report(row, figures[row.pk]) for row in rows]


def _report(row: AnyRow, figures: Sequence[Dose]) -> Report:
    said = orjson.loads(row.study_attributes)
    return Report(
        number=row.pk,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        study_date=row.study_date or "",
        accession=text_of(said, "00080050"),
        description=text_of(said, "00081030"),
        patient_id=row.patient_id,
        issuer=row.issuer,
        birth_date=row.birth_date or "",
        sex=row.sex or "",
        totals=figures[0],
        events=tuple(figures[1:]),
    )


def _dose(row: AnyRow) -> Dose:
    return Dose(
        number=row.number,
        template=row.template or "",
        event_uid=row.event_uid or "",
        at=row.at or "",
        label=row.label or "",
        ctdi_vol_mgy=row.ctdi_vol_mgy,
        dlp_mgycm=row.dlp_mgycm,
        dap_gym2=row.dap_gym2,
        agd_mgy=row.agd_mgy,
        activity_mbq=row.activity_mbq,
        device_uid=row.device_uid or "",
        device=row.device or "",
    )
