"""Rejection notes of purges: files that outlive what they name, beside the images and outside of queries (sheet 30 §9).
Ours, and those of (113039, DCM) that others sent.

They lie in `evidence/` of the hot tier; each is durable before the purge that it tells of is committed (law 1). One
that power left without its purge stays: a restored database may not know yet what it tells of (law 7).
"""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import bindparam, select

from archive.core import Archive
from archive.errors import StorageFailed
from archive.folders import flush_directory
from archive.index.conditions import constant
from archive.instance import CopyState, Rejection
from archive.schema import instance, location, rejection
from archive.storage.incoming import failure

FOLDER = "evidence"
_NOTES = (  # the copies of notes that came with a study
    select(instance.c.sop_instance_uid, location.c.tier, location.c.path)
    .select_from(instance.join(location))
    .where(
        instance.c.sop_instance_uid.in_(
            select(rejection.c.note_uid).where(
                rejection.c.note_study == bindparam("study"), rejection.c.code == Rejection.EXPIRED
            )
        ),
        location.c.state == constant(str(CopyState.OK)),
    )
    .order_by(instance.c.pk, location.c.tier.desc(), location.c.pk)
)


@dataclass(frozen=True, slots=True)
class OtherNote:
    """A note that came from outside. `path` is relative to the hot tier; the digest is of the file."""

    sop_instance_uid: str
    digest: str
    path: str


def keep_notes(archive: Archive, study_instance_uid: str) -> tuple[OtherNote, ...]:
    """Keep the notes of (113039, DCM) that came with a study that is about to go.

    Raises:
        StorageFull, StorageFailed: one is not kept.
    """
    with archive.reading() as conn:
        rows = conn.execute(_NOTES, {"study": study_instance_uid}).all()
    kept: dict[str, OtherNote] = {}
    for row in rows:
        if row.sop_instance_uid in kept:
            continue
        try:
            content = Path(archive.tier(row.tier).path(row.path)).read_bytes()
        except OSError as error:
            raise StorageFailed(f"a rejection note cannot be read: {error.strerror}") from error
        path, digest = keep(archive, content)
        kept[row.sop_instance_uid] = OtherNote(row.sop_instance_uid, digest, path)
    return tuple(kept.values())


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
