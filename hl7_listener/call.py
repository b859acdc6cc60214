"""Calling another HL7 system over MLLP: one connection, a message and its answer at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from archive.clock import monotonic
from archive.errors import Busy
from hl7_listener.mllp import SETTLE_SECONDS, Framing, TooLong, frame

_PIECE = 1 << 16


class Call:
    """A connection that is open. Not to be shared between threads."""

    def __init__(self, sock: socket.socket, *, seconds: float, max_bytes: int) -> None:
        self._sock = sock
        self._seconds = seconds
        self._framing = Framing(max_bytes=max_bytes)

    def ask(self, message: bytes) -> bytes:
        """The answer to a message. Raises Busy: none came in time, or none that can be taken."""
        deadline = monotonic() + self._seconds
        try:
            self._sock.settimeout(self._seconds)
            self._sock.sendall(frame(message))
            while (left := deadline - monotonic()) > 0:
                self._sock.settimeout(min(left, SETTLE_SECONDS) if self._framing.ending else left)
                try:
                    data = self._sock.recv(_PIECE)
                except TimeoutError:
                    data = None
                for answer in self._framing.feed(data) if data else self._framing.settle():
                    return answer
                if data == b"":
                    raise Busy("the other system ended the connection without an answer")
        except TooLong as error:
            raise Busy("the answer of the other system is too long") from error
        except OSError as error:
            raise Busy(f"the connection to the other system broke off ({type(error).__name__})") from error
        raise Busy(f"the other system did not answer within {self._seconds:g} s")


@contextmanager
def calling(host: str, port: int, *, seconds: float, max_bytes: int) -> Iterator[Call]:
    """Call somebody. Raises Busy when they cannot be reached in time."""
    try:
        sock = socket.create_connection((host, port), timeout=seconds)
    except OSError as error:
        raise Busy(f"the other system cannot be reached ({type(error).__name__})") from error
    with sock:
        yield Call(sock, seconds=seconds, max_bytes=max_bytes)
