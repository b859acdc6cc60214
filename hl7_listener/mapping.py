"""An ORC/OBR group of ORM^O01, OMG^O19 or OMI^O23 as attributes of a worklist item, by keyword (sheet 20 §7). What IPC
and TQ1 do not say, or where they are missing, OBR and ORC say.

Identifiers are refused when an attribute cannot hold them; descriptions are cut, for the DICOM copy alone: the message
is kept whole (REQ-HL7-15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archive.identity.dicom import person_name
from archive.identity.record import Name
from hl7_listener.message import Message, Repetition, Segment
from hl7_listener.values import short, text, timestamp

SH, LO = 16, 64  # characters (PS3.5 §6.2)
MAX_NAMESPACE = 199  # characters: the longest part of an EI (HL7 2.5 2.A.28)

PRIORITIES = {"S": "STAT", "A": "HIGH", "P": "HIGH", "C": "HIGH", "R": "ROUTINE", "T": "MEDIUM"}


@dataclass(frozen=True, slots=True)
class Parts:
    """The segments of one step, and those of the message that say something of every step. `number` counts groups of
    ORC from 1: it is the sequence of each place of the group (REQ-HL7-75)."""

    number: int
    orc: Segment
    obr: Segment | None
    ipc: Segment | None
    tq1: Segment | None
    zds: Segment | None
    obxs: tuple[Segment, ...]
    pid: Segment | None
    pv1: Segment | None

    def place(self, name: str, field: int) -> str:
        return f"{name}^{self.number}^{field}"

    @property
    def accession_place(self) -> str:
        """Where the accession number should stand."""
        return self.place("IPC", 1) if self.ipc is not None else self.place("OBR", 18)

    def said(self, ipc: int, obr: int) -> tuple[str, str]:
        """An identifier of the step, and its place: IPC says it, else OBR."""
        for segment, field in ((self.ipc, ipc), (self.obr, obr)):
            if segment is not None and (value := text(segment.value(field))):
                return value, self.place(segment.name, field)
        return "", ""


def groups(message: Message) -> list[Parts]:
    """The steps of an order message: one for each ORC, or where several IPC stand behind its OBR, one for each IPC.
    One ZDS behind them all is every group's: they are steps of one study."""
    found: list[list[Segment]] = []
    for one in message.segments:
        if one.name == "ORC":
            found.append([one])
        elif found:
            found[-1].append(one)
    zds = message.all("ZDS")
    shared = zds[0] if len(zds) == 1 and found and zds[0] in found[-1] else None
    pid, pv1 = message.first("PID"), message.first("PV1")
    return [
        Parts(
            number,
            segments[0],
            next((one for one in segments if one.name == "OBR"), None),
            ipc,
            next((one for one in segments if one.name == "TQ1"), None),
            next((one for one in segments if one.name == "ZDS"), shared),
            tuple(one for one in segments if one.name == "OBX"),
            pid,
            pv1,
        )
        for number, segments in enumerate(found, 1)
        for ipc in _steps(segments)
    ]


def _steps(segments: Sequence[Segment]) -> Sequence[Segment | None]:
    return [one for one in segments if one.name == "IPC"] or (None,)


def worklist_item(parts: Parts) -> dict[str, Any]:
    """What a group says, but for accession number and Study Instance UID.

    Raises:
        HL7Error: 102 an identifier that its attribute cannot hold, or a time that is none.
    """
    orc, obr = parts.orc, parts.obr
    priority = _of(parts.tq1, 9) or text(orc.value(7, 6)) or _of(obr, 27, 6)
    found: dict[str, Any] = {
        **_times(parts),
        **_step(parts),
        "PlacerOrderNumberImagingServiceRequest": number_of(parts, 2)[:LO],
        "FillerOrderNumberImagingServiceRequest": number_of(parts, 3)[:LO],
        "RequestedProcedurePriority": PRIORITIES.get(priority, ""),
    }
    if obr is not None:
        found |= _procedure(parts, obr)
    if parts.pv1 is not None:
        found |= _visit(parts.pv1)
    found |= _admission(parts)
    if confidential := text(orc.value(28)):
        found["ConfidentialityCode"] = confidential[:LO]
        found["ConfidentialityConstraintOnPatientDataDescription"] = (text(orc.value(28, 2)) or confidential)[:LO]
    found |= _measures(parts.obxs)
    return {keyword: value for keyword, value in found.items() if value}


def number_of(parts: Parts, field: int) -> str:
    """The placer's (2) or filler's (3) number of ORC, else of OBR, with its namespace as `NUMBER^NAMESPACE`.

    Raises:
        HL7Error: 102 it is too long.
    """
    for segment in (parts.orc, parts.obr):
        if segment is not None and (value := text(segment.value(field))):
            place = parts.place(segment.name, field)
            short(value, place, characters=LO)
            namespace = text(segment.value(field, 2)) or text(segment.value(field, 3))
            short(namespace, place, characters=MAX_NAMESPACE)
            return f"{value}^{namespace}" if namespace else value
    return ""


