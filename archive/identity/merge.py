"""Two identifiers of one person become one patient (A40; sheet 20 §4.3, REQ-HL7-40).

The loser keeps its row for ever, as a tombstone that names the survivor; its studies, orders and work items are the
survivor's. No tombstone names another one: whoever was merged into the loser before is the survivor's too. Files do
not change (law 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, select, update

from archive.dicom.patient_id import cx
from archive.errors import IdentifierInUse, MergedAway
from archive.identity import patients
from archive.identity.acts import Act, PatientKey, lock_identities
from archive.identity.record import Name, Record, Statement, apply
from archive.index.correct import move_studies
from archive.schema import imaging_order, patient, performed_step, work_item
from archive.schema.types import AnyRow
from archive.work_items import Kind, close_item

MERGED = "merged"  # patient.tombstone


@dataclass(frozen=True, slots=True)
class Pair:
    """One PID and its MRG. Names are used to make patients that nobody has heard of, and for nothing else (DD-10)."""

    survivor: PatientKey
    loser: PatientKey
    survivor_said: Statement = field(default_factory=Statement)
    loser_name: Name = field(default_factory=Name)


def merge(conn: Connection, pair: Pair, *, act: Act) -> bool:
    """Merge one pair; False when it is merged already. Several of one message are merged in one transaction, in order.

    Raises:
        IdentifierInUse: the same identifier on both sides.
        MergedAway: the survivor is a tombstone, or the loser was merged into somebody else; `old` says which.
    """
    if pair.survivor == pair.loser:
        raise IdentifierInUse("both identifiers are the same", what="patient")
    lock_identities(conn)
    survivor, loser = patients.find(conn, pair.survivor), patients.find(conn, pair.loser)
    if survivor is not None and survivor.merged_into_pk is not None:
        raise _merged_away(conn, survivor)
    if loser is not None and loser.merged_into_pk is not None:
        if survivor is not None and loser.merged_into_pk == survivor.pk:
            return False
        raise _merged_away(conn, loser)
    survivor_pk = _known(conn, survivor, pair.survivor, pair.survivor_said, act)
    loser_pk = loser.pk if loser is not None else _made(conn, pair.loser, pair.loser_name, act)
    _locked(conn, survivor_pk, loser_pk)
    _move(conn, pair, survivor_pk=survivor_pk, loser_pk=loser_pk, act=act)
    return True


def _known(conn: Connection, row: AnyRow | None, key: PatientKey, said: Statement, act: Act) -> int:
    """The survivor, made from the message when only images know them, or nobody does. An existing record stays."""
    if row is not None and (row.record or not said.names):
        return int(row.pk)
    pk = int(row.pk) if row is not None else patients.create(conn, key, act=act)
    patients.keep(conn, pk, apply(Record(), said), known=None, act=act)
    return pk


def _made(conn: Connection, key: PatientKey, name: Name, act: Act) -> int:
    """A loser that nobody has heard of: remembered, for images under that identifier may still come."""
    pk = patients.create(conn, key, act=act)
    patients.keep(conn, pk, apply(Record(), Statement(names={"L": name} if name else {})), known=None, act=act)
    return pk


def _locked(conn: Connection, *pks: int) -> None:
    """Hold both rows: whoever files a study under one of them at this moment is waited for, or waits."""
    conn.execute(select(patient.c.pk).where(patient.c.pk.in_(pks)).order_by(patient.c.pk).with_for_update()).all()


def _move(conn: Connection, pair: Pair, *, survivor_pk: int, loser_pk: int, act: Act) -> None:
    patients.drop_ins(conn, loser_pk, reason="merged", act=act)
    before = list(conn.execute(select(patient.c.pk).where(patient.c.merged_into_pk == loser_pk)).scalars())
    conn.execute(
        update(patient)
        .where((patient.c.pk == loser_pk) | (patient.c.merged_into_pk == loser_pk))
        .values(merged_into_pk=survivor_pk, tombstone=MERGED)
    )
    studies = move_studies(conn, loser_pk=loser_pk, survivor_pk=survivor_pk)
    for table in (imaging_order, performed_step, work_item):
        conn.execute(update(table).where(table.c.patient_pk == loser_pk).values(patient_pk=survivor_pk))
    close_item(
        *(conn, Kind.UNKNOWN_PATIENT, pair.loser.identity_key),
        at=act.at,
        by=act.actor.user,
        resolution=f"merged by {act.event}",
    )
    for pk in (*sorted(before), loser_pk):
        patients.note_patient(conn, pk, act=act)
    patients.correct(conn, survivor_pk, act=act)
    patients.tell(conn, pair.loser, "U", act=act, detail={"merged_into": pair.survivor.cx})
    moved = {"merged_from": pair.loser.cx, "studies": studies}
    patients.tell(conn, pair.survivor, "U", act=act, detail=moved)


def _merged_away(conn: Connection, row: AnyRow) -> MergedAway:
    survivor = patients.survivor_of(conn, row)
    return MergedAway(
        "this patient was merged into another one",
        old=cx(row.patient_id, row.issuer),
        survivor=cx(survivor.patient_id, survivor.issuer),
    )
