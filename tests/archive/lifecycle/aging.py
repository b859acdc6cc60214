"""Studies that grow old in tests: received on the day of their exam, migrated three years later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydicom.dataset import Dataset
from sqlalchemy import select

from archive.access import EVERYTHING, Actor, Door
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.index.match import Key
from archive.index.query import Query, find
from archive.index.rows import Row
from archive.ingest import Outcome, ingest
from archive.instance import State
from archive.lifecycle.compute import compute_due
from archive.lifecycle.migrate import Migrated, migrate
from archive.lifecycle.switch import Switched, switch
from archive.schema import audit, fact, instance, location, study, tombstone
from archive.schema.types import AnyRow
from archive.storage.part10 import Part10
from tests.archive.dicom.deriving import original
from tests.archive.lifecycle.studies import at
from tests.builders import ct_slice, new_uid, part10

EXAM = "2026-01-05"
OLD = "2029-01-06"  # three years and a day later
OVER = "2029-02-06"  # its grace is over
STUDY, SERIES = new_uid("study"), new_uid("series")  # those of `ct_slice`
CT1 = Actor(user="CT1", source="127.0.0.1", door=Door.DICOM, may=EVERYTHING)
AVAILABILITY, ALTERNATES, INSTANCES = "00080056", "00083001", "00201208"


def receive(archive: Archive, ds: Dataset) -> Outcome:
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(ds))
    return ingest(archive, file.finish(), actor=CT1)


def slices(count: int = 3, **changes: Any) -> list[Dataset]:
    """CT slices that pass their gate."""
    return [original(number=number, **changes) for number in range(1, count + 1)]


def noise(**changes: Any) -> Dataset:
    """A CT slice that no codec compresses: it fails its gate."""
    return ct_slice(rows=64, columns=64, number=90, SliceThickness="5", **changes)


def received(archive: Archive, *objects: Dataset, day: str = EXAM) -> list[Dataset]:
    """Images that came on a day."""
    at(archive, day)
    for ds in objects:
        assert receive(archive, ds) is Outcome.STORED
    return list(objects)


def study_row(archive: Archive, uid: str = STUDY) -> AnyRow:
    with archive.reading() as conn:
        return conn.execute(select(study).where(study.c.study_instance_uid == uid)).one()


def migrated(archive: Archive, day: str = OLD) -> Migrated:
    at(archive, day)
    compute_due(archive)
    return migrate(archive, study_row(archive).pk)


def switched(archive: Archive, day: str = OVER) -> Switched:
    at(archive, day)
    compute_due(archive)
    return switch(archive, study_row(archive).pk)


def old_study(archive: Archive, *objects: Dataset) -> list[Dataset]:
    """A study that was switched to cold storage."""
    found = received(archive, *(objects or slices()))
    assert migrated(archive).stays is None
    assert switched(archive).stays is None
    return found


def leave_tombstone(archive: Archive, ds: Dataset) -> None:
    """What a purge leaves of an image, in an archive that never had it."""
    with archive.engine.begin() as conn:
        conn.execute(
            tombstone.insert().values(
                sop_instance_uid=ds.SOPInstanceUID,
                series_instance_uid=ds.SeriesInstanceUID,
                study_instance_uid=ds.StudyInstanceUID,
                sop_class_uid=ds.SOPClassUID,
                digest="0" * 64,
                purge_id="0" * 36,
                at=archive.clock(),
            )
        )


def instances(archive: Archive) -> dict[str, AnyRow]:
    with archive.reading() as conn:
        return {row.sop_instance_uid: row for row in conn.execute(select(instance).order_by(instance.c.pk))}


def states(archive: Archive) -> dict[str, list[str]]:
    """The UIDs in each state."""
    found: dict[str, list[str]] = {}
    for uid, row in instances(archive).items():
        found.setdefault(row.state, []).append(uid)
    return found


def copy_of(archive: Archive, ds: Dataset) -> AnyRow:
    """The row of the lossy copy of an original."""
    rows = instances(archive)
    pk = rows[ds.SOPInstanceUID].pk
    (found,) = [row for row in rows.values() if row.derived_from_pk == pk and row.state != State.PURGING]
    return found


def copies(archive: Archive, uid: str) -> list[AnyRow]:
    """The copies of an instance."""
    with archive.reading() as conn:
        mine = select(location).join_from(location, instance).where(instance.c.sop_instance_uid == uid)
        return list(conn.execute(mine.order_by(location.c.pk)))


def path_of(archive: Archive, uid: str) -> Path:
    (row,) = copies(archive, uid)
    return Path(archive.tier(row.tier).path(row.path))


def files(archive: Archive, tier: str) -> list[Path]:
    return sorted(archive.tier(tier).root.rglob("*.dcm"))


def spoil(path: Path) -> None:
    """Change a byte near the end."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def seen(archive: Archive, level: Level = Level.IMAGE, *keys: Key) -> list[Row]:
    """What C-FIND and QIDO-RS find."""
    query = Query(level, keys or (Key(0x0020000D, "UI", STUDY),), want=frozenset(_WANTED[level]))
    with archive.reading() as conn:
        return list(find(conn, query))


_WANTED = {
    Level.STUDY: (0x00080056, 0x00201206, 0x00201208, 0x00080061),
    Level.SERIES: (0x0020000E, 0x00080056, 0x00201209),
    Level.IMAGE: (0x00080018, 0x0020000E, 0x00080056, 0x00083001),
}


def by_uid(*uids: str) -> Key:
    return Key(0x00080018, "UI", "\\".join(uids))


def value(row: Row, tag: str) -> Any:
    values = row.get(tag, {}).get("Value", [None])
    return values[0]


def audited(archive: Archive) -> list[dict[str, Any]]:
    """What the audit tells of migration."""
    with archive.reading() as conn:
        rows = conn.execute(select(audit).where(audit.c.event == "110103").order_by(audit.c.time, audit.c.seq))
        found = [{**orjson.loads(row.detail), "action": row.action, "study": row.study} for row in rows]
    return [row for row in found if "migration" in row]


def facts(archive: Archive, kind: str) -> list[tuple[str, dict[str, Any]]]:
    with archive.reading() as conn:
        rows = conn.execute(select(fact).where(fact.c.kind == kind).order_by(fact.c.pk))
        return [(row.subject, orjson.loads(row.body)) for row in rows]
