"""A file being received: PS3.10 head, then the data set as it comes, counted and digested on the way.

Nothing is decoded. The digest is the SHA-256 of the data set alone, group 0002 excluded (law 3).
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from archive.dicom.file_meta import FileMeta, file_head
from archive.errors import StorageFailed, StorageFull
from archive.storage import writeback

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from archive.storage.filesystem import Tier


LOOK_BYTES = 64 << 20  # written between two looks at what is free
AHEAD_BYTES = 1 << 20  # written since the disk was last told to begin: the flush at the end is to find little left


class Incoming:
    """One file in `incoming/`. Not thread-safe: one receiver writes it.

    Life: `write` …, then `settle` (flushed, then named), or `discard`. After `settle` only a known outcome removes
    it (law 7). Leaving it open loses nothing but disk until the recovery sweep.
    """

    def __init__(self, tier: Tier, name: str, final: str, meta: FileMeta) -> None:
        self.tier = tier
        self.meta = meta
        self.final = final  # relative to the tier
        self.data_set_bytes = 0
        self._sha = hashlib.sha256()
        self._path = tier.incoming(name)
        self.settled = False
        self._begun_bytes = 0  # of the file, on their way to the disk
        self._looked_bytes = 0  # of the file, when the volume was last asked what is free
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        head = file_head(meta)
        self.data_set_offset = len(head)
        self._head: bytes | None = head  # written with the first bytes of the data set

    def write(self, *pieces: Buffer) -> None:
        """Append bytes of the data set, in one call to the system: some hundred pieces at most.

        Raises:
            StorageFull, StorageFailed: nothing more can be written; of a large file, before the reserve of the volume
                is gone.
        """
        parts = [memoryview(piece) for piece in pieces]
        size = 0
        for part in parts:
            self._sha.update(part)
            size += part.nbytes
        self.data_set_bytes += size
        if self._head is not None:
            size += len(self._head)
            parts.insert(0, memoryview(self._head))
            self._head = None
        try:
            written = os.writev(self.fd, parts)
            if written < size:
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            raise failure(error, self.tier.name) from error
        if self.file_bytes - self._begun_bytes >= AHEAD_BYTES:
            writeback.begin(self.fd, self._begun_bytes, self.file_bytes - self._begun_bytes)
            self._begun_bytes = self.file_bytes
            if self._begun_bytes - self._looked_bytes >= LOOK_BYTES:
                self._looked_bytes = self._begun_bytes
                self.tier.demand_free()

    @property
    def digest(self) -> str:
        """SHA-256 of the data set so far, hexadecimal."""
        return self._sha.hexdigest()

    @property
    def file_bytes(self) -> int:
        return self.data_set_offset + self.data_set_bytes

    @property
    def path(self) -> str:
        """Where the file lies now."""
        return self.tier.path(self.final) if self.settled else self._path

    def flush(self) -> None:
        """Make the bytes durable."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise failure(error, self.tier.name) from error

    def name(self) -> None:
        """Give the file its place in the tier; its folder still has to be flushed."""
        directory = self.directory
        try:
            self.tier.make_ready(directory)
            os.rename(self._path, self.tier.path(self.final))
        except OSError as error:
            raise failure(error, self.tier.name) from error
        self.settled = True

    def settle(self) -> None:
        """Bytes, then name (law 1). What remains is to flush `directory` before the COMMIT."""
        self.flush()
        self.name()

    @property
    def directory(self) -> str:
        """The folder that `settle` changes."""
        return os.path.dirname(self.tier.path(self.final))

    def close(self) -> None:
        """Let go of the file, wherever it is. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Remove the file: nothing refers to it."""
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)


def failure(error: OSError, tier: str = "hot") -> StorageFull | StorageFailed:
    """What the refusal of the volume of a tier means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"the {tier} volume is full")
    return StorageFailed(f"the {tier} volume failed: {error.strerror}")
