"""Whose an arriving image is (REQ-DCM-17, 19): its patient is found, through merges, or made."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import orjson
from sqlalchemy import Connection, bindparam, select

from archive.authorities import identity_key
from archive.dicom.patient_id import cx
from archive.index.arrival import Claim
from archive.index.ordered import patient_for_images
from archive.schema import patient, study
from archive.schema.prepared import Prepared
from archive.schema.upsert import insert_in
from archive.work_items import Kind, open_item

# Locked against a merge, which would otherwise move the patient's studies without the one that is being added.
_ROW = select(patient.c.pk, patient.c.merged_into_pk).with_for_update(read=True)
_BY_KEY = Prepared(_ROW.where(patient.c.identity_key == bindparam("key")))
_BY_PK = Prepared(_ROW.where(patient.c.pk == bindparam("pk")))
_BY_INS = (  # somebody else's INS, typed wrong, hardly goes with their day of birth and sex
    select(patient.c.pk)
    .where(
        patient.c.ins.in_(bindparam("ins", expanding=True)),
        patient.c.merged_into_pk.is_(None),
        patient.c.birth_date == bindparam("birth_date"),
        patient.c.sex == bindparam("sex"),
    )
    .limit(2)
    .with_for_update(read=True)
)
_ADD = Prepared(
    lambda dialect: (
        insert_in(dialect, patient).on_conflict_do_nothing(index_elements=["identity_key"]).returning(patient.c.pk)
    ),
    columns=(
        *("identity_key", "patient_id", "issuer", "patient_name", "birth_date", "sex", "provisional", "attributes"),
        "created_at",
    ),
)


_OWNER = (
    select(patient.c.patient_id, patient.c.issuer)
    .join_from(study, patient)
    .where(study.c.study_instance_uid == bindparam("uid"))
)


class Owner(NamedTuple):
    """Whose a study, or a performed step, is. `new`: made by this transaction, so nobody else has anything of them."""

    pk: int
    new: bool


class Filed(Protocol):
    """The patient that a study is filed under."""

    @property
    def patient_pk(self) -> int: ...
    @property
    def patient_id(self) -> str: ...
    @property
    def issuer(self) -> str: ...


def patient_of(conn: Connection, claim: Claim) -> Owner:
    """The patient of a study, or of a performed step, that is new; made, with a work item, when nobody has
    heard of them."""
    found = _ordered(conn, claim) or _known(conn, claim)
    return Owner(found, new=False) if found is not None else _add(conn, claim)


def owner_of(conn: Connection, study_instance_uid: str) -> str | None:
    """The patient of a study, as an audit row names them; None: there is no such study."""
    row = conn.execute(_OWNER, {"uid": study_instance_uid}).first()
    return None if row is None else cx(row.patient_id, row.issuer)


def patients_of_studies(conn: Connection, uids: Collection[str]) -> dict[str, int]:
    """The numbers of the patients of these studies, by Study Instance UID."""
    rows = conn.execute(
        select(study.c.study_instance_uid, study.c.patient_pk).where(study.c.study_instance_uid.in_(uids))
    )
    return {uid: int(pk) for uid, pk in rows}


def studies_of_patients(conn: Connection, pks: Collection[int]) -> list[str]:
    """The Study Instance UIDs of these patients' studies."""
    return list(conn.execute(select(study.c.study_instance_uid).where(study.c.patient_pk.in_(pks))).scalars())


def contradiction(conn: Connection, claim: Claim, filed: Filed) -> str:
    """REQ-DCM-19: the same study under two patients; "" for none. What is absent on one side contradicts nothing, nor
    does an identifier that was merged into that of the study."""
    if not claim.patient_id or not filed.patient_id:
        return ""
    said, same = claim.said_issuer, claim.patient_id == filed.patient_id
    if same and (not said or not filed.issuer or said == claim.authorities.issuer(filed.issuer)):
        return ""
    if _known(conn, claim) == filed.patient_pk:
        return ""
    other = "Issuer of Patient ID" if same else "Patient ID"
    return f"the Study Instance UID belongs to another {other}"


def _ordered(conn: Connection, claim: Claim) -> int | None:
    """Whom the images were ordered for, where nothing says who assigned their Patient ID."""
    if claim.issuer or not claim.patient_id:
        return None
    return patient_for_images(
        conn,
        patient_id=claim.patient_id,
        accession_number=claim.accession_number,
        study_instance_uid=claim.study_instance_uid,
    )


def _known(conn: Connection, claim: Claim) -> int | None:
    """Who has the header's identifier, or survived whoever had it."""
    found = _holder(conn, claim.identity_key)
    if found is None and claim.patient_id and claim.issuer and not claim.said_issuer:
        # known since before an authority was assumed
        found = _holder(conn, identity_key(claim.patient_id, ""))
    return _by_ins(conn, claim) if found is None and claim.ins else found


def _by_ins(conn: Connection, claim: Claim) -> int | None:
    """Who uses the INS that a sharing network names its patient by, and has the same birth date and sex."""
    asked = {"ins": claim.ins, "birth_date": claim.keys.get("birth_date"), "sex": claim.keys.get("sex")}
    found = conn.execute(_BY_INS, asked).scalars().all()
    return int(found[0]) if len(found) == 1 else None


def _holder(conn: Connection, key: str) -> int | None:
    row = _BY_KEY.first(conn, {"key": key})
    while row is not None:
        pk, merged_into_pk = row
        if merged_into_pk is None:
            return int(pk)
        row = _BY_PK.first(conn, {"pk": merged_into_pk})
    return None


def _add(conn: Connection, claim: Claim) -> Owner:
    key, keys = claim.identity_key, claim.keys
    added = _ADD.first(
        conn,
        {
            "identity_key": key,
            "patient_id": claim.patient_id,
            "issuer": claim.issuer if claim.patient_id else "",
            "patient_name": keys.get("patient_name") or "",
            "birth_date": keys.get("birth_date"),
            "sex": keys.get("sex"),
            "provisional": 0 if claim.patient_id else 1,
            "attributes": orjson.dumps(claim.patient).decode(),
            "created_at": claim.at,
        },
    )
    pk = _holder(conn, key) if added is None else added[0]  # None: another process was quicker
    assert pk is not None
    open_item(
        conn,
        Kind.UNKNOWN_PATIENT,
        key,
        at=claim.at,
        patient_pk=pk,
        study_instance_uid=claim.study_instance_uid,
        evidence={"patient_id_missing": not claim.patient_id, "source": claim.source},
    )
    return Owner(pk, new=added is not None)
