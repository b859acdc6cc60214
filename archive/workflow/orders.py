"""Orders: placed, changed, closed (sheet 20 §7, REQ-HL7-71 to 78). Functions on the connection of a write.

An order is one ORC/OBR group: a scheduled step. Steps of one accession number have one Study Instance UID.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Connection, select, update

from archive.dicom.keys import date, time
from archive.errors import Conflict, IdentifierInUse, NotFound
from archive.identity import patients
from archive.identity.acts import Act, lock_identities
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import imaging_order, patient, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert
from archive.work_items import Kind, open_item
from archive.workflow import images, performed
from archive.workflow.steps import IN_WORKLIST, PLAIN, Status, subject_of, tell

__all__ = ["Control", "Group", "Status", "apply", "columns_of", "described", "subject_of"]

_GENERATED = uuid.UUID("8b7a3c1e-7f0e-5e0c-9a53-2f6f1c6f3a10")  # names of Study Instance UIDs that are made here


class Control(StrEnum):
    """ORC-1 (table 0119), those that are taken (REQ-HL7-71)."""

    NEW = "NW"
    CHANGE = "XO"
    CANCEL = "CA"
    DISCONTINUE = "DC"
    STATUS = "SC"


_CLOSED_BY = {Control.CANCEL: Status.CANCELLED, Control.DISCONTINUE: Status.DISCONTINUED}


@dataclass(frozen=True, slots=True)
class Group:
    """What one ORC/OBR group says. `study_instance_uid` "": one is found or made; `status` None: it stays."""

    control: Control
    accession_number: str = ""
    step_id: str = ""
    placer_number: str = ""
    filler_number: str = ""
    study_instance_uid: str = ""
    status: Status | None = None
    dicom: Mapping[str, Any] = field(default_factory=dict)  # of the worklist item, by keyword
    visit: str = ""  # the visit and the account it was ordered in, as `archive.identity.visits.Numbered.cx`
    account: str = ""


def apply(conn: Connection, group: Group, *, patient_pk: int, act: Act) -> None:
    """Do what a group says, for this patient.

    Raises:
        NotFound: no such order (REQ-HL7-72).
        IdentifierInUse: `order`: placer or accession number are of another patient's; `study`: the UID is.
        Conflict: the order is another patient's.
    """
    lock_identities(conn)  # whose order, and whose study, is asked before it is said
    if group.control is Control.NEW:
        _place(conn, group, patient_pk, act)
    elif group.control is Control.CHANGE:
        _change(conn, group, patient_pk, act)
    else:
        _close(conn, group, patient_pk, act)


def _place(conn: Connection, group: Group, patient_pk: int, act: Act) -> None:
    known = _of_numbers(conn, group.placer_number, group.accession_number)
    if any(row.patient_pk != patient_pk for row in known):
        raise IdentifierInUse("an order of another patient has this number", what="order")
    _keep(conn, group, patient_pk, _step(known, group), act)


def _change(conn: Connection, group: Group, patient_pk: int, act: Act) -> None:
    known = _known(conn, group, patient_pk)
    others = _of_numbers(conn, "", group.accession_number)
    if any(row.patient_pk != patient_pk for row in others):
        raise IdentifierInUse("an order of another patient has this number", what="order")
    row = _step(known, group) or (known[0] if len(known) == 1 else None)
    _keep(conn, group, patient_pk, row, act)


def _close(conn: Connection, group: Group, patient_pk: int, act: Act) -> None:
    known = _known(conn, group, patient_pk)
    rows = [row for row in known if row.step_id == group.step_id] if group.step_id else list(known)
    if not rows:
        raise NotFound("no such step of this order")
    status = _CLOSED_BY.get(group.control) or group.status
    for row in rows:
        if status is not None:
            values = {"status": status, "updated_at": act.at}
            conn.execute(update(imaging_order).where(imaging_order.c.pk == row.pk).values(values))
        closed = group.control in _CLOSED_BY
        if closed and (uids := images.stored(conn, row)):
            open_item(
                *(conn, Kind.ORDER_CLOSED_WITH_IMAGES, subject_of(row.accession_number, row.step_id)),
                at=act.at,
                patient_pk=patient_pk,
                study_instance_uid=uids[0],
                evidence={**act.evidence, "accession": row.accession_number, "status": str(status), "studies": uids},
            )
        tell(conn, row.pk, "D" if closed else "U", act)


def _known(conn: Connection, group: Group, patient_pk: int) -> Sequence[AnyRow]:
    """Rows of an order that has to be there: those with the placer's number, else with the accession number."""
    known = _of_numbers(conn, group.placer_number, "") or _of_numbers(conn, "", group.accession_number)
    if not known:
        raise NotFound("no such order")
    if any(row.patient_pk != patient_pk for row in known):
        raise Conflict("this order is another patient's")
    return known


