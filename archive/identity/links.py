"""Links between patients who may be one (A24, A37; sheet 20 §4.1): nothing of theirs moves. Functions on the connection
of a write, but `of_patient`."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, select

from archive.identity import patients
from archive.identity.acts import Act
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import patient, patient_link
from archive.schema.upsert import insert


def link(conn: Connection, pk: int, other_pk: int, *, linked: bool, act: Act) -> bool:
    """Link two patients, or end their link; False when it is so already."""
    if not keep(conn, pk, other_pk, linked=linked):
        return False
    both = [patients.row_of(conn, one) for one in sorted((pk, other_pk))]
    body = {"patients": [patients.named(row) for row in both], "linked": linked}
    note(conn, Fact.LINK, " ".join(row.identity_key for row in both), body, at=act.at)
    for row, other in (both, both[::-1]):
        detail = {"linked_to" if linked else "unlinked_from": patients.key_of(other).cx}
        patients.tell(conn, patients.key_of(row), "U", act=act, detail=detail)
    return True


def keep(conn: Connection, pk: int, other_pk: int, *, linked: bool) -> bool:
    """The row of a link, or none; False when it is so already."""
    low, high = sorted((pk, other_pk))
    if linked and low != high:
        values = {"patient_pk": low, "other_pk": high}
        adding = insert(conn, patient_link).on_conflict_do_nothing(index_elements=["patient_pk", "other_pk"])
        return conn.execute(adding.returning(patient_link.c.pk), values).first() is not None
    both = (patient_link.c.patient_pk == low) & (patient_link.c.other_pk == high)
    return conn.execute(delete(patient_link).where(both)).rowcount > 0


def move(conn: Connection, *, loser_pk: int, survivor_pk: int) -> None:
    """The links of somebody who is merged away are the survivor's."""
    others = _others(conn, loser_pk)
    conn.execute(delete(patient_link).where(_of(loser_pk)))
    for other_pk in others:
        keep(conn, survivor_pk, other_pk, linked=True)


def of_patient(conn: Connection, pk: int) -> list[str]:
    """The identifiers of those whom a patient is linked with."""
    rows = conn.execute(select(patient.c.patient_id).where(patient.c.pk.in_(_others(conn, pk))).order_by(patient.c.pk))
    return list(rows.scalars())


def _others(conn: Connection, pk: int) -> list[int]:
    rows = conn.execute(select(patient_link.c.patient_pk, patient_link.c.other_pk).where(_of(pk)))
    return [int(other if one == pk else one) for one, other in rows]


def _of(pk: int) -> ColumnElement[bool]:
    return (patient_link.c.patient_pk == pk) | (patient_link.c.other_pk == pk)
