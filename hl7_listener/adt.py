"""Patients: ADT messages of IHE PAM ITI-30 (HL7 2.5 chapter 3). A28 and A31 say who somebody is, and A08 where it is
sent all the same; A40 says that two identifiers are one person's, A47 that one becomes another, A24 that two may be."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from archive.errors import IdentifierInUse, MergedAway
from archive.identity import links, patients
from archive.identity.acts import Act, Connection, PatientKey
from archive.identity.merge import Pair
from archive.identity.record import Identifier, Name, Statement
from archive.work_items import Kind
from archive.workflow.images import merge, rename
from hl7_listener.context import Context, Handlers, Warning
from hl7_listener.message import NULL, HL7Error, Message, Segment
from hl7_listener.pid import claimed_ins, named, statement, warnings
from hl7_listener.values import NOT_PATIENT, identifiers, patient_key, text


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
    return upserted(conn, message, context)[1]


def upserted(
    conn: Connection, message: Message, context: Context, pid: Segment | None = None
) -> tuple[int, list[Warning]]:
    """The patient of a PID, else of the first one, who says what it says now."""
    pid = pid or segment(message, "PID")
    key = patient_key(pid, 3, context, sender=message.sender)
    given = statement(message, pid, context)
    done = _said(conn, key, given, act_of(message, context), pid)
    return done.pk, warnings(done, given, pid)


def merge_all(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A40: each PID is the survivor of the MRG that follows it (REQ-HL7-40). All or nothing, in order."""
    act = act_of(message, context)
    found = []
    for pid, mrg in zip(message.all("PID"), message.all("MRG"), strict=True):
        survivor = patient_key(pid, 3, context, sender=message.sender)
        loser = patient_key(mrg, 1, context, sender=message.sender)
        if survivor.issuer != loser.issuer:
            raise HL7Error(204, mrg.at(1), "the identifiers are of different authorities")
        pair = Pair(survivor, loser, _made_from(message, pid, context), _name(mrg))
        try:
            if not merge(conn, pair, act=act):
                found.append(Warning(204, mrg.at(1), "merged before: nothing to do"))
        except IdentifierInUse as error:
            raise HL7Error(205, mrg.at(1), str(error)) from error
        except MergedAway as error:
            about, place = (pair.loser, mrg.at(1)) if error.old == loser.cx else (survivor, pid.at(3))
            facts = {"survivor": survivor.cx, "loser": loser.cx, "merged_into": error.survivor}
            raise _conflict(about, act, place, str(error), facts) from error
    return found


