"""The metadata of series, told without opening their files (PS3.18 10.4.1.1.2).

What a file says is read from it once, and kept beside the index as one line of DICOM JSON. Files never change (law 3):
such a line is true as long as its file is, and is found by the file's name. Which lines are told, in which order, with
which corrections, is asked of the index each time; so nothing that changes there (a late slice, a merge, a rejection, a
lossy copy in an original's stead) can leave something old behind. A line that is missing is read from its file, and
kept: when a series falls quiet (`retention`), else when somebody asks.

In a kept line a byte that UTF-8 never has stands for the address of the service, which requests may differ in.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from itertools import groupby
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, bindparam, func, select

from archive.core import Archive
from archive.dicom.lines import Lines
from archive.errors import Busy, UnreadableInstance
from archive.index.conditions import constant
from archive.instance import CopyState
from archive.outgoing import Outgoing, outgoing
from archive.retrieve import Stored, named
from archive.schema import instance, location, series, series_metadata, study
from archive.schema.prepared import Prepared
from archive.schema.upsert import insert

log = structlog.get_logger(__name__)

FORM = f"1 pydicom {version('pydicom')}"  # of a line: to be raised with whatever changes what archive.dicom.json says
MOST_BYTES = 32 << 20  # of the lines of a series; more are not kept
PIECE_BYTES = 1 << 18
_PLACE = b"\xff"  # of the service's address in a line
_SEPARATOR = b",\n"

_LINES = (
    select(series_metadata.c.sources, series_metadata.c.lines)
    .join(series)
    .where(series.c.series_instance_uid == bindparam("uid"), series_metadata.c.form == FORM)
)
_SERIES_PK = Prepared(select(series.c.pk).where(series.c.series_instance_uid == bindparam("uid")))
_UIDS = Prepared(
    select(study.c.study_instance_uid, series.c.series_instance_uid)
    .join_from(series, study)
    .where(series.c.pk == bindparam("pk"))
)
_NEWEST = Prepared(select(func.max(instance.c.pk)))
_GROWN = Prepared(select(instance.c.series_pk).where(instance.c.pk > bindparam("seen")).distinct())
_FILES = Prepared(
    select(location.c.tier, location.c.path)
    .join_from(location, instance)
    .where(instance.c.series_pk == bindparam("pk"), location.c.state == constant(str(CopyState.OK)))
)

Source = tuple[str, str | None]  # the file of a line; the AE title that sent it, None when it cannot be read


def told(archive: Archive, found: Sequence[Stored], service: str) -> Iterator[bytes]:
    """The metadata of instances as one JSON array, in pieces; `found` as `archive.retrieve.named` gives a study or a
    series, without those whose copy does not stand. `service`: the address of DICOMweb.

    Raises (with a piece):
        StorageFailed: a file had to be read and cannot be.
        IndexUnavailable: the database cannot be read.
    """
    opening = b"["
    for _, members in groupby(found, key=lambda one: one.series_instance_uid):
        for piece in _series(archive, list(members), service.encode()):
            yield opening + piece
            opening = b""
        opening = _SEPARATOR
    yield b"]"


def told_of(archive: Archive, one: Stored, service: str) -> bytes:
    """The metadata of one instance, a JSON object, made from its file.

    Raises:
        StorageFailed: it cannot be read.
    """
    address = _address(one, service)
    try:
        return orjson.dumps(outgoing(archive, one).metadata(lambda path: f"{address}/bulkdata/{path}"))
    except UnreadableInstance:
        return _identified(one)


def tag(archive: Archive, found: Sequence[Stored], service: str) -> str:
    """What changes whenever `told` may say something else: an entity tag (RFC 9110 8.8.3) without its quotes."""
    digest = blake2b(digest_size=16)
    said = (FORM, archive.settings.dicom.default_charset, service)
    corrections = {text for one in found for text in (one.patient_corrections, one.study_corrections)}
    for text in (*said, *sorted(corrections), *(_file(archive, one) for one in found)):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def prepare(
    archive: Archive, series_pk: int, *, alike: Lines | None = None, stopping: threading.Event | None = None
) -> bool:
    """Keep what is missing of the lines of a series; False: nothing was, or `stopping` was set meanwhile.

    `alike`: what read the series before, whose images may be like those of this one.

    Raises:
        StorageFailed, IndexUnavailable: it is done when somebody asks.
    """
    with archive.reading() as conn:
        row = _UIDS.first(conn, {"pk": series_pk})
    if row is None:
        return False
    found = [one for one in named(archive, row[0], row[1], quality=True) if one.stands()]
    known = _kept(archive, row[1])
    if known is not None and {source for source, _ in known.sources} >= {_file(archive, one) for one in found}:
        return False
    for _ in _lines(archive, found, known, alike):
        if stopping is not None and stopping.is_set():
            return False
    return bool(found)


def grown(archive: Archive, seen: int | None, *, look_back: int) -> tuple[int, list[int]]:
    """The newest instance (key), and the series (keys) that have one newer than `seen`; without it, among the last
    `look_back`. What another process commits late, under a smaller key, may be missed.

    Raises:
        IndexUnavailable: the database cannot be read.
    """
    with archive.reading() as conn:
        newest = int((_NEWEST.first(conn, {}) or (0,))[0] or 0)
        after = newest - look_back if seen is None else seen
        found = [int(pk) for (pk,) in _GROWN.all(conn, {"seen": after})] if newest > after else []
    return newest, found


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a series."""

    sources: list[Source]
    lines: bytes  # compressed

    def pieces(self) -> Iterator[bytes]:
        inflater = zlib.decompressobj()
        rest = self.lines
        while rest:
            yield inflater.decompress(rest, PIECE_BYTES)
            rest = inflater.unconsumed_tail
        yield inflater.flush()

    def by_file(self) -> dict[str, tuple[bytes, str | None]]:
        """Line and sender for each file."""
        lines = b"".join(self.pieces()).split(_SEPARATOR)
        return {file: (line, sender) for (file, sender), line in zip(self.sources, lines, strict=True)}


