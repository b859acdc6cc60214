"""`minipacs hl7` against a running archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server import Server

MSH = b"MSH|^~\\&|RIS|CABINET|PACS|CABINET|20260105083000||%s|%s|P|2.5||||||UNICODE UTF-8\r"
PATIENT = b"EVN||20260105083000\rPID|1||P1^^^CABINET^PI||DUPONT^Anne^^^^^L||19700203|F\r"
ORDER = (
    b"PID|1||P1^^^CABINET^PI||DUPONT^Anne^^^^^L||19700203|F\r"
    b"ORC|CA|A1\rOBR|1|A1||CT^Scanner" + b"|" * 14 + b"ACC1||||||CT\r"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("hl7") / "server")
    found.start()
    yield found
    assert found.stop() == 0


def listed(server: Server, *arguments: str) -> list[dict[str, object]]:
    done = server.command("hl7", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    items: list[dict[str, object]] = json.loads(done.stdout)["items"]
    return items


@pytest.mark.req("REQ-HL7-07")
def test_what_was_refused_is_listed_and_applied_again_once_its_reason_is_gone(server: Server, tmp_path: Path) -> None:
    cancel = MSH % (b"ORM^O01", b"C1") + ORDER
    assert b"\rMSA|AE|C1\r" in server.send_hl7(cancel)  # no such order
    (refused,) = listed(server, "--state", "refused")
    assert (refused["control_id"], refused["ack"], refused["error"]) == ("C1", "AE", "204 ORC^1^2")
    number = str(refused["id"])
    assert server.command("hl7", "replay", number).returncode == 1  # still not

    file = tmp_path / "order.hl7"
    file.write_bytes(MSH % (b"ORM^O01", b"N1") + ORDER.replace(b"ORC|CA", b"ORC|NW"))
    assert b"\rMSA|AA|N1\r" in server.send_hl7(file)
    done = server.command("hl7", "replay", number, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["items"] == [{"id": refused["id"], "ack": "AA", "reason": None}]
    assert listed(server, "--state", "refused") == []
    assert b"\rMSA|AA|C1\r" in server.send_hl7(cancel)

    again = server.command("hl7", "replay", number, "4711")
    assert again.returncode == 1
    assert "was applied" in again.stdout
    assert "no HL7 message has this number" in again.stdout


@pytest.mark.req("REQ-HL7-93")
def test_a_supplier_is_asked_who_somebody_is(server: Server) -> None:
    assert b"\rMSA|AA|Q1\r" in server.send_hl7(MSH % (b"ADT^A28", b"Q1") + PATIENT)
    nobody = server.command("hl7", "pdq", "--family", "DUPONT")
    assert (nobody.returncode, "hl7.supplier.host" in nobody.stderr) == (1, True)
    settings = {"MINIPACS_HL7__SUPPLIER__HOST": "127.0.0.1", "MINIPACS_HL7__SUPPLIER__PORT": str(server.hl7_port)}
    asking = replace(server, environment={**server.environment, **settings})
    done = asking.command("hl7", "pdq", "--family", "dup*", "--birth-date", "1970", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [one["identifiers"][0]["value"] for one in answer["items"]] == ["P1"]
    assert (answer["complete"], answer["items"][0]["here"]) == (True, "known")
    assert "1 patients" in asking.command("hl7", "pdq", "--identifier", "P1").stdout
    assert asking.command("hl7", "pdq").returncode == 1
    away = replace(asking, environment={**asking.environment, "MINIPACS_HL7__SUPPLIER__PORT": "9"})
    assert away.command("hl7", "pdq", "--family", "DUPONT").returncode == 3


def test_the_list_names_no_patient(server: Server) -> None:
    assert b"\rMSA|AA|P1\r" in server.send_hl7(MSH % (b"ADT^A28", b"P1") + PATIENT)
    done = server.command("hl7", "list")
    assert done.returncode == 0
    assert "ADT^A28" in done.stdout
    assert "DUPONT" not in done.stdout
    assert server.command("hl7", "list", "--state", "lost").returncode == 2
