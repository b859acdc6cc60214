"""Orders, and what was performed, from their facts alone, for `rebuild-index` (archive.journal)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, delete

from archive.identity.acts import PatientKey
from archive.identity.restore import patient_of
from archive.schema import imaging_order, performed_for, performed_step
from archive.schema.upsert import insert
from archive.workflow.orders import columns_of
from archive.workflow.performed import add_items
from archive.workflow.steps import subject_of


def restore_order(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """One step of an order, as its fact tells it; a step whose numbers changed is gone under the old ones. Told twice,
    it changes nothing. `subject` is `archive.workflow.orders.subject_of` its numbers."""
    if body["gone"]:
        length, _, rest = subject.partition(":")
        accession_number, step_id = rest[: int(length)], rest[int(length) + 1 :]
        mine = (imaging_order.c.accession_number == accession_number) & (imaging_order.c.step_id == step_id)
        conn.execute(delete(imaging_order).where(mine))
        return
    of = body["patient"]
    made_at = datetime.fromisoformat(body["created_at"])
    owner = patient_of(conn, of["identity_key"], PatientKey(of["patient_id"], of["issuer"]), made_at)
    values = {
        "patient_pk": owner.merged_into_pk or owner.pk,
        "study_instance_uid": body["study_instance_uid"],
        "placer_number": body["placer_number"],
        "filler_number": body["filler_number"],
        "status": body["status"],
        "record": orjson.dumps(body["record"], option=orjson.OPT_SORT_KEYS).decode(),
        "updated_at": at,
        **columns_of(body["record"]["dicom"]),
    }
    assert subject == subject_of(body["accession_number"], body["step_id"])
    conn.execute(
        insert(conn, imaging_order).on_conflict_do_update(index_elements=["accession_number", "step_id"], set_=values),
        {
            **values,
            "accession_number": body["accession_number"],
            "step_id": body["step_id"],
            "created_at": made_at,
        },
    )


def restore_performed(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """A performed procedure step, as its fact tells it. Told twice, it changes nothing. `subject` is its SOP Instance
    UID."""
    of = body["patient"]
    made_at = datetime.fromisoformat(body["created_at"])
    owner = patient_of(conn, of["identity_key"], PatientKey(of["patient_id"], of["issuer"]), made_at)
    values = {
        **{name: body[name] for name in ("status", "version", "calling_ae")},
        **{name: orjson.dumps(body[name]).decode() for name in ("created", "modified", "forwarded")},
        "patient_pk": owner.merged_into_pk or owner.pk,
        "updated_at": at,
    }
    pk = conn.execute(
        insert(conn, performed_step)
        .on_conflict_do_update(index_elements=["sop_instance_uid"], set_=values)
        .returning(performed_step.c.pk),
        {**values, "sop_instance_uid": subject, "created_at": made_at},
    ).scalar_one()
    conn.execute(delete(performed_for).where(performed_for.c.performed_pk == pk))
    add_items(conn, pk, body["for"])
