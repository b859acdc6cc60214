"""`AuditEvent` (FHIR R4), read-only: the rows of the audit for its auditor (ITI-81, sheet 40 §1).

Reading the audit is an entry of its own (110101), written before the answer.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any

from api import fhir_patient
from api.fhir_imaging import DCM, UID_SYSTEM
from api.fhir_search import Page, Search, reference
from archive.access import Actor
from archive.audit.read import list_rows
from archive.audit.record import Event, record
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import InvalidRequest, NotFound
from archive.identity import patients
from archive.identity.acts import Connection

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_TRANSACTIONS = "urn:ihe:event-type-code"  # ITI-21, ITI-30…
_PERSON, _SYSTEM_OBJECT = (
    {"system": f"{_TERMINOLOGY}/audit-entity-type", "code": "1"},
    {
        "system": f"{_TERMINOLOGY}/audit-entity-type",
        "code": "2",
    },
)
_ROLES = {name: {"system": f"{_TERMINOLOGY}/object-role", "code": code} for name, code in (
    ("patient", "1"), ("report", "3"), ("query", "24"), ("job", "20"),
)}  # fmt: skip
MOST = 200  # entries in one answer


def search(archive: Archive, asked: Search, *, actor: Actor) -> Page:
    """One page of the entries that a search finds, the latest first; nobody counts them all.

    Raises InvalidRequest: a value is wrong.
    """
    size = min(asked.count, MOST)
    with archive.reading() as conn:
        conditions = _conditions(conn, archive, asked)
        page = None
        if conditions is not None:
            page = list_rows(conn, **conditions, limit=max(size, 1), after=str(asked.cursor) if asked.cursor else None)
    _tell(archive, actor, asked.asked)
    if page is None or asked.counts_only:
        return Page([], 0 if page is None else None, None)
    return Page([resource(one, archive) for one in page.items], None, None if page.next is None else int(page.next))


def read(archive: Archive, id: str, *, actor: Actor) -> dict[str, Any]:
    """One entry. Raises NotFound."""
    with archive.reading() as conn:
        items = list_rows(conn, number=fhir_patient.number_of(id), limit=1).items
    _tell(archive, actor, f"_id={id}")
    if not items:
        raise NotFound("no such entry")
    return resource(items[0], archive)


def _tell(archive: Archive, actor: Actor, asked: str) -> None:
    detail = {"query": {"AuditEvent": asked}}
    archive.commit.run(lambda conn: record(conn, actor, Event.AUDIT_LOG_USED, "R", detail=detail))


def _conditions(conn: Connection, archive: Archive, asked: Search) -> dict[str, Any] | None:
    """What `list_rows` is to meet; None: nothing can."""
    found: dict[str, Any] = {
        "number": _first(asked, "_id", fhir_patient.number_of),
        "event": _first(asked, "type"),
        "action": _first(asked, "action"),
        "outcome": _first(asked, "outcome", _outcome),
        "user": _first(asked, "altid") or _first(asked, "agent.identifier"),
        "study": _first(asked, "entity.identifier", lambda value: value.removeprefix(fhir_patient.OID)),
    }
    possible = True
    if (span := asked.span("date", days=False)) is not None:
        found |= {"since": span.low, "until": span.high}
    for choices in asked.values("patient"):
        pk = fhir_patient.number_of(reference(choices[0], "Patient")) if len(choices) == 1 else 0
        found["patient"] = patients.name_of(conn, pk)
        possible = possible and found["patient"] is not None
    for tokens in asked.tokens("patient.identifier"):
        if len(tokens) != 1 or not tokens[0].value:
            raise InvalidRequest("patient.identifier takes one identifier")
        domain = fhir_patient.domain_of(conn, archive, tokens[0].system) if tokens[0].system else None
        found["patient"] = cx(tokens[0].value, domain.issuer if domain is not None else "")
    asked.finish()
    return {name: value for name, value in found.items() if value is not None} if possible else None


def _first(asked: Search, name: str, read: Any = str) -> Any:
    codes = asked.codes(name)
    if codes is None:
        return None
    if len(codes) > 1:
        raise InvalidRequest(f"{name} takes one value")
    return read(codes[0])


def _outcome(value: str) -> int:
    if value not in ("0", "4", "8", "12"):
        raise InvalidRequest("outcome is 0, 4, 8 or 12")
    return int(value)


# -- the resource -------------------------------------------------------------------------------------------------


def resource(row: Mapping[str, Any], archive: Archive) -> dict[str, Any]:
    """A row of the audit, as `list_rows` gives it."""
    detail = row["detail"] if isinstance(row["detail"], dict) else {"unreadable": str(row["detail"])}
    said: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": str(row["id"]),
        "type": {"system": DCM, "code": row["event"]},
        "subtype": [_subtype(str(detail["type"]))] if detail.get("type") else [],
        "action": row["action"],
        "recorded": row["time"],
        "outcome": str(row["outcome"]),
        "outcomeDesc": str(detail.get("reason") or ""),
        "agent": [_agent(row)],
        "source": {
            "site": archive.settings.site.name,
            "observer": {"display": "minipacs"},
            "type": [{"system": f"{_TERMINOLOGY}/security-source-type", "code": "4"}],
        },
        "entity": list(_entities(row, detail)),
    }
    if not said["source"]["site"]:
        del said["source"]["site"]
    return {name: value for name, value in said.items() if value not in ("", [])}


def _subtype(code: str) -> dict[str, str]:
    return {"system": DCM if code.isdigit() else _TRANSACTIONS, "code": code}


def _agent(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"who": {"identifier": {"value": row["user"]}}, "altId": row["user"], "requestor": True}
    if not row["user"]:
        found = {"who": {"display": "unknown"}, "requestor": True}
    if row["source"]:
        found["network"] = {"address": row["source"], "type": _point(row["source"])}
    return found


def _point(source: str) -> str:
    """Network Access Point Type: 2 an IP address, 1 the name of a machine, 5 anything else."""
    try:
        ip_address(source)
    except ValueError:
        return "5" if "@" in source or "/" in source else "1"
    return "2"


def _entities(row: Mapping[str, Any], detail: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Patient, study, query, and whatever else the row tells."""
    if row["patient"]:
        yield {
            "what": {"identifier": {"value": row["patient"]}},
            "type": _PERSON,
            "role": _ROLES["patient"],
        }
    if row["study"]:
        what = {"identifier": {"system": UID_SYSTEM, "value": f"urn:oid:{row['study']}"}}
        yield {"what": what, "type": _SYSTEM_OBJECT, "role": _ROLES["report"]}
    query = detail.get("query")
    if query:
        # of C-FIND, QIDO-RS, PDQ in base64 already
        encoded = query if isinstance(query, str) else b64encode(_json(query).encode()).decode("ascii")
        yield {"type": _SYSTEM_OBJECT, "role": _ROLES["query"], "query": encoded}
    others = {name: value for name, value in detail.items() if name not in ("type", "reason", "query")}
    told = [{"type": "door", "valueString": row["door"]}]
    told += [
        {"type": name, "valueString": value if isinstance(value, str) else _json(value)}
        for name, value in others.items()
        if value not in (None, "")
    ]
    yield {"type": _SYSTEM_OBJECT, "role": _ROLES["job"], "name": "detail", "detail": told}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
