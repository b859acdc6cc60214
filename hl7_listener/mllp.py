"""Frames of the minimal lower layer protocol: bytes of a connection in, messages out (REQ-HL7-01 to 05). No sockets."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import structlog

log = structlog.get_logger(__name__)

START, END, CR = 0x0B, 0x1C, 0x0D
_BEGINNING = 1 << 16
_ENDING = re.compile(rb"\x1c(?=[\r\x0b]|\Z)")  # with anything else behind it, it is part of the message
SETTLE_SECONDS = 1.0  # patience for the CR behind the end of a message


class TooLong(Exception):
    """A message above the limit; `beginning` is what of it is needed for an answer."""

    def __init__(self, beginning: bytes) -> None:
        super().__init__("a message is too long")
        self.beginning = beginning


def frame(message: bytes) -> bytes:
    """A message as it is sent."""
    return b"%c%b%c%c" % (START, message, END, CR)


class Framing:
    """One connection's incoming bytes. Holds at most one message that is not complete."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open = False
        self._ending = False  # 0x1C was the last byte
        self._buffer = bytearray()

    @property
    def ending(self) -> bool:
        """A message is complete but for the CR: call `settle` when nothing comes within SETTLE_SECONDS."""
        return self._ending

    @property
    def pending_bytes(self) -> int:
        """What an incomplete message holds in memory."""
        return len(self._buffer)

    @property
    def beginning(self) -> bytes:
        """What of an incomplete message is needed for an answer."""
        return bytes(self._buffer[:_BEGINNING])

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes, in order; it may be cut anywhere. Empty ones are passed over.

        Bytes outside of frames are ignored. A start inside a message begins anew: what came before is dropped.

        Raises:
            TooLong: the connection is of no more use; messages before it were given.
        """
        position = 0
        while position < len(data):
            if self._ending:
                position = yield from self._after_end(data, position)
            elif self._open:
                position = self._inside(data, position)
            else:
                found = data.find(START, position)
                if found < 0:
                    return
                self._open, position = True, found + 1

    def settle(self) -> Iterator[bytes]:
        """The message that only lacks its CR, if there is one."""
        if self._ending:
            yield from self._complete()

    def close(self) -> None:
        """No more bytes will come."""
        if self._open and not self._ending and self._buffer:
            log.warning("a connection ended inside an HL7 message: dropped", bytes=len(self._buffer))
        self._open = self._ending = False
        self._buffer = bytearray()

    def _inside(self, data: bytes, position: int) -> int:
        """Take content up to the next end or start; returns the position behind it."""
        found = _ENDING.search(data, position)
        end = len(data) if found is None else found.start()
        start = data.rfind(START, position, end)  # the last of them: floods of starts cost and are told once
        if start >= 0:
            if self._buffer or start > position:
                log.warning("an HL7 message begins inside another: the first is dropped")
            self._buffer = bytearray()
            return start + 1
        self._take(data[position:end])
        self._ending = end < len(data)
        return end + 1

    def _after_end(self, data: bytes, position: int) -> Generator[bytes, None, int]:
        """What follows 0x1C: CR or a start end the message; with anything else it was part of it."""
        if data[position] in (CR, START):
            yield from self._complete()
            return position + (data[position] == CR)
        self._ending = False
        self._take(bytes((END,)))
        return position

    def _take(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > self._max_bytes:
            beginning = bytes((self._buffer or data)[:_BEGINNING])
            self.close()
            raise TooLong(beginning)
        self._buffer += data

    def _complete(self) -> Iterator[bytes]:
        message, self._buffer = bytes(self._buffer), bytearray()
        self._open = self._ending = False
        if message.strip():
            yield message
