"""Studies on a medium: a folder with a DICOMDIR (PS3.10 §8), or the same in a ZIP (`minipacs export`).

Each instance leaves as at every other door, with what the RIS or a person has said since. pydicom's FileSet names files
and writes the DICOMDIR from their headers; the instances, written before, then take the places of these.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from archive.access import Action, Actor, demand
from archive.audit.record import Event
from archive.core import Archive
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.syntaxes import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import ArchiveError, Gone, InvalidRequest, NotFound, StorageFailed, Unavailable
from archive.folders import flush_directory
from archive.outgoing import Outgoing, outgoing
from archive.retrieve import Stored, again, open_access, select, why_gone

if TYPE_CHECKING:
    from pydicom.fileset import FileSet

_PLAIN = frozenset({IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE, EXPLICIT_LE})

# What a directory record has to say (PS3.3 F.5) and real objects sometimes do not: said in the DICOMDIR alone.
_SAID: dict[str, str | int] = {
    "StudyDate": "19000101",
    "StudyTime": "000000",
    "StudyID": "0",
    "Modality": "OT",
    "SeriesNumber": 0,
}

_STUDY = "study:"

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
    """Write studies to `to`, a folder that does not exist yet or is empty (a medium); with `as_zip` to a new ZIP file.

    Nothing stands there before all is written and flushed, but for a hidden folder that only its owner may open.
    Uncompressed images leave in Explicit VR Little Endian, compressed ones in the syntax in which they are stored:
    nothing is lost, and few viewers fail.

    Raises:
        NotAllowed: the actor may not export.
        InvalidRequest: no study, two patients with one Patient ID, or `to` is something already.
        NotFound, Gone: one of the studies is not held (any more).
        Unavailable: the medium or the archive failed; nothing stands there.
    """
    demand(actor, Action.EXPORT)
    found = _found(archive, study_uids)
    inside = to.is_dir() and not as_zip
    if to.exists() and (not inside or any(to.iterdir())):
        raise InvalidRequest(f"{to} exists already: name a new {'file' if as_zip else 'folder'}")
    access = open_access(archive, found, actor=actor, destination="media", event=Event.EXPORT)
    done, written = Exported(), dict[str, int]()
    try:
        (to if inside else to.parent).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=to if inside else to.parent) as made:
            root = Path(made) / "medium"
            root.mkdir()
            written = _written(archive, found, root, done, progress)
            _flush(root)
            _publish(root, to, inside=inside, as_zip=as_zip)
            flush_directory(str(to if inside else to.parent))
    except OSError as error:
        written = {}
        raise StorageFailed(f"the medium cannot be written: {error.strerror}") from error
    except ArchiveError:
        written = {}
        raise
    finally:
        for one in found:
            if one.sop_instance_uid in written:
                access.count(one, written[one.sop_instance_uid])
            else:
                access.failed(one)
    done.instances, done.bytes = len(written), sum(written.values())
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


def _written(
    archive: Archive, found: Sequence[Stored], root: Path, done: Exported, progress: Progress | None
) -> dict[str, int]:
    """Each instance in its place below `root`, and the DICOMDIR; the bytes of each there, by SOP Instance UID."""
    files, identifiers = _file_set(root.parent), _identifiers(found)
    written: dict[str, int] = {}
    for number, one in enumerate(found, start=1):
        try:
            size, header = _leaving(archive, one, root.parent / one.sop_instance_uid)
            _add(files, header, patient_id=identifiers.get(_owner(one), ""), number=len(written))
        except Unavailable:
            raise
        except (ArchiveError, ValueError, AttributeError, KeyError, TypeError) as error:  # by what came
            done.left_out.append((one.sop_instance_uid, f"has no place in a DICOMDIR: {error}"))
            continue
        written[one.sop_instance_uid] = size
        if progress is not None:
            progress(number, len(found))
    if not written:
        raise InvalidRequest("nothing of it has a place on a medium")
    files.complete = True
    files.write(root)  # the DICOMDIR, and headers, in whose place the instances come now
    for entry in files:
        (root.parent / str(entry.SOPInstanceUID)).replace(entry.path)
    return written


def _leaving(archive: Archive, stored: Stored, path: Path) -> tuple[int, bytes]:
    """Write an instance as it leaves, flushed; its size, and its file without pixels. One that is moved to the other
    tier meanwhile is looked for again."""
    try:
        return _copied(outgoing(archive, stored), path)
    except StorageFailed:
        now = again(archive, stored)
        if now is None or now.replaced:
            raise
        return _copied(outgoing(archive, now), path)


def _copied(leaving: Outgoing, path: Path) -> tuple[int, bytes]:
    stored = leaving.stored
    syntax = EXPLICIT_LE if stored.transfer_syntax_uid in _PLAIN else stored.transfer_syntax_uid
    with path.open("wb") as file:
        for piece in leaving.file(syntax):
            file.write(piece)
        file.flush()
        os.fdatasync(file.fileno())
        size = file.tell()
    head = file_head(FileMeta(stored.sop_class_uid, stored.sop_instance_uid, syntax))
    return size, head + b"".join(leaving.data_set(syntax, bulk=False))


def _owner(one: Stored) -> str:
    """Whose an instance is; without an identifier, everyone of one study (REQ-DCM-17)."""
    return one.patient or f"{_STUDY}{one.study_instance_uid}"


def _identifiers(found: Iterable[Stored]) -> dict[str, str]:
    """The Patient ID of each owner in the DICOMDIR, where it is not that of the header: a medium tells patients apart
    by it alone, so whoever has none is given one there.

    Raises:
        InvalidRequest: two patients have the same.
    """
    owners = list(dict.fromkeys(_owner(one) for one in found))
    without = [one for one in owners if one.startswith(_STUDY)]
    named = [one.partition("^")[0] for one in owners if one not in without]
    if len(set(named)) < len(named):
        raise InvalidRequest("two of these patients have one Patient ID: export them apart")
    return {one: f"SANS-ID-{number}" for number, one in enumerate(without, start=1)}


def _add(files: FileSet, header: bytes, *, patient_id: str, number: int) -> None:
    from pydicom import dcmread

    ds = dcmread(io.BytesIO(header))
    for keyword, value in {**_SAID, "InstanceNumber": number}.items():
        if ds.get(keyword) in (None, ""):
            setattr(ds, keyword, value)
    if patient_id:
        ds.PatientID = patient_id
    files.add(ds)


def _file_set(scratch: Path) -> Any:
    """pydicom's FileSet, whose headers wait in `scratch`, and that does not look through all for each that is added."""
    from pydicom.fileset import FileInstance, FileSet

    class Growing(FileSet):
        complete = False

        def __iter__(self) -> Iterator[FileInstance]:
            return super().__iter__() if self.complete else iter(())

    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        return Growing()
    finally:
        tempfile.tempdir = before


def _flush(root: Path) -> None:
    with (root / "DICOMDIR").open("rb") as file:
        os.fsync(file.fileno())
    for folder, _, _ in os.walk(root):
        flush_directory(folder)


def _publish(root: Path, to: Path, *, inside: bool, as_zip: bool) -> None:
    """Let it stand under its name."""
    if as_zip:
        zipped = root.with_suffix(".zip")
        _zip(root, zipped)
        if to.exists():
            raise InvalidRequest(f"{to} exists already: name a new file")
        zipped.replace(to)
    elif inside:  # a mounted medium has no other name: its DICOMDIR comes last
        for entry in sorted(root.iterdir(), key=lambda entry: entry.name == "DICOMDIR"):
            entry.rename(to / entry.name)
    else:
        root.rename(to)


def _zip(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    with to.open("rb") as file:
        os.fsync(file.fileno())
