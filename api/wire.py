"""Sending files without reading them: uvicorn's HTTP protocol, taught to have the system copy stretches of stored files
to the socket (sendfile(2)). A series is gigabytes, and copying each byte twice was most of what it cost.

An application that finds `EXTENSION` among the extensions of its scope, and in it the `wire`, may give a `Batch` as
`body`, but not as the last one, if the answer has a Content-Length. Everything else is as ASGI says: the next `send`
is awaited too, and tells that the batch has left.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Iterable
from typing import Any

import structlog
from anyio import to_thread
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from archive.errors import ArchiveError
from archive.stretch import Stretch

log = structlog.get_logger(__name__)

EXTENSION = "minipacs.stretches"
PATIENCE_MS = 20  # a thread waits so long for a full socket, the event loop for as long as it takes
_DRAINING_SECONDS = 0.002  # between two looks whether what was written before has left


class Batch:
    """Pieces of an answer, some of them stretches of files; `fetched`, if those lie in memory. Its length is that of
    all of it, in bytes."""

    def __init__(self, pieces: Iterable[bytes | memoryview | Stretch], *, fetched: bool = False) -> None:
        self.fetched = fetched
        self.taken = False  # by a connection, which closes it
        self._pieces = list(pieces)
        self._bytes = sum(map(len, self._pieces))

    def __len__(self) -> int:
        return self._bytes

    def begin_with(self, head: bytes) -> None:
        """Have these bytes leave before, which do not count."""
        self._pieces.insert(0, head)

    def send(self, sock: socket.socket, *, patience_ms: int = PATIENCE_MS) -> bool:
        """Send as much as `sock`, which does not block, takes: whether that was all. What was sent is forgotten.

        Raises:
            OSError: the connection is gone, or a file cannot be read.
            StorageFailed: a file ends before.
        """
        pieces = self._pieces
        while pieces:
            piece = pieces[0]
            try:
                if isinstance(piece, Stretch):
                    piece.send(sock.fileno())
                else:
                    more = socket.MSG_MORE if len(pieces) > 1 else 0  # it leaves with what follows
                    sent = sock.send(piece, more)
                    if sent < len(piece):
                        pieces[0] = memoryview(piece)[sent:]
                        continue
            except BlockingIOError:
                if patience_ms and _is_writable(sock, patience_ms):
                    continue
                return False
            del pieces[0]
        return True

    def give_up(self) -> None:
        """Let go of the files, unless it is leaving."""
        if not self.taken:
            self.close()

    def close(self) -> None:
        """Let go of the files. Safe to call twice."""
        for piece in self._pieces:
            if isinstance(piece, Stretch):
                piece.close()
        self._pieces.clear()


class Wire(asyncio.Transport):
    """The transport of a connection, as far as uvicorn writes to it. While a batch leaves, its protocol's writing is
    paused, so that nothing else is written."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._socket: socket.socket | None = None  # our own descriptor: what a thread writes to is never another's
        self._leaving: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._holding = False
        self._held = b""

    @property
    def busy(self) -> bool:
        """Whether a batch leaves."""
        return self._leaving is not None

    def hold(self) -> None:
        """Keep the head of the answer, which is written next, until its body is written."""
        self._holding = True

    def write(self, data: Any) -> None:
        assert not self.busy, "a batch is awaited before anything else is sent"
        if self._holding:
            self._holding, self._held = False, data
            return
        held, self._held = self._held, b""
        if not isinstance(data, Batch):
            self._transport.write(held + data if held else data)
            return
        data.taken = True
        if held:
            data.begin_with(held)
        if not (data.fetched and self._sent_at_once(data)):
            self._protocol.pause_writing()
            self._leaving = asyncio.get_running_loop().create_task(self._send(data))

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def lost(self) -> None:
        """The connection is gone."""
        if self._writable is not None:
            _fulfil(self._writable)
        if not self.busy and self._socket is not None:
            self._socket.close()

    def _sent_at_once(self, batch: Batch) -> bool:
        """Send what lies in memory, in the event loop: whether the socket took all of it."""
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return False
        try:
            return batch.send(self._own_socket(), patience_ms=0)
        except (ArchiveError, OSError):
            return False  # it is tried again, and told of

    def _own_socket(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
            self._socket.setblocking(False)
        return self._socket

    async def _send(self, batch: Batch) -> None:
        complete = False
        try:
            while not self._transport.is_closing() and self._transport.get_write_buffer_size():
                await asyncio.sleep(_DRAINING_SECONDS)
            if self._transport.is_closing():
                return
            sock = self._own_socket()
            while not await to_thread.run_sync(batch.send, sock):
                if not self._transport.is_closing():  # it may have been cut while the thread sent
                    await self._until_writable(sock)
                if self._transport.is_closing():
                    return
            complete = True
        except (ConnectionError, TimeoutError):
            pass  # the client is gone
        except (ArchiveError, OSError) as error:
            log.error("an answer breaks off", why=str(error))
        finally:
            batch.close()
            self._leaving = None
            if not complete:
                self.abort()
            if self._transport.is_closing() and self._socket is not None:
                self._socket.close()
            self._protocol.resume_writing()

    async def _until_writable(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._writable = loop.create_future()
        loop.add_writer(sock, _fulfil, self._writable)
        try:
            await self._writable
        finally:
            loop.remove_writer(sock)
            self._writable = None


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a `Wire` where the transport does not encrypt."""

    _wire: Wire | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.scheme == "http":
            self.transport = self._wire = Wire(transport, self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._wire is not None:
            self._wire.lost()

    def on_headers_complete(self) -> None:
        if self._wire is not None:
            self.scope["extensions"] = {EXTENSION: {"wire": self._wire}}
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # in the middle of another answer there is no place for it
        else:
            super().send_400_response(msg)

    def resume_writing(self) -> None:
        if self._wire is None or not self._wire.busy:
            super().resume_writing()


def _is_writable(sock: socket.socket, patience_ms: int) -> bool:
    full = select.poll()
    full.register(sock, select.POLLOUT)
    return bool(full.poll(patience_ms))


def _fulfil(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)
