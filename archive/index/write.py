"""Putting a received instance into the index. Called in a write of `GroupCommit`: safe to run twice, never commits."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, literal, null, select, union_all, update

from archive.dicom.attributes import Level
from archive.dicom.header import Header
from archive.dicom.patient_id import cx
from archive.errors import Gone
from archive.instance import CopyState, Outcome, State
from archive.schema import instance, location, patient, quarantined, series, study, tombstone
from archive.schema.types import AnyRow
from archive.schema.upsert import insert
from archive.work_items import Kind, open_item


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that is durable and named, and what is to be said of it."""

    header: Header
    path: str  # relative to the hot tier
    absolute_path: str
    file_bytes: int
    data_set_offset: int
    digest: str
    source: str
    default_issuer: str  # of Patient IDs that come without one
    at: datetime

    @property
    def patient_id(self) -> str:
        return str(self.header.keys[Level.PATIENT].get("patient_id") or "")

    @property
    def issuer(self) -> str:
        return str(self.header.keys[Level.PATIENT].get("issuer") or self.default_issuer)

    @property
    def patient_cx(self) -> str:
        """The patient as an audit row names it."""
        return cx(self.patient_id, self.issuer)

    @property
    def identity_key(self) -> str:
        """What makes two headers the same patient; without an ID, everyone in one study (REQ-DCM-17)."""
        if not self.patient_id:
            return f"study:{self.header.study_instance_uid}"
        # the length says where the issuer ends, whatever characters either holds
        return f"id:{len(self.issuer)}:{self.issuer}:{self.patient_id}"


# What is known of a SOP Instance UID: an instance, or what a purge left of one (pk NULL).
_INSTANCE = union_all(
    select(instance.c.pk, instance.c.digest, instance.c.state).where(instance.c.sop_instance_uid == bindparam("uid")),
    select(null(), tombstone.c.digest, literal("purged")).where(tombstone.c.sop_instance_uid == bindparam("uid")),
)
_COPIES = (
    select(location.c.pk, location.c.path, location.c.file_bytes, location.c.state)
    .where(location.c.instance_pk == bindparam("instance_pk"))
    .order_by(location.c.pk)
)
_PARENTS = (
    select(
        series.c.pk.label("series_pk"),
        study.c.pk.label("study_pk"),
        study.c.study_instance_uid,
        study.c.policy_version,
        patient.c.pk.label("patient_pk"),
        patient.c.patient_id,
        patient.c.issuer,
    )
    .join_from(series, study)
    .join(patient)
    .where(series.c.series_instance_uid == bindparam("uid"))
)
_FACT_CHANGED = update(study).where(study.c.pk == bindparam("of_study_pk")).values(policy_version=None)
_STUDY_PK = select(study.c.pk).where(study.c.study_instance_uid == bindparam("uid"))
_PATIENT_PK = select(patient.c.pk).where(patient.c.identity_key == bindparam("key"))
_ADD_INSTANCE = instance.insert().returning(instance.c.pk)
_ADD_LOCATION = location.insert()
_DAMAGED = update(location).where(location.c.pk == bindparam("location_pk")).values(state=CopyState.DAMAGED)


def add_instance(conn: Connection, arrival: Arrival) -> Outcome:
    """File an instance under its patient, study and series.

    Returns STORED, STORED_HELD, ALREADY_STORED (the file is not needed), REPAIRED, or SAME_UID: other bytes stand
    under this SOP Instance UID, and nothing was written.

    Raises:
        Gone: it was purged at the end of its retention (C0F2).
    """
    header = arrival.header
    known = conn.execute(_INSTANCE, {"uid": header.sop_instance_uid}).first()
    if known is not None and known.pk is None:
        raise Gone("it was purged at the end of its retention: «minipacs import --restore-purged» takes it back")
    if known is not None:
        return _again(conn, arrival, known)
    series_pk, contradiction, patient_pk = _place(conn, arrival)
    keys = header.keys[Level.IMAGE]
    instance_pk = conn.execute(
        _ADD_INSTANCE,
        {
            "series_pk": series_pk,
            "sop_instance_uid": header.sop_instance_uid,
            "sop_class_uid": header.sop_class_uid,
            "instance_number": keys.get("instance_number"),
            "state": State.HELD if contradiction else State.STORED,
            "digest": arrival.digest,
            "source": arrival.source,
            "received_at": arrival.at,
            "attributes": _json(header.levels[Level.IMAGE]),
        },
    ).scalar_one()
    _add_copy(conn, arrival, instance_pk)
    if header.truncated:
        open_item(
            conn,
            Kind.TRUNCATED,
            header.sop_instance_uid,
            at=arrival.at,
            patient_pk=patient_pk,
            study_instance_uid=header.study_instance_uid,
            evidence={"sop_instance_uid": header.sop_instance_uid, "source": arrival.source},
        )
    if not contradiction:
        return Outcome.STORED
    open_item(
        conn,
        Kind.IDENTITY_CONFLICT,
        f"{header.study_instance_uid} {arrival.identity_key}",
        at=arrival.at,
        patient_pk=patient_pk,
        study_instance_uid=header.study_instance_uid,
        evidence={
            "contradiction": contradiction,
            "sop_instance_uid": header.sop_instance_uid,
            "series_instance_uid": header.series_instance_uid,
            "study_instance_uid": header.study_instance_uid,
            "received": header.levels[Level.PATIENT],
            "source": arrival.source,
        },
    )
    return Outcome.STORED_HELD


