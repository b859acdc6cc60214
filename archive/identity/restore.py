"""Patients and studies from their facts alone, for `rebuild-index` (archive.journal).

Each function makes the state that a fact tells, whatever was there before; a fact that is told twice changes nothing.
Facts of patients may come before or after the files are filed, facts of studies after.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, select, update

from archive.identity import links, visits
from archive.identity.acts import PatientKey
from archive.identity.merge import MOVED
from archive.identity.patients import ALIAS
from archive.identity.record import of_json
from archive.identity.searchable import make_searchable
from archive.index.correct import correct_patient, correct_study, facts_changed, move_studies
from archive.schema import patient, patient_revision, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert


def restore_patient(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """A patient's record, corrections, INS, and whom they were merged into. `subject` is the identity key."""
    text = orjson.dumps(body["record"]).decode() if body["record"] is not None else None
    known = of_json(text) if text else None
    made_at = datetime.fromisoformat(body["created_at"])
    row = patient_of(conn, subject, PatientKey(body["patient_id"], body["issuer"]), made_at)
    survivor_pk = None
    if body["merged_into"] is not None:
        survivor_pk = _survivor(conn, body["merged_into"], made_at)
    values = {
        "created_at": made_at,
        "record": text,
        "version": body["version"],
        "ins": f"{known.ins.value}^{known.ins.oid}" if known and known.ins else None,
        "provisional": 0 if known else row.provisional,
        "merged_into_pk": survivor_pk,
        "tombstone": body["tombstone"],
        "attributes": orjson.dumps(body["received"]).decode(),
        "received_attributes": None,
    }
    mine = patient.c.pk == row.pk
    conn.execute(update(patient).where(mine).values(values))
    make_searchable(conn, row.pk, None if body["tombstone"] == ALIAS else known)
    if text is not None:
        revision = {"patient_pk": row.pk, "version": body["version"], "at": at, "record": text}
        conn.execute(
            insert(conn, patient_revision).on_conflict_do_nothing(index_elements=["patient_pk", "version"]),
            {**revision, "user": body["user"], "event": body["event"]},
        )
    correct_patient(conn, row.pk, body["corrections"], reason=body["reason"], at=at)  # and the columns that it has
    if not body["corrections"]:
        conn.execute(update(patient).where(mine).values(received_attributes=None))
    if survivor_pk is not None:
        move_studies(conn, loser_pk=row.pk, survivor_pk=survivor_pk)
        for table in MOVED:
            conn.execute(update(table).where(table.c.patient_pk == row.pk).values(patient_pk=survivor_pk))
        links.move(conn, loser_pk=row.pk, survivor_pk=survivor_pk)
        merged = patient.c.merged_into_pk == row.pk
        conn.execute(update(patient).where(merged).values(merged_into_pk=survivor_pk))


def restore_study(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Whose a study is, and its corrections. `subject` is the Study Instance UID; one not held is passed over."""
    row = conn.execute(select(study.c.pk, study.c.patient_pk).where(study.c.study_instance_uid == subject)).first()
    if row is None:
        return
    if body["patient"] is not None:
        of = body["patient"]
        owner = patient_of(conn, of["identity_key"], PatientKey(of["patient_id"], of["issuer"]), at)
        owner_pk = owner.merged_into_pk or owner.pk
        if owner_pk != row.patient_pk:
            conn.execute(update(study).where(study.c.pk == row.pk).values(patient_pk=owner_pk))
            facts_changed(conn, owner_pk)
    correct_study(conn, row.pk, body["corrections"], reason=body["reason"], at=at)


def restore_visit(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """A visit with its movements. Told twice, it changes nothing."""
    made_at = datetime.fromisoformat(body["created_at"])
    owner_pk = _survivor(conn, body["patient"], made_at)
    visits.put(conn, body, owner_pk, made_at=made_at, at=at)


def restore_link(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Whether two patients are linked."""
    pk, other_pk = (_survivor(conn, of, at) for of in body["patients"])
    links.keep(conn, pk, other_pk, linked=body["linked"])


def patient_of(conn: Connection, identity_key: str, key: PatientKey, at: datetime) -> AnyRow:
    """The row of an identity key, made bare when it is not there yet: its own fact, or its images, may still come."""
    values = {
        "identity_key": identity_key,
        "patient_id": key.patient_id,
        "issuer": key.issuer,
        "patient_name": "",
        "provisional": 0 if key.patient_id else 1,
        "attributes": orjson.dumps(_bare(key)).decode(),
        "created_at": at,
    }
    conn.execute(insert(conn, patient).on_conflict_do_nothing(index_elements=["identity_key"]), values)
    return conn.execute(select(patient).where(patient.c.identity_key == identity_key)).one()


def _survivor(conn: Connection, of: Mapping[str, Any], at: datetime) -> int:
    row = patient_of(conn, of["identity_key"], PatientKey(of["patient_id"], of["issuer"]), at)
    return int(row.merged_into_pk or row.pk)


def _bare(key: PatientKey) -> dict[str, Any]:
    named = {"00100020": key.patient_id, "00100021": key.issuer}
    return {name: {"vr": "LO", "Value": [value]} if value else {"vr": "LO"} for name, value in named.items()}
