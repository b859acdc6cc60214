"""Values of HL7 data types, read strictly: what is wrong is refused where it stands (sheet 20 §3)."""

from __future__ import annotations

import re
from datetime import date, time

from archive.identity.acts import PatientKey
from archive.identity.record import Identifier
from archive.identity.visits import NOTHING, Numbered
from hl7_listener.context import Context
from hl7_listener.message import NULL, HL7Error, Repetition, Segment

MAX_IDENTIFIER = 64  # characters of LO, where a Patient ID goes (PS3.5 §6.2)
NOT_PATIENT = frozenset({"INS", "INS-C", "NH", "NDP", "PN", "AN"})  # CX-5 of what names no patient of a site (P1)

_TIMESTAMP = re.compile(r"([0-9]{4}(?:[0-9]{2}){0,5})(?:\.[0-9]{1,4})?(?:[+-][0-9]{4})?")
_ILLEGAL = re.compile(r"[\\\x00-\x1f\x7f]")  # in a value of LO or SH


def said(value: str | None) -> str | None:
    """A single value as a `Statement` has it: None unchanged, "" deleted (REQ-HL7-13)."""
    if value is None:
        return None
    return "" if value is NULL else value.strip()


def text(value: str | None) -> str:
    """A value where nothing, and a deleted one, are the same."""
    return said(value) or ""


def timestamp(segment: Segment, n: int, component: int = 1) -> str | None:
    """A TS or DT as `said`, checked to be a moment of the calendar; what is left out at its end may be.

    Raises:
        HL7Error: 102 it is none.
    """
    value = said(segment.value(n, component))
    if value:
        _check_moment(value, segment.at(n))
    return value


def calendar_day(value: str, place: str) -> tuple[str, str]:
    """The first and the last day of a date that may lack day or month, as YYYYMMDD; a month is said to have 31 days.
    Raises HL7Error 102."""
    _check_moment(value, place)
    day = value[:8]
    return day + "0101"[len(day) - 4 :], day + "1231"[len(day) - 4 :]


def _check_moment(value: str, place: str) -> None:
    found = _TIMESTAMP.fullmatch(value)
    if found is None:
        raise HL7Error(102, place, "this is no date or time")
    digits = found.group(1)
    try:
        date(int(digits[:4]), int(digits[4:6] or 1), int(digits[6:8] or 1))
        time(int(digits[8:10] or 0), int(digits[10:12] or 0), int(digits[12:14] or 0))
    except ValueError:
        raise HL7Error(102, place, "no such day or time") from None


def day(segment: Segment, n: int) -> str | None:
    """A date as precise as it is known: YYYY, YYYYMM or YYYYMMDD; as `said`. Raises HL7Error 102."""
    value = timestamp(segment, n)
    return value[:8] if value else value


def short(value: str, place: str, *, characters: int) -> str:
    """An identifier that a DICOM attribute holds whole (REQ-HL7-15, REQ-HL7-75). Raises HL7Error 102: never cut."""
    if len(value) > characters:
        raise HL7Error(102, place, f"longer than {characters} characters")
    if _ILLEGAL.search(value):
        raise HL7Error(102, place, "a character that no DICOM value may hold")
    return value


def patient_key(segment: Segment, n: int, context: Context, *, sender: str) -> PatientKey:
    """Whom a field of data type CX names: its IPP (REQ-HL7-P1).

    Raises:
        HL7Error: 101 no usable identifier, or nobody knows who assigned it; 102 too long.
    """
    place = segment.at(n)
    if segment.is_null(n):
        raise HL7Error(101, place, "identifiers are not deleted by this message")
    usable = [one for one in segment.field(n) if text(one.component(1))]
    internal = [one for one in usable if text(one.component(5)) == "PI"]
    trusted = [one for one in internal if _is_trusted(one, context, sender)]
    others = [one for one in usable if text(one.component(5)) not in NOT_PATIENT]
    found = next(iter((*trusted, *internal, *others)), None)
    if found is None:
        raise HL7Error(101, place, "no identifier of a patient")
    value = short(text(found.component(1)), place, characters=MAX_IDENTIFIER)
    issuer = short(issuer_of(found, context, sender=sender), place, characters=MAX_IDENTIFIER)
    if not issuer:
        raise HL7Error(101, place, "the assigning authority is missing, and this sender has no default one")
    return PatientKey(value, issuer)


def numbered(segment: Segment | None, n: int, context: Context, *, sender: str) -> Numbered:
    """The number of a visit or account (CX), and who assigned it; `NOTHING` when there is none. Raises HL7Error 102."""
    if segment is None:
        return NOTHING
    for one in segment.field(n):
        if value := text(one.component(1)):
            short(value, segment.at(n), characters=MAX_IDENTIFIER)
            return Numbered(
                value, short(issuer_of(one, context, sender=sender), segment.at(n), characters=MAX_IDENTIFIER)
            )
    return NOTHING


def identifiers(segment: Segment, n: int, context: Context, *, sender: str) -> tuple[Identifier, ...]:
    """Every identifier of a field of data type CX, but INS."""
    return tuple(
        Identifier(text(one.component(1)), issuer_of(one, context, sender=sender), text(one.component(5)))
        for one in segment.field(n)
        if text(one.component(1)) and text(one.component(5)) != "INS"
    )


def issuer_of(one: Repetition, context: Context, *, sender: str) -> str:
    """CX-4 in the one spelling; empty, the default authority of the sender; "" when there is none."""
    namespace, universal_id = text(one.component(4)), text(one.component(4, 2))
    if namespace or universal_id:
        return context.authorities.issuer(namespace, universal_id)
    default = context.authorities.default_of(sender)
    return default.namespace if default is not None else ""


def _is_trusted(one: Repetition, context: Context, sender: str) -> bool:
    known = context.authorities.find(issuer_of(one, context, sender=sender))
    return known is not None and known.trusted