def _of_numbers(conn: Connection, placer_number: str, accession_number: str) -> Sequence[AnyRow]:
    """Rows with one of these numbers, those of the placer first."""
    found: dict[int, AnyRow] = {}
    for column, value in (("placer_number", placer_number), ("accession_number", accession_number)):
        if value:
            rows = conn.execute(select(imaging_order).where(imaging_order.c[column] == value).order_by("pk"))
            found.update({row.pk: row for row in rows if row.pk not in found})
    return list(found.values())


def _step(known: Sequence[AnyRow], group: Group) -> AnyRow | None:
    """The row of the very step that a group is about."""
    same = [row for row in known if row.step_id == group.step_id]
    exact = [row for row in same if row.accession_number == group.accession_number]
    placed = [row for row in same if row.placer_number == group.placer_number and group.placer_number]
    unnamed = known if len(known) == 1 and not (known[0].step_id and group.step_id) else ()
    return next(iter((*exact, *placed, *unnamed)), None)


def _keep(conn: Connection, group: Group, patient_pk: int, row: AnyRow | None, act: Act) -> None:
    numbers = (group.accession_number, group.step_id)
    for other in _of_numbers(conn, "", group.accession_number):
        if other.step_id == group.step_id and (row is None or other.pk != row.pk):
            raise IdentifierInUse("another order has this accession number and step", what="order")
    uid, generated = _study_uid(conn, group, patient_pk, row, act)
    before: dict[str, Any] = orjson.loads(row.record) if row is not None else {}
    codes = [of.get("RequestedProcedureCodeSequence") for of in (before.get("dicom", {}), group.dicom)]
    item: dict[str, Any] = {**group.dicom, "AccessionNumber": group.accession_number, "StudyInstanceUID": uid}
    kept = {
        "dicom": item,
        "generated": generated,
        "visit": group.visit or before.get("visit", ""),
        "account": group.account or before.get("account", ""),
        # what images say of the procedure is outdated (REQ-HL7-78)
        "recoded": bool(before.get("recoded")) or (row is not None and codes[0] != codes[1]),
    }
    values = {
        "accession_number": group.accession_number,
        "step_id": group.step_id,
        "patient_pk": patient_pk,
        "study_instance_uid": uid,
        "placer_number": group.placer_number or (row.placer_number if row is not None else ""),
        "filler_number": group.filler_number or (row.filler_number if row is not None else ""),
        "status": group.status or _status(group, row),
        "record": orjson.dumps(kept, option=orjson.OPT_SORT_KEYS).decode(),
        "updated_at": act.at,
        **columns_of(item),
    }
    if row is None:
        added = insert(conn, imaging_order).returning(imaging_order.c.pk)
        pk = conn.execute(added, {**values, "created_at": act.at}).scalar_one()
    else:
        pk = row.pk
        conn.execute(update(imaging_order).where(imaging_order.c.pk == pk).values(values))
        if (row.accession_number, row.step_id) != numbers:
            note(conn, Fact.ORDER, subject_of(row.accession_number, row.step_id), {"gone": True}, at=act.at)
    tell(conn, pk, "C" if row is None else "U", act)
    images.reconcile(conn, conn.execute(select(imaging_order).where(imaging_order.c.pk == pk)).one(), act=act)
    if row is not None and row.accession_number != group.accession_number:
        images.correct_all(conn, images.stored(conn, row), act=act)


def columns_of(item: Mapping[str, Any]) -> dict[str, str | None]:
    """What modalities ask for, as columns, from the attributes of a worklist item."""
    return {
        "start_date": date(str(item.get("ScheduledProcedureStepStartDate", ""))),
        "start_time": time(str(item.get("ScheduledProcedureStepStartTime", ""))),
        "modality": str(item.get("Modality", "")),
        "station_ae": str(item.get("ScheduledStationAETitle", "")),
    }


