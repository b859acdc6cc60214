"""Two identifiers of one person become one patient (A40; sheet 20 §4.3, REQ-HL7-40), or one identifier becomes another
(A47; §4.4, REQ-HL7-41).

The loser keeps its row for ever, as a tombstone that names the survivor; its studies, visits, orders and work items are
the survivor's. No tombstone names another one: whoever was merged into the loser before is the survivor's too. Files do
not change (law 3). An identifier that was changed leaves the same tombstone, and is an alias: the record goes along.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import orjson
from sqlalchemy import Connection, select, update

from archive.dicom.patient_id import cx
from archive.errors import IdentifierInUse, MergedAway
from archive.identity import dicom, ins, links, patients
from archive.identity.acts import Act, PatientKey, lock_identities
from archive.identity.record import Name, Record, Statement, apply, to_json
from archive.identity.searchable import make_searchable
from archive.index.correct import move_studies
from archive.schema import imaging_order, patient, performed_step, visit, work_item
from archive.schema.types import AnyRow
from archive.work_items import Kind, close_item

MERGED = "merged"  # patient.tombstone
MOVED = (imaging_order, performed_step, visit)  # with `patient_pk`, besides studies


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
    patients.drop_ins(conn, loser_pk, reason="merged", act=act)
    earlier = conn.execute(select(patient.c.pk).where(patient.c.merged_into_pk == loser_pk)).scalars().all()
    conn.execute(update(patient).where(patient.c.pk.in_([loser_pk, *earlier])).values(tombstone=MERGED))
    _move(conn, pair.survivor, pair.loser, survivor_pk=survivor_pk, loser_pk=loser_pk, act=act)
    return True


def rename(conn: Connection, old: PatientKey, new: PatientKey, said: Statement, *, act: Act) -> patients.Said | None:
    """Give a patient another identifier of the same authority, and apply what the message says of them: it is the same
    person. Somebody nobody has heard of is made. None: it was done before, or only the new identifier is known.

    Raises:
        IdentifierInUse: `patient`: both are the same; `identifier`: an active patient has the new one.
        MergedAway: one of them is somebody else's; `old` says which.
    """
    if old == new:
        raise IdentifierInUse("both identifiers are the same", what="patient")
    lock_identities(conn)
    former, holder = patients.find(conn, old), patients.find(conn, new)
    back = former is not None and holder is not None and holder.merged_into_pk == former.pk
    if former is not None and former.merged_into_pk is not None:
        if holder is not None and former.merged_into_pk == holder.pk:
            return None
        raise _merged_away(conn, former)
    if holder is not None and holder.merged_into_pk is not None and not (back and holder.tombstone == patients.ALIAS):
        raise _merged_away(conn, holder)
    if holder is not None and holder.record is not None and not back:
        if former is None:
            return None
        raise IdentifierInUse("another patient has the new identifier", what="identifier")
    new_pk = holder.pk if holder is not None else patients.create(conn, new, act=act)
    old_pk = former.pk if former is not None else patients.create(conn, old, act=act)
    _locked(conn, old_pk, new_pk)
    if former is not None:
        _hand_over(conn, former, new_pk, new, images=holder is not None and not back, act=act)
        if back:  # a rebuild has to know that it is in use before the other one is merged into it
            patients.note_patient(conn, new_pk, act=act)
    conn.execute(update(patient).where(patient.c.pk == old_pk).values(tombstone=patients.ALIAS))
    _move(conn, new, old, survivor_pk=new_pk, loser_pk=old_pk, act=act)
    return patients.say(conn, new, said, act=act)


def _hand_over(conn: Connection, former: AnyRow, new_pk: int, new: PatientKey, *, images: bool, act: Act) -> None:
    """The record goes to the new identifier, its INS too, and what images said of the patient, unless the new one has
    `images` of its own."""
    values: dict[str, object] = {"merged_into_pk": None, "tombstone": None}
    if not images:
        received = orjson.loads(former.received_attributes or former.attributes)
        named = dicom.identifier(new.patient_id, new.issuer, act.authorities.oid_of(new.issuer))
        values |= {"attributes": orjson.dumps(received | named, option=orjson.OPT_SORT_KEYS).decode()}
        values |= {"received_attributes": None, "corrections": None}
    values |= {name: getattr(former, name) for name in ("version", "ins", "provisional")}
    known, left = patients.record_of(former), None
    if known is not None:
        key = patients.key_of(former)
        others = tuple(one for one in known.identifiers if PatientKey(one.value, one.issuer) != key)
        known = replace(known, identifiers=others)
        # the alias is left with none: one that is taken back from the patient later must not lead through it
        left = to_json(replace(ins.withdrawn(known, reason="renamed", at=act.at_iso), identifiers=()))
    values["record"] = to_json(known) if known is not None else None
    conn.execute(update(patient).where(patient.c.pk == new_pk).values(values))
    conn.execute(update(patient).where(patient.c.pk == former.pk).values(record=left, ins=None))
    make_searchable(conn, former.pk, None)
    make_searchable(conn, new_pk, known)


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


def _move(
    conn: Connection, survivor: PatientKey, loser: PatientKey, *, survivor_pk: int, loser_pk: int, act: Act
) -> None:
    """Everything of the loser becomes the survivor's."""
    before = list(conn.execute(select(patient.c.pk).where(patient.c.merged_into_pk == loser_pk)).scalars())
    conn.execute(update(patient).where(patient.c.pk.in_([loser_pk, *before])).values(merged_into_pk=survivor_pk))
    studies = move_studies(conn, loser_pk=loser_pk, survivor_pk=survivor_pk)
    for table in (*MOVED, work_item):
        conn.execute(update(table).where(table.c.patient_pk == loser_pk).values(patient_pk=survivor_pk))
    links.move(conn, loser_pk=loser_pk, survivor_pk=survivor_pk)
    close_item(
        *(conn, Kind.UNKNOWN_PATIENT, loser.identity_key),
        at=act.at,
        by=act.actor.user,
        resolution=f"merged by {act.event}",
    )
    for pk in (*sorted(before), loser_pk):
        patients.note_patient(conn, pk, act=act)
    patients.correct(conn, survivor_pk, act=act)
    patients.tell(conn, loser, "U", act=act, detail={"merged_into": survivor.cx})
    patients.tell(conn, survivor, "U", act=act, detail={"merged_from": loser.cx, "studies": studies})


def _merged_away(conn: Connection, row: AnyRow) -> MergedAway:
    survivor = patients.survivor_of(conn, row)
    return MergedAway(
        "this patient was merged into another one",
        old=cx(row.patient_id, row.issuer),
        survivor=cx(survivor.patient_id, survivor.issuer),
    )
