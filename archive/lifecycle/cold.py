"""What migration and the switch share: which studies may go on, what they look at, and copies that are read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import date, datetime
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, exists, select

from archive.access import SYSTEM
from archive.audit.record import Event, Outcome, record
from archive.config import Settings
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.errors import CommitInDoubt, StorageFailed
from archive.index.conditions import constant
from archive.instance import CopyState, State
from archive.lifecycle.compute import policy_of
from archive.lifecycle.guard import Terms, is_on_hold, terms
from archive.lifecycle.suspension import suspensions
from archive.schema import instance, location, series
from archive.schema.types import AnyRow
from archive.storage import marker
from archive.storage.filesystem import Tier
from archive.storage.incoming import Incoming
from archive.storage.part10 import HEAD_BYTES, read_meta

T = TypeVar("T")
_PIECE_BYTES = 1 << 20


class Stays(StrEnum):
    """Why a study's images are not copied or not switched. In the words of a report."""

    CHANGED = "a fact changed"  # its dates are computed anew first
    YOUNG = "not old enough"
    HOLD = "hold"
    GRACE = "in grace"
    SUSPENDED = "removal is suspended"
    INCOMPLETE = "copies in cold storage are missing"  # of images that came late: they are made first
    DAMAGED = "a copy in cold storage is damaged"  # it is made anew
    STOPPED = "stopped"  # by the caller; the rest is done next time


def aged(conn: Connection, settings: Settings, study_pk: int, *, on: date, lock: bool = False) -> Terms | Stays:
    """The study, if its images may leave the hot tier on this day; locked against a change of facts if so asked."""
    known = terms(conn, study_pk, lock=lock)
    if known is None or known.policy_version != policy_of(settings).version:
        return Stays.CHANGED
    if known.online_until is None or known.online_until > f"{on:%Y%m%d}":
        return Stays.YOUNG
    return Stays.HOLD if is_on_hold(conn, known.pk, on) else known


def over(conn: Connection, known: Terms, *, at: datetime) -> Stays | None:
    """What keeps its originals, besides what `aged` says."""
    if known.grace_until is None or known.grace_until > at:
        return Stays.GRACE
    return Stays.SUSPENDED if suspensions(conn) else None


def tell(
    conn: Connection, known: Terms, action: str, detail: Mapping[str, object], outcome: int = Outcome.SUCCESS
) -> None:
    """Have the audit say what was done with the images of a study, inside a write of `archive.commit`."""
    record(
        conn, SYSTEM, Event.INSTANCES_ACCESSED, action,
        outcome=outcome, patient=known.patient, study=known.study_instance_uid, detail=detail,
    )  # fmt: skip


derived = instance.alias("derived")
hot, cold = location.alias("hot"), location.alias("cold")
_held = location.alias("held")


def has_hot(*, good: bool) -> ColumnElement[bool]:
    """Of an instance: a copy on the hot tier, that is good or at least there."""
    state = _held.c.state == constant(str(CopyState.OK)) if good else _held.c.state != CopyState.PURGING
    return exists().where(_held.c.instance_pk == instance.c.pk, _held.c.tier == "hot", state).correlate(instance)


# Each image of a study that others see and that lies on the hot tier, with its form in cold storage: the lossy copy
# that waits, or a second copy of itself; `location_pk` NULL: it has none.
FORMS: Select[Any] = (
    select(
        instance.c.pk,
        instance.c.sop_instance_uid,
        derived.c.pk.label("derived_pk"),
        derived.c.sop_instance_uid.label("derived_uid"),
        derived.c.derivation,
        cold.c.pk.label("location_pk"),
        cold.c.path,
        cold.c.digest,
        cold.c.file_bytes,
        cold.c.data_set_offset,
        has_hot(good=True).label("good"),
    )
    .select_from(
        instance.join(series)
        .outerjoin(
            derived, and_(derived.c.derived_from_pk == instance.c.pk, derived.c.state == constant(str(State.PENDING)))
        )
        .outerjoin(
            cold,
            and_(
                cold.c.instance_pk.in_([instance.c.pk, derived.c.pk]),
                cold.c.tier == "cold",
                cold.c.state == constant(str(CopyState.OK)),
            ),
        )
    )
    .where(
        series.c.study_pk == bindparam("study_pk"),
        instance.c.state == constant(str(State.STORED)),
        has_hot(good=False),
        instance.c.pk > bindparam("after"),
    )
    .order_by(instance.c.pk, cold.c.instance_pk.desc(), cold.c.pk)
)


def read_back(tier: Tier, incoming: Incoming) -> None:
    """Have a settled file read from the medium again, as far as the system lets us, and compared with what was written.

    Raises:
        StorageFailed: it is not that.
    """
    os.posix_fadvise(incoming.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    reason = tier.damage(
        incoming.final,
        digest=incoming.digest,
        file_bytes=incoming.file_bytes,
        data_set_offset=incoming.data_set_offset,
    )
    if reason:
        raise StorageFailed(f"a copy on the {tier.name} tier is not what was written: {reason}")


def copy_to_cold(archive: Archive, row: AnyRow) -> Incoming:
    """The same data set, byte for byte, in the cold tier: settled and read back (law 1). `row` is a `location`.

    Raises:
        StorageFull, StorageFailed: nothing is left of it.
    """
    fd = os.open(archive.hot.path(row.path), os.O_RDONLY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        meta, offset = read_meta(file.read(HEAD_BYTES))
        incoming = archive.cold.receive(
            FileMeta(meta.sop_class_uid, meta.sop_instance_uid, row.transfer_syntax_uid, meta.source_ae),
            at=archive.real_clock(),
            expected_bytes=row.file_bytes,
        )
        try:
            file.seek(offset)
            while piece := file.read(_PIECE_BYTES):
                incoming.write(piece)
            if incoming.digest != row.digest:
                raise StorageFailed("a copy changed while it was read")
            incoming.settle()
            read_back(archive.cold, incoming)
        except BaseException:
            incoming.discard()
            raise
    return incoming


def filed(archive: Archive, incoming: Incoming, write: Callable[[Connection], T | None]) -> T | None:
    """Run the write that files a settled copy, its folder flushed first. It returns None, or why there is no row: then
    the copy goes.

    Only an unknown COMMIT keeps the file (law 7): the sweep settles it.
    """
    try:
        result = archive.commit.run(write, directories=[incoming.directory])
    except CommitInDoubt:
        incoming.close()
        raise
    except BaseException:
        incoming.discard()
        raise
    if result is None:
        incoming.close()
    else:
        incoming.discard()
    return result


def damage(tier: Tier, row: AnyRow) -> str:
    """What is wrong with a copy, "" for nothing. Raises StorageFailed when it cannot be told: its volume is away."""
    reason = tier.damage(row.path, digest=row.digest, file_bytes=row.file_bytes, data_set_offset=row.data_set_offset)
    if reason:
        marker.need(tier.root)
    return reason
