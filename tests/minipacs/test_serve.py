"""`minipacs serve` as a real process with real edges: start, restart, stop, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from sqlalchemy import text

import migrations
from archive.config import EDGES
from archive.engines import make_engine
from tests.server import Server


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet, on SQLite."""
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()


@pytest.fixture
def either(tmp_path: Path, database_url: str) -> Iterator[Server]:
    """A server that is not started yet, on each kind of database."""
    server = Server(tmp_path / "server", database_url)
    server.folder.mkdir()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()


def eventually(check: Callable[[], object], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def workers(server: Server) -> dict[int, str]:
    """The supervisor's living children: pid to edge."""
    assert server.process is not None
    pid = server.process.pid
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "minipacs.edge" in words:
            found[int(child)] = words[words.index("minipacs.edge") + 1]
    return found


def is_ready(server: Server) -> bool:
    return answers(server) == 200


def answers(server: Server) -> int:
    """The status of `/readyz`; 0: nobody is there."""
    try:
        return httpx.get(f"{server.web}/readyz", timeout=5).status_code
    except httpx.HTTPError:
        return 0


def echoes(server: Server) -> bool:
    ae = AE("TEST")
    ae.add_requested_context(Verification)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    if not assoc.is_established:
        return False
    status = assoc.send_c_echo()
    assoc.release()
    return bool(status and status.Status == 0x0000)


@pytest.mark.req("REQ-FACE-03", "REQ-FACE-05")
def test_from_nothing_to_every_edge_and_back_to_nothing(either: Server) -> None:
    either.start()
    assert httpx.get(f"{either.web}/healthz", timeout=5).status_code == 200
    assert httpx.get(f"{either.web}/readyz", timeout=5).json()["reasons"] == []
    assert echoes(either)
    said = either.log.read_text()
    for address in (
        f"{either.web}/",
        f"{either.web}/dicom-web",
        f"MINIPACS @ 127.0.0.1:{either.dicom_port}",
        f"HL7 (MLLP)                     127.0.0.1:{either.hl7_port}",
    ):
        assert address in said
    assert b"\rMSA|AR|" in either.send_hl7(b"MSH|^~\\&|A|B|C|D|20260105||SIU^S12|1|P|2.5\r")
    assert either.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", either.dicom_port), 1)


@pytest.mark.req("REQ-FACE-01")
def test_the_first_account_is_told_once_and_opens_the_desk(sqlite: Server) -> None:
    sqlite.start()
    password = re.search(r"mot de passe +(\S+)", sqlite.log.read_text())
    assert password is not None
    logged_in = httpx.post(f"{sqlite.web}/api/v1/session", json={"name": "admin", "password": password[1]}, timeout=10)
    assert logged_in.is_success, logged_in.text
    assert sqlite.stop() == 0
    sqlite.log.unlink()
    sqlite.start()
    assert "mot de passe" not in sqlite.log.read_text()
    users = json.loads(sqlite.command("user", "list", "--json").stdout)["items"]
    assert [(user["name"], sorted(user["roles"])) for user in users] == [("admin", ["it_admin", "radiologist"])]


@pytest.mark.req("REQ-FACE-03")
@pytest.mark.parametrize("edge", EDGES)
def test_a_killed_edge_is_started_again(sqlite: Server, edge: str) -> None:
    sqlite.start()
    before = workers(sqlite)
    victim = next(pid for pid, name in before.items() if name == edge)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in workers(sqlite))
    eventually(lambda: sorted(workers(sqlite).values()) == sorted(EDGES))
    eventually(lambda: is_ready(sqlite) and echoes(sqlite))
    assert len(set(before) & set(workers(sqlite))) == len(EDGES) - 1
    assert "edge died" in sqlite.log.read_text()
    assert sqlite.stop() == 0


@pytest.mark.req("REQ-FACE-03")
def test_several_workers_share_each_port(either: Server) -> None:
    either.environment |= {"MINIPACS_DICOM__WORKERS": "2", "MINIPACS_API__WORKERS": "2"}
    either.start()
    eventually(lambda: sorted(workers(either).values()) == sorted([*EDGES, "api", "dicom"]))
    assert all(echoes(either) for _ in range(4))
    assert either.stop() == 0


@pytest.mark.req("REQ-FACE-03")
def test_one_edge_alone_says_what_is_missing(sqlite: Server) -> None:
    with pytest.raises(RuntimeError):
        sqlite.start("--only", "api", timeout=5)
    eventually(lambda: answers(sqlite))
    assert list(workers(sqlite).values()) == ["api"]
    answer = httpx.get(f"{sqlite.web}/readyz", timeout=5)
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [f"{edge}: no process is alive" for edge in EDGES if edge != "api"]
    assert sqlite.stop() == 0


@pytest.mark.req("REQ-FACE-03", "REQ-FACE-05")
def test_two_supervisors_make_one_archive(tmp_path: Path, database_url: str) -> None:
    """`--only` on several hosts: here two supervisors on one database and folder."""
    dicom = Server(tmp_path / "server", database_url)
    api = Server(
        tmp_path / "server",
        database_url,
        dicom_port=dicom.dicom_port,
        api_port=dicom.api_port,
        hl7_port=dicom.hl7_port,
    )
    try:
        with pytest.raises(RuntimeError):
            dicom.start("--only", "dicom,hl7,retention", timeout=4)
        api.start("--only", "api")
        assert echoes(dicom)
        assert (api.stop(), dicom.stop()) == (0, 0)
    finally:
        for server in (dicom, api):
            if server.process is not None:
                server.kill()


