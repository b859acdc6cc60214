"""A whole archive that tells an audit repository, and asks a time server (REQ-IHE-08): commands, probes, restart."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.audit_messages import Rsyslog, demand_valid
from tests.builders import ct_slice, part10
from tests.certificates import Authority
from tests.server import Server, free_port


@pytest.fixture
def rsyslog(tmp_path: Path, authority: Authority) -> Iterator[Rsyslog]:
    """Not started yet."""
    made = Rsyslog(tmp_path, authority, "ossl")
    yield made
    made.kill()


@pytest.fixture
def server(tmp_path: Path, authority: Authority, rsyslog: Rsyslog) -> Iterator[Server]:
    """Not started yet; its repository is `rsyslog`, and its time server does not exist."""
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    server.environment |= {
        **authority.variables(),
        "MINIPACS_DICOM__TLS_PORT": str(free_port()),
        "MINIPACS_AUDIT__REPOSITORY": json.dumps({"host": "127.0.0.1", "port": rsyslog.port}),
        "MINIPACS_TIME__SERVERS": json.dumps(["nosuch.invalid"]),
    }
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()


def warnings(server: Server, wanted: int) -> list[str]:
    deadline = time.monotonic() + 30
    while True:
        answer = httpx.get(f"{server.web}/readyz", timeout=10)
        assert answer.status_code == 200
        found: list[str] = answer.json()["warnings"]
        if len(found) == wanted:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def act(server: Server) -> None:
    """Store, search, retrieve, and fail to log in."""
    ds = ct_slice()
    study = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    with server.client("service") as client:
        stored = client.post("/dicom-web/studies", content=part10(ds), headers={"Content-Type": "application/dicom"})
        for answer in (stored, client.get("/dicom-web/studies"), client.get(study)):
            assert answer.status_code == 200, answer.text
    wrong = {"name": "admin", "password": "not the password"}
    assert httpx.post(f"{server.web}/api/v1/session", json=wrong, timeout=10).status_code == 401


@pytest.mark.req("REQ-IHE-08", "REQ-SEC-04", "REQ-SEC-10")
def test_the_audit_waits_for_its_repository_over_a_restart_and_arrives_whole(
    server: Server, rsyslog: Rsyslog, tmp_path: Path
) -> None:
    """Killed with everything still waiting; what is missed is said, and does not keep the archive from working."""
    advice = "\n".join(json.loads(server.command("check-config", "--json").stdout)["advice"])
    assert "audit.repository: it cannot be reached" in advice and "time.servers: no time server answers" in advice
    server.start()
    away, clock = warnings(server, 2)
    assert "messages wait" in away and clock == "clock: no time server answers"
    act(server)
    server.kill()
    rsyslog.start()
    server.start()
    assert warnings(server, 1) == [clock]
    with server.client("auditor") as client:
        said = client.get("/api/v1/system").json()
        assert said["audit_repository"]["why"] is None
        assert said["clock"]["compared"]["offset_seconds"] is None
    before = server.command("audit", "export", "--to", str(tmp_path / "audit.jsonl"))
    assert before.returncode == 0, before.stderr
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    rows = [line["row"] for line in lines if "row" in line]
    found = rsyslog.wait(len(rows))
    assert server.stop() == 0
    arrived = {(one["chain"], one["time"]) for one in found}
    assert {(row["chain"], row["time"]) for row in rows} <= arrived
    events = {
        root.find("EventIdentification/EventID").attrib["csd-code"]  # type: ignore[union-attr]
        for root in demand_valid([one["xml"] for one in found], tmp_path)
    }
    assert {"110100", "110101", "110104", "110112", "110113", "110114"} <= events
    assert "Traceback" not in server.log.read_text()
