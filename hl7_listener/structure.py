"""Which segments a message needs, and in which order (sheet 20 §3.1). Optional and unknown segments are left alone."""

from __future__ import annotations

from hl7_listener.context import Warning
from hl7_listener.message import HL7Error, Message, Segment

_PAIRED = ("A40", "A44", "A47")  # PID, PD1 perhaps, MRG; A40 may hold several pairs
_LINKS = ("A24", "A37")
_ITI_31 = (
    "A01", "A02", "A03", "A04", "A05", "A06", "A07", "A11", "A12", "A13", "A21", "A22", "A38", "A52", "A53", "A54",
    "A55", "Z99",
)  # fmt: skip
_ORDERS = ("ORM", "OMG", "OMI")
_NEEDS_OBR = ("NW", "XO")  # in OMI^O23, an IPC behind it as well
_NEVER_BETWEEN = frozenset({"EVN", "PV1", "PV2", "ORC", "OBR", "OBX", "NK1", "IN1", "AL1"})  # PID and its MRG


def check(message: Message) -> list[Warning]:
    """Whether the segments stand as they must; returns what is tolerated and still worth a word.

    Raises:
        HL7Error: 100, and the segment that is missing or misplaced.
    """
    for extra in message.all("MSH")[1:]:
        raise HL7Error(100, f"MSH^{extra.seq}", "a second MSH in one message")
    if message.type == "ADT":
        _admission(message)
        return []
    if message.type in _ORDERS:
        return _order(message)
    return []


def _admission(message: Message) -> None:
    if message.first("EVN") is None:
        raise HL7Error(100, "EVN^1", "EVN is missing")
    _patient(message, several=message.event in (*_PAIRED, *_LINKS))
    names = [one.name for one in message.segments]
    if names.index("EVN") > names.index("PID"):
        raise HL7Error(100, "EVN^1", "EVN stands behind PID")
    if message.event in _PAIRED:
        _pairs(message)
    if message.event in _LINKS and len(message.all("PID")) != 2:
        raise HL7Error(100, "PID^2" if len(message.all("PID")) < 2 else "PID^3", "two PID are expected")
    if message.event in _ITI_31 and message.first("PV1") is None:
        raise HL7Error(100, "PV1^1", "PV1 is missing")


def _patient(message: Message, *, several: bool = False) -> None:
    found = message.all("PID")
    if not found:
        raise HL7Error(100, "PID^1", "PID is missing")
    if len(found) > 1 and not several:
        raise HL7Error(100, "PID^2", "one PID is expected")


def _pairs(message: Message) -> None:
    """Each PID is followed by its MRG, each MRG has its PID (HL7 2.5 3.3.40, 3.3.47)."""
    waiting: Segment | None = None
    between = False  # something that never stands behind PID and before its MRG
    for one in message.segments:
        if one.name == "PID":
            if waiting is not None:
                break
            waiting, between = one, False
        elif one.name == "MRG":
            if waiting is None:
                raise HL7Error(100, f"MRG^{one.seq}", "MRG without its PID")
            if between:
                raise HL7Error(100, f"MRG^{one.seq}", "MRG does not follow its PID")
            waiting = None
        else:
            between = between or one.name in _NEVER_BETWEEN
    if waiting is not None:
        raise HL7Error(100, f"MRG^{waiting.seq}", "MRG is missing behind its PID")
    if message.event in ("A44", "A47") and len(message.all("PID")) > 1:
        raise HL7Error(100, "PID^2", "one PID is expected")


def _order(message: Message) -> list[Warning]:
    _patient(message)
    groups: list[list[Segment]] = []  # each begins with its ORC
    for one in message.segments:
        if one.name == "ORC":
            groups.append([one])
        elif one.name == "OBR" and not groups:
            raise HL7Error(100, f"OBR^{one.seq}", "OBR stands before its ORC")
        elif groups:
            groups[-1].append(one)
    if not groups:
        raise HL7Error(100, "ORC^1", "ORC is missing")
    for number, group in enumerate(groups, 1):
        names = [one.name for one in group]
        described = group[0].value(1) in _NEEDS_OBR
        if described and "OBR" not in names:
            raise HL7Error(100, f"OBR^{number}", "OBR is missing behind its ORC")
        if described and message.type == "OMI" and "IPC" not in names:
            raise HL7Error(100, f"IPC^{number}", "IPC is missing behind its OBR")
        if "IPC" in names and "IPC" in names[: names.index("OBR") if "OBR" in names else None]:
            raise HL7Error(100, f"IPC^{number}", "IPC stands before its OBR")
    if message.first("PV1") is None:
        return [Warning(100, "PV1^1", "PV1 is missing: accepted without")]
    return []
