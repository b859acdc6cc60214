"""Patient Demographics Query, consumer: QBP^Q22 asked of the configured supplier (ITI-21, REQ-HL7-93).

What comes back is handed on and kept nowhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from archive.core import Archive
from archive.duties import Duty
from archive.errors import Busy, InvalidRequest
from archive.identity.record import BIRTH_PLACE, Name
from archive.identity.searchable import INS_ROOT, PRIVATE
from archive.jobs import Job
from archive.lookup import KIND, Traits
from hl7_listener.call import Call, calling, said, understood
from hl7_listener.encoding import Delimiters, escape
from hl7_listener.message import Message, Segment
from hl7_listener.person import repeated, segment
from hl7_listener.pid import named
from hl7_listener.values import text

PAGE = 50  # patients in one answer
MOST = 200  # patients that are asked for; who needs more says more
_SIGNS = Delimiters()
_NAME = "IHE PDQ Query"


def look_up(archive: Archive, traits: Traits) -> dict[str, Any]:
    """Ask the supplier: `{"items": […], "complete": …}`; not complete when it has more than anybody reads.

    Raises:
        InvalidRequest: it refuses what it is asked.
        Busy: it cannot be reached, does not answer in time, or answers something else.
    """
    supplier = archive.settings.hl7.supplier
    tag = uuid.uuid4().hex
    qpd = _qpd(archive, traits, tag)
    items: list[dict[str, Any]] = []
    pointer = ""
    limits = {"seconds": supplier.seconds, "max_bytes": archive.settings.hl7.max_message_bytes}
    with calling(supplier.host, supplier.port, **limits) as call:  # type: ignore[arg-type]
        while True:
            more = [segment("DSC", escape(pointer, _SIGNS), "I")] if pointer else []
            answer = _asked(archive, call, "QBP^Q22^QBP_Q21", [qpd, segment("RCP", "I", f"{PAGE}^RD"), *more])
            _demand(answer, tag)
            items += [_person(archive, pid, answer.sender) for pid in answer.all("PID")]
            dsc = answer.first("DSC")
            pointer = "" if dsc is None else text(dsc.value(1))
            if not pointer:
                return {"items": items, "complete": True}
            if len(items) >= MOST or not answer.first("PID"):
                _asked(archive, call, "QCN^J01^QCN_J01", [segment("QID", tag, _NAME)])
                return {"items": items, "complete": False}


def _do(archive: Archive, job: Job) -> Mapping[str, Any]:
    return look_up(archive, Traits(**{name: value for name, value in job.payload.items() if name != "once"}))


DUTIES: dict[str, Duty] = {KIND: _do}


def _qpd(archive: Archive, traits: Traits, tag: str) -> str:
    named_by_oid = traits.authority[:1].isdigit()
    asked = {
        "@PID.3.1": traits.identifier,
        "@PID.3.4.1": "" if named_by_oid else traits.authority,
        "@PID.3.4.2": traits.authority if named_by_oid else "",
        "@PID.5.1.1": traits.family,
        "@PID.5.2": traits.given,
        "@PID.7": traits.birth_date,
        "@PID.8": traits.sex,
    }
    parameters = repeated(f"{name}^{escape(value, _SIGNS)}" for name, value in asked.items() if value)
    domains = repeated(
        f"^^^&{escape(one, _SIGNS)}&ISO" if one[:1].isdigit() else f"^^^{escape(one, _SIGNS)}"
        for one in archive.settings.hl7.supplier.domains
    )
    return segment("QPD", _NAME, tag, parameters, "", "", "", "", domains)


def _asked(archive: Archive, call: Call, kind: str, segments: list[str]) -> Message:
    """The answer to one message, which is about that message."""
    settings = archive.settings
    supplier = settings.hl7.supplier
    to = (supplier.application, supplier.facility)
    message = said(settings, kind, segments, to=to, version="2.5", at=archive.real_clock())
    return understood(call, message, default_charset=settings.hl7.default_charset)


def _demand(answer: Message, tag: str) -> None:
    """Raises unless this is the answer to our query."""
    msa, qak = answer.first("MSA"), answer.first("QAK")
    code = "" if msa is None else text(msa.value(1))
    if code != "AA":
        err = answer.first("ERR")
        said = "" if err is None else f"{text(err.value(3))} {'^'.join(_place(err))}".strip()
        refusal = f"the supplier refuses ({code or 'no MSA-1'}{' ' if said else ''}{said})"
        raise InvalidRequest(refusal) if code in ("AE", "CE") else Busy(refusal)
    if (answer.type, answer.event) != ("RSP", "K22") or qak is None or text(qak.value(1)) != tag:
        raise Busy("the supplier answers something else than the query")


def _place(err: Segment) -> list[str]:
    return [found for n in range(1, 7) if (found := text(err.value(2, n)))]


def _person(archive: Archive, pid: Segment, sender: str) -> dict[str, Any]:
    """A PID for a person to look at, named as in `/api/v1/patients`. National numbers are left out: nobody compares
    them by eye."""
    names = named(pid)
    birth = next((name for kind in ("L", "S", "U") if (name := names.get(kind))), Name())
    used = names.get("D", Name())
    homes = [one for one in pid.field(11) if text(one.component(7)) != BIRTH_PLACE]
    return {
        "identifiers": _identifiers(archive, pid, sender),
        "family_birth": birth.family or "",
        "given_first": birth.given or "",
        "family_used": used.family or "",
        "given_used": used.given or "",
        "birth_date": text(pid.value(7))[:8],
        "sex": text(pid.value(8)),
        "address_city": next((city for one in homes if (city := text(one.component(3)))), ""),
        "identity_status": text(pid.value(32)),
    }


def _identifiers(archive: Archive, pid: Segment, sender: str) -> list[dict[str, str]]:
    found = []
    for one in pid.field(3):
        value, kind = text(one.component(1)), text(one.component(5))
        namespace, oid = text(one.component(4)), text(one.component(4, 2))
        if not value or kind in PRIVATE or oid.startswith(INS_ROOT):
            continue
        default = archive.authorities.default_of(sender)
        issuer = archive.authorities.issuer(namespace, oid) or (default.namespace if default is not None else "")
        found.append({"value": value, "issuer": issuer, "type": kind})
    return found
