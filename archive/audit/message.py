"""A row of the audit as a DICOM audit message (PS3.15 A.5.1, the schema of A.5.1.1; IHE ITI-20). Pure.

Nothing that the row says is left out: what the schema has no place for becomes a detail of the object it is about, or,
where the row is about none, of the node.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

from archive.access import SYSTEM, Door
from archive.audit.chain import time_text
from archive.audit.record import Event, EventType

NAMES: Final[Mapping[str, str]] = {  # meanings of CID 400 and CID 401
    Event.APPLICATION_ACTIVITY: "Application Activity",
    Event.AUDIT_LOG_USED: "Audit Log Used",
    Event.BEGIN_TRANSFERRING: "Begin Transferring DICOM Instances",
    Event.INSTANCES_ACCESSED: "DICOM Instances Accessed",
    Event.INSTANCES_TRANSFERRED: "DICOM Instances Transferred",
    Event.STUDY_DELETED: "DICOM Study Deleted",
    Event.EXPORT: "Export",
    Event.IMPORT: "Import",
    Event.NETWORK_ENTRY: "Network Entry",
    Event.ORDER_RECORD: "Order Record",
    Event.PATIENT_RECORD: "Patient Record",
    Event.PROCEDURE_RECORD: "Procedure Record",
    Event.QUERY: "Query",
    Event.SECURITY_ALERT: "Security Alert",
    Event.USER_AUTHENTICATION: "User Authentication",
    EventType.START: "Application Start",
    EventType.STOP: "Application Stop",
    EventType.LOGIN: "Login",
    EventType.LOGOUT: "Logout",
    EventType.ATTACH: "Attach",
    EventType.DETACH: "Detach",
    EventType.NODE_AUTHENTICATION: "Node Authentication",
    EventType.OVERRIDE_STARTED: "Emergency Override Started",
    EventType.NETWORK_CONFIGURATION: "Network Configuration",
    EventType.SECURITY_CONFIGURATION: "Security Configuration",
    EventType.HARDWARE_CONFIGURATION: "Hardware Configuration",
    EventType.SOFTWARE_CONFIGURATION: "Software Configuration",
    EventType.RESTRICTED_FUNCTION: "Use of Restricted Function",
    EventType.RECORDING_STOPPED: "Audit Recording Stopped",
    EventType.RECORDING_STARTED: "Audit Recording Started",
    EventType.OBJECT_ATTRIBUTES_CHANGED: "Object Security Attributes Changed",
    EventType.ROLES_CHANGED: "Security Roles Changed",
    EventType.USER_ATTRIBUTES_CHANGED: "User security Attributes Changed",
    EventType.OVERRIDE_STOPPED: "Emergency Override Stopped",
}
TRANSACTIONS: Final = {  # of IHE, that a row names as its type
    "ITI-21": "Patient Demographics Query",
    "ITI-30": "Patient Identity Management",
    "ITI-31": "Patient Encounter Management",
    "ITI-78": "Mobile Patient Demographics Query",
}
_APPLICATION, _LAUNCHER = ("110150", "Application"), ("110151", "Application Launcher")
_DESTINATION, _SOURCE = ("110152", "Destination Role ID"), ("110153", "Source Role ID")
_STUDY_UID, _SOP_CLASS_UID, _NODE = (
    ("110180", "Study Instance UID"),
    ("110181", "SOP Class UID"),
    ("110182", "Node ID"),
)
# who of the two sides a message is about: the one that asked, and the archive
_SIDES: Final[Mapping[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    Event.APPLICATION_ACTIVITY: (_LAUNCHER, _APPLICATION),
    Event.QUERY: (_SOURCE, _DESTINATION),
    Event.IMPORT: (_SOURCE, _DESTINATION),
    Event.EXPORT: (_DESTINATION, _SOURCE),
    Event.BEGIN_TRANSFERRING: (_DESTINATION, _SOURCE),
    Event.INSTANCES_TRANSFERRED: (_DESTINATION, _SOURCE),
}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 2.2


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: `source_id` and `site_id` are those of Audit Source Identification, `node` is the host's name."""

    source_id: str
    site_id: str
    ae_titles: tuple[str, ...]
    node: str


