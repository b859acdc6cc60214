"""A trial of the lossy gate on the archive's own images, before anything depends on it (`minipacs retention quality`).

A random sample of each modality is encoded, decoded and measured as migration would; nothing is stored, nothing given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select

from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.derive import Assessed, Kept, assess
from archive.dicom.eligible import Reason
from archive.dicom.quality import Figures, Summary
from archive.index.conditions import constant
from archive.instance import CURRENT, CopyState
from archive.schema import instance, location, series
from archive.schema.types import AnyRow
from archive.sections import QUALITY

_MINE: tuple[ColumnElement[bool], ...] = (
    series.c.modality == bindparam("modality"),
    instance.c.state.in_(sorted(CURRENT)),
    instance.c.derived_from_pk.is_(None),
    location.c.tier == "hot",
    location.c.state == constant(str(CopyState.OK)),
)
_BOUNDS = (
    select(func.min(instance.c.pk), func.max(instance.c.pk)).join_from(series, instance).join(location).where(*_MINE)
)
_NEXT: Select[Any] = (
    select(instance.c.pk, location.c.path, location.c.transfer_syntax_uid)
    .join_from(series, instance)
    .join(location)
    .where(*_MINE, instance.c.pk >= bindparam("pk"))
    .order_by(instance.c.pk)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of the sample of one modality. Bytes are those of pixels."""

    modality: str
    passed: int
    kept: dict[str, int]  # how many stay without loss, by reason
    worst_passed: Figures | None
    worst_failed: Figures | None
    stored_bytes: int  # of those that passed, as they are stored now
    uncompressed_bytes: int
    compressed_bytes: int
    seconds: float

    @property
    def tried(self) -> int:
        return self.passed + sum(self.kept.values())

    def shape(self) -> dict[str, Any]:
        """As the command prints it with `--json`."""
        saved = self.stored_bytes - self.compressed_bytes
        return {
            "modality": self.modality,
            "tried": self.tried,
            "passed": self.passed,
            "kept": self.kept,
            "worst_passed": _figures(self.worst_passed),
            "worst_failed": _figures(self.worst_failed),
            "ratio": round(self.uncompressed_bytes / self.compressed_bytes, 2) if self.compressed_bytes else None,
            "saved_bytes": saved,
            "saved_share": round(saved / self.stored_bytes, 3) if self.stored_bytes else None,
            "milliseconds_each": round(1000 * self.seconds / self.tried, 1) if self.tried else None,
        }


def trial(
    archive: Archive,
    sample: int,
    *,
    modalities: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    random: Random | None = None,
) -> list[Tried]:
    """Try the gate on up to `sample` hot images of each modality that has one, by default of all that have.

    `progress` is told how many images are done, of how many. Modalities without images are left out.

    Raises:
        IndexUnavailable: the database cannot be read.
    """
    gate = archive.settings.retention.gate
    wanted = modalities or sorted(QUALITY.keys() | archive.settings.retention.quality.keys())
    chosen: dict[str, list[AnyRow]] = {}
    with archive.reading() as conn:
        for modality in wanted:
            if gate(modality) and (rows := list(_sample(conn, modality, sample, random or SystemRandom()))):
                chosen[modality] = rows
    total = sum(len(rows) for rows in chosen.values())
    found: list[Tried] = []
    done = 0
    for modality, rows in chosen.items():
        started = monotonic()
        outcomes: list[Assessed | Kept] = []
        for row in rows:
            outcomes.append(_try(archive, row))
            done += 1
            if progress:
                progress(done, total)
        found.append(_tried(modality, outcomes, monotonic() - started))
    return found


def _sample(conn: Connection, modality: str, sample: int, random: Random) -> Iterator[AnyRow]:
    """Different images, each the next one after a random place."""
    first, last = conn.execute(_BOUNDS, {"modality": modality}).one()
    if first is None:
        return
    seen: set[int] = set()
    for _ in range(4 * sample):
        row = conn.execute(_NEXT, {"modality": modality, "pk": random.randint(first, last)}).first()
        if row is not None and row.pk not in seen and len(seen) < sample:
            seen.add(row.pk)
            yield row


def _try(archive: Archive, row: AnyRow) -> Assessed | Kept:
    try:
        return assess(
            archive.hot.path(row.path),
            transfer_syntax_uid=row.transfer_syntax_uid,
            gate=archive.settings.retention.gate,
        )
    except OSError as error:
        return Kept(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}")


def _tried(modality: str, outcomes: Sequence[Assessed | Kept], seconds: float) -> Tried:
    passed = [one for one in outcomes if isinstance(one, Assessed)]
    kept = [one for one in outcomes if isinstance(one, Kept)]
    return Tried(
        modality=modality,
        passed=len(passed),
        kept=dict(Counter(str(one.reason) for one in kept).most_common()),
        worst_passed=_worst([one.summary for one in passed]),
        worst_failed=_worst([one.summary for one in kept if one.reason is Reason.GATE and one.summary]),
        stored_bytes=sum(one.stored_bytes for one in passed),
        uncompressed_bytes=sum(one.uncompressed_bytes for one in passed),
        compressed_bytes=sum(one.compressed_bytes for one in passed),
        seconds=seconds,
    )


def _worst(summaries: Sequence[Summary]) -> Figures | None:
    if not summaries:
        return None
    worst = [one.worst for one in summaries]
    return Figures(
        psnr_db=min(one.psnr_db for one in worst),
        ssim=min(one.ssim for one in worst),
        max_error=max(one.max_error for one in worst),
    )


def _figures(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else figures.record()
