"""Peers that are wrong, slow or hostile: the association ends, the archive does not notice."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from archive.config import Settings
from dicom_scp import dimse, pdu
from dicom_scp.associate import encode_request, title
from dicom_scp.ends import AbortReason
from dicom_scp.pdu import COMMAND, LAST
from tests.builders import ct_slice
from tests.builders import data_set as encoded
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.wire import CT, REQUEST, Peer, command, data_set, p_data, pdv, request

OVER_TLS = "settings"

ABORT = 7


def alive(server: Running) -> bool:
    with Peer(server) as peer:
        peer.associate()
        return peer.echoes()


def wait_until(condition: object, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", AbortReason.UNRECOGNIZED_PDU),
        (bytes(range(256)), AbortReason.UNRECOGNIZED_PDU),
        (struct.pack(">BxI", 1, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (p_data(pdv(1, 3, b"ab")), AbortReason.UNEXPECTED_PDU),
        (pdu.RELEASE_RQ, AbortReason.UNEXPECTED_PDU),
        (struct.pack(">BxI", 1, 10) + bytes(10), AbortReason.INVALID_PARAMETER),
        (encode_request(REQUEST)[:-3] + b"\xff\xff\xff", AbortReason.INVALID_PARAMETER),
    ],
    ids=["http", "noise", "huge request", "huge data", "data first", "release first", "short", "torn items"],
)
def test_nonsense_instead_of_a_request_is_aborted(server: Running, said: bytes, reason: AbortReason) -> None:
    with Peer(server) as peer:
        peer.say(said)
        assert peer.hear() == (ABORT, bytes((0, 0, 2, reason)))
    assert alive(server)


def store_head(uid: str = "1.2.3") -> bytes:
    return command(3, dimse.store_request(1, CT, uid))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (struct.pack(">BxI", 4, 0x7FFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 131_073), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 9, 4) + bytes(4), AbortReason.UNRECOGNIZED_PDU),
        (encode_request(REQUEST), AbortReason.UNEXPECTED_PDU),
        (command(77, dimse.echo_request(1)), AbortReason.INVALID_PARAMETER),
        (data_set(3, b"ab"), AbortReason.UNEXPECTED_PARAMETER),
        (command(1, b"\x08\x00\x00\x00\x02\x00\x00\x00ab"), AbortReason.INVALID_PARAMETER),
        (command(1, b""), AbortReason.INVALID_PARAMETER),
        (store_head() + p_data(pdv(5, 0, b"ab")), AbortReason.UNEXPECTED_PARAMETER),
        (store_head() + command(1, dimse.echo_request(2)), AbortReason.UNEXPECTED_PARAMETER),
        (store_head() + pdu.RELEASE_RQ, AbortReason.UNEXPECTED_PDU),
        (b"".join(p_data(pdv(1, COMMAND, bytes(16000))) for _ in range(6)), AbortReason.INVALID_PARAMETER),
    ],
    ids=[
        "absurd length",
        "above what was announced",
        "unknown type",
        "second request",
        "context not accepted",
        "data set without command",
        "command of another group",
        "empty command",
        "another context in mid-message",
        "another message in mid-message",
        "release in mid-message",
        "command without end",
    ],
)
def test_a_broken_rule_aborts_the_association(server: Running, said: bytes, reason: AbortReason) -> None:
    with Peer(server) as peer:
        peer.associate()
        assert peer.echoes()
        peer.say(said)
        assert peer.hear() == (ABORT, bytes((0, 0, 2, reason)))
    assert wait_until(lambda: not server.incoming_files())
    assert alive(server)


@pytest.mark.req("REQ-DCM-03")
@pytest.mark.parametrize("ending", ["close", "abort"])
def test_a_peer_that_goes_in_mid_object_leaves_nothing(server: Running, ending: str) -> None:
    ds = ct_slice(rows=256, columns=256)
    with Peer(server) as peer:
        peer.associate()
        peer.say(command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
        peer.say(p_data(pdv(3, 0, encoded(ds)[:50_000])))
        assert wait_until(server.incoming_files)
        if ending == "abort":
            peer.say(pdu.USER_ABORT)
    assert wait_until(lambda: not server.incoming_files())
    assert server.stored_uids() == []
    assert alive(server)


def test_pieces_of_any_cut_make_the_same_object(server: Running) -> None:
    ds = ct_slice()
    data = encoded(ds)
    head = dimse.store_request(1, CT, ds.SOPInstanceUID)
    with Peer(server) as peer:
        peer.associate()
        peer.say(
            p_data(
                pdv(3, COMMAND, head[:7]), pdv(3, COMMAND, b""), pdv(3, COMMAND | LAST, head[7:]), pdv(3, 0, data[:9])
            )
            + p_data(pdv(3, 0, b""), pdv(3, 0, data[9:300]), pdv(3, 0, data[300:]))
            + p_data(pdv(3, LAST, b""))
        )
        assert peer.answer().status == 0
    assert server.stored_uids() == [ds.SOPInstanceUID]
    [path] = Path(server.archive.hot.root).glob("*/*/*/*/*.dcm")
    assert path.read_bytes().endswith(data)


def test_one_byte_at_a_time_is_heard(server: Running) -> None:
    with Peer(server) as peer:
        for place in range(0, len(encode_request(REQUEST)), 7):
            peer.say(encode_request(REQUEST)[place : place + 7])
        assert peer.hear()[0] == 2
        for byte in command(1, dimse.echo_request(1)):
            peer.say(bytes((byte,)))
        assert peer.answer().status == 0


def test_a_slow_request_meets_artim(settings: Settings) -> None:
    """Byte after byte does not prolong it: the deadline is that of the whole request."""
    with running(settings, artim_seconds=0.5) as server, Peer(server) as peer:
        begun = time.monotonic()
        peer.sock.settimeout(0.1)
        whole, place, heard = encode_request(REQUEST), 0, b""
        while not heard and time.monotonic() - begun < 5:
            peer.say(whole[place : place + 1])
            place += 1
            try:
                heard = peer.sock.recv(10)
            except TimeoutError:
                continue
        assert heard[:1] == bytes((ABORT,))
        assert 0.3 < time.monotonic() - begun < 2


def test_a_slow_message_meets_its_deadline(settings: Settings) -> None:
    with running(settings, dimse_seconds=0.4, artim_seconds=0.4) as server, Peer(server) as peer:
        peer.associate()
        peer.say(store_head())
        peer.say(struct.pack(">BxI", 4, 1000))
        begun = time.monotonic()
        assert peer.hear()[0] == ABORT
        assert time.monotonic() - begun < 2
        assert wait_until(lambda: not server.incoming_files())


def test_a_silent_association_is_aborted(settings: Settings) -> None:
    with running(settings, idle_seconds=0.3, artim_seconds=0.3) as server, Peer(server) as peer:
        peer.associate()
        assert peer.hear()[0] == ABORT
        assert peer.hear()[0] == 0  # and closed, although the peer keeps its side open


def test_after_a_rejection_the_connection_closes_by_itself(settings: Settings) -> None:
    with running(settings, artim_seconds=0.3) as server, Peer(server) as peer:
        peer.say(encode_request(request(called=title("NOBODY"))))
        assert peer.hear()[0] == 3
        assert peer.hear()[0] == 0


def test_an_abort_at_every_byte_of_a_store_leaves_nothing(server: Running) -> None:
    ds = ct_slice(rows=2, columns=2)
    message = store_head(ds.SOPInstanceUID) + data_set(3, encoded(ds))
    for cut in range(0, len(message) - 1, 97):
        with Peer(server) as peer:
            peer.associate()
            peer.say(message[:cut])
    assert wait_until(lambda: not server.incoming_files())
    assert server.stored_uids() == []
    assert alive(server)
