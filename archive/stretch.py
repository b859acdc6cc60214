"""A stretch of a stored file: what leaves as it lies, opened and not read yet."""

from __future__ import annotations

import os
from collections.abc import Iterator

from archive import waiting
from archive.errors import StorageFailed, unreadable

PIECE_BYTES = 1 << 20
_LOOK_BYTES = 1 << 16  # between two places that are looked at: what the system reads and drops is no smaller, mostly


class Stretch:
    """Bytes of a file from `start` up to `end`: read in pieces, or handed from file to socket by the system, so that
    they never pass through this process (sendfile(2)). Its length is that of what is left.

    Its first byte is read at once: a copy that cannot be read is known before anything is said of it. The descriptor is
    its own, and closed when it is forgotten at the latest.

    Raises StorageFailed; WouldWait: it does not lie in memory, and nobody may wait here.
    """

    __slots__ = ("_fd", "end", "start")

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd, self.start, self.end = fd, start, end
        if start < end:
            self._demand(self._read(1))

    def __len__(self) -> int:
        return self.end - self.start

    def fetch(self) -> None:
        """Have it lie in memory, as far as can be told without reading it.

        Raises:
            WouldWait: it does not, and nobody may wait here.
            StorageFailed: it cannot be read.
        """
        try:
            for at in (*range(self.start, self.end, _LOOK_BYTES), *([self.end - 1] if len(self) else ())):
                waiting.read(self._fd, 1, at)
        except OSError as error:
            raise unreadable(error) from error

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, a mebibyte at a time; then it is closed. Raises StorageFailed."""
        try:
            while self.start < self.end:
                piece = self._read(min(PIECE_BYTES, len(self)))
                self._demand(piece)
                self.start += len(piece)
                yield piece
        finally:
            self.close()

    def send(self, socket: int) -> None:
        """Have the system send what of it the socket takes now, as far as the end of it.

        Raises:
            BlockingIOError: the socket is full; what was sent is no longer of this stretch.
            OSError: the connection is gone, or the file cannot be read.
            StorageFailed: the file ends before.
        """
        while self.start < self.end:
            sent = os.sendfile(socket, self._fd, self.start, len(self))
            self._demand(sent)
            self.start += sent
        self.close()

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _read(self, length: int) -> bytes:
        try:
            return waiting.read(self._fd, length, self.start)
        except OSError as error:
            raise unreadable(error) from error

    @staticmethod
    def _demand(got: bytes | int) -> None:
        if not got:
            raise StorageFailed("the copy is not as long as it was stored")
