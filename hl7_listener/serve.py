"""Listening for HL7: connections, their order, and the threads that do the work. The loop only moves bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import structlog

from archive import lookup, sharing
from archive.core import Archive
from archive.duties import Duties
from hl7_listener import consumer, omi
from hl7_listener.mllp import SETTLE_SECONDS, Framing, TooLong, frame
from hl7_listener.receive import arrival_of, receive, sender_of, unread

log = structlog.get_logger(__name__)

FINISH_SECONDS = 20.0  # for the messages that are being applied when the archive stops
ANSWER_SECONDS = 60.0  # patience for a sender that does not take its answer
MAX_CONNECTIONS = 256
SHARING_SECONDS = 5.0  # between two looks for what the DRIMbox is to be told
_THREADS = 8
_PIECE = 1 << 18
_BACKLOG = 512
_MEMORY_FACTOR = 4  # all incomplete messages together may be this many times the longest


def serve(archive: Archive, sock: socket.socket, stopping: threading.Event) -> None:
    """Answer HL7 over MLLP on a listening socket until `stopping` is set; then finish what is being applied.

    The socket may be shared with other processes: it stays open and listening. One answer a message, in order, on its
    connection; messages of one sender are applied in the order in which they were complete, whatever the connection.
    Beside that, whoever was asked for is looked up at the configured supplier of demographics, and
    the DRIMbox told what changed.
    """
    with ExitStack() as held:
        if lookup.is_on(archive):
            held.enter_context(closing(Duties(archive, consumer.DUTIES, also=(lookup.forget_left,))))
        if archive.settings.sharing.tells:
            watching = Duties(archive, omi.DUTIES, also=(sharing.tell_due,), look_seconds=SHARING_SECONDS)
            held.enter_context(closing(watching))
        asyncio.run(_Listener(archive).run(sock, stopping))


class _Listener:
    """The connections of this process. Touched by the loop's thread alone."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hl7")
        self._turns: dict[str, _Turn] = {}  # of senders that have messages under way
        self._busy: dict[asyncio.Task[None], bool] = {}  # every connection: whether a message of it is being answered
        self._stopping = False
        self._number = 0
        self._pending_bytes = 0

    async def run(self, sock: socket.socket, stopping: threading.Event) -> None:
        """Listen until `stopping` is set; then end the connections."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def wait() -> None:
            stopping.wait()
            with contextlib.suppress(RuntimeError):  # the loop broke down before
                loop.call_soon_threadsafe(stopped.set)

        threading.Thread(target=wait, name="stop", daemon=True).start()
        host, port = sock.getsockname()[:2]
        server = await asyncio.start_server(self._connected, sock=sock.dup(), limit=_PIECE, backlog=_BACKLOG)
        log.info("listening for HL7", host=host, port=port)
        try:
            await stopped.wait()
        finally:
            server.close()
            await self._end()
            self._pool.shutdown(wait=False, cancel_futures=True)
        log.info("no longer listening for HL7")

    async def _end(self) -> None:
        """Cut who is silent; let the others have the answer to the message that is being applied."""
        self._stopping = True
        tasks = list(self._busy)
        for task in tasks:
            if not self._busy[task]:
                task.cancel()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=FINISH_SECONDS)
        for task in late:
            log.error("an HL7 message is not finished in time: no answer is given")
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._busy) >= MAX_CONNECTIONS or self._stopping:
            log.error("an HL7 connection is not taken", open=len(self._busy))
            writer.close()
            return
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._number += 1
        source = str((writer.get_extra_info("peername") or ("",))[0])
        name = f"{source} #{self._number}"
        self._busy[task] = False
        log.info("HL7 connection opened", connection=name)
        try:
            async for message in self._messages(reader, writer):
                self._busy[task] = True
                await _send(writer, await self._answer(message, source=source, connection=name))
                self._busy[task] = False
                if self._stopping:
                    break
        except (OSError, TimeoutError) as error:
            log.warning("an HL7 connection broke off", connection=name, error=type(error).__name__)
        except asyncio.CancelledError:
            log.info("an HL7 connection is closed: the archive stops", connection=name)
        finally:
            del self._busy[task]
            writer.close()
        log.info("HL7 connection closed", connection=name)

    async def _messages(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
        """The messages of a connection, until it ends or holds more than is bearable."""
        limit = self._archive.settings.hl7.max_message_bytes
        framing = Framing(max_bytes=limit)
        held = 0
        try:
            while True:
                data = await _read(reader, SETTLE_SECONDS if framing.ending else None)
                for message in framing.feed(data) if data else framing.settle():
                    yield message
                if data == b"":
                    return
                self._pending_bytes += framing.pending_bytes - held
                held = framing.pending_bytes
                if self._pending_bytes > _MEMORY_FACTOR * limit:
                    raise TooLong(framing.beginning)
        except TooLong as error:
            framing.close()
            self._pending_bytes -= held  # now, so that nobody else has to go because of it
            held = 0
            await _send(writer, await self._run(unread, self._archive, error.beginning))
        finally:
            self._pending_bytes -= held
            framing.close()

    async def _answer(self, message: bytes, *, source: str, connection: str) -> bytes:
        """The ACK, once it is the message's turn among those of its sender."""
        sender = sender_of(message)
        turn = self._turns.setdefault(sender, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:  # first come, first served
                return await self._run(_work, self._archive, message, source, connection)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[sender]

    async def _run(self, work: Callable[..., bytes], *arguments: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


@dataclass(slots=True)
class _Turn:
    """The order of one sender's messages."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


def _work(archive: Archive, message: bytes, source: str, connection: str) -> bytes:
    arrival = arrival_of(message, source=source, at=archive.clock())
    return receive(archive, arrival, connection=connection)


async def _read(reader: asyncio.StreamReader, seconds: float | None) -> bytes | None:
    """What came; b"" at the end of the connection, None when nothing came in time."""
    try:
        async with asyncio.timeout(seconds):
            return await reader.read(_PIECE)
    except TimeoutError:
        return None


async def _send(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(frame(answer))
    async with asyncio.timeout(ANSWER_SECONDS):
        await writer.drain()
