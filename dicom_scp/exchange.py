"""Messages over an established association (PS3.8 Sta6), whichever side opened it.

One operation at a time, as the asynchronous window (1,1) says. A message's data set is read piece by piece by
whoever serves it; bytes of files go out between PDU heads without being looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from archive.clock import monotonic
from archive.errors import ArchiveError, StorageFailed
from dicom_scp import dimse, pdu
from dicom_scp.classes import Service
from dicom_scp.ends import AbortReason, CopyEnded, PeerAborted, ProtocolError
from dicom_scp.pdu import COMMAND, Fragment, PduType, Reader
from dicom_scp.transport import Transport

COMMAND_LIMIT = 1 << 16  # a command set is a few hundred bytes
IDENTIFIER_LIMIT = 1 << 24
UNLIMITED_PDU = 1 << 17  # written to a peer that announces 0
LARGEST_PDU = 1 << 18  # ever written
_GATHERED_BYTES = 1 << 19  # read from a file before one send
_GATHERED_PDUS = 200
_PIECES = 256  # of a data set, handed on at once: they are written by one call to the system


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context."""

    id: int
    abstract_syntax: str
    transfer_syntax: str
    service: Service
    we_send: bool = False  # we may send C-STORE-RQ on it
    relational: bool = False  # extended negotiation of queries and retrieves
    combined_datetime: bool = False
    empty_values: bool = False
    multiple_values: bool = False
    timezone: bool = False


class Message(NamedTuple):
    """A command set, and the context it came on. Its data set, if any, is still on the wire."""

    context: Context
    command: dimse.Command