def _again(conn: Connection, arrival: Arrival, known: AnyRow) -> Outcome:
    """The SOP Instance UID is taken (REQ-DCM-15)."""
    if known.digest != arrival.digest:
        return Outcome.SAME_UID
    copies = conn.execute(_COPIES, {"instance_pk": known.pk}).all()
    root = arrival.absolute_path.removesuffix(arrival.path)
    for copy in copies:
        if copy.path == arrival.path:
            return Outcome.STORED  # this very file was filed by an earlier try
        if copy.state == CopyState.OK and _stands(root + copy.path, copy.file_bytes):
            return Outcome.ALREADY_STORED
        if copy.state == CopyState.OK:
            conn.execute(_DAMAGED, {"location_pk": copy.pk})
    _add_copy(conn, arrival, known.pk)
    return Outcome.REPAIRED


def repair_instance(conn: Connection, arrival: Arrival, *, damaged: Collection[int]) -> Outcome:
    """File an instance again whose copies numbered `damaged` turned out to be bad: REPAIRED, or ALREADY_STORED when
    another good copy stands."""
    for location_pk in damaged:
        conn.execute(_DAMAGED, {"location_pk": location_pk})
    return add_instance(conn, arrival)


def _stands(path: str, file_bytes: int) -> bool:
    """The copy is there and as long as it should be; whether its bytes are the right ones takes longer to tell."""
    try:
        return os.stat(path).st_size == file_bytes
    except OSError:
        return False


def _place(conn: Connection, arrival: Arrival) -> tuple[int, str, int]:
    """The series to file under (made when new), what the header contradicts ("" for nothing), and the patient."""
    header = arrival.header
    parents = conn.execute(_PARENTS, {"uid": header.series_instance_uid}).first()
    if parents is None:
        study_pk = conn.execute(_STUDY_PK, {"uid": header.study_instance_uid}).scalar()
        if study_pk is None:
            _add_study(conn, arrival, _patient(conn, arrival))
            study_pk = conn.execute(_STUDY_PK, {"uid": header.study_instance_uid}).scalar_one()
        _add_series(conn, arrival, study_pk)
        # read, not assumed: another process may have been quicker, with another study or another patient
        parents = conn.execute(_PARENTS, {"uid": header.series_instance_uid}).one()
    if parents.policy_version is not None:  # kept until retention has thought again (sheet 00 §8)
        conn.execute(_FACT_CHANGED, {"of_study_pk": parents.study_pk})
    contradiction = _contradiction(arrival, parents)
    if parents.study_instance_uid != header.study_instance_uid:
        contradiction = "the Series Instance UID belongs to another study"
    return parents.series_pk, contradiction, parents.patient_pk


def _contradiction(arrival: Arrival, filed: AnyRow) -> str:
    """REQ-DCM-19: the same study under two patients. What is absent on one side contradicts nothing."""
    if not arrival.patient_id or not filed.patient_id:
        return ""
    if arrival.patient_id != filed.patient_id:
        return "the Study Instance UID belongs to another Patient ID"
    if arrival.issuer and filed.issuer and arrival.issuer != filed.issuer:
        return "the Study Instance UID belongs to another Issuer of Patient ID"
    return ""


