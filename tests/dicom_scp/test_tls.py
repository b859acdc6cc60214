"""Who gets in over TLS, who does not, and what is left of it in the audit (REQ-DCM-04, REQ-SEC-01)."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from archive.audit.record import Event
from archive.config import Settings
from dicom_scp.associate import encode_request, title
from dicom_scp.dimse import Field
from dicom_scp.echo import verify
from dicom_scp.ends import ConnectionGone, NotTrusted
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set, part10
from tests.certificates import Authority, Certificate, self_signed
from tests.conftest import need
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import Getter, counts, identifier, keep
from tests.dicom_scp.test_hostile import alive, wait_until
from tests.dicom_scp.test_move import destination
from tests.dicom_scp.wire import REQUEST, Peer, request
from tests.server import free_port

REJECTED = 3


@pytest.fixture
def transport() -> str:
    return "tls"


def alerts(server: Running) -> list[Any]:
    return [row for row in server.audit_rows() if row.event == Event.SECURITY_ALERT]


def client(server: Running, *options: str, shown: Certificate | None = None) -> str:
    """What `openssl s_client` says."""
    assert server.authority is not None
    certificate = [] if shown is None else ["-cert", shown.cert, "-key", shown.key]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", server.authority.root.cert]
    return subprocess.run(
        [*map(str, command), *map(str, certificate), *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=False,
    ).stdout  # fmt: skip


@pytest.mark.req("REQ-DCM-04")
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_an_old_version_is_refused(server: Running, version: str) -> None:
    """The client is told to go as low as its library can."""
    said = client(server, version, "-cipher", "ALL:@SECLEVEL=0", shown=server.caller)
    assert "alert protocol version" in said
    assert "Cipher is (NONE)" in said
    [row] = alerts(server)
    assert (row.user, row.source, row.outcome, row.door) == ("127.0.0.1", "127.0.0.1", 8, "dicom")
    assert json.loads(row.detail) == {"reason": "unsupported protocol", "type": "110126"}


@pytest.mark.req("REQ-DCM-04")
@pytest.mark.parametrize(
    ("options", "agreed"),
    [
        ([], "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384"),
        (["-tls1_2"], "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"], "Cipher is (NONE)"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "Cipher is (NONE)"),
    ],
)
def test_version_and_suite_are_those_of_the_profile(server: Running, options: list[str], agreed: str) -> None:
    assert agreed in client(server, *options, shown=server.caller)


@pytest.mark.req("REQ-DCM-04")
def test_an_rsa_certificate_agrees_on_the_rsa_suites(settings: Settings, authority: Authority) -> None:
    rsa = authority.issue("rsa", key="rsa:2048")
    values = settings.model_dump()
    values["tls"] |= {"cert": rsa.cert, "key": rsa.key}
    with running(Settings.model_validate(values)) as server:
        for cipher in ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"):
            assert f"Cipher is {cipher}" in client(server, "-tls1_2", "-cipher", cipher, shown=server.caller)
        refused = client(server, "-tls1_2", "-cipher", "AES256-GCM-SHA384", shown=server.caller)
        assert "Cipher is (NONE)" in refused
        assert alive(server)


@pytest.mark.req("REQ-DCM-04", "REQ-SEC-01")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_caller_without_a_certificate_is_refused_and_audited(server: Running, version: str) -> None:
    with capture_logs() as logs:
        said = client(server, version, "-ign_eof")  # TLS 1.3 says it after the handshake
        assert wait_until(lambda: alerts(server))
    assert "alert handshake failure" in said or "alert certificate required" in said
    [row] = alerts(server)
    assert json.loads(row.detail)["reason"] == "peer did not return a certificate"
    [line] = [line for line in logs if line["event"] == "TLS was not agreed on"]
    assert (line["log_level"], line["why"], line["source"]) == (
        "warning",
        "peer did not return a certificate",
        "127.0.0.1",
    )
    assert alive(server)


@pytest.mark.req("REQ-SEC-01")
@pytest.mark.parametrize("what", ["of nobody known", "expired"])
def test_a_certificate_that_is_not_believed_is_refused_and_audited(server: Running, tmp_path: Path, what: str) -> None:
    assert server.authority is not None
    if what == "expired":
        shown, why = server.authority.issue("expired", days=-1), "certificate has expired"
    else:
        shown, why = self_signed(tmp_path, "stranger"), "self-signed certificate"
    context = server.authority.context(shown)
    heard = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 10) as sock:  # noqa: SIM117
        with context.wrap_socket(sock, server_hostname="127.0.0.1") as secure:
            secure.sendall(encode_request(REQUEST))
            heard = secure.recv(100)
    assert heard == b""
    assert wait_until(lambda: alerts(server))
    [row] = alerts(server)
    assert why in json.loads(row.detail)["reason"]
    assert alive(server)


def test_without_mutual_tls_a_certificate_is_not_needed_but_a_bad_one_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    with running(settings, tls_mutual=False) as server:
        assert "Cipher is TLS_AES_256_GCM_SHA384" in client(server)
        assert alive(server)
        assert alerts(server) == []
        client(server, "-tls1_2", shown=self_signed(tmp_path, "stranger"))
        assert wait_until(lambda: alerts(server))


@pytest.mark.parametrize(
    "said",
    [encode_request(REQUEST), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(300), b"\x16\x03\x01\xff\xff" + bytes(500)],
    ids=["DICOM in clear text", "http", "zeros", "a hello too long"],
)
def test_who_does_not_speak_tls_is_turned_away_and_audited(server: Running, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(said)
        heard = sock.recv(100)
        assert heard[:1] in (b"", b"\x15")  # a TLS alert, never a PDU
    assert wait_until(lambda: alerts(server))
    assert alive(server)


def test_a_connection_that_says_nothing_leaves_no_alert(server: Running) -> None:
    """As a check of the port by monitoring does."""
    socket.create_connection(("127.0.0.1", server.port), 10).close()
    assert alive(server)
    assert alerts(server) == []


@pytest.mark.parametrize("drip", [False, True], ids=["silent", "a byte now and then"])
def test_a_slow_handshake_meets_artim(settings: Settings, authority: Authority, drip: bool) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = authority.context(authority.caller).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        caller.do_handshake()
    hello = outgoing.read()
    with (
        running(settings, artim_seconds=0.6) as server,
        socket.create_connection(("127.0.0.1", server.port), 10) as sock,
    ):
        begun, place, heard = time.monotonic(), 0, b"?"
        sock.settimeout(0.05 if drip else 5)
        while heard and time.monotonic() - begun < 5:
            if drip:
                sock.sendall(hello[place : place + 1])
                place += 1
            try:
                heard = sock.recv(100)
            except TimeoutError:
                continue
            except ConnectionResetError:
                heard = b""
        assert 0.4 < time.monotonic() - begun < 3
        assert alive(server)


def test_handshakes_of_many_do_not_wait_for_a_slow_one(settings: Settings) -> None:
    with running(settings) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(20)]
        begun = time.monotonic()
        assert alive(server)
        assert time.monotonic() - begun < 5
        for sock in slow:
            sock.close()


def test_one_association_too_many_is_told_so_over_tls(settings: Settings) -> None:
    with running(settings, max_associations=1) as server, Peer(server) as first, Peer(server) as second:
        first.associate()
        second.say(encode_request(REQUEST))
        assert second.hear() == (REJECTED, bytes((0, 2, 3, 2)))
        assert first.echoes()


def test_stopping_does_not_wait_for_a_handshake(settings: Settings) -> None:
    with running(settings) as server, socket.create_connection(("127.0.0.1", server.port), 10):
        time.sleep(0.1)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 3


# --- the allow-list: AE title, address, certificate


def rejected(server: Running, **changes: object) -> bool:
    with Peer(server) as peer:
        peer.say(encode_request(request(**changes)))
        kind, body = peer.hear()
    assert kind in (2, REJECTED)
    assert kind == 2 or body == bytes((0, 1, 1, 3))
    return kind == REJECTED


@pytest.mark.req("REQ-DCM-02", "REQ-SEC-01", "REQ-DRIM-31")
def test_an_ae_title_with_a_certificate_of_its_own_is_refused_to_others(
    settings: Settings, authority: Authority
) -> None:
    peers = {
        "TESTER": {"fingerprints": [authority.issue("new").fingerprint, authority.caller.fingerprint]},
        "OTHER": {"fingerprints": [authority.issue("other").fingerprint]},
        "ANYONE": {},
    }
    with running(settings, peers=peers, accept_unknown_callers=False) as server:
        assert not rejected(server)
        assert not rejected(server, calling=title("ANYONE"))
        with capture_logs() as logs:
            assert rejected(server, calling=title("OTHER"))
        [line] = [line for line in logs if line["event"] == "association rejected"]
        assert line["certificate"] == authority.caller.fingerprint
        [row] = alerts(server)
        assert (row.user, row.source) == ("OTHER", "127.0.0.1")
        assert json.loads(row.detail) == {
            "reason": "this AE title calls with a certificate of its own",
            "type": "110126",
            "called_ae": "MINIPACS",
        }


@pytest.mark.req("REQ-SEC-01")
def test_an_ae_title_with_a_certificate_does_not_call_without_one(settings: Settings, authority: Authority) -> None:
    """Neither over TLS, where none is demanded, nor in clear text."""
    peers = {"TESTER": {"fingerprints": [authority.caller.fingerprint]}}
    with running(settings, peers=peers, tls_mutual=False) as server:
        context = authority.context(None)
        with Peer(server) as peer, socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            peer.sock = context.wrap_socket(sock, server_hostname="127.0.0.1")
            peer.say(encode_request(REQUEST))
            assert peer.hear() == (REJECTED, bytes((0, 1, 1, 3)))
            peer.sock.close()
        assert not rejected(server)
        with socket.create_server(("127.0.0.1", 0)) as clear:
            in_clear = Running.beside(server, clear)
            assert rejected(in_clear)
            in_clear.stop()


@pytest.mark.req("REQ-DCM-02", "REQ-SEC-01")
@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("127.0.0.1", False),
        ("127.0.0.0/8", False),
        ("10.0.0.7", True),
        ("10.0.0.0/24", True),
        ("::1", True),
    ],
)
def test_an_ae_title_with_an_address_is_refused_from_elsewhere(settings: Settings, address: str, refused: bool) -> None:
    with running(settings, peers={"TESTER": {"address": address}}) as server:
        assert rejected(server) is refused
        assert [json.loads(row.detail)["reason"] for row in alerts(server)] == (
            ["this AE title does not call from that address"] if refused else []
        )


# --- peers that we call


def sent_to(settings: Settings, made_out_to: str, **peer: Any) -> tuple[bool, list[str]]:
    """A C-MOVE to a destination over TLS: whether it went well, and the reasons of alerts."""
    with destination(settings, made_out_to=made_out_to) as to:
        peers = {"DEST": {"host": "127.0.0.1", "port": to.port, "tls": True} | peer}
        with running(settings, peers=peers) as server, Getter(server) as caller:
            caller.associate()
            keep(server.archive, ct_slice())
            caller.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
            _, responses = caller.collect()
            assert caller.echoes()
            reasons = [json.loads(row.detail)["reason"] for row in alerts(server)]
            assert bool(to.came) is (responses[-1].Status == Status.SUCCESS)
            return bool(to.came), reasons


@pytest.mark.req("REQ-DCM-04", "REQ-SEC-01")
def test_a_destination_is_believed_by_its_name_or_by_its_fingerprint(settings: Settings, authority: Authority) -> None:
    right, wrong = "127.0.0.1", "127.0.0.2"
    known = authority.issue(f"destination-{wrong}", names=f"subjectAltName=DNS:localhost,IP:{wrong}").fingerprint
    assert sent_to(settings, right) == (True, [])
    assert sent_to(settings, right, host="localhost") == (True, [])
    assert sent_to(settings, wrong, fingerprints=["00" * 32, known]) == (True, [])
    sent, [reason] = sent_to(settings, right, fingerprints=[known])
    assert (sent, reason) == (False, "the certificate of the peer is not among its fingerprints")
    sent, [_, reason] = sent_to(settings, wrong)
    assert not sent
    assert "IP address mismatch" in reason


@pytest.mark.req("REQ-SEC-01")
def test_a_peer_of_another_authority_is_not_believed(settings: Settings, authority: Authority, tmp_path: Path) -> None:
    """Nor one that does not believe us: then it says so."""
    other = Authority(tmp_path)
    with running(settings) as server:
        peers = {"MINIPACS": {"host": "127.0.0.1", "port": server.port, "tls": True}}
        for trusted, shown, ending in (
            (other.root, authority.archive, (NotTrusted, "unable to get local issuer certificate|self-signed")),
            (authority.root, other.archive, (ConnectionGone, "alert unknown ca")),
            (authority.root, authority.archive, None),
        ):
            values = settings.model_dump()
            values["tls"] = {"cert": shown.cert, "key": shown.key, "ca": trusted.cert}
            values["dicom"]["peers"] = peers
            calling = Settings.model_validate(values)
            if ending is None:
                assert verify(calling, "MINIPACS", calling.dicom.callers()["MINIPACS"]) == 0
            else:
                with pytest.raises(ending[0], match=ending[1]):
                    verify(calling, "MINIPACS", calling.dicom.callers()["MINIPACS"])


def test_a_certificate_of_a_peer_can_be_believed_without_an_authority(settings: Settings, tmp_path: Path) -> None:
    """`tls.ca` may hold the peer's own certificate: a modality signs its own, as most do."""
    ours, theirs = self_signed(tmp_path, "ours"), self_signed(tmp_path, "theirs")
    values = settings.model_dump()
    values["tls"] = {"cert": ours.cert, "key": ours.key, "ca": theirs.cert}
    with running(Settings.model_validate(values)) as server:
        assert "Verify return code: 0" in client(server, "-CAfile", str(ours.cert), shown=theirs)
        assert alerts(server) == []


