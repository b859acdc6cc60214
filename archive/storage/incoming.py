"""A file being received: PS3.10 head, then the data set as it comes, counted and digested on the way.

Nothing is decoded. The digest is the SHA-256 of the data set alone, group 0002 excluded (law 3).
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive.errors import StorageFailed, StorageFull

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from archive.storage.filesystem import Tier

IMPLEMENTATION_CLASS_UID = "1.2.826.0.1.3680043.10.1683.1"
IMPLEMENTATION_VERSION = "MINIPACS_01"


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What is announced of an instance before its first byte: becomes group 0002 (PS3.10 §7.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str = ""


def _element(element: int, vr: bytes, value: bytes, pad: bytes = b"\0") -> bytes:
    value += pad * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def file_head(meta: FileMeta) -> bytes:
    """Preamble, prefix and File Meta Information of a PS3.10 file."""
    group = b"".join(
        (
            _element(0x0001, b"OB", b"\0\1"),
            _element(0x0002, b"UI", meta.sop_class_uid.encode("ascii", "replace")),
            _element(0x0003, b"UI", meta.sop_instance_uid.encode("ascii", "replace")),
            _element(0x0010, b"UI", meta.transfer_syntax_uid.encode("ascii", "replace")),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION.encode(), b" "),
            _element(0x0016, b"AE", meta.source_ae.encode("ascii", "replace")[:16], b" ") if meta.source_ae else b"",
        )
    )
    return bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(group))) + group


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
        self._path = f"{tier.incoming_dir}/{name}"
        self.settled = False
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        head = file_head(meta)
        self.data_set_offset = len(head)
        self._pending: list[Buffer] = [head]

    def write(self, data: Buffer) -> None:
        """Append bytes of the data set.

        Raises:
            StorageFull, StorageFailed: nothing more can be written.
        """
        view = memoryview(data)
        self._sha.update(view)
        self.data_set_bytes += view.nbytes
        self._pending.append(view)
        self._drain()

    def _drain(self) -> None:
        pending, self._pending = self._pending, []
        total = sum(memoryview(part).nbytes for part in pending)
        try:
            written = os.writev(self.fd, pending)
            if written < total:
                rest = memoryview(b"".join(pending))[written:]
                while rest:
                    rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            raise _failed(error) from error

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
            raise _failed(error) from error

    def name(self) -> None:
        """Give the file its place in the tier; its folder still has to be flushed."""
        directory = self.directory
        try:
            self.tier.make_ready(directory)
            os.rename(self._path, self.tier.path(self.final))
        except OSError as error:
            raise _failed(error) from error
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


def _failed(error: OSError) -> StorageFull | StorageFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("the hot volume is full")
    return StorageFailed(f"the hot volume failed: {error.strerror}")
