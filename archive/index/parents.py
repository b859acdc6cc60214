"""The series that an arriving instance is filed under; made, with its study and patient, when they are new."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Table, bindparam, or_, select, update

from archive.dicom.attributes import ATTRIBUTES, Level
from archive.index.arrival import Arrival
from archive.index.correct import facts_changed
from archive.index.ordered import ask_about_order
from archive.index.patients import contradiction as contradiction_of
from archive.index.patients import patient_of
from archive.schema import patient, series, study
from archive.schema.prepared import Prepared
from archive.schema.upsert import insert_in

_FILED = (
    study.c.pk,
    study.c.study_instance_uid,
    study.c.policy_version,
    patient.c.pk,
    patient.c.patient_id,
    patient.c.issuer,
    patient.c.corrections,
    study.c.corrections,
)
_LOCK: dict[str, Any] = {"read": True, "key_share": True, "of": [study, patient]}  # see archive.lifecycle.compute
_PARENTS = Prepared(
    select(series.c.pk, *_FILED)
    .join_from(series, study)
    .join(patient)
    .where(series.c.series_instance_uid == bindparam("uid"))
    .with_for_update(**_LOCK)
)
_STUDY = Prepared(
    select(*_FILED)
    .join_from(study, patient)
    .where(study.c.study_instance_uid == bindparam("uid"))
    .with_for_update(**_LOCK)
)
_FACT_CHANGED = Prepared(update(study).where(study.c.pk == bindparam("of_study_pk")).values(policy_version=None))
_NOTIFY = Prepared(
    update(study)
    .where(
        study.c.pk == bindparam("of_study_pk"),
        or_(study.c.notify_at.is_(None), study.c.notify_at < bindparam("after")),
    )
    .values(notify_at=bindparam("at"))
)


def _keys(level: Level, table: Table) -> tuple[str, ...]:
    """The columns of a level's table that hold the keys of a header."""
    return tuple(one.column for one in ATTRIBUTES if one.level is level and one.column and one.column in table.c)


_ADD_STUDY = Prepared(
    lambda dialect: insert_in(dialect, study).on_conflict_do_nothing(index_elements=["study_instance_uid"]),
    columns=(*_keys(Level.STUDY, study), "patient_pk", "attributes", "first_received_at"),
)
_ADD_SERIES = Prepared(
    lambda dialect: (
        insert_in(dialect, series).on_conflict_do_nothing(index_elements=["series_instance_uid"]).returning(series.c.pk)
    ),
    columns=(*_keys(Level.SERIES, series), "study_pk", "attributes", "created_at"),
)


class Parents(NamedTuple):
    """What a series is filed under."""

    series_pk: int
    study_pk: int
    study_instance_uid: str
    policy_version: str | None
    patient_pk: int
    patient_id: str
    issuer: str
    corrections: str | None  # JSON, of the patient
    study_corrections: str | None


def place(conn: Connection, arrival: Arrival) -> tuple[Parents, str]:
    """The series to file under (made when new), its study and patient, and what the header contradicts ("" for
    nothing)."""
    header = arrival.header
    parents = _parents(conn, header.series_instance_uid) or _new_series(conn, arrival)
    if parents.policy_version is not None:  # kept until retention has thought again (sheet 00 §8)
        _FACT_CHANGED.run(conn, {"of_study_pk": parents.study_pk})
    if (told := arrival.notify) is not None:
        _NOTIFY.run(conn, {"of_study_pk": parents.study_pk, "after": told.after, "at": told.at})
    contradiction = contradiction_of(conn, arrival.claim, parents)
    if parents.study_instance_uid != header.study_instance_uid:
        contradiction = "the Series Instance UID belongs to another study"
    return parents, contradiction


def _new_series(conn: Connection, arrival: Arrival) -> Parents:
    """Make the series, and its study and patient if they are new too. Another process may have been quicker, with
    another study or another patient: what stands is read, not assumed."""
    uid, owner = {"uid": arrival.header.study_instance_uid}, None
    filed = _STUDY.first(conn, uid)
    if filed is None and conn.dialect.name != "sqlite":
        filed = _STUDY.first(conn, uid)  # PostgreSQL lets go a row whose patient changed while its lock was awaited
    if filed is None:
        owner = patient_of(conn, arrival.claim)
        _add_study(conn, arrival, owner.pk)
        filed = _STUDY.first(conn, uid)
        assert filed is not None
        ask_about_order(conn, arrival.claim, filed[3])
    series_pk = _add_series(conn, arrival, filed[0])
    parents = _parents(conn, arrival.header.series_instance_uid) if series_pk is None else Parents(series_pk, *filed)
    assert parents is not None
    if owner is None or not owner.new or owner.pk != parents.patient_pk:
        facts_changed(conn, parents.patient_pk)  # a visit: hospitals count from the patient's last one
    return parents


def _parents(conn: Connection, series_instance_uid: str) -> Parents | None:
    row = _PARENTS.first(conn, {"uid": series_instance_uid})
    return Parents(*row) if row is not None else None


def _add_study(conn: Connection, arrival: Arrival, patient_pk: int) -> None:
    header = arrival.header
    _ADD_STUDY.run(
        conn,
        {
            **header.keys[Level.STUDY],
            "study_instance_uid": header.study_instance_uid,
            "patient_pk": patient_pk,
            "attributes": orjson.dumps(header.levels[Level.STUDY]).decode(),
            "first_received_at": arrival.at,
        },
    )


def _add_series(conn: Connection, arrival: Arrival, study_pk: int) -> int | None:
    """The number of the new series; None: it is there already."""
    header = arrival.header
    added = _ADD_SERIES.first(
        conn,
        {
            **header.keys[Level.SERIES],
            "series_instance_uid": header.series_instance_uid,
            "study_pk": study_pk,
            "attributes": orjson.dumps(header.levels[Level.SERIES]).decode(),
            "created_at": arrival.at,
        },
    )
    return None if added is None else int(added[0])