def _step(parts: Parts) -> dict[str, Any]:
    """Who performs what, where: IPC-2 to IPC-9, else OBR-19, 20, 24, OBR-4.4 and ORC-18."""
    ipc, obr = parts.ipc, parts.obr
    station = parts.place("IPC", 9)
    found: dict[str, Any] = {
        keyword: short(*parts.said(*fields), characters=SH)
        for keyword, fields in {
            "RequestedProcedureID": (2, 19),
            "ScheduledProcedureStepID": (4, 20),
            "Modality": (5, 24),
        }.items()
    }
    protocol = (_code(ipc, 6) if ipc is not None else []) or (_code(obr, 4, first=4) if obr is not None else [])
    return {
        **found,
        "ScheduledProcedureStepDescription": (_of(ipc, 6, 2) or _of(obr, 4, 5) or _of(obr, 4, 2))[:LO],
        "ScheduledProtocolCodeSequence": protocol,
        "ScheduledStationName": (_of(ipc, 7) or text(parts.orc.value(18)))[:SH],
        "ScheduledProcedureStepLocation": _of(ipc, 8)[:SH],
        "ScheduledStationAETitle": short(_of(ipc, 9), station, characters=SH),
        "IssuerOfAccessionNumberSequence": _assigner(ipc, 1) if ipc is not None else [],
    }


def _admission(parts: Parts) -> dict[str, Any]:
    """The visit, else the account: PV1-19, else PID-18."""
    for segment, field in ((parts.pv1, 19), (parts.pid, 18)):
        if segment is not None and (value := text(segment.value(field))):
            issuer = [text(segment.value(field, 4, sub)) for sub in (1, 2, 3)]
            return {"AdmissionID": value[:LO], "IssuerOfAdmissionIDSequence": _entity(*issuer)}
    return {}


def _procedure(parts: Parts, obr: Segment) -> dict[str, Any]:
    ordered = 44 if _of(obr, 44) else 4
    return {
        "RequestedProcedureDescription": _of(obr, ordered, 2)[:LO],
        "RequestedProcedureCodeSequence": _code(obr, ordered),
        "RequestingPhysician": _person(obr.field(16)) or _person(parts.orc.field(12)),
        "ReasonForTheRequestedProcedure": (_of(obr, 31, 2) or _of(obr, 31))[:LO],
        "ReasonForRequestedProcedureCodeSequence": _code(obr, 31) if _of(obr, 31, 2) else [],
        "MedicalAlerts": (_of(obr, 13))[:LO],
        "PatientState": (_of(obr, 12, 2) or _of(obr, 12))[:LO],
        "PatientTransportArrangements": _of(obr, 30)[:LO],
        "ScheduledPerformingPhysicianName": _performer(obr),
    }


def _visit(pv1: Segment) -> dict[str, Any]:
    location = [text(pv1.value(3, n)) for n in (1, 2, 3, 4)]
    return {
        "ReferringPhysicianName": _person(pv1.field(8)),
        "CurrentPatientLocation": "^".join(location).rstrip("^")[:LO],
        "PregnancyStatus": 3 if any(text(one.component(1)) == "B6" for one in pv1.field(15)) else None,
        "ConfidentialityConstraintOnPatientDataDescription": text(pv1.value(16))[:LO],
    }


def _times(parts: Parts) -> dict[str, str]:
    """Start of the step: TQ1-7, else ORC-7.4, else OBR-27.4, else OBR-36."""
    for segment, field, component in ((parts.tq1, 7, 1), (parts.orc, 7, 4), (parts.obr, 27, 4), (parts.obr, 36, 1)):
        if segment is not None and (value := timestamp(segment, field, component)):
            digits = value.partition("+")[0].partition("-")[0]
            return {
                "ScheduledProcedureStepStartDate": digits[:8] if len(digits) >= 8 else "",
                "ScheduledProcedureStepStartTime": digits[8:],
            }
    return {}


def _measures(obxs: Sequence[Segment]) -> dict[str, str]:
    """Weight in kg and size in m, from observations that are called so."""
    found = {}
    for obx in obxs:
        named = f"{text(obx.value(3))} {text(obx.value(3, 2))}".casefold()
        unit = text(obx.value(6)).casefold()
        try:
            value = float(text(obx.value(5)).replace(",", "."))
        except ValueError:
            continue
        if "body weight" in named and 0 < value < 1000:
            found["PatientWeight"] = f"{value / 1000 if unit == 'g' else value:g}"
        elif "body height" in named and 0 < value < 300:
            found["PatientSize"] = f"{value if unit == 'm' else value / 100:g}"
    return found


def _of(segment: Segment | None, field: int, component: int = 1) -> str:
    return text(segment.value(field, component)) if segment is not None else ""


def _assigner(segment: Segment, field: int) -> list[dict[str, str]]:
    """Who assigned an EI, as an item of the HL7v2 Hierarchic Designator Macro (PS3.3 Table 10-17)."""
    return _entity(*(text(segment.value(field, n)) for n in (2, 3, 4)))


def _entity(namespace: str, universal_id: str, kind: str) -> list[dict[str, str]]:
    found = {"LocalNamespaceEntityID": namespace}
    if universal_id:
        found |= {"UniversalEntityID": universal_id, "UniversalEntityIDType": kind or "ISO"}
    return [found] if namespace or universal_id else []


def _code(segment: Segment, field: int, *, first: int = 1) -> list[dict[str, str]]:
    """A coded element as an item of a code sequence: code, meaning, scheme stand in three components."""
    code, meaning, scheme = (_of(segment, field, first + n) for n in range(3))
    if not code or len(code) > SH or len(scheme) > SH:
        return []
    return [{"CodeValue": code, "CodingSchemeDesignator": scheme or "L", "CodeMeaning": (meaning or code)[:LO]}]


def _person(repetitions: Sequence[Repetition]) -> str:
    """The first person of an XCN field as PN; without a family name nobody."""
    for one in repetitions:
        if family := text(one.component(2)):
            return person_name(Name(family=family, given=text(one.component(3))))
    return ""


def _performer(obr: Segment) -> str:
    """OBR-34.1 is a name in subcomponents: number, family, given."""
    for one in obr.field(34):
        if family := text(one.component(1, 2)):
            return person_name(Name(family=family, given=text(one.component(1, 3))))
    return ""