class Exchange:
    """Sends and receives messages. One thread."""

    def __init__(
        self,
        transport: Transport,
        reader: Reader,
        *,
        contexts: Mapping[int, Context],
        peer_max_pdu: int,
        dimse_seconds: float,
    ) -> None:
        self.transport = transport
        self.contexts = contexts
        self._reader = reader
        self._seconds = dimse_seconds
        self._payload = pdu.payload_bytes(min(peer_max_pdu or UNLIMITED_PDU, LARGEST_PDU))
        self._on: int | None = None  # context of the data set that is still to be read
        self._file_buffer: memoryview | None = None

    # --- receiving

    def receive(self, until: float) -> Message | None:
        """The next message, waiting for it until the deadline; None: the peer asks for release.

        Raises AssociationEnd in its kinds.
        """
        if self._on is not None:
            raise RuntimeError("the data set of the last message was not read")
        first = self._fragment(until)
        if first is None:
            return None
        context = self.contexts.get(first.context_id)
        if context is None:
            raise ProtocolError("a message on a context that was not accepted", AbortReason.INVALID_PARAMETER)
        if not first.command:
            raise ProtocolError("a data set without a command", AbortReason.UNEXPECTED_PARAMETER)
        command = dimse.decode(bytes(first.data) if first.last else self._rest_of_command(first))
        if command.has_data_set:
            self._on = context.id
        return Message(context, command)

    def _rest_of_command(self, first: Fragment) -> bytes:
        collected, context_id, last = bytearray(first.data), first.context_id, False
        while not last:
            piece = self._within(context_id, command=True)
            collected += piece.data
            if len(collected) > COMMAND_LIMIT:
                raise ProtocolError("a command set without end")
            last = piece.last
        return bytes(collected)

    def data_set(self) -> Iterator[list[memoryview]]:
        """The data set that follows the last command, as it arrives: pieces that are good until more are asked for."""
        while (context_id := self._on) is not None:
            pieces: list[memoryview] = []
            more = True
            while more:
                piece = self._within(context_id, command=False)
                if piece.data:
                    pieces.append(piece.data)
                if piece.last:
                    self._on = None
                more = not piece.last and self._reader.holds_piece and len(pieces) < _PIECES
            if pieces:
                yield pieces

    def drain(self) -> None:
        """Read what is left of the data set: nobody wants it, and an answer has to follow it."""
        for _ in self.data_set():
            pass

    def identifier(self) -> bytes | None:
        """The data set whole; None when it is longer than any identifier (it is read away)."""
        if self._on is None:
            return b""
        first = self._within(self._on, command=False)
        if first.last:  # in one piece, as almost all come
            self._on = None
            return bytes(first.data)
        collected = bytearray(first.data)
        for pieces in self.data_set():
            for piece in pieces:
                collected += piece
            if len(collected) > IDENTIFIER_LIMIT:
                self.drain()
                return None
        return bytes(collected)

    def _within(self, context_id: int, *, command: bool) -> Fragment:
        """The next piece of a message that has begun."""
        piece = self._fragment(monotonic() + self._seconds)
        if piece is None:
            raise ProtocolError("a release in the middle of a message", AbortReason.UNEXPECTED_PDU)
        if piece.context_id != context_id or piece.command is not command:
            raise ProtocolError("another message in the middle of one", AbortReason.UNEXPECTED_PARAMETER)
        return piece

    def _fragment(self, until: float) -> Fragment | None:
        received = self._reader.next(until)
        if isinstance(received, Fragment):
            return received
        if received.type is PduType.ABORT:
            raise PeerAborted("the peer aborted")
        if received.type is PduType.RELEASE_RQ:
            return None
        raise ProtocolError(f"{received.type.name} on an established association", AbortReason.UNEXPECTED_PDU)

    def has_input(self) -> bool:
        """Whether a message, or the end of the connection, is waiting to be received. Does not wait."""
        return self._reader.holds_bytes or self.transport.readable()

    def cancelled(self, message_id: int) -> bool:
        """Look, without waiting, whether the peer cancels the operation that it asked for (PS3.7 §9.3.2.3).

        Raises ProtocolError for any other request: the window is one operation.
        """
        while self.has_input():
            if self.is_cancel(self.receive(monotonic() + self._seconds), message_id):
                return True
        return False

    @staticmethod
    def is_cancel(message: Message | None, message_id: int) -> bool:
        """Whether this is the C-CANCEL of an operation; a stray one is ignored, anything else an error."""
        if message is None:
            raise ProtocolError("a release while an operation runs", AbortReason.UNEXPECTED_PDU)
        if message.command.field != dimse.Field.C_CANCEL_RQ or message.command.has_data_set:
            raise ProtocolError("a request while an operation runs", AbortReason.UNEXPECTED_PDU)
        return message.command.responding_to == message_id

    # --- sending

    def _until(self) -> float:
        return monotonic() + self._seconds

    def encoded(self, context_id: int, command: bytes, data_set: bytes | None = None) -> list[bytes | memoryview]:
        """A message as buffers to send in order."""
        parts = pdu.p_data(context_id, command, COMMAND, self._payload)
        if data_set is not None:
            parts += pdu.p_data(context_id, data_set, 0, self._payload)
        return parts

    def send(self, context_id: int, command: bytes, data_set: bytes | None = None) -> None:
        self.transport.send(self.encoded(context_id, command, data_set), self._until())

    def send_parts(self, parts: list[bytes | memoryview]) -> None:
        """Send messages made by `encoded`."""
        self.transport.send(parts, self._until())

    def send_file(
        self,
        context_id: int,
        command: bytes,
        fd: int,
        *,
        offset: int,
        length: int,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a command, and as its data set `length` bytes of a file. `between` is called from time to time.

        Raises:
            StorageFailed: the file cannot be read; nothing was sent.
            CopyEnded: it cannot be read to its end, and the message is broken off.
        """
        if self._file_buffer is None:
            pdus = max(1, min(_GATHERED_PDUS, _GATHERED_BYTES // self._payload))
            self._file_buffer = memoryview(bytearray(pdus * self._payload))
        buffer, payload = self._file_buffer, self._payload
        parts = self.encoded(context_id, command)
        end = offset + length
        while True:
            size = min(len(buffer), end - offset)
            try:
                _read(fd, buffer[:size], offset)
            except StorageFailed as error:
                if parts:
                    raise
                raise CopyEnded("a copy failed while it was being sent") from error
            offset += size
            for start in range(0, max(size, 1), payload):
                piece = buffer[start : min(start + payload, size)]
                last = offset == end and start + payload >= size
                parts += (pdu.p_data_head(context_id, len(piece), pdu.LAST if last else 0), piece)
            self.transport.send(parts, self._until())
            if offset >= end:
                return
            parts = []
            between()

    def send_pieces(
        self, context_id: int, command: bytes, pieces: Iterator[bytes], *, between: Callable[[], None] = lambda: None
    ) -> None:
        """Send a command, and as its data set what `pieces` makes while it is sent.

        Raises:
            ArchiveError, OSError: of the first piece; nothing was sent.
            CopyEnded: a later piece could not be made, and the message is broken off.
        """
        waiting = bytearray(next(pieces, b""))
        parts = self.encoded(context_id, command)
        ended = False
        while not ended:
            try:
                while len(waiting) <= _GATHERED_BYTES and not ended:
                    piece = next(pieces, None)
                    ended = piece is None
                    waiting += piece or b""
            except (ArchiveError, OSError) as error:
                raise CopyEnded("a copy could not be made whole while it was being sent") from error
            # all but the end in full PDUs; the last one carries the mark
            size = len(waiting) if ended else (len(waiting) - 1) // self._payload * self._payload
            for start in range(0, max(size, 1), self._payload):
                some = bytes(waiting[start : min(start + self._payload, size)])
                last = ended and start + self._payload >= size
                parts += (pdu.p_data_head(context_id, len(some), pdu.LAST if last else 0), some)
            del waiting[:size]
            self.transport.send(parts, self._until())
            parts = []
            between()

    def abort(self, reason: AbortReason | None = None) -> None:
        """Say A-ABORT: as provider with a reason, else as user. What cannot be said is not said."""
        said = pdu.USER_ABORT if reason is None else pdu.abort(reason)
        self.transport.send([said], monotonic() + 1)


def _read(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise StorageFailed(f"a copy cannot be read: {error.strerror}") from error
        if not count:
            raise StorageFailed("a copy ends before its length")
        done += count
