"""Taking in files, folders and ZIPs: `minipacs import`. The same ingest as the network, tagged `media` (REQ-CDC-49).

Resumable: what is stored already is found so and left alone.
"""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from archive.access import Action, Actor, demand
from archive.core import Archive
from archive.errors import Rejected, UnreadableInstance
from archive.ingest import Outcome, ingest
from archive.lifecycle.tombstones import Lifting
from archive.storage.part10 import HEAD_BYTES, Part10, read_meta

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
_WORKERS = 4  # files in flight: they share flushes of folders and commits
_AT_ONCE = 256  # files handed to the workers: a failure stops the import within these
_PIECE = 1 << 20
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError, ValueError)
_MEMBER_BYTES = 1 << 40  # nothing in a ZIP is larger


@dataclass(frozen=True, slots=True)
class Left:
    """A file that was not stored, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Summary:
    """What became of each file."""

    stored: int = 0
    already_stored: int = 0
    held: int = 0
    quarantined: list[Left] = field(default_factory=list)
    refused: list[Left] = field(default_factory=list)
    ignored: list[Left] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing needs a person."""
        return not self.quarantined and not self.refused


Progress = Callable[[int, int], None]  # files done, files found so far


def import_paths(
    archive: Archive,
    paths: Iterable[Path],
    *,
    actor: Actor,
    restore_purged: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Store every DICOM file in `paths`: files, folders (with everything below), ZIPs.

    A file that is not DICOM, or is a DICOMDIR, is ignored; one that is and cannot be stored is refused; each with its
    reason. Other content under a known SOP Instance UID is quarantined (REQ-DCM-15). What was purged is refused, but
    where `restore_purged` says why it is brought back: then its tombstones are lifted.

    Raises:
        NotAllowed: the actor may not store, or not bring back. InvalidRequest: `restore_purged` is empty.
        Unavailable: the archive cannot take more (full disk, no database); what was counted is stored.
    """
    demand(actor, Action.STORE)
    lifting = None if restore_purged is None else Lifting(archive, reason=restore_purged, actor=actor)
    take = _Taking(archive, actor, lifting)
    summary = Summary()
    files = [file for path in paths for file in _walk(path, summary.refused)]
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="import") as pool:
        for start in range(0, len(files), _AT_ONCE):
            some = files[start : start + _AT_ONCE]
            for done, part in enumerate(pool.map(take.path, some), start=start + 1):
                _add(summary, part)
                if progress is not None:
                    progress(done, len(files))
    return summary


def _walk(path: Path, refused: list[Left]) -> Iterator[Path]:
    """Every file in `path`; folders that cannot be listed are `refused`: what they hold is not stored."""

    def refuse(error: OSError) -> None:
        refused.append(Left(str(error.filename), f"cannot be read: {error.strerror}"))

    if path.is_dir():
        for folder, folders, names in os.walk(path, onerror=refuse):
            folders.sort()
            for name in sorted(names):
                yield Path(folder, name)
    else:
        yield path


def _is_dicom(path: Path) -> bool:
    """A dual file may be both, for example a TIFF or ZIP behind a DICOM preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


@dataclass(frozen=True, slots=True)
class _Taking:
    """One import: who does it, and what lifts tombstones, if that was asked for."""

    archive: Archive
    actor: Actor
    lifting: Lifting | None

    def path(self, path: Path) -> Summary:
        """A file, or a ZIP of files."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return Summary(ignored=[Left(str(path), "not a file: a pipe, a socket or a device")])
            if zipfile.is_zipfile(path) and not _is_dicom(path):
                return self._zip(path)
            with path.open("rb") as file:
                return self._file(file, str(path))
        except OSError as error:
            return Summary(refused=[Left(str(path), f"cannot be read: {error.strerror}")])

    def _zip(self, path: Path) -> Summary:
        summary = Summary()
        try:
            with zipfile.ZipFile(path) as bundle:
                for member in bundle.infolist():
                    if member.is_dir():
                        continue
                    name = f"{path}!{member.filename}"
                    if member.flag_bits & 1 or member.file_size > _MEMBER_BYTES:
                        summary.refused.append(Left(name, "encrypted or too large"))
                        continue
                    try:
                        with bundle.open(member) as file:
                            _add(summary, self._file(file, name))
                    except _DAMAGED as error:
                        summary.refused.append(Left(name, f"damaged: {error}"))
        except _DAMAGED as error:
            summary.refused.append(Left(str(path), f"the ZIP is damaged: {error}"))
        return summary

    def _file(self, file: IO[bytes], name: str) -> Summary:
        head = file.read(HEAD_BYTES)
        if not head:
            return Summary(ignored=[Left(name, "empty file")])
        try:
            meta, _ = read_meta(head)
        except UnreadableInstance as error:
            refused = head[128:132] == b"DICM"
            left = [Left(name, str(error))]
            return Summary(refused=left) if refused else Summary(ignored=left)
        if meta.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
            return Summary(ignored=[Left(name, "a DICOMDIR: the files that it lists are taken by themselves")])
        lifted = None
        try:
            lifted = self.lifting.lift(meta.sop_instance_uid) if self.lifting is not None else None
            return _counted(self._store(head, file), name)
        except Rejected as error:
            if self.lifting is not None and lifted is not None:
                self.lifting.put_back(lifted)
            return Summary(refused=[Left(name, str(error))])

    def _store(self, head: bytes, file: IO[bytes]) -> Outcome:
        """The bytes that were read, and the rest of the file, on the same way in as the network's."""
        incoming = Part10(self.archive.hot, at=self.archive.clock())
        try:
            incoming.feed(head)
            while piece := file.read(_PIECE):
                incoming.feed(piece)
            return ingest(self.archive, incoming.finish(), actor=self.actor, scope="import")
        except BaseException:
            incoming.discard()
            raise


def _counted(outcome: Outcome, name: str) -> Summary:
    if outcome is Outcome.QUARANTINED:
        return Summary(quarantined=[Left(name, "other content is stored under its SOP Instance UID")])
    if outcome is Outcome.ALREADY_STORED:
        return Summary(already_stored=1)
    return Summary(held=1) if outcome is Outcome.STORED_HELD else Summary(stored=1)


def _add(total: Summary, part: Summary) -> None:
    total.stored += part.stored
    total.already_stored += part.already_stored
    total.held += part.held
    total.quarantined += part.quarantined
    total.refused += part.refused
    total.ignored += part.ignored
