"""Visits: ADT messages of IHE PAM ITI-31 with the options Inpatient/Outpatient, Advanced Encounter Management and
Historic Movement (ZBE), as France requires them (PAM-FR 2.11 §2). RAD-1 and RAD-12 are the same without ZBE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from archive.errors import Conflict, IdentifierInUse
from archive.identity import visits
from archive.identity.acts import Connection
from archive.identity.visits import ADMISSIONS, DISCHARGE, PRE_ADMISSION, Movement, Numbered
from archive.workflow import accounts
from hl7_listener.adt import act_of, active, segment, upserted
from hl7_listener.context import Context, Handlers, Warning
from hl7_listener.message import HL7Error, Message, Repetition, Segment
from hl7_listener.values import numbered, patient_key, said, text, timestamp

ENTERED = ("A01", "A02", "A03", "A04", "A05", "A06", "A07", "A21", "A22", "A54")
CANCELS = {  # what each takes back
    "A11": ADMISSIONS,
    "A12": frozenset({"A02"}),
    "A13": frozenset({DISCHARGE}),
    "A38": frozenset({PRE_ADMISSION}),
    "A52": frozenset({"A21"}),
    "A53": frozenset({"A22"}),
    "A55": frozenset({"A54"}),
}
NATURES = frozenset({"S", "H", "M", "L", "D", "SM", "SH", "MH", "LD", "HMS", "C"})  # ZBE-9
CLASSES = frozenset("EINORV")  # PV1-2, those of France
_MAX_TEXT = 250  # characters of what is shown and compared with nothing
_UPDATE = "Z99"


def entered(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A01 to A07, A21, A22, A54: the patient as of A31, and a movement of the visit."""
    visit, account = _visit(message, context), _account(message, context)
    moved, found = _movement(message, context, account=account)
    patient_pk, warned = upserted(conn, message, context)
    found += warned
    if visit is None:
        return [*found, Warning(101, "PV1^1^19", "neither a visit nor an account is named: no visit is kept")]
    try:
        visits.enter(conn, visit, moved, patient_pk=patient_pk, act=act_of(message, context))
    except IdentifierInUse as error:
        raise HL7Error(205, "PV1^1^19", str(error)) from error
    return found


