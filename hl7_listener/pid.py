"""What PID, ZFD and ZFA say of a patient, as a `Statement` (sheet 20 §4.2, §5).

Race, religion and ethnic group (PID-10, 17, 22) and the number of PID-19 are never read (REQ-HL7-P5).
"""

from __future__ import annotations

from archive.identity import ins
from archive.identity.dicom import GROUP_CHARACTERS
from archive.identity.patients import Said
from archive.identity.record import (
    BIRTH_PLACE,
    NAME_TYPES,
    Address,
    Dmp,
    Ins,
    Name,
    Phone,
    Proof,
    Statement,
    unknown_codes,
)
from hl7_listener.context import Context, Warning
from hl7_listener.message import HL7Error, Message, Repetition, Segment
from hl7_listener.values import day, identifiers, said, text, timestamp

SEXES = frozenset("FMUOAN")  # table 0001; PAM-FR 2.11 has F, M, U (P4)

_OF_FAULT = {ins.Fault.OID: 103, ins.Fault.FORM: 102, ins.Fault.KEY: 102, ins.Fault.COLLISION: 205}


def statement(message: Message, pid: Segment, context: Context) -> Statement:
    """Everything that a message says of its patient.

    Raises:
        HL7Error: 101 no name or identifier, 102 a date that is none, 103 a sex that no table has.
    """
    zfd, zfa = message.first("ZFD"), message.first("ZFA")
    return Statement(
        names=_names(pid),
        birth_date=day(pid, 7),
        sex=_sex(pid),
        addresses=_addresses(pid),
        birth_place=said(pid.value(23)),
        phones=_phones(pid),
        codes=_codes(pid),
        identifiers=identifiers(pid, 3, context, sender=message.sender),
        ins=claimed_ins(pid, 3),
        proof=Proof(*(said(zfd.value(n)) for n in (1, 4, 5, 6, 7, 8))) if zfd else Proof(),
        dmp=Dmp(*(said(zfa.value(n)) for n in (1, 9, 11))) if zfa else Dmp(),
        deceased=_yes_or_no(pid, 30),
        death_day=day(pid, 29),
        mother=() if pid.is_null(21) else identifiers(pid, 21, context, sender=message.sender) or None,
        multiple_birth=_yes_or_no(pid, 24),
        birth_order=said(pid.value(25)),
        updated_at=timestamp(pid, 33) or None,
    )


def named(segment: Segment, n: int = 5) -> dict[str, Name]:
    """Names by type (XPN-7, REQ-HL7-P3), the first of each; {} when nobody is named."""
    found: dict[str, Name] = {}
    for one in segment.field(n):
        kind = text(one.component(7)) or "L"
        if kind in NAME_TYPES:
            found.setdefault(kind, _name(one))
    return found if any(found.values()) else {}


def claimed_ins(segment: Segment, n: int) -> tuple[Ins, ...]:
    """Each INS that is claimed: the type code decides, not the OID (REQ-HL7-60)."""
    return tuple(
        Ins(text(one.component(1)), text(one.component(4, 2)))
        for one in segment.field(n)
        if text(one.component(5)) == "INS" and text(one.component(1))
    )


def warnings(done: Said, given: Statement, pid: Segment) -> list[Warning]:
    """What of a message was not taken as it stands, for the acknowledgement."""
    found = []
    if done.stale:
        found.append(Warning(204, pid.at(33), "older than what is known: demographics are not applied"))
    for one in done.refusals:
        words = "the INS is withdrawn" if one.withdrawn else "the INS is not used"
        found.append(Warning(_OF_FAULT.get(one.fault, 101), pid.at(3), f"{words}: {one.fault}"))
    if done.disagreements:
        found.append(Warning(102, pid.at(3), f"digits of the INS differ from: {', '.join(done.disagreements)}"))
    if unknown_codes(given.codes or ()):
        found.append(Warning(103, pid.at(32), "a code that table 0445 of France does not have"))
    if any(len(f"{name.family or ''}^{name.given or ''}") > GROUP_CHARACTERS for name in given.names.values()):
        found.append(Warning(102, pid.at(5), f"a name of more than {GROUP_CHARACTERS} characters is cut in DICOM"))
    return found


def _names(pid: Segment) -> dict[str, Name]:
    found = named(pid)
    if not found:
        raise HL7Error(101, pid.at(5), "neither a family name nor a given name")
    return found


def _name(one: Repetition) -> Name:
    family, given, given_list, suffix, prefix = (said(one.component(n)) for n in (1, 2, 3, 4, 5))
    return Name(family, given, given_list, prefix, suffix)


def _sex(pid: Segment) -> str | None:
    value = said(pid.value(8))
    if value and value not in SEXES:
        raise HL7Error(103, pid.at(8), "no such sex in table 0001")
    return value


def _yes_or_no(pid: Segment, n: int) -> str | None:
    value = said(pid.value(n))
    return value if value in ("Y", "N", "") else None


def _codes(pid: Segment) -> tuple[str, ...] | None:
    if pid.is_null(32):
        return ()
    return tuple(dict.fromkeys(code for one in pid.field(32) if (code := text(one.component(1))))) or None


def _addresses(pid: Segment) -> tuple[Address, ...] | None:
    if pid.is_null(11):
        return ()
    found = []
    for one in pid.field(11):
        street, other, city, state, postal_code, country, kind = (text(one.component(n)) for n in range(1, 8))
        code = text(one.component(9)) if kind == BIRTH_PLACE else ""
        if any((street, other, city, state, postal_code, country, kind, code)):
            found.append(Address(kind, street, other, city, state, postal_code, country, code))
    return tuple(found) or None


def _phones(pid: Segment) -> tuple[Phone, ...] | None:
    """PID-13, then PID-14; XTN-12 is the number as it is dialled, XTN-1 its older place."""
    found = []
    for n in (13, 14):
        for one in pid.field(n):
            number = text(one.component(12)) or text(one.component(1)) or text(one.component(7))
            if number or text(one.component(4)):
                use = text(one.component(2)) or ("WPN" if n == 14 else "")
                found.append(Phone(number, use, text(one.component(3)), text(one.component(4))))
    if found:
        return tuple(found)
    return () if pid.is_null(13) else None