def _status(group: Group, row: AnyRow | None) -> str:
    """The status of a step of which a message does not say it; an order that is placed again is open again."""
    if row is None or (group.control is Control.NEW and row.status in _CLOSED_BY.values()):
        return Status.SCHEDULED
    return str(row.status)


def _study_uid(conn: Connection, group: Group, patient_pk: int, row: AnyRow | None, act: Act) -> tuple[str, bool]:
    """The Study Instance UID of a step, and whether it was made here (REQ-HL7-74)."""
    if group.study_instance_uid:
        return _given(conn, group, patient_pk, row, act), False
    if row is None:
        same = (imaging_order.c.accession_number == group.accession_number) & (imaging_order.c.patient_pk == patient_pk)
        row = conn.execute(select(imaging_order).where(same).order_by(imaging_order.c.pk).limit(1)).first()
    if row is not None and not orjson.loads(row.record)["generated"]:
        return row.study_instance_uid, False
    here = images.with_accession(conn, group.accession_number, patient_pk) if row is None else images.stored(conn, row)
    if len(here) == 1:  # images were quicker than their order, or a modality made its own UID (REQ-HL7-95)
        return here[0], False
    if row is not None:
        return row.study_instance_uid, True
    name = f"{patients.row_of(conn, patient_pk).identity_key} {group.accession_number}"
    return f"2.25.{uuid.uuid5(_GENERATED, name).int}", True


def _given(conn: Connection, group: Group, patient_pk: int, row: AnyRow | None, act: Act) -> str:
    """The Study Instance UID that a message gives; where images are stored under another one, a person decides."""
    given = group.study_instance_uid
    _demand_free(conn, given, patient_pk)
    uids = images.stored(conn, row) if row is not None else []
    if row is None or row.study_instance_uid == given or not uids or given in uids:
        return given
    open_item(
        *(conn, Kind.STUDY_UID_CHANGED, subject_of(group.accession_number, group.step_id)),
        at=act.at,
        patient_pk=patient_pk,
        study_instance_uid=uids[0],
        evidence={**act.evidence, "accession": group.accession_number, "old": row.study_instance_uid, "new": given},
    )
    return str(row.study_instance_uid)


def _demand_free(conn: Connection, uid: str, patient_pk: int) -> None:
    """Raise IdentifierInUse when a Study Instance UID is that of another patient's order, or of a study of somebody
    the RIS knows. A study of somebody it does not know is a matter for reconciliation."""
    another = (imaging_order.c.study_instance_uid == uid) & (imaging_order.c.patient_pk != patient_pk)
    ordered = conn.execute(select(imaging_order.c.pk).where(another).limit(1)).first()
    theirs = (study.c.study_instance_uid == uid) & (study.c.patient_pk != patient_pk) & patient.c.record.is_not(None)
    stored = conn.execute(select(study.c.pk).join(patient).where(theirs)).first()
    if ordered is not None or stored is not None:
        raise IdentifierInUse("this Study Instance UID is another patient's", what="study")


def described(conn: Connection, accession_number: str) -> list[dict[str, Any]]:
    """Each step of an accession number, in the order in which they were placed, as `/api/v1/orders` shows it."""
    rows = conn.execute(
        select(imaging_order, patient.c.patient_id, patient.c.issuer)
        .join(patient, patient.c.pk == imaging_order.c.patient_pk)
        .where(imaging_order.c.accession_number == accession_number)
        .order_by(imaging_order.c.pk)
    ).all()
    found = []
    for row in rows:
        kept = orjson.loads(row.record)
        found.append(
            {
                **{name: getattr(row, name) for name in PLAIN if name != "study_instance_uid"},
                "patient_id": row.patient_id,
                "issuer": row.issuer,
                "in_worklist": row.status in IN_WORKLIST,
                "study_uid": row.study_instance_uid,
                "study_uid_generated": kept["generated"],
                "studies": images.stored(conn, row),
                "performed": performed.described(conn, row),
                "dicom": kept["dicom"],
            }
        )
    return found
