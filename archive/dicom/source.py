"""The bytes of a stored data set, read through a window and never believed to be as long as they say."""

from __future__ import annotations

import os
import tempfile
import zlib
from typing import IO

from archive import waiting
from archive.errors import UnreadableInstance

MAX_ELEMENTS = 5_000_000
MAX_INFLATED_BYTES = 1 << 30
_CHUNK = 1 << 15
_INFLATED_IN_MEMORY = 1 << 22


class Source:
    """A data set in a file, read through a window. Positions count from the start of the data set.

    Deflated data sets are inflated as far as they are asked for, into memory, then into a temporary file.
    """

    def __init__(self, fd: int, *, offset: int, length: int, deflated: bool = False) -> None:
        self.fd = fd
        self.offset = offset
        self.size = length
        self.deflated = deflated
        self.steps = 0
        self._window = b""
        self._base = 0
        self._inflating = _Inflating(fd, offset, length) if deflated else None
        if deflated:
            self.size = 1 << 62  # not known before the end is reached

    @classmethod
    def of_bytes(cls, data: bytes) -> Source:
        """A data set that is in memory already."""
        source = cls(-1, offset=0, length=len(data))
        source._window = data
        return source

    def at(self, position: int, least: int) -> tuple[bytes, int]:
        """A window and the position of its first byte; it holds `least` bytes from `position`, fewer only at the end.

        Raises:
            UnreadableInstance: `position` lies beyond the end.
        """
        start = position - self._base
        if start >= 0 and start + least <= len(self._window):
            return self._window, self._base
        if self._inflating is not None:
            window = self._inflating.read(position, max(least, _CHUNK))
        else:
            if position > self.size:
                raise UnreadableInstance("the data set ends inside an element")
            if self.fd < 0:
                return self._window, 0
            if self._window:
                waiting.demand()  # whoever looks further than one window has much to do
            window = waiting.read(self.fd, min(max(least, _CHUNK), self.size - position), self.offset + position)
        self._window, self._base = window, position
        return window, position

    def read(self, position: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            UnreadableInstance: the data set ends before.
        """
        if position + length > self.size:
            raise UnreadableInstance("the data set ends inside an element")
        window, base = self.at(position, length)
        value = window[position - base : position - base + length]
        if len(value) < length:
            raise UnreadableInstance("the data set ends inside an element")
        return value

    def fill(self, buffer: memoryview, position: int) -> None:
        """The same, into a buffer, as many as have room in it.

        Raises:
            UnreadableInstance: the data set ends before.
        """
        if self.deflated or self.fd < 0:
            buffer[:] = self.read(position, len(buffer))
            return
        if position + len(buffer) > self.size:
            raise UnreadableInstance("the data set ends inside an element")
        while buffer:
            got = waiting.read_into(self.fd, buffer, self.offset + position)
            if not got:
                raise UnreadableInstance("the data set ends inside an element")
            buffer, position = buffer[got:], position + got

    def end(self) -> int:
        """The length of the data set; a deflated one is inflated whole."""
        if self._inflating is not None:
            self.size = self._inflating.finish()
        return self.size

    def step(self) -> None:
        """Count an element.

        Raises:
            UnreadableInstance: there are more than any real object has.
        """
        self.steps += 1
        if self.steps > MAX_ELEMENTS:
            raise UnreadableInstance(f"more than {MAX_ELEMENTS} elements")


class _Inflating:
    """RFC 1951 bytes of a file, inflated on demand and kept, up to MAX_INFLATED_BYTES."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        waiting.demand()
        self._fd, self._next, self._end = fd, offset, offset + length
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._kept: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_INFLATED_IN_MEMORY)  # noqa: SIM115
        self._have = 0

    def read(self, position: int, length: int) -> bytes:
        self._inflate(position + length)
        if position > self._have:
            raise UnreadableInstance("the data set ends inside an element")
        self._kept.seek(position)
        return self._kept.read(length)

    def finish(self) -> int:
        self._inflate(MAX_INFLATED_BYTES + 1)
        return self._have

    def _inflate(self, wanted: int) -> None:
        while self._have < wanted and not self._inflater.eof:
            raw = self._inflater.unconsumed_tail
            if not raw:
                raw = os.pread(self._fd, min(1 << 16, self._end - self._next), self._next)
                self._next += len(raw)
            if not raw:
                raise UnreadableInstance("the deflated data set is cut short")
            try:
                data = self._inflater.decompress(raw, 1 << 20)
            except zlib.error as error:
                raise UnreadableInstance("the deflated data set cannot be inflated") from error
            self._kept.seek(self._have)
            self._kept.write(data)
            self._have += len(data)
            if self._have > MAX_INFLATED_BYTES:
                raise UnreadableInstance(f"more than {MAX_INFLATED_BYTES} bytes when inflated")
