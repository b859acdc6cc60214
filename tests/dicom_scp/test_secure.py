"""The transport over TLS, against a peer of Python's own `ssl` on the other end of a socket pair."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from archive import tls
from archive.clock import monotonic
from archive.sections import Tls
from dicom_scp.ends import AssociationEnd, ConnectionGone, NotTrusted, TooSlow
from dicom_scp.secure import SecureTransport
from dicom_scp.transport import Transport
from tests.certificates import Authority

BLOB = random.Random(1).randbytes(3 << 20)


def soon(seconds: float = 10) -> float:
    return monotonic() + seconds


class Peer:
    """The calling side: `ssl` on a blocking socket, in a thread."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, work: Callable[[ssl.SSLSocket], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._sock, self._context, self._work = sock, context, work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._context.wrap_socket(self._sock, server_hostname="127.0.0.1") as secure:
                self.result = self._work(secure)
        except OSError as error:
            self.error = error
        finally:
            self._sock.close()

    def done(self) -> Any:
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.settimeout(20)
    return near, far


@contextmanager
def connected(
    authority: Authority, work: Callable[[ssl.SSLSocket], Any], **how: Any
) -> Iterator[tuple[SecureTransport, Peer]]:
    near, far = pair()
    context = authority.context(authority.caller)
    for name, value in how.items():
        setattr(context, name, value)
    transport = SecureTransport(far, tls.acceptor(Tls.model_validate(authority.settings()), mutual=True))
    peer = Peer(near, context, work)
    try:
        transport.handshake(soon())
        yield transport, peer
    finally:
        transport.close()


def received(transport: Transport, count: int, *, at_a_time: int = 1 << 17) -> bytes:
    collected, buffer = bytearray(), memoryview(bytearray(at_a_time))
    while len(collected) < count:
        collected += buffer[: transport.read_into(buffer, soon())]
    return bytes(collected)


def heard(secure: ssl.SSLSocket, count: int) -> bytes:
    collected = bytearray()
    while len(collected) < count and (piece := secure.recv(1 << 16)):
        collected += piece
    return bytes(collected)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.req("REQ-DCM-04")
@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_large_and_tiny_pieces_arrive_whole_both_ways(authority: Authority, version: ssl.TLSVersion) -> None:
    def work(secure: ssl.SSLSocket) -> tuple[str | None, bytes]:
        for size in (1, 5, 16_383, 16_384, 16_385):
            secure.sendall(BLOB[:size])
        secure.sendall(BLOB)
        return secure.version(), hashlib.sha256(heard(secure, len(BLOB) + 4 + 256)).digest()

    tiny = [BLOB[place : place + 1] for place in range(256)]
    with connected(authority, work, minimum_version=version, maximum_version=version) as (transport, peer):
        for size in (1, 5, 16_383, 16_384, 16_385):
            assert received(transport, size, at_a_time=size) == BLOB[:size]
        assert received(transport, len(BLOB)) == BLOB
        transport.send([b"head", memoryview(BLOB), b"", *tiny], soon())
        spoken, digest = peer.done()
    assert spoken == {VERSIONS[0]: "TLSv1.2", VERSIONS[1]: "TLSv1.3"}[version]
    assert digest == hashlib.sha256(b"head" + BLOB + b"".join(tiny)).digest()


def test_a_reader_that_takes_a_byte_at_a_time_misses_none(authority: Authority) -> None:
    with connected(authority, lambda secure: secure.sendall(BLOB[:300])) as (transport, _):
        assert received(transport, 300, at_a_time=1) == BLOB[:300]


def test_what_was_decrypted_already_is_not_waited_for(authority: Authority) -> None:
    """A record is taken from the socket whole: `poll` knows nothing of the rest of it."""

    def work(secure: ssl.SSLSocket) -> None:
        secure.sendall(BLOB[:1000])
        secure.recv(1)

    with connected(authority, work) as (transport, peer):
        assert received(transport, 10, at_a_time=10) == BLOB[:10]
        assert not Transport.readable(transport)
        assert transport.readable()
        begun = time.monotonic()
        assert transport.wait(soon(5))
        assert transport.wait_beside(transport, soon(5))
        assert time.monotonic() - begun < 1
        assert received(transport, 990, at_a_time=990) == BLOB[10:1000]
        assert not transport.readable()
        assert not transport.wait(soon(0.05))
        transport.send([b"x"], soon())
        peer.done()


