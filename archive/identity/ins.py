"""The national identity (INS): its form, its key, and when it may be used (REQ-HL7-60 to 69). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from archive.identity.record import Ins, InsEvent, Record, Statement

NIR, NIA, NIR_TEST, NIR_DEMO = (f"1.2.250.1.213.1.4.{last}" for last in (8, 9, 10, 11))
NAMESPACES = {  # CX-4.1, and Issuer of Patient ID, of each number (REQ-DCM-73)
    NIR: "ASIP-SANTE-INS-NIR",
    NIA: "ASIP-SANTE-INS-NIA",
    NIR_TEST: "ASIP-SANTE-INS-NIR",
    NIR_DEMO: "ASIP-SANTE-INS-NIR",
}
LENGTH = 15

# sex, year, month, département (2A and 2B in Corsica), commune, order, key
_FORM = re.compile(r"[123478][0-9]{2}(0[1-9]|1[0-2]|20|3[0-9]|4[0-2]|[5-9][0-9])([0-9]{2}|2[AB])[0-9]{6}[0-9]{2}")
_CORSICA = {"2A": "19", "2B": "18"}


class Fault(StrEnum):
    """Why an INS is not used."""

    OID = "its OID is not accepted here"  # REQ-HL7-60
    FORM = "it is not 13 characters and a key"  # REQ-HL7-61
    KEY = "its key is wrong"  # REQ-HL7-66
    SEVERAL = "two different ones were sent at once"  # REQ-HL7-69
    COLLISION = "another patient has it"  # REQ-HL7-65
    NOT_SAID = "the message does not say VALI"  # REQ-HL7-62: an absent PID-32 is not VALI
    STATUS = "the identity is not VALI"
    DOUBT = "the identity is doubtful or fictitious"
    CORRECTED = "the birth date was corrected"
    TRAITS = "one of the five traits is missing"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An INS that a message brought, or that was withdrawn, and is not used."""

    ins: Ins
    fault: Fault
    withdrawn: bool = False  # it was in use before


@dataclass(frozen=True, slots=True)
class Verdict:
    """The record after its INS was judged."""

    record: Record
    refusals: tuple[Refusal, ...] = ()


def key_of(number: str) -> str:
    """The two digits that belong to the 13 characters of a NIR or NIA. Raises ValueError when these are none."""
    for letters, digits in _CORSICA.items():
        if number[5:7] == letters:
            number = number[:5] + digits + number[7:]
    if len(number) != LENGTH - 2 or not (number.isascii() and number.isdigit()):
        raise ValueError("not the 13 characters of a NIR")
    return f"{97 - int(number) % 97:02}"


def fault_of(ins: Ins, *, accepted: Collection[str]) -> Fault | None:
    """What is wrong with an INS by itself; `accepted` are the OIDs of `identity.ins_oids`."""
    if ins.oid not in accepted:
        return Fault.OID
    if _FORM.fullmatch(ins.value) is None:
        return Fault.FORM
    return Fault.KEY if key_of(ins.value[:13]) != ins.value[13:] else None


def condition(record: Record) -> Fault | None:
    """What keeps anybody with this record from having an INS in use (REQ-HL7-62)."""
    if "VALI" not in record.codes:
        return Fault.STATUS
    if {"DOUT", "FICT"} & set(record.codes):
        return Fault.DOUBT
    if record.proof.corrected == "Y":
        return Fault.CORRECTED
    legal = record.names.get("L")
    traits = (
        legal and legal.family,
        legal and legal.given,
        len(record.birth_date or "") == 8,
        record.sex in ("M", "F"),
        record.birth_place_code,
    )
    return None if all(traits) else Fault.TRAITS


def judge(
    record: Record, said: Statement, *, accepted: Collection[str], taken: Callable[[Ins], bool], at: str
) -> Verdict:
    """Judge the INS of a record after each message (REQ-HL7-69).

    `record` is the record with the message applied; `taken(ins)` says whether another patient has it; `at` is written
    into the history. An INS that is refused never replaces the one in use.
    """
    if said.drops_ins:  # A47: all of them, whatever stands beside
        return Verdict(withdrawn(record, reason="removed", at=at))
    candidate, beside, refusals = _choose(record, said, accepted)
    known = {(one.value, one.oid) for one in record.ins_history}
    history = list(record.ins_history)
    history += [InsEvent(at, one.value, one.oid, "beside") for one in beside if (one.value, one.oid) not in known]
    used = record.ins
    obstacle = condition(record)
    if candidate is not None and (candidate != used or obstacle is not None):
        fault = obstacle
        if fault is None and "VALI" not in (said.codes or ()):
            fault = Fault.NOT_SAID
        if fault is None and taken(candidate):
            fault = Fault.COLLISION
        if fault is not None:
            refusals.append(Refusal(candidate, fault))
        else:
            if used is not None:
                history.append(InsEvent(at, used.value, used.oid, "replaced"))
            history.append(InsEvent(at, candidate.value, candidate.oid, "accepted"))
            used = candidate
    if used is not None and obstacle is not None:  # REQ-HL7-64
        history.append(InsEvent(at, used.value, used.oid, "withdrawn", obstacle.name.lower()))
        if obstacle is not Fault.STATUS and not any(one.ins == used for one in refusals):
            refusals.append(Refusal(used, obstacle, withdrawn=True))
        used = None
    return Verdict(replace(record, ins=used, ins_history=tuple(history)), tuple(refusals))


def withdrawn(record: Record, *, reason: str, at: str) -> Record:
    """The record without its INS, which its history keeps."""
    if record.ins is None:
        return record
    event = InsEvent(at, record.ins.value, record.ins.oid, "withdrawn", reason)
    return replace(record, ins=None, ins_history=(*record.ins_history, event))


def disagreements(record: Record, ins: Ins) -> list[str]:
    """Traits that the digits contradict. For a warning: no trait is inferred or corrected from them (REQ-HL7-67)."""
    found = []
    sexes = {"1": "M", "3": "M", "7": "M", "2": "F", "4": "F", "8": "F"}
    if record.sex in ("M", "F") and sexes.get(ins.value[:1]) not in (None, record.sex):
        found.append("sex")
    born = record.birth_date or ""
    if len(born) >= 4 and ins.value[1:3] != born[2:4]:
        found.append("year of birth")
    if len(born) >= 6 and "01" <= ins.value[3:5] <= "12" and ins.value[3:5] != born[4:6]:
        found.append("month of birth")
    return found


def _choose(
    record: Record, said: Statement, accepted: Collection[str]
) -> tuple[Ins | None, tuple[Ins, ...], list[Refusal]]:
    """The INS that a message offers for use, NIAs that only the history keeps beside a NIR, and what is refused."""
    faults = {one: fault_of(one, accepted=accepted) for one in dict.fromkeys(said.ins)}
    refusals = [Refusal(one, fault) for one, fault in faults.items() if fault is not None]
    sound = [one for one, fault in faults.items() if fault is None]
    nirs = tuple(one for one in sound if one.oid != NIA)
    nias = tuple(one for one in sound if one.oid == NIA)
    if len(nirs) > 1 or (not nirs and len(nias) > 1):
        return None, (), refusals + [Refusal(one, Fault.SEVERAL) for one in sound]
    if nirs:
        return nirs[0], nias, refusals  # REQ-HL7-63
    if record.ins is not None and record.ins.oid != NIA:
        return None, nias, refusals
    return (nias[0] if nias else None), (), refusals
