"""Studies on a medium: a folder with a DICOMDIR (PS3.10 §8), or the same in a ZIP (`minipacs export`).

Each instance leaves as at every other door, with what the RIS or a person has said since. pydicom's FileSet names files
and writes the DICOMDIR from their headers; then each file gets its bytes, straight from the archive.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from archive.access import Action, Actor, demand
from archive.audit.record import Event
from archive.commit import flush_directory
from archive.core import Archive
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.syntaxes import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import ArchiveError, Gone, InvalidRequest, NotFound, StorageFailed, Unavailable
from archive.outgoing import Outgoing, outgoing
from archive.retrieve import Access, Stored, open_access, select, why_gone

if TYPE_CHECKING:
    from pydicom.fileset import FileSet

_PLAIN = frozenset({IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE, EXPLICIT_LE})

# What a directory record has to say (PS3.3 F.5) and real objects sometimes do not: said in the DICOMDIR alone.
_SAID: dict[str, str | int] = {
    "PatientID": "0",
    "StudyDate": "19000101",
    "StudyTime": "000000",
    "StudyID": "0",
    "Modality": "OT",
    "SeriesNumber": 0,
}

Progress = Callable[[int, int], None]  # instances written, of how many


@dataclass(slots=True)
class Exported:
    """What is on the medium, and which instances are not, with the reason."""

    instances: int = 0
    bytes: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def export(
    archive: Archive,
    study_uids: Sequence[str],
    to: Path,
    *,
    actor: Actor,
    as_zip: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write studies to `to`, a folder that does not exist yet or is empty; with `as_zip` to a new ZIP file.

    Nothing stands under that name before all is written and flushed. Uncompressed images leave in Explicit VR Little
    Endian, compressed ones in the syntax in which they are stored: nothing is lost, and few viewers fail.

    Raises:
        NotAllowed: the actor may not export.
        InvalidRequest: no study, or `to` is something already.
        NotFound, Gone: one of the studies is not held (any more).
        Unavailable: the medium or the archive failed; nothing stands under that name.
    """
    demand(actor, Action.EXPORT)
    found = _found(archive, study_uids)
    if to.exists() and (as_zip or not to.is_dir() or any(to.iterdir())):
        raise InvalidRequest(f"{to} exists already: name a new {'file' if as_zip else 'folder'}")
    partial = to.with_name(f".{to.name}.partial")
    access = open_access(archive, found, actor=actor, destination="media", event=Event.EXPORT)
    done = Exported()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = _catalogue(archive, found, partial, done)
        for number, (stored, leaving, syntax, path) in enumerate(files, start=1):
            _write(stored, leaving.file(syntax), path, access, done)
            if progress is not None:
                progress(number, len(files))
        if as_zip:
            zipped = to.with_name(f".{to.name}.zip.partial")
            _zip(partial, zipped)
            zipped.replace(to)
        else:
            for folder, _, _ in os.walk(partial):
                flush_directory(folder)
            if to.exists():
                to.rmdir()
            partial.rename(to)
        flush_directory(str(to.parent))
    except OSError as error:
        raise StorageFailed(f"the medium cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        to.with_name(f".{to.name}.zip.partial").unlink(missing_ok=True)
    return done


def _found(archive: Archive, study_uids: Sequence[str]) -> list[Stored]:
    if not study_uids:
        raise InvalidRequest("no study is named")
    found = select(archive, study_uids=study_uids)
    for uid in sorted(set(study_uids) - {one.study_instance_uid for one in found}):
        why = why_gone(archive, study_uid=uid)
        if why:
            raise Gone(f"the study {uid} {why}")
        raise NotFound(f"the study {uid} is not held")
    return found


def _catalogue(
    archive: Archive, found: Iterable[Stored], root: Path, done: Exported
) -> list[tuple[Stored, Outgoing, str, Path]]:
    """Write the DICOMDIR and, in the place of each instance, its header; what is to follow there."""
    from pydicom.fileset import FileSet

    files = FileSet()
    added: dict[str, tuple[Stored, Outgoing, str]] = {}
    for stored in found:
        leaving = outgoing(archive, stored)
        syntax = EXPLICIT_LE if stored.transfer_syntax_uid in _PLAIN else stored.transfer_syntax_uid
        try:
            _add(files, stored, leaving, syntax)
        except Unavailable:
            raise
        except (ArchiveError, ValueError, AttributeError, KeyError, TypeError) as error:  # by what came
            done.left_out.append((stored.sop_instance_uid, f"has no place in a DICOMDIR: {error}"))
            continue
        added[stored.sop_instance_uid] = (stored, leaving, syntax)
    if not added:
        raise InvalidRequest("nothing of it has a place on a medium")
    files.write(root)
    return [(*added[str(one.SOPInstanceUID)], Path(one.path)) for one in files]


def _add(files: FileSet, stored: Stored, leaving: Outgoing, syntax: str) -> None:
    from pydicom import dcmread

    head = file_head(FileMeta(stored.sop_class_uid, stored.sop_instance_uid, syntax))
    ds = dcmread(io.BytesIO(head + b"".join(leaving.data_set(syntax, bulk=False))))
    for keyword, value in {**_SAID, "InstanceNumber": len(files)}.items():
        if ds.get(keyword) in (None, ""):
            setattr(ds, keyword, value)
    files.add(ds)


def _write(stored: Stored, pieces: Iterable[bytes], path: Path, access: Access, done: Exported) -> None:
    size = 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fdatasync(file.fileno())
    done.instances += 1
    done.bytes += size
    access.count(stored, size)


def _zip(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    with to.open("rb") as file:
        os.fsync(file.fileno())
