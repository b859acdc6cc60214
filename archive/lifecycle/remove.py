"""Removing bytes (law 2): mark the rows PURGING, COMMIT, unlink, drop the rows. One way for migration and purge.

`mark_copies` and `mark_instances` are the first half, inside the transaction that decides; `finish_removals` is the
rest, outside of it. Power that fails in between leaves marked rows, perhaps with their files: the next call finishes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Select, bindparam, delete, exists, select, update

from archive.core import Archive
from archive.errors import StorageFailed
from archive.index.conditions import constant
from archive.instance import CopyState, State
from archive.schema import change, dose, instance, location, reference, sending, series, series_metadata
from archive.schema.types import AnyRow
from archive.storage import marker

log = structlog.get_logger(__name__)

_BATCH = 500  # rows in one transaction, and values in one statement

_BY_PK = location.c.pk.in_(bindparam("pks", expanding=True))
_OF_INSTANCES = location.c.instance_pk.in_(bindparam("pks", expanding=True))
_MARK_COPIES = update(location).where(_BY_PK).values(state=CopyState.PURGING)
_MARK_ALL = update(location).where(_OF_INSTANCES).values(state=CopyState.PURGING)
_MARK_TIER = _MARK_ALL.where(location.c.tier == bindparam("of_tier"))
_MARK_INSTANCES = (
    update(instance)
    .where(instance.c.pk.in_(bindparam("pks", expanding=True)))
    .values(state=State.PURGING, state_before=None)
)
MARKED: Select[Any] = (
    select(location.c.pk, location.c.tier, location.c.path)
    .where(location.c.state == constant(str(CopyState.PURGING)), location.c.pk > bindparam("after"))
    .order_by(location.c.pk)
    .limit(_BATCH)
)
_IN_STUDY = location.c.instance_pk.in_(
    select(instance.c.pk).join_from(instance, series).where(series.c.study_pk == bindparam("study_pk"))
)
_DROP_COPIES = delete(location).where(_BY_PK, location.c.state == constant(str(CopyState.PURGING)))
EMPTY: Select[Any] = (
    select(instance.c.pk, instance.c.series_pk)
    .where(
        instance.c.state == constant(str(State.PURGING)),
        ~exists().where(location.c.instance_pk == instance.c.pk),
        instance.c.pk > bindparam("after"),
    )
    .order_by(instance.c.pk)
    .limit(_BATCH)
)
_OF_STUDY = instance.c.series_pk.in_(select(series.c.pk).where(series.c.study_pk == bindparam("study_pk")))
_DROP_INSTANCES = delete(instance).where(
    instance.c.pk.in_(bindparam("pks", expanding=True)), instance.c.state == constant(str(State.PURGING))
)
_DROP_WAITING = delete(sending).where(  # what a rule was to send on, and never could
    sending.c.job_pk.is_(None),
    sending.c.sop_instance_uid.in_(
        select(instance.c.sop_instance_uid).where(
            instance.c.pk.in_(bindparam("pks", expanding=True)), instance.c.state == constant(str(State.PURGING))
        )
    ),
)
_DROP_SAID = tuple(  # what documents said that are gone
    delete(table).where(
        table.c.instance_pk.in_(bindparam("pks", expanding=True)),
        ~exists().where(instance.c.pk == table.c.instance_pk),
    )
    for table in (reference, dose)
)
_FREE_NUMBERS = (  # what was told of them stays, but SQLite gives the key of a row that is gone to another one
    update(change)
    .where(change.c.source == "instance", change.c.source_pk.in_(bindparam("pks", expanding=True)))
    .where(~exists().where(instance.c.pk == change.c.source_pk))
    .values(source="removed", source_pk=change.c.pk)
)
_DROP_METADATA = delete(series_metadata).where(  # they are made again, without what is gone
    series_metadata.c.series_pk.in_(bindparam("pks", expanding=True))
)
_DROP_SERIES = delete(series).where(
    series.c.pk.in_(bindparam("pks", expanding=True)), ~exists().where(instance.c.series_pk == series.c.pk)
)


@dataclass(slots=True)
class Removed:
    """What went: files of copies, and instances that had no copy left."""

    copies: int = 0
    instances: int = 0


def mark_copies(conn: Connection, pks: Iterable[int]) -> None:
    """These copies (keys of `location`) go once the transaction is committed."""
    for some in _batches(pks):
        conn.execute(_MARK_COPIES, {"pks": some})


def mark_copies_of(conn: Connection, instance_pks: Iterable[int], *, tier: str) -> None:
    """Every copy on `tier` of these instances, good or not, goes; the instances stay."""
    for some in _batches(instance_pks):
        conn.execute(_MARK_TIER, {"pks": some, "of_tier": tier})


def mark_instances(conn: Connection, pks: Iterable[int]) -> None:
    """These instances go, with every copy on every tier. From the COMMIT on no door knows them."""
    for some in _batches(pks):
        conn.execute(_MARK_INSTANCES, {"pks": some})
        conn.execute(_MARK_ALL, {"pks": some})


def finish_removals(archive: Archive, *, study_pk: int | None = None) -> Removed:
    """Unlink what is marked, drop the rows, then those of marked instances without copies and of series that become
    empty by it. Of one study, or of all. Safe to repeat, and to run beside itself.

    The names are gone for good, folders flushed, before the rows are dropped: no file comes back without its row.

    Raises:
        StorageFailed: a volume is away, or a file cannot be removed; its row stays, the others went, and the next call
            tries again.
        Unavailable: the index cannot be read or written.
    """
    removed = Removed()
    stays: StorageFailed | None = None
    for rows in _pages(archive, MARKED, _IN_STUDY, study_pk):
        gone: list[int] = []
        folders: set[str] = set()
        for row in rows:
            try:
                folder = _unlink(archive, row)
            except StorageFailed as error:
                stays = stays or error
            else:
                gone.append(row.pk)
                folders.update((folder,) if folder else ())
        if gone:
            archive.commit.run(partial(_drop_copies, pks=gone), directories=sorted(folders))
        removed.copies += len(gone)
    for rows in _pages(archive, EMPTY, _OF_STUDY, study_pk):
        archive.commit.run(
            partial(_drop_instances, pks=[row.pk for row in rows], series_pks={row.series_pk for row in rows})
        )
        removed.instances += len(rows)
    if stays is not None:
        raise stays
    return removed


def _pages(archive: Archive, statement: Select[Any], narrow: Any, study_pk: int | None) -> Iterator[Sequence[AnyRow]]:
    parameters: dict[str, int] = {"after": 0}
    if study_pk is not None:
        statement = statement.where(narrow)
        parameters["study_pk"] = study_pk
    while True:
        with archive.reading() as conn:
            rows = conn.execute(statement, parameters).all()
        if not rows:
            return
        yield rows
        parameters["after"] = rows[-1].pk


def _unlink(archive: Archive, row: AnyRow) -> str:
    """Remove the file; the folder whose names changed, "" when it is not there at all."""
    tier = archive.tier(row.tier)
    marker.need(tier.root)  # where a volume is away, nothing is known to be gone
    try:
        tier.unlink(row.path)
    except OSError as error:
        raise StorageFailed(f"a file of the {row.tier} tier cannot be removed: {error.strerror}") from error
    folder = os.path.dirname(tier.path(row.path))
    return folder if os.path.isdir(folder) else ""


def _drop_copies(conn: Connection, *, pks: Sequence[int]) -> None:
    conn.execute(_DROP_COPIES, {"pks": pks})


def _drop_instances(conn: Connection, *, pks: Sequence[int], series_pks: Collection[int]) -> None:
    conn.execute(_DROP_WAITING, {"pks": pks})
    conn.execute(_DROP_INSTANCES, {"pks": pks})
    for statement in _DROP_SAID:
        conn.execute(statement, {"pks": pks})
    conn.execute(_FREE_NUMBERS, {"pks": pks})
    conn.execute(_DROP_METADATA, {"pks": sorted(series_pks)})
    conn.execute(_DROP_SERIES, {"pks": sorted(series_pks)})


def _batches(pks: Iterable[int]) -> Iterator[list[int]]:
    all_of_them = list(pks)
    return (all_of_them[start : start + _BATCH] for start in range(0, len(all_of_them), _BATCH))