def _kept(archive: Archive, series_uid: str) -> _Kept | None:
    with archive.reading() as conn:
        row = conn.execute(_LINES, {"uid": series_uid}).first()
    if row is None:
        return None
    return _Kept([(file, sender) for file, sender in orjson.loads(zlib.decompress(row.sources))], row.lines)


def _series(archive: Archive, found: list[Stored], service: bytes) -> Iterator[bytes]:
    """The objects of one series, with what stands between them."""
    known = _kept(archive, found[0].series_instance_uid) if found else None
    files = [_file(archive, one) for one in found]
    leaving = (outgoing(archive, one) for one in found)
    if known is not None and [file for file, _ in known.sources] == files and not _any_corrected(leaving):
        for piece in known.pieces():
            yield piece.replace(_PLACE, service)
        return
    separator = b""
    for one, text, sender in _lines(archive, found, known):
        yield separator + _corrected(one, text, sender, service)
        separator = _SEPARATOR


def _lines(
    archive: Archive, found: list[Stored], known: _Kept | None, alike: Lines | None = None
) -> Iterator[tuple[Outgoing, bytes, str | None]]:
    """What is kept of each instance of a series, else what its file says, and the sender; then kept, if it was not."""
    have = known.by_file() if known is not None else {}
    files = [_file(archive, one) for one in found]
    writer = None if all(file in have for file in files) else _Writer()
    alike = alike or Lines()
    for file, one in zip(files, found, strict=True):
        leaving = outgoing(archive, one)
        text, sender = have.get(file) or _read(leaving, alike)
        if writer is not None:
            writer.add(file, sender, text)
        yield leaving, text, sender
    if writer is not None and writer.size <= MOST_BYTES:
        with suppress(Busy):  # the archive is stopping
            archive.commit.later(partial(_keep, series_uid=found[0].series_instance_uid, done=writer.done()))


def _file(archive: Archive, one: Stored) -> str:
    """A file's name, under which no other ever lies (law 8)."""
    return f"{one.tier}{one.path.removeprefix(str(archive.tier(one.tier).root))}"


def _any_corrected(leaving: Iterable[Outgoing]) -> bool:
    try:
        return any(one.changes is not None for one in leaving)
    except UnreadableInstance:
        return True


def _address(one: Stored, service: str) -> str:
    return (
        f"{service}/studies/{one.study_instance_uid}/series/{one.series_instance_uid}/instances/{one.sop_instance_uid}"
    )


def _read(leaving: Outgoing, alike: Lines) -> tuple[bytes, str | None]:
    """What a file says, and who sent it."""
    bulk_data = orjson.dumps(f"{_address(leaving.stored, '')}/bulkdata/")[1:-1]
    try:
        return leaving.stored_line(alike, _PLACE + bulk_data), leaving.source
    except UnreadableInstance:
        return _identified(leaving.stored), None


def _identified(one: Stored) -> bytes:
    """Of an instance that is there and can be had, but not followed, only this is known."""
    log.warning("the metadata of an instance cannot be read", sop_instance_uid=one.sop_instance_uid)
    known = {
        "00080016": one.sop_class_uid,
        "00080018": one.sop_instance_uid,
        "0020000D": one.study_instance_uid,
        "0020000E": one.series_instance_uid,
    }
    return orjson.dumps({key: {"vr": "UI", "Value": [uid]} for key, uid in known.items()})


def _corrected(leaving: Outgoing, text: bytes, sender: str | None, service: bytes) -> bytes:
    """A line as it is told now."""
    said = text.replace(_PLACE, service)
    try:
        if sender is None or leaving.changes is None:
            return said
        found: dict[str, Any] = orjson.loads(said)
        return orjson.dumps(leaving.corrected(found, source=sender))
    except UnreadableInstance:
        return _identified(leaving.stored)


@dataclass(slots=True)
class _Writer:
    """Lines that are to be kept, compressed as they come."""

    size: int = 0
    _sources: list[Source] = field(default_factory=list)
    _pieces: list[bytes] = field(default_factory=list)
    _deflater: Any = field(default_factory=zlib.compressobj)

    def add(self, file: str, sender: str | None, line: bytes) -> None:
        separated = _SEPARATOR + line if self._sources else line
        self.size += len(separated)
        self._sources.append((file, sender))
        if self.size <= MOST_BYTES:
            self._pieces.append(self._deflater.compress(separated))

    def done(self) -> _Done:
        lines = b"".join((*self._pieces, self._deflater.flush()))
        files = frozenset(file for file, _ in self._sources)
        return _Done(files, zlib.compress(orjson.dumps(self._sources)), lines)


@dataclass(frozen=True, slots=True)
class _Done:
    files: frozenset[str]
    sources: bytes
    lines: bytes


def _keep(conn: Connection, *, series_uid: str, done: _Done) -> None:
    """Keep the lines of a series, unless something of it is being removed or was (nothing of it may stay)."""
    row = _SERIES_PK.first(conn, {"uid": series_uid})
    if row is None or not done.files <= {f"{tier}/{path}" for tier, path in _FILES.all(conn, {"pk": row[0]})}:
        return
    values = {"form": FORM, "sources": done.sources, "lines": done.lines}
    conn.execute(
        insert(conn, series_metadata)
        .values(series_pk=row[0], **values)
        .on_conflict_do_update(index_elements=["series_pk"], set_=values)
    )
