"""To cold storage (REQ-CDC-10, sheet 10 §7): beside each original of an old study a lossy copy that passed its gate, or
a second copy of itself; then the grace period, in which nobody sees a difference.

An image at a time, each filed in a transaction of its own: killed anywhere, the next call goes on, and makes nothing
twice. Nothing is removed here but copies that turned out bad; the rest is `archive.lifecycle.switch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, bindparam, exists, func, select, update

from archive.core import Archive
from archive.dicom.derive import Derived, Kept, derive
from archive.dicom.equipment import equipment_of
from archive.dicom.header import read_header
from archive.errors import StorageFailed
from archive.index.conditions import constant
from archive.index.replaced import note_derived, restore_derived
from archive.instance import CopyState, State
from archive.lifecycle.cold import (
    FORMS,
    Stays,
    aged,
    copy_to_cold,
    damage,
    derived,
    filed,
    has_hot,
    hot,
    read_back,
    tell,
)
from archive.lifecycle.compute import originals_stay_days, policy_of
from archive.lifecycle.filing import TO_COPY, Work, file_copy, file_derived, series_of_copies
from archive.lifecycle.remove import finish_removals, mark_instances
from archive.policy import local_day, local_time
from archive.schema import instance, location, series, study
from archive.schema.types import AnyRow
from archive.storage.incoming import Incoming

__all__ = ["Migrated", "migrate", "restore_derived"]

log = structlog.get_logger(__name__)

_its_copy = location.alias("its_copy")
_BAD = (  # lossy copies in grace that are lost or damaged, of originals that are not
    select(derived.c.pk, derived.c.sop_instance_uid)
    .select_from(derived.join(instance, instance.c.pk == derived.c.derived_from_pk).join(series))
    .where(
        series.c.study_pk == bindparam("study_pk"),
        derived.c.state == constant(str(State.PENDING)),
        instance.c.state == constant(str(State.STORED)),
        has_hot(good=True),
        ~exists().where(_its_copy.c.instance_pk == derived.c.pk, _its_copy.c.state == constant(str(CopyState.OK))),
    )
)
_DAMAGED = update(location).where(location.c.pk == bindparam("location_pk")).values(state=CopyState.DAMAGED)


@dataclass(slots=True)
class Migrated:
    """What a call did, in images. `stays`: why it did no more."""

    derived: int = 0  # lossy copies made
    kept_lossless: int = 0  # second copies made
    damaged: int = 0  # originals whose bytes are not what was received: they stay as they are
    grace_until: datetime | None = None  # every image has its form in cold storage
    stays: Stays | None = None


@dataclass(slots=True)
class _Run:
    archive: Archive
    work: Work
    done: Migrated = field(default_factory=Migrated)
    series: dict[int, str] = field(default_factory=dict)  # of originals: the series of their copies


def migrate(archive: Archive, study_pk: int, *, proceed: Callable[[], bool] = lambda: True) -> Migrated:
    """Bring a study whose images may leave the hot tier into grace, from wherever an earlier call left it.

    `proceed` is asked before each image; False ends the call. Images that come later are brought in by a later call,
    and give the study a new grace period.

    Raises:
        Unavailable: a volume or the index is away or full; what was done stands.
    """
    on = local_day(archive.clock())
    with archive.reading() as conn:
        known = aged(conn, archive.settings, study_pk, on=on)
    if isinstance(known, Stays):
        return Migrated(stays=known)
    run = _Run(archive, Work(archive.settings, study_pk, on, policy_of(archive.settings).version))
    _clear(archive, study_pk)
    while _copy_all(run, proceed):
        made = bool(run.done.derived or run.done.kept_lossless)
        begun = archive.commit.run(partial(_begin_grace, work=run.work, made=made, at=archive.clock()))
        if isinstance(begun, Stays):
            run.done.stays = begun
        else:
            run.done.grace_until = begun
        if begun is not Stays.INCOMPLETE:
            break
        run.done.stays = None  # more came meanwhile
    return run.done


def _clear(archive: Archive, study_pk: int) -> None:
    """Copies in grace that are no good go first: they are made anew."""
    with archive.reading() as conn:
        bad = conn.execute(_BAD, {"study_pk": study_pk}).all()
    if bad:
        archive.commit.run(partial(drop_derived, pks=[row.pk for row in bad], at=archive.clock()))
        log.warning("lossy copies were lost, and are made again", instances=len(bad))
        finish_removals(archive, study_pk=study_pk)


_UIDS = select(instance.c.pk, instance.c.sop_instance_uid).where(
    instance.c.pk.in_(bindparam("pks", expanding=True)), instance.c.state == constant(str(State.PENDING))
)


def drop_derived(conn: Connection, *, pks: Sequence[int], at: datetime) -> None:
    """These lossy copies, that nobody has seen, go (law 2); inside a write of `archive.commit`."""
    for start in range(0, len(pks), 500):
        rows = conn.execute(_UIDS, {"pks": list(pks[start : start + 500])}).all()
        mark_instances(conn, [row.pk for row in rows])
        for row in rows:
            note_derived(conn, row.sop_instance_uid, {}, at=at)


def _copy_all(run: _Run, proceed: Callable[[], bool]) -> bool:
    """Give each image its form in cold storage. False: not all of them, and `run.done.stays` says why."""
    after = 0
    while True:
        with run.archive.reading() as conn:
            rows = conn.execute(TO_COPY, {"study_pk": run.work.study_pk, "after": after}).all()
        if not rows:
            return True
        for row in rows:
            if row.pk == after:  # another good copy of the same image
                continue
            if not proceed():
                run.done.stays = Stays.STOPPED
                return False
            after = row.pk
            run.done.stays = _copy_one(run, row)
            if run.done.stays is not None:
                return False


def _copy_one(run: _Run, row: AnyRow) -> Stays | None:
    archive = run.archive
    if reason := damage(archive.hot, row):  # never a copy of what is not the original
        archive.commit.run(lambda conn: conn.execute(_DAMAGED, {"location_pk": row.location_pk}))
        log.error("an original is damaged", sop_instance_uid=row.sop_instance_uid, path=row.path, why=reason)
        run.done.damaged += 1
        return None
    kept: Kept | None = None
    if archive.settings.retention.cold == "lossy":
        made = _derive(run, row)
        if isinstance(made, Derived):
            stays = _settle(run, row, made)
            run.done.derived += stays is None
            return stays
        kept = made
    try:
        incoming = copy_to_cold(archive, row)
    except OSError as error:
        raise StorageFailed(f"an original cannot be read: {error.strerror}") from error
    write = partial(file_copy, work=run.work, row=row, incoming=incoming, kept=kept, at=archive.clock())
    stays = filed(archive, incoming, write)
    run.done.kept_lossless += stays is None
    return stays


def _derive(run: _Run, row: AnyRow) -> Derived[Incoming] | Kept:
    archive = run.archive
    if row.series_pk not in run.series:
        with archive.reading() as conn:
            run.series[row.series_pk] = series_of_copies(conn, row.series_pk)
    try:
        return derive(
            archive.hot.path(row.path),
            transfer_syntax_uid=row.transfer_syntax_uid,
            gate=archive.settings.retention.gate,
            series_instance_uid=run.series[row.series_pk],
            policy_version=run.work.policy_version,
            at=local_time(archive.clock()),
            equipment=equipment_of(archive.settings),
            receive=lambda meta: archive.cold.receive(meta, at=archive.real_clock(), expected_bytes=row.file_bytes),
        )
    except OSError as error:
        raise StorageFailed(f"an original cannot be read: {error.strerror}") from error


def _settle(run: _Run, row: AnyRow, made: Derived[Incoming]) -> Stays | None:
    """Bytes, name, the bytes again, row (law 1)."""
    archive, incoming = run.archive, made.incoming
    try:
        incoming.settle()
        read_back(archive.cold, incoming)
        header = read_header(
            incoming.fd,
            offset=incoming.data_set_offset,
            length=incoming.data_set_bytes,
            transfer_syntax_uid=made.meta.transfer_syntax_uid,
            default_charset=archive.settings.dicom.default_charset,
        )
    except BaseException:
        incoming.discard()
        raise
    write = partial(file_derived, work=run.work, row=row, made=made, header=header, at=archive.clock())
    return filed(archive, incoming, write)


def _begin_grace(conn: Connection, *, work: Work, made: bool, at: datetime) -> datetime | Stays | None:
    """Begin the grace period; when it ends. INCOMPLETE: more images have come. None: there is nothing to switch."""
    known = aged(conn, work.settings, work.study_pk, on=work.on, lock=True)
    if isinstance(known, Stays):
        return known
    if conn.execute(TO_COPY, {"study_pk": work.study_pk, "after": 0}).first() is not None:
        return Stays.INCOMPLETE
    if known.grace_until is not None and not made:
        return known.grace_until
    told = _figures(conn, work.study_pk)
    if not told["lossy"] and not told["lossless"]:
        return None
    days = originals_stay_days(conn, work.settings, work.study_pk) or 0
    grace_until = at + timedelta(days=max(days, work.settings.retention.originals_grace_days))
    conn.execute(update(study).where(study.c.pk == work.study_pk).values(grace_until=grace_until))
    detail = {
        "migration": "copied to cold storage",
        **told,
        "policy_version": known.policy_version,
        "grace_until": grace_until.isoformat(),
    }
    tell(conn, known, "C", detail)
    return grace_until


_BYTES = (
    select(func.coalesce(func.sum(hot.c.file_bytes), 0))
    .select_from(hot.join(instance, instance.c.pk == hot.c.instance_pk).join(series))
    .where(
        series.c.study_pk == bindparam("study_pk"),
        instance.c.state == constant(str(State.STORED)),
        hot.c.tier == "hot",
        hot.c.state == constant(str(CopyState.OK)),
    )
)


def _figures(conn: Connection, study_pk: int) -> dict[str, Any]:
    """How the images of the study were copied, and the worst of what the gate measured."""
    lossy = lossless = size = last = 0
    psnr: list[float] = []
    ssim: list[float] = []
    errors: list[int] = []
    for row in conn.execute(FORMS, {"study_pk": study_pk, "after": 0}):
        if row.location_pk is None or row.pk == last:
            continue
        last = row.pk
        size += row.file_bytes
        if row.derived_pk is None:
            lossless += 1
            continue
        lossy += 1
        figures = orjson.loads(row.derivation)["figures"]
        psnr += [figures["psnr_db"]["worst"]] if figures["psnr_db"]["worst"] is not None else []
        ssim.append(figures["ssim"]["worst"])
        errors.append(figures["max_error"]["worst"])
    told: dict[str, Any] = {"lossy": lossy, "lossless": lossless}
    told["bytes"] = {"hot": int(conn.execute(_BYTES, {"study_pk": study_pk}).scalar_one()), "cold": size}
    if lossy:
        told["worst"] = {"psnr_db": min(psnr, default=None), "ssim": min(ssim), "max_error": max(errors)}
    return told