def taken_back(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A11, A12, A13, A38, A52, A53, A55: a movement is cancelled. Patients and images stay."""
    return _change(conn, message, context, partial(visits.cancel, begun_by=CANCELS[message.event]))


def corrected(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """Z99: a movement that was sent before is corrected."""
    segment(message, "ZBE")
    return _change(conn, message, context, visits.amend)


def account_moved(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """A44: an account, MRG-3, is not the patient's of MRG-1 but that of PID's (HL7 2.5 3.3.44)."""
    pid, mrg = segment(message, "PID"), segment(message, "MRG")
    act = act_of(message, context)
    target, source = (patient_key(one, n, context, sender=message.sender) for one, n in ((pid, 3), (mrg, 1)))
    if target == source:
        raise HL7Error(205, mrg.at(1), "both patients are the same")
    account = numbered(mrg, 3, context, sender=message.sender)
    account = account if account.number else _account(message, context)
    if not account.number:
        raise HL7Error(101, mrg.at(3), "the account is missing")
    former = active(conn, source, act, place=mrg.at(1))
    owner = active(conn, target, act, place=pid.at(3))
    nothing = Warning(204, mrg.at(3), "nothing of this account is known of this patient: nothing to do")
    if former is None:
        return [nothing]
    found: list[Warning] = []
    if owner is None:
        owner, found = upserted(conn, message, context)
    return found if accounts.move(conn, account, from_pk=former, to_pk=owner, act=act) else [*found, nothing]


HANDLERS: Handlers = {
    **{("ADT", event): entered for event in ENTERED},
    **{("ADT", event): taken_back for event in CANCELS},
    ("ADT", _UPDATE): corrected,
    ("ADT", "A44"): account_moved,
}


def _change(conn: Connection, message: Message, context: Context, change: Callable[..., bool]) -> list[Warning]:
    """Cancel or correct a movement; of a visit or movement that nobody has heard of, nothing (sheet 20 §3.1)."""
    pid, act = segment(message, "PID"), act_of(message, context)
    visit, account = _visit(message, context), _account(message, context)
    moved, found = _movement(message, context, account=account)
    key = patient_key(pid, 3, context, sender=message.sender)
    patient_pk = active(conn, key, act, place=pid.at(3))
    try:
        if visit is not None and change(conn, visit, moved, patient_pk=patient_pk, act=act):
            return found
    except Conflict as error:
        raise HL7Error(204, pid.at(3), str(error)) from error
    place = "ZBE^1^1" if moved.ids else "PV1^1^19"
    return [*found, Warning(204, place, "no such visit or movement stands: nothing to do")]


def _visit(message: Message, context: Context) -> Numbered | None:
    """PV1-19, else the account."""
    visit = numbered(segment(message, "PV1"), 19, context, sender=message.sender)
    found = visit if visit.number else _account(message, context)
    return found if found.number else None


def _account(message: Message, context: Context) -> Numbered:
    return numbered(segment(message, "PID"), 18, context, sender=message.sender)


def _movement(message: Message, context: Context, *, account: Numbered) -> tuple[Movement, list[Warning]]:
    """What PV1 and ZBE say. Raises HL7Error 101, 102, 103."""
    pv1, zbe, evn = segment(message, "PV1"), message.first("ZBE"), segment(message, "EVN")
    found: list[Warning] = []
    given = {
        "patient_class": said(pv1.value(2)),
        "location": "" if pv1.is_null(3) else _joined(pv1, 3) or None,
        "account_number": account.number or None,
        "account_issuer": account.issuer or None,
    }
    if given["patient_class"] and given["patient_class"] not in CLASSES:
        found.append(Warning(103, pv1.at(2), f"classes of patients in France: {' '.join(sorted(CLASSES))}"))
    moments = [timestamp(evn, 6), timestamp(evn, 2)]
    if zbe is None:
        start = _digits(next(filter(None, moments), ""))
        return Movement(message.event, start, said=_known(given)), found
    ids = tuple(filter(None, (_entity(one) for one in zbe.field(1))))
    if not ids:
        raise HL7Error(101, zbe.at(1), "the movement has no identifier")
    _demand_action(message, zbe)
    nature = text(zbe.value(9))
    if nature and nature not in NATURES:
        found.append(Warning(103, zbe.at(9), "no such nature of a movement"))
    nature = nature if nature != "C" else ""  # it says that this is a correction
    given |= {"medical_ward": _ward(zbe, 7), "care_ward": _ward(zbe, 8), "nature": nature or None}
    start = _digits(next(filter(None, [timestamp(zbe, 2), *([] if message.event == _UPDATE else moments)]), ""))
    return Movement(message.event, start, ids, historic=text(zbe.value(5)) == "Y", said=_known(given)), found


def _demand_action(message: Message, zbe: Segment) -> None:
    """ZBE-4 is what the event is; where it is missing, the event says it."""
    action = text(zbe.value(4))
    wanted = "CANCEL" if message.event in CANCELS else "UPDATE" if message.event == _UPDATE else "INSERT"
    if action not in ("", wanted):
        raise HL7Error(103, zbe.at(4), f"{message.event} goes with {wanted}")


def _known(given: dict[str, str | None]) -> dict[str, str]:
    return {name: _bounded(value) for name, value in given.items() if value is not None}


def _bounded(value: str) -> str:
    """What both databases can keep."""
    return value.replace("\0", "\ufffd")[:_MAX_TEXT]


def _joined(segment: Segment, n: int) -> str:
    """A PL: point of care, room, bed, facility."""
    return "^".join(text(segment.value(n, component)) for component in (1, 2, 3, 4)).rstrip("^")


def _ward(zbe: Segment, n: int) -> str | None:
    """An XON: its code, and its name."""
    return "^".join((text(zbe.value(n, 10)), text(zbe.value(n)))).strip("^") or None


def _entity(one: Repetition) -> str:
    """An EI as `ID^ISSUER`."""
    value, issuer = text(one.component(1)), text(one.component(2)) or text(one.component(3))
    return _bounded(f"{value}^{issuer}") if value else ""


def _digits(moment: str | None) -> str:
    return (moment or "").partition("+")[0].partition("-")[0].partition(".")[0]