def test_edges_do_not_outlive_a_killed_supervisor(sqlite: Server) -> None:
    sqlite.start()
    children = workers(sqlite)
    assert sqlite.process is not None
    os.kill(sqlite.process.pid, signal.SIGKILL)
    sqlite.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    sqlite.start()  # the ports are free again


def test_ctrl_c_is_a_clean_stop(sqlite: Server) -> None:
    sqlite.start()
    assert sqlite.process is not None
    os.killpg(sqlite.process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    assert sqlite.process.wait(30) == 0


@pytest.mark.req("REQ-FACE-03")
def test_logs_are_one_json_object_a_line_on_stderr(sqlite: Server) -> None:
    sqlite.start("--log", "json")
    assert sqlite.stop() == 0
    events = [json.loads(line) for line in sqlite.log.read_text().splitlines() if line.startswith("{")]
    assert {"serve", *EDGES} <= {event["process"] for event in events}
    assert all({"event", "level", "timestamp"} <= event.keys() for event in events)
    others = [line for line in sqlite.log.read_text().splitlines() if line and not line.startswith("{")]
    assert len(others) < 12, others  # the welcome, on stdout


@pytest.mark.req("REQ-FACE-03")
def test_a_taken_port_is_refused_with_the_key_to_change(sqlite: Server) -> None:
    with socket.create_server(("127.0.0.1", sqlite.dicom_port)):
        done = sqlite.command("serve")
    assert done.returncode == 1
    assert "dicom.port" in done.stderr
    assert str(sqlite.dicom_port) in done.stderr


@pytest.mark.req("REQ-FACE-03")
@pytest.mark.parametrize("revision", ["0000", "9999"])
def test_another_schema_is_refused_with_the_command_to_run(either: Server, revision: str) -> None:
    url = either.database_url
    migrations.upgrade(url)
    engine = make_engine(url)
    with engine.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    engine.dispose()
    done = either.command("serve")
    assert done.returncode == 1
    assert "minipacs migrate" in done.stderr
    assert revision in done.stderr


@pytest.mark.req("REQ-FACE-03")
def test_a_database_that_is_not_there_is_said(sqlite: Server) -> None:
    sqlite.database_url = "postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=2"
    done = sqlite.command("serve")
    assert done.returncode == 3
    assert "database" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.req("REQ-FACE-04")
def test_beyond_loopback_is_refused_unless_somebody_says_so(sqlite: Server) -> None:
    sqlite.environment |= {"MINIPACS_DICOM__HOST": "0.0.0.0"}
    done = sqlite.command("serve")
    assert done.returncode == 1
    assert "dicom.insecure" in done.stderr

    sqlite.environment |= {"MINIPACS_DICOM__INSECURE": "true"}
    done = sqlite.command("serve")
    assert done.returncode == 1
    assert "dicom.peers" in done.stderr

    sqlite.environment |= {"MINIPACS_DICOM__PEERS": '{"CT1": {}}'}
    for _ in range(2):
        sqlite.log.unlink(missing_ok=True)
        sqlite.start()
        said = sqlite.log.read_text()
        assert "insecure" in said
        assert "ATTENTION" in said
        assert not echoes(sqlite)  # TEST is not CT1
        assert sqlite.stop() == 0


@pytest.mark.req("REQ-FACE-04")
def test_the_default_listens_on_this_machine_only(sqlite: Server) -> None:
    sqlite.start()
    opened = set()
    for pid in [*workers(sqlite), sqlite.process.pid if sqlite.process else 0]:
        inodes = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in inodes:
                    opened.add(words[1])
    ports = (sqlite.dicom_port, sqlite.hl7_port, sqlite.api_port)
    assert opened == {f"0100007F:{port:04X}" for port in ports}  # 127.0.0.1, as the kernel writes it


def test_a_stop_waits_for_a_message_that_is_being_received(sqlite: Server) -> None:
    """REQ-FACE-03: what was acknowledged is finished; here an association is open when the stop comes."""
    sqlite.start()
    ae = AE("TEST")
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", sqlite.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    assert sqlite.stop() == 0
    assoc.abort()


@pytest.mark.req("REQ-FACE-03")
def test_the_clock_of_the_test_bed_moves_every_process(either: Server) -> None:
    either.environment |= {"MINIPACS_TEST_MODE": "true"}
    either.start()
    done = either.command("testbed", "clock", "set", "2026-01-05T08:00:00Z", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["now"].startswith("2026-01-05T08:00")
    done = either.command("testbed", "clock", "advance", "3y1d", "--json")
    assert json.loads(done.stdout)["now"].startswith("2029-01-06T08:")
    assert is_ready(either)

    engine = make_engine(either.database_url)
    with engine.connect() as conn:
        rows = conn.execute(text("SELECT edge, clock_generation FROM process ORDER BY edge")).all()
    engine.dispose()
    assert [tuple(row) for row in rows] == [(edge, 2) for edge in sorted(EDGES)]

    done = either.command("testbed", "clock", "release", "--json")
    now = datetime.fromisoformat(json.loads(done.stdout)["now"])
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
    assert either.stop() == 0


def test_the_clock_command_says_who_does_not_follow(sqlite: Server) -> None:
    sqlite.environment |= {"MINIPACS_TEST_MODE": "true"}
    sqlite.start()
    frozen = next(pid for pid, edge in workers(sqlite).items() if edge == "dicom")
    os.kill(frozen, signal.SIGSTOP)
    try:
        done = sqlite.command("testbed", "clock", "advance", "1d")
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert done.returncode == 3
    assert f"dicom (pid {frozen})" in done.stderr
    assert sqlite.stop() == 0
