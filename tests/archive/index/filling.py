"""Data sets into an archive, the real way; and queries as a test writes them."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset

from archive.access import Actor
from archive.core import Archive
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.index.computed import COMPUTED
from archive.index.match import Key
from archive.index.query import Query, find
from archive.index.rows import Row
from archive.ingest import Outcome, ingest
from archive.storage.part10 import Part10
from tests.builders import ct_slice, new_uid, part10

_TAGS = {attribute.keyword: (attribute.tag, attribute.vr) for attribute in BY_KEYWORD.values()} | {
    computed.keyword: (computed.tag, computed.vr) for computed in COMPUTED
}


def fill(archive: Archive, actor: Actor, *datasets: Dataset) -> list[Outcome]:
    """Take data sets in."""
    outcomes = []
    for ds in datasets:
        reader = Part10(archive.hot, at=archive.real_clock())
        reader.feed(part10(ds))
        outcomes.append(ingest(archive, reader.finish(), actor=actor))
    return outcomes


def study(name: str, **changes: Any) -> Dataset:
    """One slice of a study of its own."""
    values = {"StudyInstanceUID": new_uid(name), "SeriesInstanceUID": new_uid(name, "1"), "StudyDescription": name}
    return ct_slice(**(values | {"SOPInstanceUID": new_uid(name, "1", "1"), "PatientID": name} | changes))


def key(keyword: str, value: str = "", *items: Key) -> Key:
    tag, vr = _TAGS[keyword]
    return Key(tag, vr, value, items)


def tag(keyword: str) -> int:
    return _TAGS[keyword][0]


def ask(archive: Archive, level: Level, *keys: Key, want: tuple[str, ...] = (), **options: Any) -> list[Row]:
    """The matches of a query."""
    wanted = frozenset(map(tag, want or ("StudyDescription", "StudyInstanceUID")))
    with archive.engine.connect() as conn:
        return list(find(conn, Query(level, keys, wanted, **options)))


def value(row: Row, keyword: str) -> Any:
    """The first value, None when there is none."""
    content = row.get(f"{tag(keyword):08X}", {}).get("Value", [None])
    return content[0]


def names(rows: list[Row]) -> list[str]:
    """Which of `study(name)` were found, in order."""
    return [value(row, "StudyDescription") for row in rows]
