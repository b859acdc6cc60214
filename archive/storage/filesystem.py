"""A tier in a folder: `incoming/` for what is being received, then one folder a minute of finished files.

Names are ours, `2025/11/22/1405/<uuid4>.dcm` (law 8). `incoming/` lies on the same volume, so that a rename never
crosses volumes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import uuid
from datetime import datetime
from pathlib import Path

from archive.dicom.file_meta import FileMeta
from archive.errors import StorageFailed, StorageFull
from archive.folders import flush_directory
from archive.storage import marker
from archive.storage.incoming import Incoming, failure

# Why a good file may not be opened: rights, or a limit of this process or host.
_NOT_OF_THE_FILE = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Tier:
    """One folder of stored files, and its `incoming/`. Thread-safe; several processes may share it."""

    def __init__(self, root: Path, *, name: str = "hot", reserve_bytes: int = 0) -> None:
        self.root = root
        self.name = name  # as `location.tier` has it
        self.incoming_dir = root / "incoming"
        self._root, self._incoming = str(root), str(self.incoming_dir)
        self._reserve_bytes = reserve_bytes
        self._ready: set[str] = set()
        self._lock = threading.Lock()
        self.incoming_dir.mkdir(parents=True, exist_ok=True)

    def free_bytes(self) -> int:
        """Free space of the volume, beyond the reserve; negative below it.

        Raises:
            StorageFailed: the volume does not say.
        """
        try:
            volume = os.statvfs(self._root)
            return volume.f_bavail * volume.f_frsize - self._reserve_bytes
        except OSError as error:
            raise failure(error, self.name) from error

    def demand_free(self, expected_bytes: int = 0) -> None:
        """Raises StorageFull when less than this is free beyond the reserve, StorageFailed."""
        if self.free_bytes() < expected_bytes:
            raise StorageFull(f"the free space of the {self.name} volume is below storage.reserve_bytes")

    def receive(self, meta: FileMeta, *, at: datetime, expected_bytes: int = 0) -> Incoming:
        """Begin a file; `at` names the folder it will be settled in.

        Raises:
            StorageFull: the reserve would be touched.
            StorageFailed: the file cannot be made.
        """
        name = f"{uuid.uuid4()}.dcm"
        self.demand_free(expected_bytes)
        try:
            return Incoming(self, name, f"{at:%Y/%m/%d/%H%M}/{name}", meta)
        except OSError as error:
            raise failure(error, self.name) from error

    def path(self, name: str) -> str:
        """The absolute path of a stored file."""
        return f"{self._root}/{name}"

    def incoming(self, name: str) -> str:
        """The absolute path of a file that is being received."""
        return f"{self._incoming}/{name}"

    def make_ready(self, directory: str) -> None:
        """Make a folder of the tier, and make its own name durable up to the root (law 1).

        Every process does so once for each folder, whoever made it: its maker may not have flushed it yet.
        """
        if directory in self._ready:
            return
        with self._lock:
            if directory in self._ready:
                return
            os.makedirs(directory, exist_ok=True)
            parent = os.path.dirname(directory)
            while parent.startswith(self._root):
                flush_directory(parent)
                parent = os.path.dirname(parent)
            if len(self._ready) > 1000:
                self._ready.clear()
            self._ready.add(directory)

    def damage(self, name: str, *, digest: str, file_bytes: int, data_set_offset: int) -> str:
        """What is wrong with a stored file, read to its end; "" when it is what was stored.

        Raises:
            StorageFailed: it cannot be looked at, or its volume is away, which says nothing about it.
        """
        sha = hashlib.sha256()
        try:
            with open(self.path(name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the volume is asked, not the memory
                file.seek(data_set_offset)
                while piece := file.read(1 << 20):
                    sha.update(piece)
                length = file.tell()
        except OSError as error:
            if error.errno in _NOT_OF_THE_FILE:
                raise StorageFailed(f"a stored file cannot be looked at: {error.strerror}") from error
            marker.need(self.root)
            return f"cannot be read: {error.strerror}"
        if length != file_bytes:
            return f"{length} bytes instead of {file_bytes}"
        return "" if sha.hexdigest() == digest else "the bytes changed: another digest"

    def length(self, name: str) -> int | None:
        """Bytes of a stored file; None: it is not there, or cannot be looked at."""
        try:
            return os.stat(self.path(name)).st_size
        except OSError:
            return None

    def unlink(self, name: str) -> None:
        """Remove a stored file, if it is there."""
        Path(self.path(name)).unlink(missing_ok=True)
