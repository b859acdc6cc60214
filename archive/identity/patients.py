"""Patients as the RIS knows them: found, made, changed (sheet 20 §4.2). Functions on the connection of a write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select, update

from archive.audit.record import Event, record
from archive.dicom.patient_id import cx
from archive.errors import MergedAway
from archive.identity import dicom, ins
from archive.identity.acts import Act, PatientKey, lock_identities
from archive.identity.record import Ins, Name, Record, Statement, apply, is_older, of_json, to_json
from archive.identity.searchable import make_searchable
from archive.index.correct import correct_patient
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import patient, patient_revision
from archive.schema.types import AnyRow
from archive.schema.upsert import insert
from archive.work_items import Kind, close_item, open_item

ALIAS = "alias"  # patient.tombstone: an identifier that was changed (A47)
_BY_KEY = select(patient).where(patient.c.identity_key == bindparam("key"))
_BY_PK = select(patient).where(patient.c.pk == bindparam("pk"))
_LOCKED = _BY_KEY.with_for_update()
_WITH_INS = select(patient.c.pk).where(
    patient.c.ins == bindparam("ins"), patient.c.merged_into_pk.is_(None), patient.c.identity_key != bindparam("key")
)
_LOSERS = select(patient.c.pk).where(patient.c.merged_into_pk == bindparam("pk")).limit(1)


@dataclass(frozen=True, slots=True)
class Said:
    """What became of a statement. A `stale` one changed nothing."""

    pk: int
    created: bool = False  # nobody had said anything of this patient before
    stale: bool = False
    refusals: tuple[ins.Refusal, ...] = ()
    disagreements: tuple[str, ...] = ()  # traits that the digits of the INS contradict


def find(conn: Connection, key: PatientKey) -> AnyRow | None:
    """The row of an identifier, a merged-away one too; None when it was never heard of."""
    return conn.execute(_BY_KEY, {"key": key.identity_key}).first()


def row_of(conn: Connection, pk: int) -> AnyRow:
    """The row with this number."""
    return conn.execute(_BY_PK, {"pk": pk}).one()


def survivor_of(conn: Connection, row: AnyRow) -> AnyRow:
    """Who a row stands for: itself, or the patient it was merged into. One step is enough (path compression)."""
    return row if row.merged_into_pk is None else row_of(conn, row.merged_into_pk)


def key_of(row: AnyRow) -> PatientKey:
    """The identifier of a row."""
    return PatientKey(row.patient_id, row.issuer)


def record_of(row: AnyRow) -> Record | None:
    """What is said of a patient; None when only images know them."""
    return of_json(row.record) if row.record else None


def seen_of(row: AnyRow) -> Record:
    """What images say of somebody, as a record: no status, for nobody has said one."""
    shown = dicom.by_keyword(orjson.loads(row.attributes))
    family, _, rest = str(shown.get("PatientName", "")).partition("^")
    name = Name(family or None, rest.partition("^")[0] or None)
    return Record(
        names={"L": name} if name else {},
        birth_date=shown.get("PatientBirthDate") or None,
        sex=shown.get("PatientSex") or None,
        codes=(),
    )


def active(conn: Connection, key: PatientKey) -> AnyRow | None:
    """The row of an identifier that is in use, locked, as are identities; None when it was never heard of.

    Raises:
        MergedAway: it was merged into another one (REQ-HL7-P11).
    """
    lock_identities(conn)  # before the row, as a merge does: else they would wait for each other
    row = conn.execute(_LOCKED, {"key": key.identity_key}).first()
    if row is not None and row.merged_into_pk is not None:
        survivor = survivor_of(conn, row)
        raise MergedAway("this patient was merged into another one", old=key.cx, survivor=key_of(survivor).cx)
    return row


def say(conn: Connection, key: PatientKey, said: Statement, *, act: Act) -> Said:
    """Apply what a message says of a patient, who is made when nobody has heard of them (REQ-HL7-P2).

    Raises:
        MergedAway: the identifier was merged into another one; nothing is applied.
    """
    row = active(conn, key)
    known = record_of(row) if row is not None else None
    if row is not None and known is not None and _is_stale(known, said):
        times = {"said": said.updated_at, "known": known.updated_at}
        wait(conn, Kind.STALE_UPDATE, key, act=act, patient_pk=row.pk, facts=times)
        return Said(row.pk, stale=True)
    verdict = ins.judge(
        apply(known or Record(), said),
        said,
        accepted=act.ins_oids,
        taken=lambda one: _is_taken(conn, one, key),
        at=act.at_iso,
    )
    pk = row.pk if row is not None else create(conn, key, act=act)
    keep(conn, pk, verdict.record, known=known, act=act)
    for one in verdict.refusals:
        kind = Kind.INS_COLLISION if one.fault is ins.Fault.COLLISION else Kind.INS_REFUSED
        facts = {"reason": one.fault.name.lower(), "withdrawn": one.withdrawn}
        wait(conn, kind, key, act=act, patient_pk=pk, facts=facts)
    used = verdict.record.ins
    return Said(
        pk,
        created=known is None,
        refusals=verdict.refusals,
        disagreements=tuple(ins.disagreements(verdict.record, used)) if used in said.ins and used else (),
    )


def create(conn: Connection, key: PatientKey, *, act: Act) -> int:
    """Make a patient before any image of theirs has come; returns their number. There already: that one."""
    attributes = dicom.identifier(key.patient_id, key.issuer, act.authorities.oid_of(key.issuer))
    values = {
        "identity_key": key.identity_key,
        "patient_id": key.patient_id,
        "issuer": key.issuer,
        "patient_name": "",
        "provisional": 0,
        "attributes": orjson.dumps({name: attributes[name] for name in sorted(attributes)}).decode(),
        "created_at": act.at,
    }
    conn.execute(insert(conn, patient).on_conflict_do_nothing(index_elements=["identity_key"]), values)
    return int(conn.execute(select(patient.c.pk).where(patient.c.identity_key == key.identity_key)).scalar_one())


def keep(conn: Connection, pk: int, new: Record, *, known: Record | None, act: Act) -> None:
    """Make `new` the record of a patient: a revision, corrections on every way out, the fact, the audit. What waited
    for the RIS to send this patient is settled."""
    row = row_of(conn, pk)
    key = key_of(row)
    if new != known:
        conn.execute(
            update(patient)
            .where(patient.c.pk == pk)
            .values(
                record=to_json(new),
                version=row.version + 1,
                ins=f"{new.ins.value}^{new.ins.oid}" if new.ins else None,
                provisional=0,
            )
        )
        _revise(conn, pk, row.version + 1, to_json(new), act)
        correct(conn, pk, act=act)
    make_searchable(conn, pk, new)
    close_item(
        conn, Kind.UNKNOWN_PATIENT, row.identity_key, at=act.at, by=act.actor.user, resolution=f"sent by {act.event}"
    )
    tell(conn, key, "C" if known is None else "U", act=act)


def correct(conn: Connection, pk: int, *, act: Act) -> None:
    """Have every way out say what the record says, and note the fact."""
    row = row_of(conn, pk)
    known = record_of(row)
    oid = act.authorities.oid_of(row.issuer)
    if known is not None:
        attributes = dicom.attributes_of(known, patient_id=row.patient_id, issuer=row.issuer, oid=oid)
    else:
        attributes = dicom.identifier(row.patient_id, row.issuer, oid)
    if conn.execute(_LOSERS, {"pk": pk}).first() is not None:
        attributes = dicom.completed(attributes, orjson.loads(row.received_attributes or row.attributes))
    correct_patient(conn, pk, attributes, reason=act.reason, at=act.at)
    note_patient(conn, pk, act=act)


def note_patient(conn: Connection, pk: int, *, act: Act) -> None:
    """The fact of a patient's present state: what `archive.identity.restore` makes it from."""
    row = row_of(conn, pk)
    survivor = None if row.merged_into_pk is None else named(row_of(conn, row.merged_into_pk))
    corrections = orjson.loads(row.corrections) if row.corrections else {}
    note(
        conn,
        Fact.PATIENT,
        row.identity_key,
        {
            "patient_id": row.patient_id,
            "issuer": row.issuer,
            "created_at": row.created_at.isoformat(),
            "record": orjson.loads(row.record) if row.record else None,
            "version": row.version,
            "user": act.actor.user,
            "event": act.event,
            "reason": corrections.get("reason", act.reason),
            "received": orjson.loads(row.received_attributes or row.attributes),
            "corrections": corrections.get("attributes", {}),
            "tombstone": row.tombstone,
            "merged_into": survivor,
        },
        at=act.at,
    )


