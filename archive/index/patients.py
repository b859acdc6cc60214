"""Whose an arriving image is (REQ-DCM-17, 19): its patient is found, through merges, or made."""

from __future__ import annotations

from typing import Protocol

import orjson
from sqlalchemy import Connection, bindparam, select

from archive.authorities import identity_key
from archive.dicom.attributes import Level
from archive.index.arrival import Arrival
from archive.index.ordered import patient_for_images
from archive.schema import patient
from archive.schema.prepared import Prepared
from archive.schema.upsert import insert_in
from archive.work_items import Kind, open_item

# Locked against a merge, which would otherwise move the patient's studies without the one that is being added.
_ROW = select(patient.c.pk, patient.c.merged_into_pk).with_for_update(read=True)
_BY_KEY = Prepared(_ROW.where(patient.c.identity_key == bindparam("key")))
_BY_PK = Prepared(_ROW.where(patient.c.pk == bindparam("pk")))
_ADD = Prepared(
    lambda dialect: insert_in(dialect, patient).on_conflict_do_nothing(index_elements=["identity_key"]),
    columns=(
        *("identity_key", "patient_id", "issuer", "patient_name", "birth_date", "sex", "provisional", "attributes"),
        "created_at",
    ),
)


class Filed(Protocol):
    """The patient that a study is filed under."""

    @property
    def patient_pk(self) -> int: ...
    @property
    def patient_id(self) -> str: ...
    @property
    def issuer(self) -> str: ...


def patient_of(conn: Connection, arrival: Arrival) -> int:
    """The patient of a study that is new; made, with a work item, when nobody has heard of them."""
    found = _ordered(conn, arrival) or _known(conn, arrival)
    return found if found is not None else _add(conn, arrival)


def contradiction(conn: Connection, arrival: Arrival, filed: Filed) -> str:
    """REQ-DCM-19: the same study under two patients; "" for none. What is absent on one side contradicts nothing, nor
    does an identifier that was merged into that of the study."""
    if not arrival.patient_id or not filed.patient_id:
        return ""
    said, same = arrival.said_issuer, arrival.patient_id == filed.patient_id
    if same and (not said or not filed.issuer or said == arrival.authorities.issuer(filed.issuer)):
        return ""
    if _known(conn, arrival) == filed.patient_pk:
        return ""
    other = "Issuer of Patient ID" if same else "Patient ID"
    return f"the Study Instance UID belongs to another {other}"


def _ordered(conn: Connection, arrival: Arrival) -> int | None:
    """Whom the images were ordered for, where nothing says who assigned their Patient ID."""
    if arrival.issuer or not arrival.patient_id:
        return None
    return patient_for_images(
        conn,
        patient_id=arrival.patient_id,
        accession_number=str(arrival.header.keys[Level.STUDY].get("accession_number") or ""),
        study_instance_uid=arrival.header.study_instance_uid,
    )


def _known(conn: Connection, arrival: Arrival) -> int | None:
    """Who has the header's identifier, or survived whoever had it."""
    found = _holder(conn, arrival.identity_key)
    if found is None and arrival.patient_id and not arrival.said_issuer:
        # known since before an authority was assumed
        found = _holder(conn, identity_key(arrival.patient_id, ""))
    return found


def _holder(conn: Connection, key: str) -> int | None:
    row = _BY_KEY.first(conn, {"key": key})
    while row is not None:
        pk, merged_into_pk = row
        if merged_into_pk is None:
            return int(pk)
        row = _BY_PK.first(conn, {"pk": merged_into_pk})
    return None


def _add(conn: Connection, arrival: Arrival) -> int:
    header, key = arrival.header, arrival.identity_key
    keys = header.keys[Level.PATIENT]
    _ADD.run(
        conn,
        {
            "identity_key": key,
            "patient_id": arrival.patient_id,
            "issuer": arrival.issuer if arrival.patient_id else "",
            "patient_name": keys.get("patient_name") or "",
            "birth_date": keys.get("birth_date"),
            "sex": keys.get("sex"),
            "provisional": 0 if arrival.patient_id else 1,
            "attributes": orjson.dumps(header.levels[Level.PATIENT]).decode(),
            "created_at": arrival.at,
        },
    )
    pk = _holder(conn, key)
    assert pk is not None
    open_item(
        conn,
        Kind.UNKNOWN_PATIENT,
        key,
        at=arrival.at,
        patient_pk=pk,
        study_instance_uid=header.study_instance_uid,
        evidence={"patient_id_missing": not arrival.patient_id, "source": arrival.source},
    )
    return pk
