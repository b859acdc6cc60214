"""The transport over TLS (REQ-DCM-04): the same verbs, the same deadlines.

TLS works between two buffers in memory, and `Transport` carries what it makes: so a wait is one `poll` on one socket,
no call of OpenSSL ever waits for the network, and nothing can leave the socket that TLS did not make.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence
from socket import socket

from archive.clock import monotonic
from archive.tls import fingerprint, reason
from dicom_scp.ends import AssociationEnd, ConnectionGone, NotTrusted, TooSlow
from dicom_scp.transport import Transport

_RECORD = 1 << 14  # the most that one record carries (RFC 8446 §5.1)
_GATHERED_BYTES = 1 << 17  # encrypted, and sent, at a time
_WIRE_BYTES = 1 << 16


class SecureTransport(Transport):
    """One connection over TLS. One thread shakes hands, reads and sends; any thread may `shut` it.

    Args:
        context: of `archive.tls`.
        host: the host that was called; None: the peer called us.
    """

    def __init__(self, sock: socket, context: ssl.SSLContext, *, host: str | None = None) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._wire = memoryview(bytearray(_WIRE_BYTES))
        self._ahead = b""  # decrypted to see whether there is something

    def handshake(self, until: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(until)
                self._take(until)
            except ssl.SSLError as error:  # the alert that says so to the peer waits in `_outgoing`
                raise NotTrusted(reason(error)) from error
        self._flush(until)

    def turn_away(self, until: float) -> None:
        with contextlib.suppress(AssociationEnd):
            self._flush(until)
            while monotonic() < until:  # closed with something unread, the connection would be reset, the alert lost
                super().read_into(self._wire, until)

    @property
    def certificate(self) -> str | None:
        shown = self._tls.getpeercert(binary_form=True)
        return None if shown is None else fingerprint(shown)

    # --- reading

    def read_into(self, view: memoryview, until: float) -> int:
        count = len(self._ahead)
        view[:count] = self._ahead
        self._ahead = b""
        while True:
            while count < len(view):
                piece = self._decrypted(min(len(view) - count, _RECORD))
                if piece is None:
                    break
                if not piece:
                    if count:
                        return count
                    raise ConnectionGone("the connection was closed")
                view[count : count + len(piece)] = piece
                count += len(piece)
            if count:
                return count
            self._flush(until)  # an answer of TLS itself, if it has one
            self._take(until)

    def _decrypted(self, size: int) -> bytes | None:
        """Up to `size` bytes of what was taken from the socket; None: no whole record is there; empty: the end."""
        try:
            return self._tls.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            with contextlib.suppress(AssociationEnd):
                self._flush(monotonic())
            raise ConnectionGone(f"TLS: {reason(error)}") from error

    def _take(self, until: float) -> None:
        """Take what the socket has, waiting for it."""
        count = super().read_into(self._wire, until)
        self._incoming.write(self._wire[:count])

    def holds_bytes(self) -> bool:
        if not self._ahead:
            try:
                piece = self._decrypted(1)
            except ConnectionGone:
                return True  # reading tells
            if piece is None:
                return False
            self._ahead = piece
        return True

    def wait(self, until: float) -> bool:
        return self.holds_bytes() or super().wait(until)

    def readable(self) -> bool:
        """Exactly: a record that carries nothing for us, or a part of one, does not count."""
        while not self.holds_bytes():
            if not super().readable():
                return False
            try:
                self._take(monotonic())
            except TooSlow:
                return False
            except ConnectionGone:
                return True  # reading tells
        return True

    # --- sending

    def send(self, parts: Sequence[bytes | memoryview], until: float) -> None:
        for some in _gathered(parts):
            try:
                self._tls.write(some)
            except ssl.SSLError as error:
                raise ConnectionGone(f"TLS: {reason(error)}") from error
            self._flush(until)

    def _flush(self, until: float) -> None:
        made = self._outgoing.read()
        if made:
            super().send([made], until)

    def close(self) -> None:
        with contextlib.suppress(ssl.SSLError, ValueError):  # says goodbye; the peer's own is not waited for
            self._tls.unwrap()
        with contextlib.suppress(AssociationEnd):
            self._flush(monotonic())
        super().close()


def _gathered(parts: Sequence[bytes | memoryview]) -> Iterator[bytearray]:
    """The bytes of `parts` in order, in pieces that fill records: a head of a few bytes does not get one of its own."""
    some = bytearray()
    for part in parts:
        view = memoryview(part)
        while view:
            room = _GATHERED_BYTES - len(some)
            some += view[:room]
            view = view[room:]
            if len(some) == _GATHERED_BYTES:
                yield some
                some = bytearray()
    if some:
        yield some
