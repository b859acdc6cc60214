"""What a power cut leaves behind, and how it is settled (docs/storage.md).

Bytes without a name, in `incoming/`: nobody was told about them; they go after an hour. Named files without a row:
nobody was told either, but they are whole, and the database may be an older one than the files; they are taken in
(law 7: an extra file costs disk, a missing one is a patient's image).

On the cold tier a named file without a row is a copy that migration had not told anybody of, and makes again: it goes
when what it was made from is proven to be there, by reading it; else it stays, and `minipacs fsck` names it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import bindparam, select

from archive.access import SYSTEM
from archive.core import Archive
from archive.dicom.companions import predecessor
from archive.dicom.uids import WITH_COMPANIONS
from archive.errors import ArchiveError, Busy, Gone
from archive.index.copies import good_copies
from archive.ingest import adopt, arrival_of
from archive.schema import location, quarantined
from archive.schema.types import AnyRow
from archive.storage import marker
from archive.storage.filesystem import Tier

log = structlog.get_logger(__name__)

LEFTOVER = timedelta(hours=1)
LOOK_BACK = timedelta(days=7)  # what the hourly sweep looks through; `minipacs fsck` looks at everything


@dataclass(slots=True)
class Swept:
    """What a sweep did, in files."""

    removed: int = 0
    adopted: int = 0
    unreadable: int = 0
    kept: int = 0  # of the cold tier: without a row, and perhaps the last copy


def sweep(archive: Archive, *, older_than: timedelta = LEFTOVER, look_back: timedelta | None = LOOK_BACK) -> Swept:
    """Settle leftovers that are older than `older_than`; `look_back` None looks at every folder.

    Raises:
        StorageFailed: the volume of a tier is away; nothing of it was touched.
    """
    swept = Swept()
    now = archive.real_clock()
    since = archive.clock() - look_back if look_back is not None else None  # as folders are named
    for tier in (archive.hot, archive.cold):
        marker.need(tier.root)
        for entry in os.scandir(tier.incoming_dir):
            if _age(entry.path, now) > older_than:
                Path(entry.path).unlink(missing_ok=True)
                swept.removed += 1
        for path in unfiled(archive, tier, since=since):
            if _age(tier.path(path), now) > older_than:
                _settle(archive, tier, path, swept)
    if swept.removed or swept.adopted or swept.unreadable or swept.kept:
        log.warning(
            "recovery sweep",
            removed=swept.removed,
            adopted=swept.adopted,
            unreadable=swept.unreadable,
            kept=swept.kept,
        )
    return swept


def _settle(archive: Archive, tier: Tier, path: str, swept: Swept) -> None:
    """One file without a row; what is wrong with it is no reason to leave those behind it."""
    try:
        if tier is archive.hot:
            adopt(archive, path, actor=SYSTEM, forward=True)
            swept.adopted += 1
        elif not_needed(archive, path):
            tier.unlink(path)
            swept.removed += 1
        else:
            swept.kept += 1
            log.error("a file of the cold tier has no row, and may be needed: see «minipacs fsck»", path=path)
    except (FileNotFoundError, Gone):  # somebody was quicker; or it was purged, and is removed
        pass
    except Busy:
        raise
    except (ArchiveError, OSError) as error:
        swept.unreadable += 1
        log.error("a file without a row cannot be settled", path=path, tier=tier.name, error=type(error).__name__)


def not_needed(archive: Archive, path: str) -> bool:
    """Whether a file of the cold tier that has no row holds nothing that would be missed: a good copy of the same
    instance stands, or, where it is a lossy copy, a good copy of its original on the hot tier, where it is a companion,
    one of the object that it repeats on either. They are read to their end.

    Raises:
        Rejected: it is not an instance.
        StorageFailed: what has to be read cannot be.
        OSError: it cannot be read itself.
    """
    arrival = arrival_of(archive, path, tier="cold")
    if any(
        row.digest == arrival.digest and _is_good(archive, row)
        for row in _good(archive, arrival.header.sop_instance_uid)
    ):
        return True
    absolute = archive.cold.path(path)
    if arrival.header.sop_class_uid in WITH_COMPANIONS:
        from pydicom import dcmread

        return any(_is_good(archive, row) for row in _good(archive, predecessor(dcmread(absolute))))
    return any(
        row.tier == "hot" and row.digest == row.received_digest and _is_good(archive, row)
        for source in _sources(absolute)
        for row in _good(archive, source)
    )


def _good(archive: Archive, sop_instance_uid: str) -> Sequence[AnyRow]:
    with archive.reading() as conn:
        return good_copies(conn, sop_instance_uid)


def _is_good(archive: Archive, row: AnyRow) -> bool:
    said = {"digest": row.digest, "file_bytes": row.file_bytes, "data_set_offset": row.data_set_offset}
    return not archive.tier(row.tier).damage(row.path, **said)


def _sources(path: str) -> list[str]:
    """What a lossy copy was made from: Source Image Sequence (0008,2112), of one item."""
    from pydicom import dcmread

    ds = dcmread(path, stop_before_pixels=True, specific_tags=["SourceImageSequence", "DerivationCodeSequence"])
    if not any(item.get("CodeValue") == _LOSSY for item in ds.get("DerivationCodeSequence") or ()):
        return []
    sources = [str(item.get("ReferencedSOPInstanceUID", "")) for item in ds.get("SourceImageSequence") or ()]
    return sources if len(sources) == 1 else []  # made of several: of none of them alone


_LOSSY = "113040"  # DCM «Lossy Compression», Derivation Code Sequence (0008,9215)
_FILED = select(location.c.path).where(
    location.c.tier == bindparam("tier"), location.c.path.in_(bindparam("paths", expanding=True))
)
_ASIDE = select(quarantined.c.path).where(quarantined.c.path.in_(bindparam("paths", expanding=True)))


def unfiled(archive: Archive, tier: Tier, *, since: datetime | None = None) -> Iterator[str]:
    """Files of a tier that no row names, relative to it, by folder and then as they were written."""
    for folder in folders(tier.root, since):
        names = sorted(entry.name for entry in os.scandir(tier.root / folder) if entry.is_file())
        paths = [f"{folder}/{name}" for name in names]
        found: list[str] = []
        for start in range(0, len(paths), 1000):
            some = paths[start : start + 1000]
            with archive.reading() as conn:
                known = set(conn.execute(_FILED, {"paths": some, "tier": tier.name}).scalars())
                if tier is archive.hot:
                    known.update(conn.execute(_ASIDE, {"paths": some}).scalars())
            found += [path for path in some if path not in known]
        yield from sorted(found, key=lambda path: _written(tier.path(path)))


def _written(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def folders(root: Path, since: datetime | None) -> Iterator[str]:
    """`2025/11/22/1405`, in order; from the minute of `since` on."""
    floor = f"{since:%Y/%m/%d/%H%M}" if since is not None else ""
    for year in _numbered(root):
        for month in _numbered(root / year):
            for day in _numbered(root / year / month):
                if f"{year}/{month}/{day}" < floor[:10]:
                    continue
                for minute in _numbered(root / year / month / day):
                    folder = f"{year}/{month}/{day}/{minute}"
                    if folder >= floor:
                        yield folder


def _numbered(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name.isdigit())


def _age(path: str, now: datetime) -> timedelta:
    try:
        return timedelta(seconds=now.timestamp() - os.stat(path).st_mtime)
    except FileNotFoundError:
        return timedelta(0)


class Sweeper:
    """Sweeps at start and every hour until closed. The first edge of a supervisor runs it; more do no harm."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sweep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                sweep(self._archive)
            except Busy:
                return
            except (ArchiveError, OSError) as error:
                log.error("recovery sweep failed", error=type(error).__name__, detail=str(error))
            except Exception:  # a bug; the next hour's sweep may get further
                log.exception("recovery sweep failed")
            if self._stop.wait(LEFTOVER.total_seconds()):
                return
