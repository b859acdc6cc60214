"""What modalities say they have done (MPPS, PS3.4 Annex F; REQ-DCM-53): kept, linked with orders, shown.

Which order a step was done for is never written down: both say a Study Instance UID, an accession number and a
Scheduled Procedure Step ID, and are asked when it matters. So an order that comes later (an unscheduled exam, PIR)
finds the step by itself, and a merge moves both. Functions on the connection of a write, but `described`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, select, update

from archive.audit.record import Event, record
from archive.dicom import performed as said
from archive.dicom.attributes import ATTRIBUTES, Level
from archive.dicom.keys import normalise
from archive.dicom.performed import Status
from archive.errors import Conflict, IdentifierInUse, NotFound
from archive.identity import patients
from archive.identity.acts import Act, lock_identities
from archive.index.arrival import Claim
from archive.index.match import name_key
from archive.index.patients import patient_of
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import imaging_order, instance, performed_for, performed_step, tombstone, work_item
from archive.schema.types import AnyRow
from archive.work_items import Kind, close_item, open_item
from archive.workflow import steps

_OPEN = frozenset({steps.Status.SCHEDULED, steps.Status.IN_PROGRESS})
_DONE = frozenset({steps.Status.IN_PROGRESS, steps.Status.COMPLETED})
_SOME = 500  # UIDs in one statement


def create(conn: Connection, uid: str, attributes: Mapping[str, Any], *, calling_ae: str, act: Act) -> None:
    """Keep a step that has begun. `attributes` were checked (`archive.dicom.performed.created`).

    Raises:
        IdentifierInUse: there is one with this SOP Instance UID.
    """
    lock_identities(conn)  # whose it is, is asked before it is said
    if conn.execute(select(performed_step.c.pk).where(performed_step.c.sop_instance_uid == uid)).first() is not None:
        raise IdentifierInUse("a performed procedure step has this SOP Instance UID", what="performed")
    scheduled = said.items(attributes, said.SCHEDULED_STEPS)
    values = {
        "sop_instance_uid": uid,
        "patient_pk": patient_of(conn, _claim(attributes, scheduled, calling_ae, act)).pk,
        "status": Status.IN_PROGRESS,
        "created": _json(attributes),
        "modified": "{}",
        "version": 1,
        "calling_ae": calling_ae,
        "forwarded": "{}",
        "created_at": act.at,
        "updated_at": act.at,
    }
    pk = conn.execute(performed_step.insert().returning(performed_step.c.pk), values).scalar_one()
    add_items(conn, pk, [_numbers(item) for item in scheduled])
    _tell(conn, pk, "C", act)
    _settle_orders(conn, pk, act)


def change(conn: Connection, uid: str, attributes: Mapping[str, Any], *, act: Act) -> tuple[Status, bool]:
    """Apply an N-SET: the status that the step has now, and whether all was taken (`archive.dicom.performed.changed`).

    Raises:
        NotFound: no such step.
        Conflict: it has ended, and is not changed any more (Error ID A710).
        AttributeRefused: as `changed`.
    """
    lock_identities(conn)
    row = conn.execute(select(performed_step).where(performed_step.c.sop_instance_uid == uid).with_for_update()).first()
    if row is None:
        raise NotFound("no such performed procedure step")
    if row.status != Status.IN_PROGRESS:
        raise Conflict("Performed Procedure Step Object may no longer be updated")
    known = attributes_of(row)
    taken, whole = said.changed(attributes, known)
    after = {**known, **taken}
    status = Status(said.text(after, said.STATUS))
    values = {
        "status": status,
        "modified": _json({**orjson.loads(row.modified), **taken}),
        "version": row.version + 1,
        "updated_at": act.at,
    }
    conn.execute(update(performed_step).where(performed_step.c.pk == row.pk).values(values))
    _tell(conn, row.pk, "U", act)
    if status is Status.DISCONTINUED and said.is_wrong_entry(after):
        _wrong_entry(conn, row, after, act)
    if status is not Status.IN_PROGRESS:
        _settle_orders(conn, row.pk, act)
    return status, whole


def attributes_of(row: AnyRow) -> dict[str, Any]:
    """What a step says as it stands."""
    return {**orjson.loads(row.created), **orjson.loads(row.modified)}


def add_items(conn: Connection, pk: int, numbers: Iterable[Mapping[str, str]]) -> None:
    """The scheduled steps that a performed one was done for, as it says."""
    rows = [{"performed_pk": pk, **one} for one in numbers]
    if rows:
        conn.execute(performed_for.insert(), rows)


def settle(conn: Connection, order: AnyRow, *, act: Act) -> None:
    """An order came, or changed: have it be as far as the steps that were done for it. What the RIS closed stays, and
    what was discontinued may be scheduled again."""
    rows = _steps_of(conn, order)
    for row in rows:
        by, resolution = act.actor.user, f"matched by {act.event}"
        close_item(conn, Kind.ORDER_UNMATCHED, row.sop_instance_uid, at=act.at, by=by, resolution=resolution)
    status = _status_of(rows)
    if status in _DONE and order.status in _OPEN and order.status != status:
        steps.move(conn, order, status, act=act)


def of_others(conn: Connection, order: AnyRow) -> list[AnyRow]:
    """Steps with the Study Instance UID or the accession number of an order that are filed under somebody else; with
    `accession_number`."""
    mine = _same(performed_for.c, [order.study_instance_uid], [order.accession_number])
    return list(
        conn.execute(
            select(performed_step, performed_for.c.accession_number, performed_for.c.study_instance_uid)
            .join(performed_for, performed_for.c.performed_pk == performed_step.c.pk)
            .where(mine, performed_step.c.patient_pk != order.patient_pk)
            .order_by(performed_step.c.pk)
        ).all()
    )


def move_to(conn: Connection, pk: int, patient_pk: int, *, act: Act) -> None:
    """File a step under the patient it was done for. What the modality said of it stays (REQ-HL7-96)."""
    conn.execute(update(performed_step).where(performed_step.c.pk == pk).values(patient_pk=patient_pk))
    _tell(conn, pk, "U", act)


def missing(conn: Connection, uid: str, *, act: Act) -> int:
    """Compare the instances that a completed step lists with those that have come; how many are still to be looked for.
    A work item waits while some have not come, until a person says that it is well so."""
    row = conn.execute(select(performed_step).where(performed_step.c.sop_instance_uid == uid)).first()
    if row is None or row.status != Status.COMPLETED:
        return 0
    attributes = attributes_of(row)
    uids = [one for series in said.items(attributes, said.SERIES) for one in said.listed(series)]
    absent = sorted(set(uids) - _received(conn, uids))
    mine = (work_item.c.kind == Kind.IMAGES_MISSING) & (work_item.c.subject == uid)
    if absent and conn.execute(select(work_item.c.state).where(mine)).scalar() == "closed":
        return 0  # a person has seen to it
    if absent:
        evidence = {"performed": uid, "listed": len(set(uids)), "missing": len(absent), "first": absent[:10]}
        open_item(
            *(conn, Kind.IMAGES_MISSING, uid),
            at=act.at,
            patient_pk=row.patient_pk,
            study_instance_uid=_study_uid(attributes),
            evidence=evidence,
        )
    else:
        by, resolution = act.actor.user, "all have come"
        close_item(conn, Kind.IMAGES_MISSING, uid, at=act.at, by=by, resolution=resolution)
    return len(absent)


def described(conn: Connection, order: AnyRow) -> list[dict[str, Any]]:
    """The steps that were done for an order, the first one first, as `/api/v1/orders` shows them."""
    return [_described(conn, row) for row in _steps_of(conn, order)]


def _described(conn: Connection, row: AnyRow) -> dict[str, Any]:
    attributes = attributes_of(row)
    series = said.items(attributes, said.SERIES)
    uids = {one for item in series for one in said.listed(item)}
    owner = patients.row_of(conn, row.patient_pk)
    return {
        "sop_instance_uid": row.sop_instance_uid,
        "status": row.status,
        "patient_id": owner.patient_id,
        "issuer": owner.issuer,
        "step_id": said.text(attributes, said.STEP_ID),
        "station_ae": said.text(attributes, said.STATION),
        "modality": said.text(attributes, said.MODALITY),
        "start_date": said.text(attributes, said.START_DATE),
        "start_time": said.text(attributes, said.START_TIME),
        "end_date": said.text(attributes, said.END_DATE),
        "end_time": said.text(attributes, said.END_TIME),
        "discontinuation_code": said.reason(attributes),
        "series": [said.text(item, said.SERIES_UID) for item in series],
        "instances_listed": len(uids),
        "instances_received": len(_received(conn, sorted(uids))),
    }


def _claim(attributes: Mapping[str, Any], scheduled: Sequence[Mapping[str, Any]], calling_ae: str, act: Act) -> Claim:
    """Of whom a step says it is, as an image would (REQ-DCM-17)."""
    of_patient = [one for one in ATTRIBUTES if one.level is Level.PATIENT]
    keys: dict[str, str | int | None] = {}
    for one in of_patient:
        if one.column is not None:
            values = (attributes.get(one.key) or {}).get("Value") or ()
            text = "\\".join(name_key(value) if one.vr == "PN" else str(value) for value in values if value is not None)
            keys[one.column] = normalise(text, one.match)
    first = scheduled[0]
    return Claim(
        patient={one.key: attributes[one.key] for one in of_patient if one.key in attributes},
        keys=keys,
        study_instance_uid=said.text(first, said.STUDY_UID),
        accession_number=said.text(first, said.ACCESSION_NUMBER),
        source=f"MPPS of {calling_ae}",
        authorities=act.authorities,
        at=act.at,
    )


def _numbers(item: Mapping[str, Any]) -> dict[str, str]:
    return {
        "study_instance_uid": said.text(item, said.STUDY_UID),
        "accession_number": said.text(item, said.ACCESSION_NUMBER),
        "step_id": said.text(item, said.SCHEDULED_STEP_ID),
    }


def _settle_orders(conn: Connection, pk: int, act: Act) -> None:
    """Have the orders that a step was done for be as far as it is."""
    row = conn.execute(select(performed_step).where(performed_step.c.pk == pk)).one()
    meant = conn.execute(select(performed_for).where(performed_for.c.performed_pk == pk)).all()
    uids, numbers = [one.study_instance_uid for one in meant], [one.accession_number for one in meant]
    anybodys = _orders(conn, uids, numbers)
    orders = [one for one in anybodys if one.patient_pk == row.patient_pk]
    if anybodys and not orders:  # the wrong patient, or the wrong number
        open_item(
            *(conn, Kind.ORDER_UNMATCHED, row.sop_instance_uid),
            at=act.at,
            patient_pk=row.patient_pk,
            study_instance_uid=uids[0],
            evidence={**act.evidence, "accession": anybodys[0].accession_number, "ordered_for": anybodys[0].patient_pk},
        )
    for order in _matched(meant, orders):
        status = _status_of(_steps_of(conn, order))
        if order.status == steps.Status.CANCELLED:
            open_item(
                *(conn, Kind.ORDER_CLOSED_WITH_IMAGES, steps.subject_of(order.accession_number, order.step_id)),
                at=act.at,
                patient_pk=row.patient_pk,
                study_instance_uid=order.study_instance_uid,
                evidence={**act.evidence, "accession": order.accession_number, "status": order.status},
            )
        elif status is not None and order.status != status:
            steps.move(conn, order, status, act=act)


def _status_of(rows: Sequence[AnyRow]) -> steps.Status | None:
    """How far an order is by the steps that were done for it; None: they do not say."""
    if not rows:
        return None
    real = [row.status for row in rows if not said.is_wrong_entry(attributes_of(row))]
    for status, means in (
        (Status.IN_PROGRESS, steps.Status.IN_PROGRESS),
        (Status.COMPLETED, steps.Status.COMPLETED),
        (Status.DISCONTINUED, steps.Status.DISCONTINUED),
    ):
        if status in real:
            return means
    return steps.Status.SCHEDULED  # whoever began it had chosen the wrong item: it is still to be done


def studies(conn: Connection, uid: str) -> list[str]:
    """The Study Instance UIDs that a step was performed for."""
    of_step = performed_step.c.sop_instance_uid == uid
    found = select(performed_for.c.study_instance_uid).distinct().join(performed_step).where(of_step)
    return sorted(filter(None, conn.execute(found).scalars()))


def _steps_of(conn: Connection, order: AnyRow) -> list[AnyRow]:
    """The steps of its patient that were done for an order."""
    uids, numbers = [order.study_instance_uid], [order.accession_number]
    meant = conn.execute(
        select(performed_for)
        .join(performed_step, performed_step.c.pk == performed_for.c.performed_pk)
        .where(performed_step.c.patient_pk == order.patient_pk, _same(performed_for.c, uids, numbers))
    ).all()
    if not meant:
        return []
    orders = [one for one in _orders(conn, uids, numbers) if one.patient_pk == order.patient_pk]
    pks = {one.performed_pk for one in meant if order.pk in {found.pk for found in _matched([one], orders)}}
    rows = conn.execute(select(performed_step).where(performed_step.c.pk.in_(pks)).order_by(performed_step.c.pk)).all()
    return list(rows)


def _matched(meant: Iterable[AnyRow], orders: Sequence[AnyRow]) -> list[AnyRow]:
    """The orders that these items of performed steps mean: that with the Scheduled Procedure Step ID; where none has
    it, the only one with the Study Instance UID or the accession number."""
    found: dict[int, AnyRow] = {}
    for one in meant:
        same = [
            order
            for order in orders
            if order.study_instance_uid == one.study_instance_uid
            or (one.accession_number and order.accession_number == one.accession_number)
        ]
        named = [order for order in same if steps.step_id_of(order) == one.step_id]
        exact = [order for order in named if order.accession_number == one.accession_number]
        for order in exact or named or (same if len(same) == 1 else ()):
            found[order.pk] = order
    return list(found.values())


def _orders(conn: Connection, uids: Sequence[str], numbers: Sequence[str]) -> list[AnyRow]:
    mine = _same(imaging_order.c, uids, numbers)
    return list(conn.execute(select(imaging_order).where(mine).order_by(imaging_order.c.pk)).all())


def _same(columns: Any, uids: Sequence[str], numbers: Sequence[str]) -> ColumnElement[bool]:
    known = [number for number in numbers if number]
    same: ColumnElement[bool] = columns.study_instance_uid.in_(list(uids))
    return same | columns.accession_number.in_(known) if known else same


def _wrong_entry(conn: Connection, row: AnyRow, attributes: Mapping[str, Any], act: Act) -> None:
    """Images that it made, if any, are somebody else's: a person looks at them (PPS exception management)."""
    uids = {one for series in said.items(attributes, said.SERIES) for one in said.listed(series)}
    open_item(
        *(conn, Kind.WRONG_WORKLIST_ENTRY, row.sop_instance_uid),
        at=act.at,
        patient_pk=row.patient_pk,
        study_instance_uid=_study_uid(attributes),
        evidence={**act.evidence, "performed": row.sop_instance_uid, "listed": len(uids)},
    )


