"""What a power cut leaves behind, and how it is settled (docs/storage.md).

Bytes without a name, in `incoming/`: nobody was told about them; they go after an hour. Named files without a row:
nobody was told either, but they are whole, and the database may be an older one than the files; they are taken in
(law 7: an extra file costs disk, a missing one is a patient's image).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import bindparam, select

from archive.access import SYSTEM
from archive.core import Archive
from archive.errors import ArchiveError, Busy
from archive.ingest import adopt
from archive.schema import location, quarantined

log = structlog.get_logger(__name__)

LEFTOVER = timedelta(hours=1)
LOOK_BACK = timedelta(days=7)  # what the hourly sweep looks through; `minipacs fsck` looks at everything


@dataclass(slots=True)
class Swept:
    """What a sweep did, in files."""

    removed: int = 0
    adopted: int = 0
    unreadable: int = 0


def sweep(archive: Archive, *, older_than: timedelta = LEFTOVER, look_back: timedelta | None = LOOK_BACK) -> Swept:
    """Settle leftovers that are older than `older_than`; `look_back` None looks at every folder."""
    swept = Swept()
    now = archive.real_clock()
    for entry in os.scandir(archive.hot.incoming_dir):
        if _age(entry.path, now) > older_than:
            Path(entry.path).unlink(missing_ok=True)
            swept.removed += 1
    for path in unfiled(archive, since=now - look_back if look_back is not None else None):
        if _age(archive.hot.path(path), now) <= older_than:
            continue
        try:
            adopt(archive, path, actor=SYSTEM)
            swept.adopted += 1
        except FileNotFoundError:
            continue
        except Busy:
            raise
        except (ArchiveError, OSError) as error:  # this one: others behind it may be good
            swept.unreadable += 1
            log.error("a file without a row cannot be taken in", path=path, error=type(error).__name__)
    if swept.removed or swept.adopted or swept.unreadable:
        log.warning("recovery sweep", removed=swept.removed, adopted=swept.adopted, unreadable=swept.unreadable)
    return swept


_FILED = select(location.c.path).where(
    location.c.tier == "hot", location.c.path.in_(bindparam("paths", expanding=True))
)
_ASIDE = select(quarantined.c.path).where(quarantined.c.path.in_(bindparam("paths", expanding=True)))


def unfiled(archive: Archive, *, since: datetime | None = None) -> Iterator[str]:
    """Files of the hot tier that no row names, relative to it, a folder at a time."""
    for folder in _folders(archive.hot.root, since):
        names = sorted(entry.name for entry in os.scandir(archive.hot.root / folder) if entry.is_file())
        paths = [f"{folder}/{name}" for name in names]
        for start in range(0, len(paths), 1000):
            some = paths[start : start + 1000]
            with archive.reading() as conn:
                known = set(conn.execute(_FILED, {"paths": some}).scalars())
                known.update(conn.execute(_ASIDE, {"paths": some}).scalars())
            yield from (path for path in some if path not in known)


def _folders(root: Path, since: datetime | None) -> Iterator[str]:
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