def change_identifier(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A47: MRG-1 becomes what PID-3 has of the same authority, or an INS is replaced or removed (REQ-HL7-41). What PID
    says of the patient is applied: it is the same person."""
    pid, mrg, act = segment(message, "PID"), segment(message, "MRG"), act_of(message, context)
    key = patient_key(pid, 3, context, sender=message.sender)
    given = statement(message, pid, context)
    ins = claimed_ins(mrg, 1)
    of_site = [one for one in mrg.field(1) if text(one.component(1)) and text(one.component(5)) not in NOT_PATIENT]
    old = patient_key(mrg, 1, context, sender=message.sender) if of_site or not ins else None
    if old is None or (old == key and ins):
        removed = any(one.component(1) is NULL and text(one.component(5)) == "INS" for one in pid.field(3))
        return _change_ins(conn, key, replace(given, drops_ins=removed), act, pid=pid, mrg=mrg)
    new = _of_authority(given, old, key)
    if new is None:
        raise HL7Error(204, mrg.at(1), "the identifiers are of different authorities")
    gone = replace(given, dropped=(Identifier(old.patient_id, old.issuer),))
    if new != key and active(conn, old, act, place=mrg.at(1)) is None:  # one that only the record knows
        return warnings(_said(conn, key, gone, act, pid), given, pid)
    try:
        done = rename(conn, old, new, gone, act=act)
    except IdentifierInUse as error:
        raise HL7Error(205, mrg.at(1) if error.what == "patient" else pid.at(3), str(error)) from error
    except MergedAway as error:
        about, place = (old, mrg.at(1)) if error.old == old.cx else (new, pid.at(3))
        facts = {"old": old.cx, "new": new.cx, "merged_into": error.survivor}
        raise _conflict(about, act, place, str(error), facts) from error
    if done is None:
        return [Warning(204, mrg.at(1), "changed before, or never known: nothing to do")]
    return warnings(done, given, pid)


def link_two(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A24: two patients who may be one are linked; A37: they are not. Nothing of theirs moves."""
    first, second = message.all("PID")
    act, linked = act_of(message, context), message.event == "A24"
    keys = [patient_key(pid, 3, context, sender=message.sender) for pid in (first, second)]
    if keys[0] == keys[1]:
        raise HL7Error(205, second.at(3), "both identifiers are the same")
    pks = []
    for key, pid in zip(keys, (first, second), strict=True):
        pk = active(conn, key, act, place=pid.at(3))
        if pk is None and not linked:
            return [Warning(204, pid.at(3), "this patient is not known: nothing to do")]
        pks.append(pk if pk is not None else upserted(conn, message, context, pid)[0])
    if links.link(conn, *pks, linked=linked, act=act):
        return []
    return [Warning(204, second.at(3), "it is so already: nothing to do")]


HANDLERS: Handlers = {
    ("ADT", "A28"): upsert,
    ("ADT", "A31"): upsert,
    ("ADT", "A08"): upsert,
    ("ADT", "A40"): merge_all,
    ("ADT", "A47"): change_identifier,
    ("ADT", "A24"): link_two,
    ("ADT", "A37"): link_two,
}


def segment(message: Message, name: str) -> Segment:
    """The first segment of this name. Raises HL7Error 100 when there is none."""
    found = message.first(name)
    if found is None:
        raise HL7Error(100, f"{name}^1", f"{name} is missing")
    return found


def active(conn: Connection, key: PatientKey, act: Act, *, place: str) -> int | None:
    """Who has an identifier; None when it was never heard of. Raises HL7Error 204 when it was merged away."""
    try:
        row = patients.active(conn, key)
    except MergedAway as error:
        raise merged_away(error, key, act, place=place) from error
    return None if row is None else int(row.pk)


def merged_away(error: MergedAway, key: PatientKey, act: Act, *, place: str) -> HL7Error:
    """The refusal of a message about somebody who was merged away (REQ-HL7-P11); the work item outlives it."""
    after = partial(patients.wait, kind=Kind.MERGED_ID_USED, key=key, act=act, facts={"merged_into": error.survivor})
    return HL7Error(204, place, str(error), after=after)


def _said(conn: Connection, key: PatientKey, given: Statement, act: Act, pid: Segment) -> patients.Said:
    try:
        return patients.say(conn, key, given, act=act)
    except MergedAway as error:
        raise merged_away(error, key, act, place=pid.at(3)) from error


def _change_ins(
    conn: Connection, key: PatientKey, given: Statement, act: Act, *, pid: Segment, mrg: Segment
) -> list[Warning]:
    """An A47 about the INS in MRG-1: its holder is meant, else whoever has the identifier."""
    pk = active(conn, key, act, place=pid.at(3))
    holder = next(filter(None, (patients.with_ins(conn, one) for one in claimed_ins(mrg, 1))), None)
    if holder is None and pk is None:
        raise HL7Error(204, mrg.at(1), "nobody has this INS")
    if holder is None:
        return [Warning(204, mrg.at(1), "this patient does not have this INS: nothing to do")]
    if pk is not None and pk != holder.pk:
        facts = {"holder": patients.key_of(holder).cx}
        raise _conflict(key, act, mrg.at(1), "another patient has this INS", facts)
    return warnings(_said(conn, patients.key_of(holder), given, act, pid), given, pid)


def _of_authority(given: Statement, old: PatientKey, key: PatientKey) -> PatientKey | None:
    """The identifier of PID-3 that the authority of `old` assigned: the patient's own, else another of type PI."""
    if key.issuer == old.issuer:
        return key
    others = (one for one in given.identifiers if one.issuer == old.issuer and one.type == "PI")
    return next((PatientKey(one.value, one.issuer) for one in others), None)


def _conflict(key: PatientKey, act: Act, place: str, words: str, facts: dict[str, str]) -> HL7Error:
    """A refusal of what contradicts an earlier message, and the work item that outlives it."""
    after = partial(patients.wait, kind=Kind.MERGE_CONFLICT, key=key, act=act, facts=facts)
    return HL7Error(204, place, words, after=after)


def _made_from(message: Message, pid: Segment, context: Context) -> Statement:
    """What a survivor that nobody has heard of is made from: PID-3 and PID-5, nothing else."""
    return Statement(names=named(pid), identifiers=identifiers(pid, 3, context, sender=message.sender))


def _name(mrg: Segment) -> Name:
    """MRG-7, the name under which the loser was known."""
    return Name(*(text(mrg.value(7, n)) for n in (1, 2)))
