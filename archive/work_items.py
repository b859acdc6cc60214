"""What waits for a person: one open item for a kind and a subject, with its evidence (sheet 20 §10)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select

from archive.dicom.patient_id import cx
from archive.schema import patient, work_item
from archive.schema.types import AnyRow
from archive.schema.upsert import insert


class Kind(StrEnum):
    """Kinds that this version opens."""

    UID_CONFLICT = "uid_conflict"  # other content under a SOP Instance UID that is taken (REQ-DCM-15)
    IDENTITY_CONFLICT = "identity_conflict"  # an image contradicts the record (REQ-DCM-19)
    TRUNCATED = "truncated"  # Pixel Data announces more bytes than came: kept as it is, in doubt
    UNKNOWN_PATIENT = "unknown_patient"  # images of somebody the RIS has not sent (REQ-DCM-17)


def open_item(
    conn: Connection,
    kind: Kind,
    subject: str,
    *,
    at: datetime,
    patient_pk: int | None = None,
    study_instance_uid: str | None = None,
    evidence: Mapping[str, Any],
) -> None:
    """Open an item, or leave it as it is when it is open already. A closed one about the same subject opens again."""
    values = {
        "kind": kind,
        "subject": subject,
        "state": "open",
        "patient_pk": patient_pk,
        "study_instance_uid": study_instance_uid,
        "evidence": orjson.dumps(dict(evidence)).decode(),
        "opened_at": at,
    }
    statement = insert(conn, work_item).on_conflict_do_update(
        index_elements=["kind", "subject"],
        set_={"state": "open", "evidence": values["evidence"], "opened_at": at, "closed_at": None},
        where=work_item.c.state == "closed",
    )
    conn.execute(statement, values)


_LIST = (
    select(
        work_item.c.pk,
        work_item.c.kind,
        work_item.c.state,
        work_item.c.subject,
        work_item.c.study_instance_uid,
        work_item.c.evidence,
        work_item.c.opened_at,
        patient.c.patient_id,
        patient.c.issuer,
    )
    .select_from(work_item.outerjoin(patient, work_item.c.patient_pk == patient.c.pk))
    .order_by(work_item.c.pk)
    .limit(bindparam("limit"))
)


def list_items(
    conn: Connection, *, kind: str | None = None, state: str | None = None, after: int = 0, limit: int = 100
) -> list[dict[str, Any]]:
    """Items in the order they were opened, after the one numbered `after`; `id` numbers them."""
    statement = _LIST.where(work_item.c.pk > after)
    if kind is not None:
        statement = statement.where(work_item.c.kind == kind)
    if state is not None:
        statement = statement.where(work_item.c.state == state)
    return [_shape(row) for row in conn.execute(statement, {"limit": limit})]


def _shape(row: AnyRow) -> dict[str, Any]:
    return {
        "id": row.pk,
        "kind": row.kind,
        "state": row.state,
        "subject": row.subject,
        "patient": cx(row.patient_id or "", row.issuer or "") or None,
        "study": row.study_instance_uid,
        "opened_at": row.opened_at.isoformat(),
        "evidence": orjson.loads(row.evidence),
    }
