"""Stretches of files leave unread, in their place among bytes, over real connections."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.multipart import BATCH_BYTES, Piece, Pieces, Stream
from api.wire import EXTENSION, Protocol
from archive.stretch import Stretch
from tests.certificates import Authority

MIB = 1 << 20


class Shop:
    """An application: what is given at a path, in pieces, and what was seen of each request."""

    def __init__(self) -> None:
        self.pieces: dict[str, Callable[[], Iterator[Piece]]] = {}
        self.length: dict[str, int] = {}
        self.unread: list[bool] = []
        self.fetched: set[str] = set()  # paths whose pieces are fetched first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.unread.append(EXTENSION in scope.get("extensions", ()))
        if path in self.fetched:
            await Pieces(self.pieces[path](), {})(scope, receive, send)
            return
        headers = {"Content-Length": str(self.length[path])} if path in self.length else {}
        await Stream(self.pieces[path](), headers=headers)(scope, receive, send)

    def give(
        self, path: str, pieces: Callable[[], Iterator[Piece]], *, length: int | None, fetched: bool = False
    ) -> None:
        self.pieces[path] = pieces
        if fetched:
            self.fetched.add(path)
        if length is not None:
            self.length[path] = length


@contextmanager
def running(app: Shop, **tls: object) -> Iterator[int]:
    """The port of `app`, served as the archive's is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, loop="uvloop", http=Protocol, ws="none", lifespan="off", log_config=None, **tls)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def port(shop: Shop) -> Iterator[int]:
    with running(shop) as port:
        yield port


def asked(port: int, *paths: str, more: str = "", receive_buffer: int | None = None) -> socket.socket:
    """A connection on which all of these are asked for at once."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", port))
    sock.sendall("".join(f"GET {path} HTTP/1.1\r\nHost: here\r\n{more}\r\n" for path in paths).encode())
    return sock


def answer(sock: socket.socket, *, step: Callable[[], int] = lambda: MIB, buffered: bytearray) -> bytes:
    """The next body of a connection; `buffered` keeps what came of the one after it."""
    while b"\r\n\r\n" not in buffered:
        got = sock.recv(step())
        if not got:
            raise EOFError
        buffered += got
    head, _, rest = bytes(buffered).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    body = bytearray(rest)
    while len(body) < length:
        got = sock.recv(step())
        if not got:
            raise EOFError
        body += got
    buffered[:] = body[length:]
    return bytes(body[:length])


def stretch(path: Path, start: int = 0, end: int | None = None) -> Stretch:
    return Stretch(os.open(path, os.O_RDONLY), start, path.stat().st_size if end is None else end)


def descriptors() -> list[str]:
    """What this process has open of files in a folder of tests."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return [target for target in found if target.endswith(".bin")]


def until(true: Callable[[], object], what: str) -> None:
    limit = monotonic() + 10
    while not true():
        assert monotonic() < limit, what
        sleep(0.01)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(1).randbytes(3 * BATCH_BYTES + 12345))
    return path


@pytest.mark.parametrize("fetched", [False, True], ids=["pulled", "fetched"])
@pytest.mark.parametrize("seed", range(12))
def test_bytes_and_stretches_come_in_their_order(
    tmp_path: Path, shop: Shop, port: int, seed: int, fetched: bool
) -> None:
    chance = random.Random(seed)
    files = []
    for n in range(6):
        files.append(tmp_path / f"{n}.bin")
        files[-1].write_bytes(chance.randbytes(chance.choice([1, 1000, 70_000, MIB, 5 * MIB])))
    plan: list[bytes | tuple[Path, int, int]] = []
    for _ in range(chance.randrange(1, 60)):
        if chance.random() < 0.5:
            plan.append(chance.randbytes(chance.choice([1, 60, 3000, 300_000])))
        else:
            file = chance.choice(files)
            start, end = sorted(chance.randrange(file.stat().st_size + 1) for _ in range(2))
            plan.append((file, start, end))
    wanted = b"".join(one if isinstance(one, bytes) else one[0].read_bytes()[one[1] : one[2]] for one in plan)

    def pieces() -> Iterator[Piece]:
        return (one if isinstance(one, bytes) else stretch(*one) for one in plan)

    shop.give("/", pieces, length=len(wanted), fetched=fetched)
    slow = chance.random() < 0.5
    step = (lambda: chance.randrange(1, 40_000)) if slow else (lambda: MIB)
    with asked(port, "/", "/", "/", receive_buffer=chance.choice([None, 5000])) as sock:
        buffered = bytearray()
        for _ in range(3):
            assert answer(sock, step=step, buffered=buffered) == wanted
        assert not buffered
    assert shop.unread == [True] * 3
    until(lambda: not descriptors(), "files stay open")


def test_who_does_not_read_holds_neither_thread_nor_anybody(large: Path, shop: Shop, port: int) -> None:
    shop.give("/large", lambda: iter((b"head", stretch(large))), length=4 + large.stat().st_size)
    shop.give("/small", lambda: iter((b"small",)), length=5)
    waiting = [asked(port, "/large", receive_buffer=5000) for _ in range(60)]  # more than there are worker threads
    until(lambda: len(descriptors()) >= 60, "not all were begun")
    with asked(port, "/small") as sock:
        started = monotonic()
        assert answer(sock, buffered=bytearray()) == b"small"
        assert monotonic() - started < 5
    wanted = b"head" + large.read_bytes()
    for sock in waiting[:2]:
        assert answer(sock, buffered=bytearray()) == wanted
    for sock in waiting:
        sock.close()
    until(lambda: not descriptors(), "files stay open after their readers left")