def _patient(conn: Connection, arrival: Arrival) -> int:
    key = arrival.identity_key
    pk = conn.execute(_PATIENT_PK, {"key": key}).scalar()
    if pk is not None:
        return int(pk)
    header = arrival.header
    keys = header.keys[Level.PATIENT]
    conn.execute(
        insert(conn, patient).on_conflict_do_nothing(index_elements=["identity_key"]),
        {
            "identity_key": key,
            "patient_id": arrival.patient_id,
            "issuer": arrival.issuer,
            "patient_name": keys.get("patient_name") or "",
            "birth_date": keys.get("birth_date"),
            "sex": keys.get("sex"),
            "provisional": 0 if arrival.patient_id else 1,
            "attributes": _json(header.levels[Level.PATIENT]),
            "created_at": arrival.at,
        },
    )
    pk = conn.execute(_PATIENT_PK, {"key": key}).scalar_one()
    open_item(
        conn,
        Kind.UNKNOWN_PATIENT,
        key,
        at=arrival.at,
        patient_pk=pk,
        study_instance_uid=header.study_instance_uid,
        evidence={"patient_id_missing": not arrival.patient_id, "source": arrival.source},
    )
    return int(pk)


def _add_study(conn: Connection, arrival: Arrival, patient_pk: int) -> None:
    header = arrival.header
    conn.execute(
        insert(conn, study).on_conflict_do_nothing(index_elements=["study_instance_uid"]),
        {
            **_columns(header, Level.STUDY),
            "study_instance_uid": header.study_instance_uid,
            "patient_pk": patient_pk,
            "attributes": _json(header.levels[Level.STUDY]),
            "first_received_at": arrival.at,
        },
    )


def _add_series(conn: Connection, arrival: Arrival, study_pk: int) -> None:
    header = arrival.header
    conn.execute(
        insert(conn, series).on_conflict_do_nothing(index_elements=["series_instance_uid"]),
        {
            **_columns(header, Level.SERIES),
            "series_instance_uid": header.series_instance_uid,
            "study_pk": study_pk,
            "attributes": _json(header.levels[Level.SERIES]),
            "created_at": arrival.at,
        },
    )


def _columns(header: Header, level: Level) -> dict[str, str | int | None]:
    table = {Level.STUDY: study, Level.SERIES: series}[level]
    return {name: value for name, value in header.keys[level].items() if name in table.c}


def _add_copy(conn: Connection, arrival: Arrival, instance_pk: int) -> None:
    conn.execute(
        _ADD_LOCATION,
        {
            "instance_pk": instance_pk,
            "tier": "hot",
            "path": arrival.path,
            "state": CopyState.OK,
            "transfer_syntax_uid": arrival.header.transfer_syntax_uid,
            "digest": arrival.digest,
            "file_bytes": arrival.file_bytes,
            "data_set_offset": arrival.data_set_offset,
            "pixel_offset": arrival.header.pixel_offset,
        },
    )


def quarantine(conn: Connection, arrival: Arrival) -> bool:
    """Keep other content of a known UID aside (REQ-DCM-15). False: the very same was kept before, drop the file."""
    header = arrival.header
    where = (quarantined.c.sop_instance_uid == header.sop_instance_uid) & (quarantined.c.digest == arrival.digest)
    known = conn.execute(select(quarantined.c.path, quarantined.c.times).where(where)).first()
    if known is not None and known.path != arrival.path:
        conn.execute(update(quarantined).where(where).values(times=known.times + 1, last_received_at=arrival.at))
        return False
    if known is None:
        conn.execute(
            quarantined.insert(),
            {
                "sop_instance_uid": header.sop_instance_uid,
                "digest": arrival.digest,
                "path": arrival.path,
                "transfer_syntax_uid": header.transfer_syntax_uid,
                "file_bytes": arrival.file_bytes,
                "data_set_offset": arrival.data_set_offset,
                "source": arrival.source,
                "first_received_at": arrival.at,
                "last_received_at": arrival.at,
                "times": 1,
            },
        )
    open_item(
        conn,
        Kind.UID_CONFLICT,
        header.sop_instance_uid,
        at=arrival.at,
        study_instance_uid=header.study_instance_uid,
        evidence={"sop_instance_uid": header.sop_instance_uid, "digest": arrival.digest, "source": arrival.source},
    )
    return True


def _json(attributes: dict[str, Any]) -> str:
    return orjson.dumps(attributes).decode()
