"""Calling another HL7 system over MLLP: one connection, a message and its answer at a time."""

from __future__ import annotations

import socket
import ssl
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from archive.clock import monotonic
from archive.config import Settings
from archive.errors import Busy
from archive.tls import reason
from hl7_listener.encoding import UTF8, Delimiters, escape
from hl7_listener.message import HL7Error, Message, parse
from hl7_listener.mllp import SETTLE_SECONDS, Framing, TooLong, frame
from hl7_listener.person import segment
from hl7_listener.values import text

_PIECE = 1 << 16
_SIGNS = Delimiters()
_OURSELVES = "MINIPACS"


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
def calling(
    host: str, port: int, *, seconds: float, max_bytes: int, tls: ssl.SSLContext | None = None
) -> Iterator[Call]:
    """Call somebody, over TLS with `tls`. Raises Busy when they cannot be reached in time, or are not believed."""
    try:
        sock = socket.create_connection((host, port), timeout=seconds)
    except OSError as error:
        raise Busy(f"the other system cannot be reached ({type(error).__name__})") from error
    with sock:
        if tls is None:
            yield Call(sock, seconds=seconds, max_bytes=max_bytes)
            return
        try:
            secured = tls.wrap_socket(sock, server_hostname=host)
        except ssl.SSLError as error:
            raise Busy(f"TLS with the other system failed: {reason(error)}") from error
        except OSError as error:
            raise Busy(f"TLS with the other system failed ({type(error).__name__})") from error
        with secured:
            yield Call(secured, seconds=seconds, max_bytes=max_bytes)


@dataclass(frozen=True, slots=True)
class Said:
    """A message of ours. `control_id`: what its answer has to be about."""

    control_id: str
    content: bytes


def said(
    settings: Settings, kind: str, segments: Sequence[str], *, to: tuple[str, str], version: str, at: datetime
) -> Said:
    """A message of this archive in UTF-8: MSH, then `segments`. `to`: application and facility (MSH-5, MSH-6)."""
    control_id = uuid.uuid4().hex[:20]
    head = segment(
        "MSH",
        str(_SIGNS),
        _OURSELVES,
        escape(settings.site.finess or settings.site.name, _SIGNS),
        *(escape(one, _SIGNS) for one in to),
        f"{at:%Y%m%d%H%M%S%z}",
        "",
        kind,
        control_id,
        settings.hl7.processing_ids[0],
        version,
        *[""] * 5,
        UTF8,
    )
    return Said(control_id, "".join(f"{one}\r" for one in (head, *segments)).encode())


def understood(call: Call, message: Said, *, default_charset: str) -> Message:
    """The answer to a message. Raises Busy: none came, it cannot be read, or it is about another message."""
    try:
        answer = parse(call.ask(message.content), default_charset=default_charset)
    except HL7Error as error:
        raise Busy(f"the answer of the other system cannot be read ({error})") from error
    msa = answer.first("MSA")
    if msa is None or text(msa.value(2)) != message.control_id:
        raise Busy("the other system answers another message")
    return answer
