"""Rejection notes of purges: files that outlive what they name, beside the images and outside of queries (sheet 30 §9).

They lie in `evidence/` of the hot tier; each is durable before the purge that it tells of is committed (law 1). One
that power left without its purge stays: a restored database may not know yet what it tells of (law 7).
"""

from __future__ import annotations

import hashlib
import os
import uuid

from archive.commit import flush_directory
from archive.core import Archive
from archive.storage.incoming import failure

FOLDER = "evidence"


def keep(archive: Archive, content: bytes) -> tuple[str, str]:
    """Make a file of evidence durable: its path, relative to the hot tier, and its SHA-256.

    Raises:
        StorageFull, StorageFailed: it is not kept.
    """
    name = f"{uuid.uuid4()}.dcm"
    directory = archive.hot.path(FOLDER)
    path = f"{directory}/{name}"
    received = f"{archive.hot.incoming_dir}/{name}"
    try:
        archive.hot.make_ready(directory)
        fd = os.open(received, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fdatasync(fd)
        finally:
            os.close(fd)
        os.rename(received, path)
        flush_directory(directory)
    except OSError as error:
        raise failure(error) from error
    return f"{FOLDER}/{name}", hashlib.sha256(content).hexdigest()
