"""Studies that answer orders: found, linked, corrected (PIR; REQ-HL7-77, 78, 95, 98).

A study is moved to the patient of an order only when the same Patient ID stands in both and nobody has said that it is
somebody else's: everything else waits for a person.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from sqlalchemy import Connection, select, update

from archive.audit.record import Event, record
from archive.identity import patients
from archive.identity.acts import Act, PatientKey
from archive.identity.merge import Pair
from archive.identity.merge import merge as merge_patients
from archive.identity.merge import rename as rename_patient
from archive.identity.record import Statement
from archive.index.correct import correct_study, facts_changed
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import imaging_order, patient, study
from archive.schema.types import AnyRow
from archive.work_items import Kind, close_item, open_item
from archive.workflow import performed

ACCESSION, PROCEDURE_CODES = "00080050", "00081032"
_CODES = "RequestedProcedureCodeSequence"
_PARTS = {"CodeValue": "00080100", "CodingSchemeDesignator": "00080102", "CodeMeaning": "00080104"}


def with_accession(conn: Connection, accession_number: str, patient_pk: int) -> list[str]:
    """Studies of a patient whose images, or corrections, have this accession number."""
    if not accession_number:
        return []
    mine = (study.c.accession_number == accession_number) & (study.c.patient_pk == patient_pk)
    return list(conn.execute(select(study.c.study_instance_uid).where(mine).order_by(study.c.pk)).scalars())


def stored(conn: Connection, order: AnyRow) -> list[str]:
    """The studies that answer an order: that with its UID first, then those with its accession number."""
    mine = (study.c.study_instance_uid == order.study_instance_uid) & (study.c.patient_pk == order.patient_pk)
    named = list(conn.execute(select(study.c.study_instance_uid).where(mine)).scalars())
    return list(dict.fromkeys(named + with_accession(conn, order.accession_number, order.patient_pk)))


def reconcile(conn: Connection, order: AnyRow, *, act: Act) -> None:
    """Link an order with studies that are here already: correct those of its patient, take over those that are surely
    theirs, and let a person look at the rest."""
    owner = patients.row_of(conn, order.patient_pk)
    candidates = _candidates(conn, order)
    found = {row.study_instance_uid for row in candidates}
    taken = set()
    for row in candidates:
        if row.patient_pk == order.patient_pk:
            _matched(conn, row.study_instance_uid, act)
            continue
        if row.record is not None:  # the RIS knows whose it is
            continue
        if _same_person(
            *(conn, order, owner),
            patient_id=row.patient_id,
            issuer=row.issuer,
            accession_number=row.accession_number,
        ):
            _take_over(conn, row, owner, act)
            taken.add(row.study_instance_uid)
        else:
            open_item(
                *(conn, Kind.ORDER_UNMATCHED, row.study_instance_uid),
                at=act.at,
                patient_pk=row.patient_pk,
                study_instance_uid=row.study_instance_uid,
                evidence={**act.evidence, "accession": order.accession_number, "ordered_for": owner.pk},
            )
    correct_all(conn, stored(conn, order), act=act)
    for row in performed.of_others(conn, order):
        theirs = patients.row_of(conn, row.patient_pk)
        if theirs.record is not None:
            continue
        same = _same_person(
            *(conn, order, owner),
            patient_id=theirs.patient_id,
            issuer=theirs.issuer,
            accession_number=row.accession_number,
        )
        if same or row.study_instance_uid in taken:
            performed.move_to(conn, row.pk, owner.pk, act=act)
        elif row.study_instance_uid not in found:
            open_item(
                *(conn, Kind.ORDER_UNMATCHED, row.sop_instance_uid),
                at=act.at,
                patient_pk=row.patient_pk,
                study_instance_uid=row.study_instance_uid,
                evidence={**act.evidence, "accession": order.accession_number, "ordered_for": owner.pk},
            )
    performed.settle(conn, order, act=act)


def merge(conn: Connection, pair: Pair, *, act: Act) -> bool:
    """Merge two patients (`archive.identity.merge`), then link the orders of the one with the studies of the other
    (REQ-HL7-95). False when they were merged already. Raises what that raises."""
    if not merge_patients(conn, pair, act=act):
        return False
    _reconcile_all(conn, pair.survivor, act)
    return True


def rename(conn: Connection, old: PatientKey, new: PatientKey, said: Statement, *, act: Act) -> patients.Said | None:
    """The same of a patient whose identifier changes (`archive.identity.merge.rename`)."""
    done = rename_patient(conn, old, new, said, act=act)
    if done is not None:
        _reconcile_all(conn, new, act)
    return done


def _reconcile_all(conn: Connection, key: PatientKey, act: Act) -> None:
    """Link the orders of a patient with the studies that they have now."""
    row = patients.find(conn, key)
    assert row is not None
    mine = imaging_order.c.patient_pk == row.pk
    for order in conn.execute(select(imaging_order).where(mine).order_by(imaging_order.c.pk)).all():
        reconcile(conn, order, act=act)


def correct_all(conn: Connection, uids: Iterable[str], *, act: Act) -> None:
    """Have studies leave with the accession number and procedure that their orders have now."""
    for uid in uids:
        _correct(conn, uid, act)


def _candidates(conn: Connection, order: AnyRow) -> list[AnyRow]:
    """Studies with the UID or the accession number of an order, whoever they are filed under."""
    columns = (
        *(study.c.pk, study.c.study_instance_uid, study.c.patient_pk, study.c.accession_number),
        *(patient.c.patient_id, patient.c.issuer, patient.c.record, patient.c.identity_key),
    )
    same = study.c.study_instance_uid == order.study_instance_uid
    if order.accession_number:
        same = same | (study.c.accession_number == order.accession_number)
    return list(conn.execute(select(*columns).join(patient).where(same).order_by(study.c.pk)).all())


def _same_person(
    conn: Connection, order: AnyRow, owner: AnyRow, *, patient_id: str, issuer: str, accession_number: str
) -> bool:
    """REQ-HL7-98: the Patient ID is one of the ordered patient's, and the accession number is the order's; or the
    Study Instance UID is, and the header does not say who assigned the Patient ID."""
    mine = select(patient.c.pk).where(
        patient.c.patient_id == patient_id,
        (patient.c.pk == owner.pk) | (patient.c.merged_into_pk == owner.pk),
    )
    if not patient_id or conn.execute(mine).first() is None:
        return False
    return accession_number == order.accession_number or not issuer


def _matched(conn: Connection, uid: str, act: Act) -> None:
    by, resolution = act.actor.user, f"filed under the ordered patient by {act.event}"
    close_item(conn, Kind.ORDER_UNMATCHED, uid, at=act.at, by=by, resolution=resolution)


def _take_over(conn: Connection, row: AnyRow, owner: AnyRow, act: Act) -> None:
    """File a study under the patient it was ordered for."""
    conn.execute(
        select(patient.c.pk).where(patient.c.pk.in_((row.patient_pk, owner.pk))).order_by("pk").with_for_update()
    ).all()
    conn.execute(update(study).where(study.c.pk == row.pk).values(patient_pk=owner.pk))
    facts_changed(conn, owner.pk)
    _matched(conn, row.study_instance_uid, act)
    note_study(conn, row.study_instance_uid, act=act)
    left = conn.execute(select(study.c.pk).where(study.c.patient_pk == row.patient_pk).limit(1)).first()
    if left is None:
        close_item(
            *(conn, Kind.UNKNOWN_PATIENT, row.identity_key),
            at=act.at,
            by=act.actor.user,
            resolution=f"ordered by {act.event}",
        )
    detail = {"event": act.event, "moved_from": patients.key_of(row).cx, **act.evidence}
    key = patients.key_of(owner)
    record(conn, act.actor, Event.PROCEDURE_RECORD, "U", patient=key.cx, study=row.study_instance_uid, detail=detail)


def _correct(conn: Connection, uid: str, act: Act) -> None:
    row = conn.execute(select(study).where(study.c.study_instance_uid == uid)).one()
    before: dict[str, Any] = orjson.loads(row.corrections)["attributes"] if row.corrections else {}
    others = {key: value for key, value in before.items() if key not in (ACCESSION, PROCEDURE_CODES)}
    after = {**others, **_said_by_orders(conn, row)}
    if after != before:
        correct_study(conn, row.pk, after, reason=act.reason, at=act.at)
        note_study(conn, uid, act=act)


def _said_by_orders(conn: Connection, row: AnyRow) -> dict[str, Any]:
    """Corrections that a study's orders ask for: its accession number, when the images have none of theirs, and its
    procedure, when it was changed after it was ordered."""
    received = orjson.loads(row.received_attributes or row.attributes)
    number = next(iter(received.get(ACCESSION, {}).get("Value") or ()), "")
    same = imaging_order.c.study_instance_uid == row.study_instance_uid
    if number:
        same = same | (imaging_order.c.accession_number == number)
    mine = (imaging_order.c.patient_pk == row.patient_pk) & same
    orders = conn.execute(select(imaging_order).where(mine).order_by(imaging_order.c.pk)).all()
    if not orders:
        return {}
    found: dict[str, Any] = {}
    order = next((one for one in orders if one.accession_number == number), orders[0])
    if order.accession_number != number:
        found[ACCESSION] = {"vr": "SH", "Value": [order.accession_number]}
    kept = orjson.loads(order.record)
    if kept["recoded"] and (items := kept["dicom"].get(_CODES)):
        found[PROCEDURE_CODES] = {
            "vr": "SQ",
            "Value": [
                {tag: {"vr": "LO" if name == "CodeMeaning" else "SH", "Value": [item[name]]}
                 for name, tag in _PARTS.items() if item.get(name)}
                for item in items
            ],
        }  # fmt: skip
    return found


def note_study(conn: Connection, uid: str, *, act: Act) -> None:
    """The fact of whose a study is, and of its corrections (`archive.identity.restore.restore_study`)."""
    row = conn.execute(select(study).where(study.c.study_instance_uid == uid)).one()
    corrections = orjson.loads(row.corrections) if row.corrections else {}
    body = {
        "patient": patients.named(patients.row_of(conn, row.patient_pk)),
        "corrections": corrections.get("attributes", {}),
        "reason": corrections.get("reason", act.reason),
    }
    note(conn, Fact.STUDY, uid, body, at=act.at)