def named(row: AnyRow) -> dict[str, str]:
    """A patient as another one's fact, or that of a study or order, names them."""
    return {"identity_key": row.identity_key, "patient_id": row.patient_id, "issuer": row.issuer}


def tell(
    conn: Connection, key: PatientKey, action: str, *, act: Act, detail: Mapping[str, object] | None = None
) -> None:
    """The audit row of a change to a patient (110110, sheet 40 §2)."""
    facts: dict[str, Any] = {"type": "ITI-30", "event": act.event, **act.evidence, **(detail or {})}
    record(conn, act.actor, Event.PATIENT_RECORD, action, patient=key.cx, detail=facts)


def wait(
    conn: Connection,
    kind: Kind,
    key: PatientKey,
    *,
    act: Act,
    patient_pk: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Open a work item about a patient."""
    evidence = {"event": act.event, **act.evidence, **(facts or {})}
    open_item(conn, kind, key.identity_key, at=act.at, patient_pk=patient_pk, evidence=evidence)


def drop_ins(conn: Connection, pk: int, *, reason: str, act: Act) -> None:
    """Take the INS of a patient who is merged away out of use; its history stays (sheet 20 §4.3)."""
    row = row_of(conn, pk)
    known = record_of(row)
    if known is None or known.ins is None:
        return
    new = to_json(ins.withdrawn(known, reason=reason, at=act.at_iso))
    conn.execute(update(patient).where(patient.c.pk == pk).values(record=new, ins=None, version=row.version + 1))
    _revise(conn, pk, row.version + 1, new, act)


def history(conn: Connection, pk: int) -> list[dict[str, Any]]:
    """Every state of a patient's record, those under former identifiers too, the first one first, without what only
    the audit may read."""
    former = select(patient.c.pk).where(patient.c.merged_into_pk == pk, patient.c.tombstone == ALIAS)
    mine = (patient_revision.c.patient_pk == pk) | patient_revision.c.patient_pk.in_(former)
    found = conn.execute(select(patient_revision).where(mine)).all()
    of_version = {row.version: row for row in sorted(found, key=lambda row: row.patient_pk == pk)}  # its own last
    rows = [of_version[version] for version in sorted(of_version)]
    return [
        {
            "version": row.version,
            "at": row.at.isoformat(),
            "user": row.user,
            "event": row.event,
            "record": orjson.loads(to_json(replace(of_json(row.record), ins=None, ins_history=()))),
        }
        for row in rows
    ]


def name_of(conn: Connection, pk: int) -> str | None:
    """A patient as the audit names them; None when there is none with this number."""
    row = conn.execute(_BY_PK, {"pk": pk}).first()
    return key_of(row).cx if row is not None else None


def merged_into(conn: Connection, pk: int) -> list[str]:
    """The identifiers that were merged into a patient."""
    return [cx(row.patient_id, row.issuer) for row in _tombstones(conn, pk) if row.tombstone != ALIAS]


def aliases(conn: Connection, pk: int) -> list[str]:
    """The former identifiers of a patient, without who assigned them: the same as assigns the present one."""
    return [row.patient_id for row in _tombstones(conn, pk) if row.tombstone == ALIAS]


def with_ins(conn: Connection, one: Ins) -> AnyRow | None:
    """Who has this INS in use."""
    asked = {"ins": f"{one.value}^{one.oid}"}
    return conn.execute(select(patient).where(patient.c.ins == bindparam("ins")).limit(1), asked).first()


def _tombstones(conn: Connection, pk: int) -> Sequence[AnyRow]:
    return conn.execute(select(patient).where(patient.c.merged_into_pk == pk).order_by(patient.c.pk)).all()


def _revise(conn: Connection, pk: int, version: int, text: str, act: Act) -> None:
    conn.execute(
        insert(conn, patient_revision),
        {
            "patient_pk": pk,
            "version": version,
            "at": act.at,
            "user": act.actor.user,
            "event": act.event,
            "record": text,
        },
    )


def _is_stale(known: Record, said: Statement) -> bool:
    return bool(said.updated_at and known.updated_at and is_older(said.updated_at, known.updated_at))


def _is_taken(conn: Connection, one: Ins, key: PatientKey) -> bool:
    return conn.execute(_WITH_INS, {"ins": f"{one.value}^{one.oid}", "key": key.identity_key}).first() is not None
