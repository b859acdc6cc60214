"""Patients: ADT messages of IHE PAM (HL7 2.5 chapter 3). A28 and A31 say who somebody is, and A08 where it is sent all
the same; A40 says that two identifiers are one person's."""

from __future__ import annotations

from functools import partial

from archive.errors import IdentifierInUse, MergedAway
from archive.identity import patients
from archive.identity.acts import Act, Connection, PatientKey
from archive.identity.merge import Pair
from archive.identity.record import Name, Statement
from archive.work_items import Kind
from archive.workflow.images import merge
from hl7_listener.context import Context, Handlers, Warning
from hl7_listener.message import HL7Error, Message, Segment
from hl7_listener.pid import named, statement, warnings
from hl7_listener.values import identifiers, patient_key, text


def act_of(message: Message, context: Context) -> Act:
    """Who says this, when, by which rules; work items name the message by its place in the journal."""
    return Act(
        at=context.at,
        actor=context.actor,
        event=message.event,
        authorities=context.authorities,
        ins_oids=frozenset(context.settings.identity.ins_oids),
        evidence={"message": context.message_pk, "control_id": message.control_id},
    )


def upsert(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A28, A31, A08: make or change a patient (REQ-HL7-P2)."""
    pid = segment(message, "PID")
    key = patient_key(pid, 3, context, sender=message.sender)
    given = statement(message, pid, context)
    act = act_of(message, context)
    try:
        done = patients.say(conn, key, given, act=act)
    except MergedAway as error:
        raise merged_away(error, key, act, place=pid.at(3)) from error
    return warnings(done, given, pid)


def merge_all(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A40: each PID is the survivor of the MRG that follows it (REQ-HL7-40). All or nothing, in order."""
    act = act_of(message, context)
    found = []
    for pid, mrg in zip(message.all("PID"), message.all("MRG"), strict=True):
        survivor = patient_key(pid, 3, context, sender=message.sender)
        loser = patient_key(mrg, 1, context, sender=message.sender)
        if survivor.issuer != loser.issuer:
            raise HL7Error(204, mrg.at(1), "the identifiers are of different authorities")
        pair = Pair(survivor, loser, _said(message, pid, context), _name(mrg))
        try:
            if not merge(conn, pair, act=act):
                found.append(Warning(204, mrg.at(1), "merged before: nothing to do"))
        except IdentifierInUse as error:
            raise HL7Error(205, mrg.at(1), str(error)) from error
        except MergedAway as error:
            about, place = (pair.loser, mrg.at(1)) if error.old == loser.cx else (survivor, pid.at(3))
            facts = {"survivor": survivor.cx, "loser": loser.cx, "merged_into": error.survivor}
            after = partial(patients.wait, kind=Kind.MERGE_CONFLICT, key=about, act=act, facts=facts)
            raise HL7Error(204, place, str(error), after=after) from error
    return found


HANDLERS: Handlers = {
    ("ADT", "A28"): upsert,
    ("ADT", "A31"): upsert,
    ("ADT", "A08"): upsert,
    ("ADT", "A40"): merge_all,
}


def segment(message: Message, name: str) -> Segment:
    """The first segment of this name. Raises HL7Error 100 when there is none."""
    found = message.first(name)
    if found is None:
        raise HL7Error(100, f"{name}^1", f"{name} is missing")
    return found


def merged_away(error: MergedAway, key: PatientKey, act: Act, *, place: str) -> HL7Error:
    """The refusal of a message about somebody who was merged away (REQ-HL7-P11); the work item outlives it."""
    after = partial(patients.wait, kind=Kind.MERGED_ID_USED, key=key, act=act, facts={"merged_into": error.survivor})
    return HL7Error(204, place, str(error), after=after)


def _said(message: Message, pid: Segment, context: Context) -> Statement:
    """What a survivor that nobody has heard of is made from: PID-3 and PID-5, nothing else."""
    return Statement(names=named(pid), identifiers=identifiers(pid, 3, context, sender=message.sender))


def _name(mrg: Segment) -> Name:
    """MRG-7, the name under which the loser was known."""
    return Name(*(text(mrg.value(7, n)) for n in (1, 2)))
