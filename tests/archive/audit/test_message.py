"""Rows of the audit as DICOM audit messages (PS3.15 A.5, sheet 40 §1-2)."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from sqlalchemy import select

from archive.access import SYSTEM, Actor, Door
from archive.audit.message import NAMES, Reporter, message
from archive.audit.record import Event, EventType, Outcome, record
from archive.core import Archive
from archive.schema import audit
from tests.audit_messages import demand_valid

REPORTER = Reporter(source_id="PACS1", site_id="750000001", ae_titles=("MINIPACS", "PACS1"), node="pacs.example")
HL7 = Actor(user="RIS|CABINET", source="10.0.0.9", door=Door.HL7, may=frozenset())
CT = Actor(user="CT1", source="10.0.0.7", door=Door.DICOM, may=frozenset())
ANNE = Actor(user="anne", source="192.168.1.4", door=Door.DESK, may=frozenset())
ROOT = Actor(user="admin", source="root", door=Door.COMMAND, may=frozenset())
PATIENT, STUDY = "IPP1^^^CABINET&1.2.250.1.1&ISO", "1.2.3"

# What each row of the table of sheet 40 §2 is, as the archive writes it.
ROWS: list[tuple[Actor, Event, str, int, str | None, str | None, dict[str, Any]]] = [
    (replace(SYSTEM, source="pacs"), Event.APPLICATION_ACTIVITY, "E", 0, None, None, {"type": "110120", "edge": "api"}),
    (replace(SYSTEM, source="pacs"), Event.APPLICATION_ACTIVITY, "E", 0, None, None, {"type": "110121", "edge": "api"}),
    (ANNE, Event.AUDIT_LOG_USED, "R", 0, None, None, {"query": {"user": "bob"}}),
    (ANNE, Event.BEGIN_TRANSFERRING, "E", 0, PATIENT, STUDY, {"job": 4, "peer": "REGION"}),
    (ANNE, Event.INSTANCES_ACCESSED, "D", 0, PATIENT, STUDY, {"code": "113001"}),
    (CT, Event.INSTANCES_TRANSFERRED, "C", 0, PATIENT, STUDY, {"phase": "close", "instances": 3, "bytes": 9}),
    (CT, Event.INSTANCES_TRANSFERRED, "R", 0, PATIENT, STUDY, {"phase": "open", "destination": "WS1"}),
    (SYSTEM, Event.STUDY_DELETED, "D", 0, PATIENT, STUDY, {"purge": "x"}),
    (ANNE, Event.EXPORT, "R", 0, PATIENT, STUDY, {"kos": "1.2.9"}),
    (ROOT, Event.IMPORT, "C", 0, PATIENT, STUDY, {"paths": ["/mnt"]}),
    (SYSTEM, Event.NETWORK_ENTRY, "E", 0, None, None, {"type": "110124"}),
    (HL7, Event.ORDER_RECORD, "C", 0, PATIENT, STUDY, {"event": "O01", "accession": "A1"}),
    (HL7, Event.PATIENT_RECORD, "U", 0, PATIENT, None, {"type": "ITI-30", "event": "A31"}),
    (CT, Event.PROCEDURE_RECORD, "U", 0, PATIENT, STUDY, {"status": "COMPLETED"}),
    (CT, Event.QUERY, "E", 0, None, None, {"sop_class": "1.2.840.10008.5.1.4.1.2.2.1", "query": "CAAFAA=="}),
    (ANNE, Event.QUERY, "E", 0, PATIENT, None, {"query": {"patient_name": "DUPONT^Anaïs", "limit": 5}}),
    (ANNE, Event.QUERY, "E", 4, None, None, {"resource": "/dicom-web/studies", "query": ""}),
    *((ANNE, Event.SECURITY_ALERT, "E", 8, None, None, {"type": kind, "reason": "no\nright"}) for kind in EventType),
    (ANNE, Event.USER_AUTHENTICATION, "E", 0, None, None, {"type": "110122"}),
    (ANNE, Event.USER_AUTHENTICATION, "E", 8, None, None, {"type": "110122", "reason": "wrong password"}),
    (replace(ANNE, door=Door.SYSTEM, source=""), Event.USER_AUTHENTICATION, "E", 0, None, None,
     {"type": "110123", "requestor": False}),
]  # fmt: skip


def written(archive: Archive, rows: list[Any]) -> list[Mapping[str, Any]]:
    """Recorded, and read back as the database has them."""

    def write(conn: Any) -> None:
        for actor, event, action, outcome, patient, study, detail in rows:
            record(conn, actor, event, action, outcome=outcome, patient=patient, study=study, detail=detail)

    archive.commit.run(write)
    with archive.reading() as conn:
        return [dict(row._mapping) for row in conn.execute(select(audit).order_by(audit.c.pk))]


def rendered(archive: Archive, *row: Any) -> Element:
    (found,) = written(archive, [row])
    return ElementTree.fromstring(message(found, REPORTER).decode())


def details(of: Element) -> dict[str, str]:
    return {one.attrib["type"]: b64decode(one.attrib["value"]).decode() for one in of.iter("ParticipantObjectDetail")}


@pytest.mark.req("REQ-SEC-10")
def test_every_event_is_a_message_of_the_schema(archive: Archive, tmp_path: Path) -> None:
    """Each row of the table of sheet 40 §2, and every event and type that the archive knows."""
    assert {row[1] for row in ROWS} == set(Event)
    assert set(NAMES) == {*Event, *EventType}
    rows = written(archive, ROWS)
    found = demand_valid([message(row, REPORTER).decode() for row in rows], tmp_path)
    for root, row in zip(found, rows, strict=True):
        event = root.find("EventIdentification/EventID")
        assert event is not None and event.attrib == {
            "csd-code": row["event"],
            "codeSystemName": "DCM",
            "originalText": NAMES[row["event"]],
        }
        kind = root.find("EventIdentification/EventTypeCode")
        said = json.loads(row["detail"]).get("type")
        assert (None if kind is None else kind.attrib["csd-code"]) == said


def test_who_sent_whom_and_who_asked(archive: Archive) -> None:
    """Roles of PS3.15 A.5.3.7: of a C-STORE the modality is the source, of a C-MOVE the third one the destination."""
    stored, moved, purged = (
        ElementTree.fromstring(message(row, REPORTER).decode()) for row in written(archive, [ROWS[5], ROWS[6], ROWS[7]])
    )

    def people(root: Element) -> list[tuple[str, str, str]]:
        found = []
        for one in root.iter("ActiveParticipant"):
            role = one.find("RoleIDCode")
            code = "" if role is None else role.attrib["csd-code"]
            found.append((one.attrib["UserID"], code, one.attrib["UserIsRequestor"]))
        return found

    assert people(stored) == [("CT1", "110153", "true"), ("PACS1", "110152", "false")]
    assert people(moved) == [("CT1", "", "true"), ("PACS1", "110153", "false"), ("WS1", "110152", "false")]
    assert people(purged) == [("PACS1", "", "true")]
    count = stored.find("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass")
    assert count is not None and count.attrib == {"NumberOfInstances": "3"}


def test_patient_study_and_what_was_asked_are_objects(archive: Archive) -> None:
    asked = rendered(archive, CT, Event.QUERY, "E", 0, PATIENT, STUDY, ROWS[14][6])
    found = [
        (one.attrib["ParticipantObjectTypeCode"], one.attrib["ParticipantObjectTypeCodeRole"])
        for one in asked.iter("ParticipantObjectIdentification")
    ]
    assert found == [("1", "1"), ("2", "3"), ("2", "3")]
    assert [one.attrib["ParticipantObjectID"] for one in asked.iter("ParticipantObjectIdentification")] == [
        PATIENT,
        STUDY,
        "1.2.840.10008.5.1.4.1.2.2.1",
    ]
    assert [one.text for one in asked.iter("ParticipantObjectQuery")] == ["CAAFAA=="]


def test_parameters_are_kept_in_base64(archive: Archive) -> None:
    (query,) = rendered(archive, *ROWS[15]).iter("ParticipantObjectQuery")
    assert json.loads(b64decode(query.text or "")) == ROWS[15][6]["query"]


def test_nothing_that_the_row_says_is_left_out(archive: Archive) -> None:
    detail = {"type": EventType.NODE_AUTHENTICATION, "reason": "unknown", "called_ae": "X", "list": [1, "é"]}
    alert = rendered(archive, CT, Event.SECURITY_ALERT, "E", Outcome.SERIOUS_FAILURE, None, None, detail)
    assert details(alert) == {"Alert Description": "unknown", "called_ae": "X", "list": '[1,"é"]'}
    assert alert.findtext("EventIdentification/EventOutcomeDescription") == "unknown"


def test_what_xml_cannot_hold_is_replaced_and_the_rest_escaped(archive: Archive, tmp_path: Path) -> None:
    hostile = replace(CT, user='A\x01<B>&"\x0b\ud800', source="not an\naddress")
    detail = {"reason": "</AuditMessage>\x00\x1b", "kos": b64encode(b"x").decode()}
    (row,) = written(archive, [(hostile, Event.EXPORT, "R", 8, "P\x02<&>^^^I", STUDY, detail)])
    text = message(row, REPORTER).decode()
    assert "\n" not in text
    (root,) = demand_valid([text], tmp_path)
    assert root.find("ActiveParticipant").attrib["UserID"] == 'A\ufffd<B>&"\ufffd?'  # type: ignore[union-attr]


def test_a_row_that_was_altered_is_sent_as_it_stands(archive: Archive, tmp_path: Path) -> None:
    (row,) = written(archive, [ROWS[0]])
    (root,) = demand_valid([message({**row, "detail": "no JSON", "event": "999"}, REPORTER).decode()], tmp_path)
    assert details(root) == {"unreadable": "no JSON"}