# --- programs of others


@pytest.mark.req("REQ-DCM-04")
def test_dcmtk_stores_and_finds_over_tls(server: Running, tmp_path: Path) -> None:
    need("storescu", "findscu", "echoscu")
    ds = ct_slice(rows=800, columns=800)  # more than 1 MiB
    path = tmp_path / "one.dcm"
    path.write_bytes(part10(ds))
    place = [*server.options(), "-aec", "MINIPACS", "127.0.0.1", str(server.port)]
    for command in (
        ["echoscu", *place],
        ["storescu", *place, str(path)],
        ["findscu", "-S", *place, "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={ds.StudyInstanceUID}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert ds.StudyInstanceUID in done.stderr + done.stdout
    assert server.stored_uids() == [ds.SOPInstanceUID]
    [stored] = Path(server.archive.hot.root).glob("*/*/*/*/*.dcm")
    assert stored.read_bytes().endswith(data_set(ds))
    without = subprocess.run(
        ["echoscu", "-aec", "MINIPACS", "127.0.0.1", str(server.port)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert without.returncode != 0


@contextmanager
def orthanc(folder: Path, authority: Authority, *, dicom_port: int, archive_port: int) -> Iterator[httpx.Client]:
    """An Orthanc that speaks TLS alone and demands a certificate; it knows the archive as `minipacs`."""
    need("Orthanc")
    shown, web_port = authority.issue("orthanc"), free_port()
    configuration = {
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "Plugins": [],
        "HttpPort": web_port,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(shown.cert),
        "DicomTlsPrivateKey": str(shown.key),
        "DicomTlsTrustedCertificates": str(authority.root.cert),
        "DicomModalities": {
            "minipacs": {"AET": "MINIPACS", "Host": "127.0.0.1", "Port": archive_port, "UseDicomTls": True}
        },
    }
    (folder / "orthanc").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{web_port}", timeout=60)

    def answers() -> bool:
        try:
            return client.get("/system").is_success
        except httpx.TransportError:
            return False

    try:
        assert wait_until(answers, seconds=60), (folder / "orthanc.log").read_text()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(30)


@pytest.mark.req("REQ-DCM-04")
def test_orthanc_sends_and_receives_over_tls(settings: Settings, authority: Authority, tmp_path: Path) -> None:
    port = free_port()
    pinned = [authority.issue("orthanc").fingerprint]
    peers = {"ORTHANC": {"host": "127.0.0.1", "port": port, "tls": True, "fingerprints": pinned}}
    ds = ct_slice(rows=800, columns=800)
    with (
        running(settings, peers=peers) as server,
        orthanc(tmp_path, authority, dicom_port=port, archive_port=server.port) as client,
    ):
        kept = client.post("/instances", content=part10(ds)).json()["ID"]
        assert client.post("/modalities/minipacs/echo", json={}).is_success
        assert client.post("/modalities/minipacs/store", content=kept).json()["FailedInstancesCount"] == 0
        assert server.stored_uids() == [ds.SOPInstanceUID]
        client.delete(f"/instances/{kept}")
        with Getter(server) as caller:
            caller.associate()
            caller.ask(9, Field.C_MOVE_RQ, identifier(), "ORTHANC")
            _, responses = caller.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (Status.SUCCESS, (None, 1, 0, 0))
        assert client.get("/instances").json() == [kept]
        assert alerts(server) == []
