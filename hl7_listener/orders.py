"""Orders: ORM^O01, OMG^O19, OMI^O23 (HL7 2.5.1 chapter 4; IHE RAD-2, RAD-3, RAD-4, RAD-13)."""

from __future__ import annotations

import re

from archive.errors import Conflict, IdentifierInUse, MergedAway, NotFound
from archive.identity import patients
from archive.identity.acts import Act, Connection
from archive.workflow.orders import Control, Group, Status, apply
from hl7_listener.adt import act_of, merged_away, segment
from hl7_listener.context import Context, Handlers, Warning
from hl7_listener.mapping import SH, Parts, groups, number_of, worklist_item
from hl7_listener.message import HL7Error, Message, Segment
from hl7_listener.pid import statement, warnings
from hl7_listener.values import numbered, patient_key, short, text

STATUSES = {  # ORC-5 (table 0038)
    "SC": Status.SCHEDULED,
    "IP": Status.IN_PROGRESS,
    "CM": Status.COMPLETED,
    "CA": Status.CANCELLED,
    "DC": Status.DISCONTINUED,
}
_NEEDS_NUMBER = (Control.NEW, Control.CHANGE)
_UID = re.compile(r"(?=.{1,64}\Z)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+", re.ASCII)  # PS3.5 §9.1


def order(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """Each group of ORM^O01, OMG^O19 or OMI^O23 in its order, all or nothing (REQ-HL7-76). A patient that the RIS has
    not sent is made from PID (REQ-HL7-73); one that is known is not changed by an order."""
    act = act_of(message, context)
    pid = segment(message, "PID")
    patient_pk, found = _patient(conn, message, pid, context, act)
    for parts in groups(message):
        group = _group(parts, context, found, sender=message.sender)
        try:
            apply(conn, group, patient_pk=patient_pk, act=act)
        except NotFound as error:
            raise HL7Error(204, parts.place("ORC", 2), str(error)) from error
        except IdentifierInUse as error:
            place = _study_uid(parts)[1] if error.what == "study" else parts.place("ORC", 2)
            raise HL7Error(205, place, str(error)) from error
        except Conflict as error:
            raise HL7Error(204, pid.at(3), str(error)) from error
    return found


HANDLERS: Handlers = {("ORM", "O01"): order, ("OMG", "O19"): order, ("OMI", "O23"): order}


def _patient(conn: Connection, message: Message, pid: Segment, context: Context, act: Act) -> tuple[int, list[Warning]]:
    """Whom the orders are for."""
    key = patient_key(pid, 3, context, sender=message.sender)
    try:
        row = patients.active(conn, key)
        if row is not None and row.record is not None:
            return row.pk, []
        given = statement(message, pid, context)
        done = patients.say(conn, key, given, act=act)
    except MergedAway as error:
        raise merged_away(error, key, act, place=pid.at(3)) from error
    return done.pk, warnings(done, given, pid)


def _group(parts: Parts, context: Context, found: list[Warning], *, sender: str) -> Group:
    """What a group says. Raises HL7Error 101, 102 or 103."""
    control = _control(parts)
    status = text(parts.orc.value(5))
    if control is Control.STATUS and not status:
        raise HL7Error(101, parts.place("ORC", 5), "the status that the order has now is missing")
    if status and status not in STATUSES:
        if control is Control.STATUS:
            raise HL7Error(103, parts.place("ORC", 5), f"statuses that are known: {', '.join(STATUSES)}")
        found.append(Warning(103, parts.place("ORC", 5), "this status is not known: the order keeps its own"))
    dicom = worklist_item(parts)
    return Group(
        control=control,
        accession_number=_accession_number(parts, context, needed=control in _NEEDS_NUMBER),
        step_id=str(dicom.get("ScheduledProcedureStepID", "")),
        placer_number=number_of(parts, 2),
        filler_number=number_of(parts, 3),
        study_instance_uid=_study_uid(parts)[0],
        status=STATUSES.get(status),
        dicom=dicom,
        visit=numbered(parts.pv1, 19, context, sender=sender).cx,
        account=numbered(parts.pid, 18, context, sender=sender).cx,
    )


def _control(parts: Parts) -> Control:
    try:
        return Control(text(parts.orc.value(1)))
    except ValueError:
        known = ", ".join(Control)
        raise HL7Error(103, parts.place("ORC", 1), f"order controls that are taken: {known}") from None


def _accession_number(parts: Parts, context: Context, *, needed: bool) -> str:
    """IPC-1, else OBR-18; where the site allows it, else the filler's number (REQ-HL7-75). Never cut."""
    value, place = parts.said(1, 18)
    if value:
        return short(value, place, characters=SH)
    if context.settings.hl7.accession_fallback:
        for one in (parts.orc, parts.obr):
            if one is not None and (value := text(one.value(3))):
                return short(value, parts.place(one.name, 3), characters=SH)
    if needed:
        raise HL7Error(101, parts.accession_place, "the accession number is missing")
    return ""


def _study_uid(parts: Parts) -> tuple[str, str]:
    """IPC-3, else ZDS-1.1, and its place; "" when the RIS leaves it to the archive (REQ-HL7-74).

    Raises:
        HL7Error: 102 it is no UID.
    """
    value, place = text(parts.ipc.value(3)) if parts.ipc is not None else "", parts.place("IPC", 3)
    if not value and parts.zds is not None:
        value, place = text(parts.zds.value(1)), parts.zds.at(1, 1)
    if value and _UID.fullmatch(value) is None:
        raise HL7Error(102, place, "this is no UID")
    return value, place
