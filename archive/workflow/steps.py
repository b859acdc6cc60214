"""A scheduled step, which is one row of `imaging_order`: how far it has come, and what journal and audit are told."""

from __future__ import annotations

from enum import StrEnum

import orjson
from sqlalchemy import Connection, select, update

from archive.audit.record import Event, record
from archive.identity import patients
from archive.identity.acts import Act
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import imaging_order
from archive.schema.types import AnyRow


class Status(StrEnum):
    """Of an order."""

    SCHEDULED = "scheduled"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"  # before it began
    DISCONTINUED = "discontinued"


IN_WORKLIST = frozenset({Status.SCHEDULED})  # nobody has begun (REQ-DCM-52)


PLAIN = ("accession_number", "step_id", "study_instance_uid", "placer_number", "filler_number", "status")


def move(conn: Connection, row: AnyRow, status: Status, *, act: Act) -> None:
    """Say how far a step has come."""
    values = {"status": status, "updated_at": act.at}
    conn.execute(update(imaging_order).where(imaging_order.c.pk == row.pk).values(values))
    tell(conn, row.pk, "U", act)


def tell(conn: Connection, pk: int, action: str, act: Act) -> None:
    """The fact of an order's present state, and its audit row (110109)."""
    row = conn.execute(select(imaging_order).where(imaging_order.c.pk == pk)).one()
    owner = patients.row_of(conn, row.patient_pk)
    note(
        conn,
        Fact.ORDER,
        subject_of(row.accession_number, row.step_id),
        {
            **{name: getattr(row, name) for name in PLAIN},
            "patient": patients.named(owner),
            "record": orjson.loads(row.record),
            "created_at": row.created_at.isoformat(),
            "gone": False,
        },
        at=act.at,
    )
    detail = {"event": act.event, "accession": row.accession_number, "status": row.status, **act.evidence}
    record(
        conn,
        act.actor,
        Event.ORDER_RECORD,
        action,
        patient=patients.key_of(owner).cx,
        study=row.study_instance_uid,
        detail=detail,
    )


def subject_of(accession_number: str, step_id: str) -> str:
    """What facts and work items call a step; the length says where the accession number ends."""
    return f"{len(accession_number)}:{accession_number}:{step_id}"


def step_id_of(row: AnyRow) -> str:
    """The Scheduled Procedure Step ID that modalities are told, for they need one: the accession number where the RIS
    gives none."""
    return str(row.step_id or row.accession_number)
