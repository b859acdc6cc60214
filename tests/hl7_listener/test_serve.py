"""The listener on a real socket: connections, order, stopping."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from archive import messages
from archive.config import Settings
from archive.core import Archive, open_archive
from hl7_listener import dispatch
from hl7_listener import serve as listener
from hl7_listener.context import Context, Warning
from hl7_listener.message import Message
from hl7_listener.mllp import frame
from hl7_listener.serve import serve
from tests.hl7_listener.conftest import MSH, Answer, a28

TIMEOUT = 30.0


class Client:
    """A sender, on one connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> Answer:
        """The next ACK."""
        while b"\x1c\r" not in self._buffer:
            piece = self.sock.recv(65536)
            if not piece:
                raise EOFError
            self._buffer += piece
        ack, _, self._buffer = self._buffer.partition(b"\x1c\r")
        assert ack.startswith(b"\x0b")
        return Answer.of(ack[1:])

    def ask(self, message: bytes) -> Answer:
        self.send(frame(message))
        return self.answer()

    def is_closed(self) -> bool:
        """Whether the other side ends the connection, without another word."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def listening(archive: Archive, *, port: int = 0) -> Iterator[tuple[int, Callable[[], None]]]:
    """The port, and how to stop."""
    sock = socket.create_server(("127.0.0.1", port))
    stopping = threading.Event()
    thread = threading.Thread(target=serve, args=(archive, sock, stopping))
    thread.start()

    def stop() -> None:
        stopping.set()
        thread.join(TIMEOUT)
        assert not thread.is_alive()

    try:
        yield sock.getsockname()[1], stop
    finally:
        stop()
        sock.close()


@pytest.fixture
def port(archive: Archive) -> Iterator[int]:
    with listening(archive) as (number, _stop):
        yield number


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    found = Client(port)
    yield found
    found.sock.close()


on_sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


def journal(archive: Archive) -> list[dict[str, Any]]:
    with archive.reading() as conn:
        return messages.list_messages(conn)


@pytest.mark.req("REQ-HL7-02", "REQ-HL7-05")
def test_one_connection_carries_many_messages_each_with_its_answer_in_order(client: Client) -> None:
    client.send(b"".join(frame(a28(f"M{n}", pid=f"P{n}")) for n in range(5)))
    assert [client.answer().of_message for _ in range(5)] == [f"M{n}" for n in range(5)]
    assert client.ask(a28("later", pid="P9")).code == "AA"


@on_sqlite
@pytest.mark.req("REQ-HL7-02")
def test_a_message_in_single_bytes_is_answered_like_a_whole_one(client: Client, sample: Callable[[str], bytes]) -> None:
    for byte in frame(sample("proto/base.hl7")):
        client.send(bytes((byte,)))
    assert client.answer().code == "AA"


@on_sqlite
@pytest.mark.req("REQ-HL7-03")
def test_without_the_last_carriage_return_the_answer_comes_after_a_second(client: Client) -> None:
    client.send(b"\x0b" + a28("M1") + b"\x1c")
    assert client.answer().of_message == "M1"
    client.send(b"\r" + frame(a28("M2", pid="P2")))
    assert client.answer().of_message == "M2"


@on_sqlite
@pytest.mark.req("REQ-HL7-03")
def test_noise_empty_frames_and_broken_ones_have_no_answer(archive: Archive, client: Client) -> None:
    client.send(b"noise" + frame(b"") + b"\x0bMSH|broken off" + frame(a28("M1")))
    assert client.answer().of_message == "M1"
    assert len(journal(archive)) == 1


@on_sqlite
def test_a_sender_that_closes_behind_its_last_message_is_answered(client: Client) -> None:
    client.send(frame(a28("M1")) + b"\x0b" + a28("M2", pid="P2") + b"\x1c")
    client.sock.shutdown(socket.SHUT_WR)
    assert [client.answer().of_message for _ in range(2)] == ["M1", "M2"]
    assert client.is_closed()


@on_sqlite
@pytest.mark.req("REQ-HL7-04")
def test_above_the_limit_the_answer_is_ar_207_and_the_connection_ends(settings: Settings) -> None:
    hl7 = settings.hl7.model_copy(update={"max_message_bytes": 100_000})
    with (
        open_archive(settings.model_copy(update={"hl7": hl7}), process="test") as archive,
        listening(archive) as (port, _stop),
    ):
        client = Client(port)
        assert client.ask(a28("M1") + b"ZZZ|" + b"x" * 90_000).code == "AA"
        client.send(b"\x0b" + a28("BIG") + b"ZZZ|" + b"x" * 100_000)
        answer = client.answer()
        assert (answer.code, answer.of_message, answer.errors) == ("AR", "BIG", [("207", "", "E")])
        assert client.is_closed()
        assert Client(port).ask(a28("M2", pid="P2")).code == "AA"


@on_sqlite
@pytest.mark.req("REQ-HL7-04")
def test_forty_megabytes_are_taken_and_kept_whole(archive: Archive, client: Client) -> None:
    raw = a28("M1") + b"OBX|1|ED|||^TEXT^XML^Base64^" + b"QUJD" * 10_000_000 + b"\r"
    assert client.ask(raw).code == "AA"
    with archive.reading() as conn:
        assert messages.stored(conn, journal(archive)[0]["id"]).raw == raw


@on_sqlite
@pytest.mark.req("REQ-HL7-04")
def test_connections_cannot_fill_the_memory_together(settings: Settings) -> None:
    hl7 = settings.hl7.model_copy(update={"max_message_bytes": 1 << 20})
    with (
        open_archive(settings.model_copy(update={"hl7": hl7}), process="test") as archive,
        listening(archive) as (port, _stop),
    ):
        clients = [Client(port) for _ in range(5)]
        for number, client in enumerate(clients):  # each below the limit, together above four times that
            client.send(b"\x0b" + a28(f"M{number}") + b"ZZZ|" + b"x" * 1_000_000)
        refused = [client for client in clients if _answered(client)]
        assert len(refused) == 1
        (other, *_) = [client for client in clients if client not in refused]
        other.send(b"\x1c\r")
        assert other.answer().code == "AA"


def _answered(client: Client) -> bool:
    client.sock.settimeout(2)
    try:
        return client.answer().code == "AR"
    except TimeoutError:
        return False
    finally:
        client.sock.settimeout(TIMEOUT)


@pytest.mark.req("REQ-HL7-05")
def test_connections_are_served_in_parallel(archive: Archive, port: int) -> None:
    waiting = Client(port)
    waiting.send(b"\x0b" + a28("open"))
    others = [Client(port) for _ in range(8)]
    for number, client in enumerate(others):
        client.send(frame(a28(f"M{number}", pid=f"P{number}", msh=MSH.replace("|RIS|", f"|RIS{number}|"))))
    assert [client.answer().code for client in others] == ["AA"] * 8
    waiting.send(b"\x1c\r")
    assert waiting.answer().of_message == "open"


@on_sqlite
@pytest.mark.req("REQ-HL7-05")
def test_messages_of_one_sender_keep_their_order_on_any_connections_and_nobody_else_waits(
    archive: Archive, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def handle(_conn: Any, message: Message, _context: Context) -> list[Warning]:
        applied.append(message.control_id)
        return []

    def look(*arguments: Any, **named: Any) -> Any:
        """Hold the first message back before its transaction: the thread that writes is not held."""
        if arguments[1].head.control_id == "first":
            begun.set()
            assert go_on.wait(TIMEOUT)
        return receive(*arguments, **named)

    receive = listener.receive
    monkeypatch.setattr(listener, "receive", look)
    monkeypatch.setitem(dispatch.HANDLERS, ("ADT", "A99"), handle)
    msh = MSH.replace("A28^ADT_A05", "A99")
    first, second, third, other = (Client(port) for _ in range(4))
    first.send(frame(a28("first", msh=msh)))
    assert begun.wait(TIMEOUT)
    second.send(frame(a28("second", msh=msh)))
    assert other.ask(a28("other", msh=msh.replace("|RIS|", "|OTHER|"))).code == "AA"  # and the loop has read «second»
    third.send(frame(a28("third", msh=msh)))
    go_on.set()
    for client in (first, second, third):
        assert client.answer().code == "AA"
    assert [one for one in applied if one != "other"] == ["first", "second", "third"]


@on_sqlite
def test_a_stop_finishes_the_message_that_is_being_applied_and_closes_the_rest(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert go_on.wait(TIMEOUT)
        return receive(*arguments, **named)

    receive = listener.receive
    monkeypatch.setattr(listener, "receive", slow)
    with listening(archive) as (port, stop):
        idle, busy = Client(port), Client(port)
        busy.send(frame(a28("M1")) + frame(a28("M2", pid="P2")))
        assert begun.wait(TIMEOUT)
        stopper = threading.Thread(target=stop)
        stopper.start()
        assert idle.is_closed()
        go_on.set()
        assert busy.answer().of_message == "M1"
        assert busy.is_closed()
        stopper.join(TIMEOUT)
        with pytest.raises(OSError):
            Client(port).ask(a28("M3"))
    assert [line["control_id"] for line in journal(archive)] == ["M1"]  # M2 was never acknowledged: it comes again


@on_sqlite
def test_a_sender_that_disappears_harms_nobody(archive: Archive, port: int) -> None:
    for _ in range(3):
        gone = Client(port)
        gone.send(frame(a28("M1")) + b"\x0bhalf a mes")
        gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset
        gone.sock.close()
    assert Client(port).ask(a28("M2", pid="P2")).code == "AA"


@on_sqlite
def test_above_the_number_of_connections_a_new_one_is_closed(
    archive: Archive, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)
    first, second = Client(port), Client(port)
    assert first.ask(a28("M1")).code == second.ask(a28("M2", pid="P2")).code == "AA"
    assert Client(port).is_closed()
    first.sock.close()
    assert second.ask(a28("M3", pid="P3")).code == "AA"