def test_a_reader_that_leaves_in_the_middle_leaves_nothing_open(large: Path, shop: Shop, port: int) -> None:
    shop.give("/", lambda: (stretch(large) for _ in range(50)), length=50 * large.stat().st_size)
    for read in (0, 1, MIB, 10 * MIB):
        with asked(port, "/") as sock:
            if read:
                sock.recv(read, socket.MSG_WAITALL)
        until(lambda: not descriptors(), "files stay open")


def test_a_file_that_ends_before_is_not_taken_for_the_whole(large: Path, shop: Shop, port: int) -> None:
    size = large.stat().st_size
    shop.give("/", lambda: iter((stretch(large), b"end")), length=size + 3)
    with asked(port, "/", receive_buffer=5000) as sock:
        assert sock.recv(17, socket.MSG_WAITALL)
        os.truncate(large, size // 2)
        with pytest.raises((EOFError, ConnectionResetError)):
            while sock.recv(MIB):
                pass
            raise EOFError
    until(lambda: not descriptors(), "files stay open")


@pytest.mark.parametrize("fetched", [False, True], ids=["pulled", "fetched"])
def test_what_is_no_http_in_the_middle_of_an_answer_ends_it(large: Path, shop: Shop, port: int, fetched: bool) -> None:
    shop.give("/", lambda: iter((stretch(large),)), length=large.stat().st_size, fetched=fetched)
    with asked(port, "/", receive_buffer=5000) as sock:
        first = sock.recv(MIB)
        sock.sendall(b"\0\0 this is nothing\r\n\r\n")
        until(lambda: not descriptors(), "it goes on")  # nothing is read meanwhile: it cannot end by itself
        came = bytearray(first)
        with pytest.raises((EOFError, ConnectionResetError)):
            while got := sock.recv(MIB):
                came += got
            raise EOFError
    body = bytes(came).partition(b"\r\n\r\n")[2]
    assert body == large.read_bytes()[: len(body)]  # cut off, with nothing in it that is not its own
    assert len(body) < large.stat().st_size


@pytest.mark.parametrize("fetched", [False, True], ids=["pulled", "fetched"])
@pytest.mark.parametrize("more", ["Connection: close\r\n", ""])
def test_a_connection_is_closed_behind_the_last_byte(
    large: Path, shop: Shop, port: int, more: str, fetched: bool
) -> None:
    shop.give("/", lambda: iter((b"a", stretch(large))), length=1 + large.stat().st_size, fetched=fetched)
    with asked(port, "/", more=more) if more else socket.create_connection(("127.0.0.1", port), 20) as sock:
        if not more:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        buffered = bytearray()
        assert answer(sock, buffered=buffered) == b"a" + large.read_bytes()
        assert not buffered
        assert sock.recv(1) == b""


def test_without_a_length_they_are_read(large: Path, shop: Shop, port: int) -> None:
    shop.give("/", lambda: iter((b"a", stretch(large))), length=None)
    with asked(port, "/", more="Connection: close\r\n") as sock:
        came = b"".join(iter(lambda: sock.recv(MIB), b""))
    head, _, rest = came.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert body == b"a" + large.read_bytes()


def test_where_the_connection_is_encrypted_they_are_read(large: Path, shop: Shop, authority: Authority) -> None:
    size = large.stat().st_size
    shop.give("/", lambda: iter((b"a", stretch(large))), length=1 + size)
    own = authority.archive
    with (
        running(shop, ssl_certfile=own.cert, ssl_keyfile=own.key) as port,
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        authority.context(None).wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert answer(sock, buffered=bytearray()) == b"a" + large.read_bytes()
    assert shop.unread == [False]


def test_the_server_stops_when_what_leaves_has_left(large: Path, shop: Shop) -> None:
    shop.give("/", lambda: iter((stretch(large), b"end")), length=large.stat().st_size + 3)
    with running(shop) as port:
        sock = asked(port, "/", receive_buffer=5000)
        first = bytearray(sock.recv(10))
        done: list[bytes] = []
        reading = threading.Thread(target=lambda: done.append(answer(sock, buffered=first)))
        reading.start()
    reading.join(20)
    sock.close()
    assert done == [large.read_bytes() + b"end"]


def test_files_that_never_left_are_closed(large: Path) -> None:
    async def given_up() -> None:
        scope = {"type": "http", "extensions": {EXTENSION: {}}, "asgi": {"spec_version": "2.3"}}
        begun = asyncio.Event()

        async def send(_: object) -> None:
            begun.set()
            await asyncio.sleep(60)

        async def receive() -> dict[str, str]:
            await begun.wait()
            return {"type": "http.disconnect"}

        length = {"Content-Length": str(9 * large.stat().st_size)}
        await Stream((stretch(large) for _ in range(9)), headers=length)(scope, receive, send)

    thread = threading.Thread(target=asyncio.run, args=(given_up(),))  # a test before may have left a loop running here
    thread.start()
    thread.join(20)
    until(lambda: not descriptors(), "files stay open")