def test_half_a_record_is_nothing_to_be_read(authority: Authority) -> None:
    """Whoever looks for a cancel does not begin to wait for it."""
    near, far = pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = authority.context(authority.caller).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    transport = SecureTransport(far, tls.acceptor(Tls.model_validate(authority.settings()), mutual=True))
    shaking = threading.Thread(target=transport.handshake, args=(soon(),))
    shaking.start()
    while True:
        try:
            caller.do_handshake()
            break
        except ssl.SSLWantReadError:
            near.sendall(outgoing.read())
            incoming.write(near.recv(1 << 16))
    near.sendall(outgoing.read())
    shaking.join()
    caller.write(b"cancel")
    record = outgoing.read()
    near.sendall(record[:9])
    time.sleep(0.05)
    assert Transport.readable(transport)
    assert not transport.readable()
    near.sendall(record[9:])
    assert transport.wait(soon(5))
    assert received(transport, 6) == b"cancel"
    transport.close()
    near.close()


def test_a_peer_that_does_not_read_is_given_up_in_time(authority: Authority) -> None:
    stop = threading.Event()
    with connected(authority, lambda _: stop.wait(20)) as (transport, _):
        begun = time.monotonic()
        with pytest.raises(TooSlow):
            for _ in range(40):
                transport.send([BLOB], monotonic() + 0.3)
        assert time.monotonic() - begun < 10
        transport.close()
        stop.set()


def test_a_silent_peer_is_given_up_in_time(authority: Authority) -> None:
    stop = threading.Event()
    with connected(authority, lambda _: stop.wait(20)) as (transport, _):
        with pytest.raises(TooSlow):
            transport.read_into(memoryview(bytearray(10)), monotonic() + 0.2)
        stop.set()


@pytest.mark.parametrize("goodbye", [True, False])
def test_the_end_of_the_peer_is_seen_with_and_without_a_goodbye(authority: Authority, goodbye: bool) -> None:
    def work(secure: ssl.SSLSocket) -> None:
        secure.sendall(b"last")
        if goodbye:
            with suppress(OSError):
                secure.unwrap().close()
        else:
            socket.socket.shutdown(secure, socket.SHUT_RDWR)

    with connected(authority, work) as (transport, _):
        assert received(transport, 4) == b"last"
        assert transport.wait(soon(5))
        assert transport.readable()
        with pytest.raises(ConnectionGone):
            transport.read_into(memoryview(bytearray(10)), soon())


def test_the_end_of_our_side_is_a_goodbye(authority: Authority) -> None:
    def work(secure: ssl.SSLSocket) -> bytes:
        secure.suppress_ragged_eofs = False  # an end without a goodbye would be an error
        return secure.recv(10)

    with connected(authority, work) as (transport, peer):
        transport.close()
        transport.close()
        assert peer.done() == b""


def test_who_stops_reading_can_still_speak(authority: Authority) -> None:
    """The archive that stops wakes a thread that waits, and it says A-ABORT: over TLS, never in clear text."""
    with connected(authority, lambda secure: heard(secure, 5)) as (transport, peer):
        threading.Timer(0.1, transport.stop_reading).start()
        with pytest.raises(ConnectionGone):
            transport.read_into(memoryview(bytearray(10)), soon())
        transport.send([b"abort"], soon())
        assert peer.done() == b"abort"


def test_a_shut_connection_wakes_its_thread_and_says_nothing_more(authority: Authority) -> None:
    with connected(authority, lambda secure: heard(secure, 10)) as (transport, peer):
        threading.Timer(0.1, transport.shut).start()
        with pytest.raises(ConnectionGone):
            transport.read_into(memoryview(bytearray(10)), soon())
        with pytest.raises(ConnectionGone):
            transport.send([b"more"], soon())
        transport.close()
        assert peer.done() == b""


def test_a_record_that_was_changed_on_the_way_ends_the_connection(authority: Authority) -> None:
    def work(secure: ssl.SSLSocket) -> None:
        raw = b"\x17\x03\x03\x00\x20" + bytes(32)
        socket.socket.sendall(secure, raw)  # past TLS
        socket.socket.recv(secure, 100)

    with connected(authority, work) as (transport, _), pytest.raises(ConnectionGone, match="TLS"):
        transport.read_into(memoryview(bytearray(10)), soon())


def test_the_certificate_of_the_peer_is_known_by_its_fingerprint(authority: Authority) -> None:
    with connected(authority, lambda _: None) as (transport, _):
        assert transport.certificate == authority.caller.fingerprint


def test_speech_before_the_handshake_is_refused_in_our_words(authority: Authority) -> None:
    near, far = pair()
    transport = SecureTransport(far, tls.acceptor(Tls.model_validate(authority.settings()), mutual=True))
    near.sendall(b"\x01\x00\x00\x00\x00\xcd" + bytes(205))  # the head of an A-ASSOCIATE-RQ
    with pytest.raises(NotTrusted):
        transport.handshake(soon())
    with pytest.raises(AssociationEnd):
        transport.send([b"in clear text?"], soon())
    transport.close()
    assert b"clear" not in near.recv(1000)
    near.close()
