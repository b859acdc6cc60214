"""Bytes over one TCP connection, where every wait has a deadline.

The socket is non-blocking; the thread that owns it sleeps in `poll` (no descriptor limit, no polling loop). TLS has
the same verbs, in `secure.py`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Sequence

from archive.clock import monotonic
from dicom_scp.ends import ConnectionGone, TooSlow

_IOV = 512  # buffers in one system call; the kernel takes 1024


class Transport:
    """One connection. One thread reads and sends; any thread may `shut` it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._lock = threading.Lock()
        self._closed = False
        self._reading = select.poll()
        self._reading.register(sock, select.POLLIN)
        self._writing = select.poll()
        self._writing.register(sock, select.POLLOUT)

    def handshake(self, until: float) -> None:
        """Agree on TLS, before anything else: here nothing. Raises NotTrusted, ConnectionGone, TooSlow."""

    def turn_away(self, until: float) -> None:
        """After NotTrusted: tell the peer why, and let it close, no longer than `until`: here nothing."""

    @property
    def certificate(self) -> str | None:
        """The fingerprint of the certificate that the peer showed and that is believed, if any."""
        return None

    def fileno(self) -> int:
        return self._sock.fileno()

    def read_into(self, view: memoryview, until: float) -> int:
        """Read what is there, at least one byte. `until`: monotonic seconds.

        Raises:
            ConnectionGone: end of stream, or reset.
            TooSlow: nothing came in time.
        """
        while True:
            try:
                count = self._sock.recv_into(view)
            except BlockingIOError:
                if not self._sleep(until):
                    raise TooSlow("the peer was silent for too long") from None
                continue
            except OSError as error:
                raise ConnectionGone("the connection was reset") from error
            if not count:
                raise ConnectionGone("the connection was closed")
            return count

    def wait(self, until: float) -> bool:
        """Sleep until something can be read (True), or until the deadline (False).

        Acknowledges at once what was read: a peer that sends in small pieces without TCP_NODELAY waits for it.
        """
        return self._sleep(until)

    def _sleep(self, until: float) -> bool:
        self._acknowledge()
        return _poll(self._reading, until)

    def _acknowledge(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def holds_bytes(self) -> bool:
        """Whether something was taken from the socket that was not read yet, and that `poll` cannot see."""
        return False

    def wait_beside(self, other: Transport, until: float) -> bool:
        """Sleep until this connection or `other` can be read (True), or until the deadline (False)."""
        both = select.poll()
        for transport in (self, other):
            if transport.fileno() < 0 or transport.holds_bytes():
                return True
            both.register(transport.fileno(), select.POLLIN)
            transport._acknowledge()
        return _poll(both, until)

    def readable(self) -> bool:
        """Whether something, be it the end of the stream, can be read now."""
        return bool(self._reading.poll(0))

    def send(self, parts: Sequence[bytes | memoryview], until: float) -> None:
        """Send every byte of `parts`, in order, without joining them.

        Raises ConnectionGone, TooSlow.
        """
        parts = list(parts)
        first = 0
        while first < len(parts):
            try:
                some = parts[first : first + _IOV]
                count = self._sock.sendmsg(some)
            except BlockingIOError:
                if not _poll(self._writing, until):
                    raise TooSlow("the peer does not read") from None
                continue
            except OSError as error:
                raise ConnectionGone("the connection was reset") from error
            if count == sum(map(len, some)):  # as a rule
                first += len(some)
                continue
            while first < len(parts) and count >= len(parts[first]):
                count -= len(parts[first])
                first += 1
            if count:
                parts[first] = memoryview(parts[first])[count:]

    def stop_reading(self) -> None:
        """From any thread: whoever waits for the peer finds the end of the stream; sending still works."""
        self._shut(socket.SHUT_RD)

    def shut(self) -> None:
        """From any thread: wake whoever reads or sends, for good."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(how)

    def close(self) -> None:
        """Safe to call twice."""
        with self._lock:
            self._closed = True
            self._sock.close()

    def linger(self, until: float) -> None:
        """Sta13 of PS3.8: let the peer close the connection first, no longer than `until`; what it sends is dropped."""
        scrap = memoryview(bytearray(65536))
        with contextlib.suppress(ConnectionGone, TooSlow):
            while monotonic() < until:
                self.read_into(scrap, until)


def connect(host: str, port: int, *, seconds: float) -> socket.socket:
    """Open a connection. Raises ConnectionGone or TooSlow."""
    try:
        return socket.create_connection((host, port), timeout=seconds)
    except TimeoutError as error:
        raise TooSlow("no connection in time") from error
    except (OSError, UnicodeError) as error:
        raise ConnectionGone("the peer cannot be reached") from error


def _poll(poll: select.poll, until: float) -> bool:
    left = until - monotonic()
    return bool(poll.poll(max(0, left) * 1000))
