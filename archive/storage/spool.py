"""Bytes that wait for others before they become an instance: on disk, without a name, gone with the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from archive.errors import StorageFailed
from archive.storage.filesystem import Tier
from archive.storage.incoming import LOOK_BYTES, failure

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE_BYTES = 1 << 20


class Spool:
    """One anonymous file on the volume of a tier. Not thread-safe."""

    def __init__(self, tier: Tier) -> None:
        """Raises StorageFull or StorageFailed."""
        self._tier = tier
        self.length = 0
        self._looked_at = -LOOK_BYTES
        try:
            self._file = tempfile.TemporaryFile(dir=tier.incoming_dir, buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise failure(error, tier.name) from error

    def write(self, data: Buffer) -> None:
        """Append bytes. Raises StorageFull, before the reserve of the volume is touched, or StorageFailed."""
        if self.length - self._looked_at >= LOOK_BYTES:
            self._tier.demand_free()
            self._looked_at = self.length
        rest = memoryview(data)
        try:
            while rest.nbytes:
                written = os.write(self._file.fileno(), rest)
                self.length += written
                rest = rest[written:]
        except OSError as error:
            raise failure(error, self._tier.name) from error

    def read(self, start: int, length: int) -> Iterator[bytes]:
        """Bytes that were written, in pieces. Raises StorageFailed."""
        for at in range(start, start + length, PIECE_BYTES):
            wanted = min(PIECE_BYTES, start + length - at)
            try:
                piece = os.pread(self._file.fileno(), wanted, at)
            except OSError as error:
                raise failure(error, self._tier.name) from error
            if len(piece) < wanted:
                raise StorageFailed("what waits on the disk cannot be read again")
            yield piece

    def close(self) -> None:
        """Let go of it, and of its bytes."""
        self._file.close()
