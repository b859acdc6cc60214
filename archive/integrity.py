"""Do the bytes still say what they said? `verify` re-hashes copies, `fsck` compares rows and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, update

from archive.access import SYSTEM
from archive.core import Archive
from archive.errors import ArchiveError, NotFound
from archive.ingest import adopt
from archive.instance import CopyState
from archive.recovery import unfiled
from archive.schema import instance, location, series, study
from archive.schema.types import AnyRow

Progress = Callable[[int, int], None]  # done, of how many
SAMPLE = 1000  # copies that a plain `verify` looks at: those whose last check is the longest ago
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """One copy that is not as it should be, or one file without a row (then `sop_instance_uid` is empty)."""

    sop_instance_uid: str
    path: str
    reason: str


@dataclass(slots=True)
class Report:
    """What a check looked at, in copies, and what it found."""

    checked: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired: int = 0


def _copies(columns: Sequence[Any]) -> Select[Any]:
    return select(*columns).select_from(location.join(instance).join(series).join(study))


_COPY_COLUMNS = (
    location.c.pk,
    location.c.path,
    location.c.digest,
    location.c.file_bytes,
    location.c.data_set_offset,
    location.c.state,
    instance.c.sop_instance_uid,
)
_SEEN = update(location).where(location.c.pk == bindparam("location_pk"))


def verify(
    archive: Archive, *, study_uid: str | None = None, everything: bool = False, progress: Progress | None = None
) -> Report:
    """Re-hash copies; each verdict and its date are kept with the copy (a damaged one is no longer given out).

    Without `study_uid` or `everything`: the SAMPLE copies whose last check is the longest ago.

    Raises:
        NotFound: there is no such study.
        Unavailable: a copy cannot be looked at (rights, limits), or the database not be written.
    """
    report = Report()
    with archive.reading() as conn:
        total = conn.execute(_narrow(_copies([func.count()]), study_uid)).scalar_one()
    if study_uid is not None and not total:
        raise NotFound("no such study")  # nothing looked at is not «all is well»
    if study_uid is None and not everything:
        with archive.reading() as conn:
            rows = conn.execute(
                _copies(_COPY_COLUMNS).order_by(location.c.verified_at.nulls_first(), location.c.pk).limit(SAMPLE)
            ).all()
        pages: Iterator[Sequence[AnyRow]] = iter([rows])
        total = len(rows)
    else:
        pages = _pages(archive, study_uid)
    for page in pages:
        verdicts: list[dict[str, Any]] = []
        for row in page:
            reason = archive.hot.damage(
                row.path, digest=row.digest, file_bytes=row.file_bytes, data_set_offset=row.data_set_offset
            )
            if reason:
                report.findings.append(Finding(row.sop_instance_uid, row.path, reason))
            verdicts.append({"location_pk": row.pk, "state": CopyState.DAMAGED if reason else CopyState.OK})
            report.checked += 1
            if progress is not None:
                progress(report.checked, total)
        archive.commit.run(partial(_keep, verdicts=verdicts, at=archive.clock()))
    return report


def _keep(conn: Connection, *, verdicts: list[dict[str, Any]], at: Any) -> None:
    if verdicts:
        conn.execute(
            _SEEN.values(state=bindparam("state"), verified_at=bindparam("at")), [{**v, "at": at} for v in verdicts]
        )


def _narrow(statement: Select[Any], study_uid: str | None) -> Select[Any]:
    return statement if study_uid is None else statement.where(study.c.study_instance_uid == study_uid)


def _pages(archive: Archive, study_uid: str | None = None) -> Iterator[Sequence[AnyRow]]:
    after = 0
    statement = _narrow(_copies(_COPY_COLUMNS), study_uid).order_by(location.c.pk).limit(_PAGE)
    while True:
        with archive.reading() as conn:
            page = conn.execute(statement.where(location.c.pk > after)).all()
        if not page:
            return
        yield page
        after = page[-1].pk


def fsck(archive: Archive, *, repair: bool = False, progress: Progress | None = None) -> Report:
    """Find rows without bytes and bytes without rows. `repair` marks the former damaged, so that a resend is taken
    as the good copy, and takes the latter in.

    Not for files that are being received at this moment: they may show as bytes without rows, and are gone from
    the findings of the next run.
    """
    report = Report()
    with archive.reading() as conn:
        total = conn.execute(select(func.count()).select_from(location)).scalar_one()
    for page in _pages(archive):
        missing: list[int] = []
        for row in page:
            report.checked += 1
            reason = _absence(archive, row)
            if reason and row.state == CopyState.OK:
                report.findings.append(Finding(row.sop_instance_uid, row.path, f"row without bytes: {reason}"))
                missing.append(row.pk)
        if progress is not None:
            progress(report.checked, total)
        if repair and missing:
            archive.commit.run(partial(_mark_damaged, pks=missing))
            report.repaired += len(missing)
    for path in unfiled(archive):
        report.findings.append(Finding("", path, "bytes without a row"))
        if repair:
            try:
                adopt(archive, path, actor=SYSTEM)
                report.repaired += 1
            except (ArchiveError, OSError) as error:
                report.findings[-1] = Finding("", path, f"bytes without a row, and not taken in: {error}")
    return report


def _absence(archive: Archive, row: AnyRow) -> str:
    try:
        size = os.stat(archive.hot.path(row.path)).st_size
    except OSError as error:
        return error.strerror or "missing"
    return "" if size == row.file_bytes else f"{size} bytes instead of {row.file_bytes}"


def _mark_damaged(conn: Connection, *, pks: list[int]) -> None:
    conn.execute(_SEEN.values(state=CopyState.DAMAGED), [{"location_pk": pk} for pk in pks])
