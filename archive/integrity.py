"""Do the bytes still say what they said? `verify` re-hashes copies, `fsck` compares rows and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, update

from archive.access import SYSTEM
from archive.core import Archive, complete_journal
from archive.errors import ArchiveError, Gone, NotFound
from archive.ingest import adopt, adopt_cold
from archive.instance import CopyState
from archive.journal import Fact, forget_lines
from archive.recovery import unfiled
from archive.schema import fact, instance, location, series, study
from archive.schema.types import AnyRow
from archive.storage import marker

Progress = Callable[[int, int], None]  # done, of how many
SAMPLE = 1000  # copies that a plain `verify` looks at: those whose last check is the longest ago
_PAGE = 500
_MOST_FACTS = 1 << 33  # a bit of memory for each
_FACTS = select(fact.c.pk).where(fact.c.pk > bindparam("after"), fact.c.journaled == 1).order_by(fact.c.pk).limit(_PAGE)


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
    return (
        select(*columns)
        .select_from(location.join(instance).join(series).join(study))
        .where(location.c.state != CopyState.PURGING)
    )


_COPY_COLUMNS = (
    location.c.pk,
    location.c.tier,
    location.c.path,
    location.c.digest,
    location.c.file_bytes,
    location.c.data_set_offset,
    location.c.state,
    instance.c.sop_instance_uid,
)
# a copy that is being removed stays so, whatever is seen of it (law 2)
_SEEN = update(location).where(location.c.pk == bindparam("location_pk"), location.c.state != CopyState.PURGING)


def verify(
    archive: Archive, *, study_uid: str | None = None, everything: bool = False, progress: Progress | None = None
) -> Report:
    """Re-hash copies on both tiers; each verdict and its date are kept with the copy (a damaged one is no longer given
    out).

    Without `study_uid` or `everything`: the SAMPLE copies whose last check is the longest ago.

    Raises:
        NotFound: there is no such study.
        Unavailable: a copy cannot be looked at (rights, limits, a volume that is away), or the database not be written.
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
            reason = archive.tier(row.tier).damage(
                row.path, digest=row.digest, file_bytes=row.file_bytes, data_set_offset=row.data_set_offset
            )
            if reason:
                report.findings.append(Finding(row.sop_instance_uid, row.path, reason))
            verdicts.append({"location_pk": row.pk, "state": CopyState.DAMAGED if reason else CopyState.OK})
            report.checked += 1
            if progress is not None:
                progress(report.checked, total)
        archive.commit.run(partial(keep_verdicts, verdicts=verdicts, at=archive.clock()))
    return report


def keep_verdicts(conn: Connection, *, verdicts: list[dict[str, Any]], at: datetime) -> None:
    """What was seen of copies: `location_pk` and `state` of each, and when."""
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
    """Find rows without bytes, bytes without rows, and facts without their line in the journal. `repair` marks the
    first damaged, so that a resend is taken as the good copy, takes the second in, and writes the third.

    Not for files that are being received or migrated at this moment: they may show as bytes without rows, and are gone
    from the findings of the next run.

    Raises:
        StorageFailed: the volume of a tier is away: nothing can be said of its files.
    """
    report = Report()
    for tier in (archive.hot, archive.cold):
        marker.need(tier.root)
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
    for path in unfiled(archive, archive.hot):
        report.findings.append(Finding("", path, "bytes without a row"))
        if repair:
            _repair(report, path, partial(adopt, archive, path, actor=SYSTEM))
    for path in unfiled(archive, archive.cold):
        report.findings.append(Finding("", path, "bytes without a row, on the cold tier"))
        if repair:
            _repair(report, path, partial(adopt_cold, archive, path))
    _check_journal(archive, report, repair=repair)
    return report


def _repair(report: Report, path: str, settle: Callable[[], object]) -> None:
    try:
        settle()
    except Gone:
        report.repaired += 1  # purged: the file went
    except (ArchiveError, OSError) as error:
        report.findings[-1] = Finding("", path, f"bytes without a row, and not taken in: {error}")
    else:
        report.repaired += 1


def _check_journal(archive: Archive, report: Report, *, repair: bool) -> None:
    """Facts whose rows say that they have a line: a file may be lost, or a line have rotted. A line that cannot be read
    is no finding by itself: power cuts some off, which are written again."""
    journal = archive.journal
    there = bytearray()
    for line in journal.lines():
        if isinstance(line, Fact) and line.n < _MOST_FACTS:
            if len(there) <= line.n >> 3:
                there.extend(bytes((line.n >> 2) + 1 - len(there)))
            there[line.n >> 3] |= 1 << (line.n & 7)
    after = 0
    while True:
        with archive.reading() as conn:
            numbers = conn.execute(_FACTS, {"after": after}).scalars().all()
        if not numbers:
            return
        after = numbers[-1]
        lost = [n for n in numbers if n >> 3 >= len(there) or not there[n >> 3] >> (n & 7) & 1]
        report.findings += [Finding("", "facts", f"fact {n} has no line in the journal") for n in lost]
        if repair and lost:
            archive.commit.run(partial(forget_lines, pks=lost))
            complete_journal(archive)
            report.repaired += len(lost)


def _absence(archive: Archive, row: AnyRow) -> str:
    tier = archive.tier(row.tier)
    try:
        size = os.stat(tier.path(row.path)).st_size
    except OSError as error:
        marker.need(tier.root)
        return error.strerror or "missing"
    return "" if size == row.file_bytes else f"{size} bytes instead of {row.file_bytes}"


def _mark_damaged(conn: Connection, *, pks: list[int]) -> None:
    conn.execute(_SEEN.values(state=CopyState.DAMAGED), [{"location_pk": pk} for pk in pks])
