"""A time client: how far this machine's clock is from that of a server (IHE CT, ITI-1; SNTP, RFC 5905 §14, RFC 4330).

It measures and sets nothing: setting the clock belongs to the system. A tiny client of our own: the library of the
field has had no release since 2021 (docs/decisions/0018).
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from archive.clock import Clock, monotonic

PORT = 123
SAMPLES = 4  # of a server; the one that was quickest on its way counts
_PACKET = struct.Struct("!BBbbII4s8xQQQ")  # RFC 5905 7.3, the reference timestamp passed over
_EPOCH = datetime(1900, 1, 1, tzinfo=UTC)
_ERA = 1 << 64
_CLIENT, _SERVER, _UNSYNCHRONISED = 3, 4, 3


class NoTime(Exception):
    """A server did not answer, or not with a time that can be used."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One exchange. `offset_seconds`: the server's time from ours; `delay_seconds`: both ways together."""

    offset_seconds: float
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The clock beside several servers: the median of their offsets; None when none answered. `silent` says why not."""

    offset_seconds: float | None
    answered: int
    silent: tuple[str, ...]


def compare(servers: Sequence[str], clock: Clock, *, seconds: float = 2.0) -> Comparison:
    """Ask each server; `seconds` is the patience with one of them, in all its samples."""
    offsets: list[float] = []
    silent: list[str] = []
    for server in servers:
        try:
            offsets.append(measure(server, clock, seconds=seconds).offset_seconds)
        except NoTime as error:
            silent.append(f"{server}: {error}")
    return Comparison(median(offsets) if offsets else None, len(offsets), tuple(silent))


def measure(server: str, clock: Clock, *, seconds: float = 2.0) -> Sample:
    """The quickest of some exchanges with `HOST` or `HOST:PORT`. Raises NoTime."""
    host, port = address_of(server)
    until = monotonic() + seconds
    best: Sample | None = None
    why: Exception | None = None
    for _ in range(SAMPLES):
        try:
            found = _exchange(host, port, clock, max(0.05, until - monotonic()))
        except (OSError, NoTime) as error:
            why = error
        else:
            best = found if best is None or found.delay_seconds < best.delay_seconds else best
        if monotonic() >= until:
            break
    if best is not None:
        return best
    if isinstance(why, TimeoutError):
        raise NoTime(f"no answer within {seconds:g} s") from why
    raise NoTime(str(why.strerror or why) if isinstance(why, OSError) else str(why)) from why


def address_of(server: str) -> tuple[str, int]:
    """`HOST`, `HOST:PORT` or `[IPv6]:PORT`. Raises NoTime."""
    host, colon, port = server.rpartition(":")
    if not colon or (":" in host and not server.startswith("[")):
        host, port = server, str(PORT)
    if not port.isdigit() or not 0 < int(port) < 65536 or not host.strip("[]"):
        raise NoTime("not a server: HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _exchange(host: str, port: int, clock: Clock, seconds: float) -> Sample:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    cookie = secrets.randbits(64)  # comes back as it was sent, and says nothing of our clock (RFC 5905 §14)
    request = _PACKET.pack(4 << 3 | _CLIENT, 0, 0, 0, 0, 0, bytes(4), 0, 0, cookie)
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(seconds)
        sock.connect(address)  # answers of others are not heard
        began = monotonic()
        sent = clock.real()
        sock.send(request)
        answer = sock.recv(1024)
        took = monotonic() - began
    return _sample(answer, cookie, sent, took)


def _sample(answer: bytes, cookie: int, sent: datetime, took: float) -> Sample:
    """Raises NoTime for what no client may use (RFC 4330 §5)."""
    if len(answer) < _PACKET.size:
        raise NoTime("the answer is too short")
    first, stratum, _, _, _, _, code, echoed, received, transmitted = _PACKET.unpack_from(answer)
    if first & 7 != _SERVER or echoed != cookie:
        raise NoTime("the answer is not one to this question")
    if stratum == 0:
        raise NoTime(f"the server refuses: {code.decode('ascii', 'replace').strip(chr(0))}")
    if first >> 6 == _UNSYNCHRONISED or stratum > 15 or not transmitted:
        raise NoTime("the server does not know the time itself")
    theirs = (_instant(received, sent), _instant(transmitted, sent))
    held = (theirs[1] - theirs[0]).total_seconds()
    middle_of_theirs = theirs[0] + (theirs[1] - theirs[0]) / 2
    middle_of_ours = sent + timedelta(seconds=took / 2)
    return Sample((middle_of_theirs - middle_of_ours).total_seconds(), max(0.0, took - held))


def _instant(timestamp: int, near: datetime) -> datetime:
    """An NTP timestamp (RFC 5905 §6), in the era of 136 years that is nearest to `near`."""
    ours = round((near - _EPOCH).total_seconds() * (1 << 32))
    timestamp += round((ours - timestamp) / _ERA) * _ERA
    return _EPOCH + timedelta(microseconds=timestamp * 1_000_000 / (1 << 32))
