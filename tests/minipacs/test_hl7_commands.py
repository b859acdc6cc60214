"""`minipacs hl7` against a running archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def test_the_list_names_no_patient(server: Server) -> None:
    assert b"\rMSA|AA|P1\r" in server.send_hl7(MSH % (b"ADT^A28", b"P1") + PATIENT)
    done = server.command("hl7", "list")
    assert done.returncode == 0
    assert "ADT^A28" in done.stdout
    assert "DUPONT" not in done.stdout
    assert server.command("hl7", "list", "--state", "lost").returncode == 2
