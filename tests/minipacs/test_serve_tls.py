"""`minipacs serve` with a certificate: which ports open, what is said, what is refused (REQ-DCM-04, REQ-FACE-04)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from tests.certificates import Authority, Certificate
from tests.server import Server, free_port


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[Server]:
    """Not started yet, with certificates."""
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    server.environment |= {
        **authority.variables(),
        "MINIPACS_DICOM__TLS_PORT": str(free_port()),
    }
    yield server
    if server.process is not None and server.process.poll() is None:
        server.kill()


def tls_port(server: Server) -> int:
    return int(server.environment["MINIPACS_DICOM__TLS_PORT"])


def echoes(port: int, authority: Authority | None = None, shown: Certificate | None = None) -> bool:
    ae = AE("TEST")
    ae.add_requested_context(Verification)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    tls = None if authority is None else (authority.context(shown), "127.0.0.1")
    assoc = ae.associate("127.0.0.1", port, ae_title="MINIPACS", tls_args=tls)
    if not assoc.is_established:
        return False
    status = assoc.send_c_echo()
    assoc.release()
    return bool(status and status.Status == 0x0000)


@pytest.mark.req("REQ-DCM-04", "REQ-FACE-03")
def test_both_ports_are_shared_by_the_workers_and_told_at_start(server: Server, authority: Authority) -> None:
    server.environment |= {"MINIPACS_DICOM__WORKERS": "2"}
    server.start()
    said = server.log.read_text()
    assert f"DICOM                          MINIPACS @ 127.0.0.1:{server.dicom_port}" in said
    assert f"DICOM sur TLS (over TLS)       MINIPACS @ 127.0.0.1:{tls_port(server)}" in said
    assert "the certificate needs attention" not in said
    for _ in range(3):
        assert echoes(server.dicom_port)
        assert echoes(tls_port(server), authority, authority.caller)
    assert not echoes(tls_port(server))
    assert not echoes(tls_port(server), authority)
    with server.client("it_admin") as client:
        assert client.get("/api/v1/system").json()["dicom"] == {
            "ae_title": "MINIPACS",
            "host": "127.0.0.1",
            "port": server.dicom_port,
            "tls_port": tls_port(server),
        }
    assert server.stop() == 0


@pytest.mark.req("REQ-DCM-04", "REQ-FACE-04")
def test_beyond_this_machine_clear_text_is_closed_and_tls_open(server: Server, authority: Authority) -> None:
    """And a certificate that ends soon is spoken of."""
    soon = authority.issue("soon", days=20)
    server.environment |= {
        "MINIPACS_TLS__CERT": str(soon.cert),
        "MINIPACS_TLS__KEY": str(soon.key),
        "MINIPACS_DICOM__HOST": "0.0.0.0",
        "MINIPACS_DICOM__PEERS": json.dumps({"TEST": {"fingerprints": [authority.caller.fingerprint]}}),
    }
    checked = json.loads(server.command("check-config", "--json").stdout)
    assert checked["ok"]
    for words in ("stays closed", "tls.cert expires on"):
        assert any(words in line for line in checked["advice"])
    server.start()
    said = server.log.read_text()
    assert "tls.cert expires on" in said
    assert "ATTENTION" not in said
    assert "DICOM                          MINIPACS" not in said
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.dicom_port), 5)
    assert echoes(tls_port(server), authority, authority.caller)
    assert not echoes(tls_port(server), authority, authority.issue("somebody else"))
    assert server.stop() == 0


def test_a_certificate_that_cannot_be_used_stops_the_start_and_is_named(server: Server, authority: Authority) -> None:
    server.environment["MINIPACS_TLS__KEY"] = str(authority.caller.key)
    for command in ("check-config", "serve"):
        done = server.command(command)
        assert done.returncode == 1
        assert "tls.key" in done.stdout + done.stderr
        assert "is not the key of the certificate" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not server.data_dir.exists()


def test_check_config_says_what_a_certificate_does_not_do_yet(server: Server) -> None:
    del server.environment["MINIPACS_TLS__CA"]
    server.environment |= {
        "MINIPACS_DICOM__PORT": str(tls_port(server)),
        "MINIPACS_DICOM__HOST": "127.0.0.1",
        "MINIPACS_DICOM__PEERS": '{"CT1": {}}',
    }
    said = json.loads(server.command("check-config", "--json").stdout)
    assert said["problems"] == ["dicom.port and dicom.tls_port are the same"]
    assert any("tls_mutual" in line and "tls.ca" in line for line in said["advice"])
    assert any("dicom.tls_port" in line and "this machine only" in line for line in said["advice"])
    server.environment |= {"MINIPACS_DICOM__HOST": "0.0.0.0"}
    advice = json.loads(server.command("check-config", "--json").stdout)["advice"]
    assert any("dicom.peers.CT1" in line and "address or fingerprints" in line for line in advice)