def _received(conn: Connection, uids: Sequence[str]) -> set[str]:
    """Those of these instances that have come, whatever became of them since."""
    found: set[str] = set()
    for start in range(0, len(uids), _SOME):
        some = list(uids[start : start + _SOME])
        for column in (instance.c.sop_instance_uid, tombstone.c.sop_instance_uid):
            found.update(conn.execute(select(column).where(column.in_(some))).scalars())
    return found


def _study_uid(attributes: Mapping[str, Any]) -> str:
    return said.text(said.items(attributes, said.SCHEDULED_STEPS)[0], said.STUDY_UID)


def _tell(conn: Connection, pk: int, action: str, act: Act) -> None:
    """The fact of a step's present state, and its audit row (110111)."""
    row = conn.execute(select(performed_step).where(performed_step.c.pk == pk)).one()
    owner = patients.row_of(conn, row.patient_pk)
    meant = conn.execute(select(performed_for).where(performed_for.c.performed_pk == pk).order_by("pk")).all()
    numbers = ("study_instance_uid", "accession_number", "step_id")
    body = {
        "patient": patients.named(owner),
        **{name: getattr(row, name) for name in ("status", "version", "calling_ae")},
        **{name: orjson.loads(getattr(row, name)) for name in ("created", "modified", "forwarded")},
        "created_at": row.created_at.isoformat(),
        "for": [{name: getattr(one, name) for name in numbers} for one in meant],
    }
    note(conn, Fact.PERFORMED, row.sop_instance_uid, body, at=act.at)
    detail = {"event": act.event, "performed": row.sop_instance_uid, "status": row.status, **act.evidence}
    study = meant[0].study_instance_uid if meant else None
    patient = patients.key_of(owner).cx
    record(conn, act.actor, Event.PROCEDURE_RECORD, action, patient=patient, study=study, detail=detail)


def _json(attributes: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(attributes), option=orjson.OPT_SORT_KEYS).decode()
