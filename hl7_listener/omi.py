"""The job `hl7.omi`: an OMI^O23 that tells the DRIMbox of a change to a study (REQ-DRIM-06; HL7 2.5.1 §4.4.12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archive.core import Archive
from archive.duties import Duty
from archive.errors import Busy, InvalidRequest, NotFound
from archive.jobs import Job
from archive.sharing import OMI, Exam, exam
from archive.tls import requestor
from hl7_listener.call import calling, said, understood
from hl7_listener.encoding import Delimiters, escape
from hl7_listener.person import pid_of, segment
from hl7_listener.values import text

_SIGNS = Delimiters()
_CHANGE = "Modification Examen Imagerie"
_COMPONENT = _SIGNS.component


def tell(archive: Archive, job: Job) -> Mapping[str, Any]:
    """Tell the DRIMbox of one study, as it is now.

    Raises:
        NotFound: nobody knows any more whose it was. InvalidRequest: the DRIMbox refuses it.
        Busy: it cannot be reached, does not answer in time, or not now.
    """
    told = exam(archive, str(job.payload["study"]))
    if told is None:
        raise NotFound("of this study nothing is left that could be told")
    omi = archive.settings.sharing.omi
    context = requestor(archive.settings.tls, named=True) if omi.tls else None
    limits: dict[str, Any] = {"seconds": omi.seconds, "max_bytes": archive.settings.hl7.max_message_bytes}
    with calling(omi.host, omi.port, **limits, tls=context) as call:
        message = said(
            archive.settings,
            "OMI^O23^OMI_O23",
            segments(archive, told),
            to=(omi.application, omi.facility),
            version="2.5.1",
            at=archive.real_clock(),
        )
        answer = understood(call, message, default_charset=archive.settings.hl7.default_charset)
    msa = answer.first("MSA")
    code = "" if msa is None else text(msa.value(1))
    if code in ("AE", "CE"):
        raise InvalidRequest(f"the DRIMbox refuses the message ({code})")
    if code not in ("AA", "CA"):
        raise Busy(f"the DRIMbox does not take the message ({code or 'no MSA-1'})")
    return {"answer": code}


DUTIES: dict[str, Duty] = {OMI: tell}


def segments(archive: Archive, told: Exam) -> list[str]:
    """What follows MSH: PID, PV1, ORC, TQ1, OBR, OBX, IPC."""
    order = told.order
    placer = _ei(told.placer_number, order.get("OrderPlacerIdentifierSequence"))
    filler = _ei(told.filler_number or told.accession_number, order.get("OrderFillerIdentifierSequence"))
    start = f"{order.get('ScheduledProcedureStepStartDate', '')}{order.get('ScheduledProcedureStepStartTime', '')}"
    procedure = _code(order.get("RequestedProcedureCodeSequence"), str(order.get("RequestedProcedureDescription", "")))
    protocol = _code(order.get("ScheduledProtocolCodeSequence"), "")
    return [
        pid_of(told.patient, archive.authorities, seq=1),
        segment("PV1", "", "O"),
        segment("ORC", "NW", placer, filler, "", "SC"),
        segment("TQ1", "1", *[""] * 5, escape(start, _SIGNS)),
        segment("OBR", "1", placer, filler, procedure),
        segment("OBX", "1", "ST", f"{_COMPONENT}{_CHANGE}", "", _CHANGE, *[""] * 5, "F"),
        segment(
            "IPC",
            _ei(told.accession_number, order.get("IssuerOfAccessionNumberSequence")),
            escape(str(order.get("RequestedProcedureID") or told.accession_number), _SIGNS),
            told.study_instance_uid,
            escape(told.step_id or told.accession_number, _SIGNS),
            escape(told.modality, _SIGNS),
            protocol,
            "",
            "",
            escape(archive.settings.dicom.ae_title, _SIGNS),
        ),
    ]


def _ei(value: str, issuers: Any) -> str:
    """An identifier as EI, with whoever assigned it as far as an order says (the item of a sequence of DICOM)."""
    item: Mapping[str, Any] = next(iter(issuers or ()), {}) if value else {}
    names = ("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType")
    parts = [value, *(str(item.get(name) or "") for name in names)]
    return _COMPONENT.join(escape(one, _SIGNS) for one in parts).rstrip(_COMPONENT)


def _code(items: Any, otherwise: str) -> str:
    """A code as CE, or its text alone."""
    item: Mapping[str, Any] = next(iter(items or ()), {})
    parts = [str(item.get(name) or "") for name in ("CodeValue", "CodeMeaning", "CodingSchemeDesignator")]
    parts[1] = parts[1] or otherwise
    return _COMPONENT.join(escape(one, _SIGNS) for one in parts).rstrip(_COMPONENT)
