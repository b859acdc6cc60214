"""Syslog (RFC 5424) over TLS (RFC 5425) or, on this machine, over TCP (RFC 6587): a batch of messages, and its receipt.

Syslog has no acknowledgements. What is written to a socket may still be lost with the other side; so a batch has a
connection of its own, and its end is the receipt: we say that we have nothing more, and the other side closes only when
it has read to there (TLS close_notify, RFC 5425 §4.4). Where it says no close_notify (the GnuTLS driver of rsyslog,
clear text), a program that was killed with the batch in its memory ends the same way: it has to be there still.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import ssl
import sys
import termios
from collections.abc import Iterable
from time import sleep
from typing import Final

from archive.clock import monotonic
from archive.tls import fingerprint, reason

NOTICE, WARNING = 85, 84  # facility 10 (security), severities 5 and 4 (RFC 5424 6.2.1; ITI-20 3.20.4.1.2)
MESSAGE_ID: Final = "IHE+RFC-3881"
APPLICATION: Final = "minipacs"
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


class NotDelivered(Exception):
    """The other side was not reached, or did not confirm: the same batch is sent again later."""


class NotBelieved(NotDelivered):
    """TLS was not agreed on: one side does not believe the other's certificate, or they share no version or suite."""


def record(message: bytes, *, time: str, host: str, process: str, warning: bool = False) -> bytes:
    """A syslog message, framed by its length. `time` is RFC 3339 with microseconds at most."""
    header = f"<{WARNING if warning else NOTICE}>1 {time} {_name(host, 255)} {APPLICATION} {_name(process, 128)}"
    content = f"{header} {MESSAGE_ID} - ".encode("ascii") + message
    return b"%d %b" % (len(content), content)


def _name(text: str, most: int) -> str:
    return _NOT_PRINTABLE.sub("_", text)[:most] or "-"


def deliver(
    records: Iterable[bytes],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    fingerprints: Iterable[str] = (),
    seconds: float = 5.0,
) -> None:
    """Send a batch, and return when the other side has taken all of it. `seconds` is the patience for each step.

    Raises NotDelivered, NotBelieved: some of it may have arrived, and all of it is to be sent again.
    """
    pinned = frozenset(fingerprints)
    try:
        if not _hand_over(b"".join(records), (host, port), tls, pinned, seconds):
            _hand_over(b"", (host, port), tls, pinned, seconds)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
        raise NotDelivered(f"{host}:{port} ended the connection") from error
    except ssl.SSLError as error:
        raise NotBelieved(f"TLS: {reason(error)}") from error
    except TimeoutError as error:
        raise NotDelivered(f"{host}:{port} does not answer within {seconds:g} s") from error
    except OSError as error:
        raise NotDelivered(f"{host}:{port}: {error.strerror or error}") from error


def _hand_over(
    data: bytes, address: tuple[str, int], tls: ssl.SSLContext | None, pinned: frozenset[str], seconds: float
) -> bool:
    """Send it in a connection of its own, until they close that with all of it read; True: having said close_notify."""
    with socket.create_connection(address, seconds) as sock:
        if tls is None:
            sock.sendall(data)
            _await_end(sock, seconds)
            return False
        with tls.wrap_socket(sock, server_hostname=address[0]) as secured:
            shown = secured.getpeercert(binary_form=True)
            if pinned and (shown is None or fingerprint(shown) not in pinned):
                raise NotBelieved("the certificate of the repository is not among its fingerprints")
            secured.sendall(data)
            return _say_goodbye(secured, seconds)


def _say_goodbye(sock: ssl.SSLSocket, seconds: float) -> bool:
    """Until their close_notify (True), or at least the end of the stream. Either may be older than what we sent, when
    they do not believe our certificate: the end below it tells."""
    said = False
    with contextlib.suppress(ssl.SSLEOFError):
        sock.unwrap()
        said = True
    with socket.socket(fileno=sock.detach()) as below:
        below.settimeout(seconds)
        _await_end(below, seconds)
    return said


def _await_end(sock: socket.socket, seconds: float) -> None:
    """Until they close the connection. Raises OSError when they left something unread."""
    sock.shutdown(socket.SHUT_WR)
    until = monotonic() + seconds
    while sock.recv(4096):
        if monotonic() > until:
            raise TimeoutError
    _demand_read(sock, seconds)


def _demand_read(sock: socket.socket, seconds: float) -> None:
    """Raise OSError unless their end acknowledged all of our bytes: a socket that is closed with bytes unread, or gets
    some after that, answers with a reset (RFC 1122 4.2.2.13)."""
    until = monotonic() + seconds
    while int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder):
        if monotonic() > until:
            raise TimeoutError
        sleep(0.005)
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))