def message(row: Mapping[str, Any], reporter: Reporter) -> bytes:
    """The message of one row of `archive.schema.audit`: one line of XML in UTF-8, without byte order mark."""
    detail = _detail(row["detail"])
    root = Element("AuditMessage")
    _event(root, row, detail)
    _participants(root, row, detail, reporter)
    site = {"AuditEnterpriseSiteID": reporter.site_id} if reporter.site_id else {}
    source = _element(root, "AuditSourceIdentification", {**site, "AuditSourceID": reporter.source_id})
    _element(source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server
    _objects(root, row, detail, reporter)
    return b'<?xml version="1.0" encoding="UTF-8"?>' + tostring(root, encoding="unicode").encode("utf-8")


def _detail(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # not as it was written; the chain tells
        found = None
    return found if isinstance(found, dict) else {"unreadable": text}


def _element(parent: Element, name: str, attributes: Mapping[str, str], text: str = "") -> Element:
    made = SubElement(parent, name, {key: _legal(value) for key, value in attributes.items()})
    made.text = _legal(text) or None
    return made


def _legal(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _coded(parent: Element, name: str, code: str, meaning: str, system: str = "DCM") -> None:
    _element(parent, name, {"csd-code": code, "codeSystemName": system, "originalText": meaning})


def _event(root: Element, row: Mapping[str, Any], detail: Mapping[str, Any]) -> None:
    event = _element(
        root,
        "EventIdentification",
        {
            "EventActionCode": row["action"],
            "EventDateTime": _time(row["time"]),
            "EventOutcomeIndicator": str(row["outcome"]),
        },
    )
    _coded(event, "EventID", row["event"], NAMES.get(row["event"], row["event"]))
    kind = str(detail.get("type", ""))
    if kind in TRANSACTIONS:
        _coded(event, "EventTypeCode", kind, TRANSACTIONS[kind], "IHE Transactions")
    elif kind in NAMES:
        _coded(event, "EventTypeCode", kind, NAMES[kind])
    if row["outcome"] and detail.get("reason"):
        _element(event, "EventOutcomeDescription", {}, " ".join(str(detail["reason"]).split()))


def _time(value: datetime | str) -> str:
    return value if isinstance(value, str) else time_text(value)


def _participants(root: Element, row: Mapping[str, Any], detail: Mapping[str, Any], reporter: Reporter) -> None:
    """Who asked; the archive, unless it is who asked; and whom images go to when that is somebody else."""
    theirs, ours = _SIDES.get(row["event"], (None, None))
    if row["event"] == Event.INSTANCES_TRANSFERRED and row["action"] == "C":  # they sent
        theirs, ours = ours, theirs
    by_itself = row["door"] == Door.SYSTEM and row["user"] == SYSTEM.user
    destination = str(detail.get("destination") or detail.get("peer") or "")
    if not by_itself:
        asked = {"UserID": row["user"], "UserIsRequestor": _boolean(detail.get("requestor", True))}
        if row["door"] == Door.COMMAND:  # the host's own user
            asked["AlternativeUserID"] = row["source"]
        else:
            asked.update(_access_point(row["source"]))
        _participant(root, asked, None if destination else theirs)
    mine = {
        "UserID": reporter.source_id,
        "AlternativeUserID": "AETITLES=" + ";".join(reporter.ae_titles),
        "UserIsRequestor": _boolean(by_itself and row["event"] != Event.APPLICATION_ACTIVITY),
        **_access_point(reporter.node),
    }
    _participant(root, mine, ours)
    if destination:
        _participant(root, {"UserID": destination, "UserIsRequestor": "false"}, theirs)


def _participant(root: Element, attributes: Mapping[str, str], role: tuple[str, str] | None) -> None:
    made = _element(root, "ActiveParticipant", attributes)
    if role is not None:
        _coded(made, "RoleIDCode", *role)


def _access_point(source: str) -> dict[str, str]:
    """A network address, or the name of a machine; {} for what happens inside this one."""
    if source in ("", SYSTEM.source):
        return {}
    try:
        ip_address(source)
    except ValueError:
        kind = "1"
    else:
        kind = "2"
    return {"NetworkAccessPointID": source, "NetworkAccessPointTypeCode": kind}


def _boolean(value: object) -> str:
    return "true" if value else "false"


def _objects(root: Element, row: Mapping[str, Any], detail: Mapping[str, Any], reporter: Reporter) -> None:
    """The patient, the study, what was asked; else the audit log or the node. The details go with the last of them
    that is not a query, as the schema has them."""
    rest = {key: value for key, value in detail.items() if key not in ("type", "query", "requestor")}
    carriers: list[Element] = []
    if row["patient"]:
        code = ("2", "Patient Number", "RFC-3881")
        carriers.append(_object(root, row["patient"], code, kind="1", role="1", name=row["patient"]))
    if row["study"]:
        carriers.append(_object(root, row["study"], _STUDY_UID, kind="2", role="3", name=row["study"]))
    if row["event"] == Event.QUERY:
        carriers.append(_query(root, detail))
    elif "query" in detail:
        rest["query"] = detail["query"]
    if row["event"] == Event.AUDIT_LOG_USED and not carriers:
        code = ("12", "URI", "RFC-3881")
        uri = f"urn:minipacs:audit:{reporter.source_id}"
        carriers.append(_object(root, uri, code, kind="2", role="13", name="Security Audit Log"))
    if rest and not carriers:
        carriers.append(_object(root, reporter.source_id, _NODE, kind="2", role="4", name=reporter.node))
    if rest:
        _details(carriers[-1], row, rest)


def _object(
    root: Element,
    identifier: str,
    code: tuple[str, ...],
    *,
    kind: str,
    role: str,
    name: str = "",
    query: str | None = None,
) -> Element:
    made = _element(
        root,
        "ParticipantObjectIdentification",
        {
            "ParticipantObjectID": identifier,
            "ParticipantObjectTypeCode": kind,
            "ParticipantObjectTypeCodeRole": role,
        },
    )
    _coded(made, "ParticipantObjectIDTypeCode", *code)
    if query is not None:
        _element(made, "ParticipantObjectQuery", {}, query)
    else:
        _element(made, "ParticipantObjectName", {}, name)
    return made


def _query(root: Element, detail: Mapping[str, Any]) -> Element:
    """What was asked: of C-FIND the identifier with its SOP class (PS3.15 A.5.3.10), else the parameters."""
    asked = detail.get("query", "")
    sop_class = str(detail.get("sop_class", ""))
    if sop_class:
        code: tuple[str, ...] = _SOP_CLASS_UID
        identifier, role = sop_class, "3"
    else:
        code = ("10", "Search Criteria", "RFC-3881")
        identifier, role = str(detail.get("resource") or "query"), "24"
    encoded = asked if isinstance(asked, str) and _is_base64(asked) else _base64(asked)
    return _object(root, identifier, code, kind="2", role=role, query=encoded)


def _details(parent: Element, row: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
    for key, value in _pairs(row, rest):
        _element(parent, "ParticipantObjectDetail", {"type": key, "value": _base64(value)})
    instances = rest.get("instances")
    if row["study"] and isinstance(instances, int):
        described = _element(parent, "ParticipantObjectDescription", {})
        _element(described, "SOPClass", {"NumberOfInstances": str(instances)})


def _pairs(row: Mapping[str, Any], rest: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in rest.items():
        alert = row["event"] == Event.SECURITY_ALERT and key == "reason"
        name = "TransferSyntax" if key == "transfer_syntax" else "Alert Description" if alert else key
        yield name, value


def _base64(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return b64encode(text.encode("utf-8", "replace")).decode("ascii")


def _is_base64(text: str) -> bool:
    try:
        b64decode(text, validate=True)
    except (NotBase64, ValueError):
        return False
    return True
