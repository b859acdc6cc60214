"""Companions of key objects and presentation states (REQ-DCM-87): what still opens after originals were replaced.

They are made when the lossy copies come in sight, and filed in the same transaction: when a study switches, and, of an
object that comes after the switch, by the next tick. So none is ever in grace, nor made for copies that go again. Only
objects of the study itself get one, and it names every copy that stands, of other studies too; a copy of theirs that
comes later it does not name. What came stays as it is, and moves to cold storage under its own UID.

A companion that names the very same copies is not made again. When copies are made anew, or more images are replaced,
there is one more: the earlier one was seen, and stays (REQ-DCM-51).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from sqlalchemy import Connection, Select, bindparam, exists, select, union_all

from archive.core import Archive
from archive.dicom.companions import Copy, companion, encoded, references
from archive.dicom.equipment import equipment_of
from archive.dicom.file_meta import FileMeta
from archive.dicom.header import Header, is_legal_uid, read_header
from archive.dicom.uids import WITH_COMPANIONS
from archive.errors import StorageFailed, Unavailable
from archive.index.conditions import constant
from archive.instance import CopyState, State
from archive.lifecycle.cold import Stays, damage, filed, read_back, tell
from archive.lifecycle.compute import may_try
from archive.lifecycle.filing import file_companion, series_of_copies
from archive.lifecycle.guard import terms
from archive.schema import instance, life_failure, location, series, study
from archive.schema.types import AnyRow
from archive.storage.incoming import Incoming
from archive.workflow.availability import announce

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = structlog.get_logger(__name__)

STEP = "companions"  # of `life_failure`
MAX_BYTES = 64 << 20  # of an object that is read whole; none that selects or shows is as long
_EXPLICIT = "1.2.840.10008.1.2.1"
_BATCH = 500

_SELECTS = (  # key objects and presentation states as they came
    instance.c.sop_class_uid.in_(sorted(WITH_COMPANIONS)),
    instance.c.state == constant(str(State.STORED)),
    instance.c.derived_from_pk.is_(None),
)
_OBJECTS: Select[Any] = (
    select(
        instance.c.pk,
        instance.c.sop_instance_uid,
        instance.c.identity,
        instance.c.series_pk,
        study.c.study_instance_uid,
        location.c.tier,
        location.c.path,
        location.c.digest,
        location.c.file_bytes,
        location.c.data_set_offset,
    )
    .select_from(instance.join(series).join(study).join(location, location.c.instance_pk == instance.c.pk))
    .where(series.c.study_pk == bindparam("study_pk"), *_SELECTS, location.c.state == constant(str(CopyState.OK)))
    .order_by(instance.c.pk, location.c.tier.desc(), location.c.pk)  # hot before cold
)
_copy = instance.alias("copy")
_COPIES: Select[Any] = (
    select(
        instance.c.pk,
        instance.c.state,
        instance.c.sop_instance_uid,
        _copy.c.pk.label("copy_pk"),
        _copy.c.state.label("copy_state"),
        _copy.c.sop_instance_uid.label("copy_uid"),
        series.c.series_instance_uid,
    )
    .select_from(
        instance.join(_copy, _copy.c.derived_from_pk == instance.c.pk).join(series, series.c.pk == _copy.c.series_pk)
    )
    .where(instance.c.sop_instance_uid.in_(bindparam("uids", expanding=True)))
    .order_by(_copy.c.pk)
)
_MADE = select(instance.c.derivation).where(
    instance.c.derived_from_pk == bindparam("instance_pk"),
    instance.c.state == constant(str(State.STORED)),
    exists().where(location.c.instance_pk == instance.c.pk, location.c.state == constant(str(CopyState.OK))),
)
_STATE = select(instance.c.state).where(instance.c.pk == bindparam("instance_pk")).with_for_update()
_replaced, _their_series = instance.alias("replaced"), series.alias("their_series")
_MAY_LACK = (  # of a study: both what may name an image, and what is replaced
    exists().where(series.c.study_pk == study.c.pk, instance.c.series_pk == series.c.pk, *_SELECTS),
    exists().where(
        _their_series.c.study_pk == study.c.pk,
        _replaced.c.series_pk == _their_series.c.pk,
        _replaced.c.state == constant(str(State.REPLACED)),
    ),
)


@dataclass(frozen=True, slots=True)
class Made:
    """A companion whose file is settled on the cold tier, and has no row yet."""

    row: AnyRow  # of the object that it repeats
    names: Mapping[str, str]  # SOP Instance UIDs: originals, and the copies that it names for them
    header: Header
    incoming: Incoming


def make(archive: Archive, study_pk: int, *, switching: Mapping[int, int]) -> list[Made]:
    """Write the companions that a study lacks (law 1 but for the COMMIT); the caller files or discards each.

    `switching`: keys of originals that are about to be replaced, and of their copies.

    Raises:
        Unavailable: a volume or the index is away; nothing is left of what was written.
    """
    with archive.reading() as conn:
        rows = conn.execute(_OBJECTS, {"study_pk": study_pk}).all()
    made: list[Made] = []
    series_uids: dict[int, str] = {}  # of objects: the series of their companions
    done = 0
    try:
        for row in rows:
            if row.pk == done or row.file_bytes > MAX_BYTES or damage(archive.tier(row.tier), row):
                continue  # another copy of the same; or the next copy may be good
            done = row.pk
            one = _make(archive, row, switching, series_uids)
            made += [one] if one is not None else []
    except BaseException:
        discard(made)
        raise
    return made


def _make(archive: Archive, row: AnyRow, switching: Mapping[int, int], series_uids: dict[int, str]) -> Made | None:
    from pydicom import dcmread

    try:
        ds = dcmread(archive.tier(row.tier).path(row.path))
        named = references(ds) if ds.StudyInstanceUID == row.study_instance_uid else frozenset()
        with archive.reading() as conn:
            copies = _copies(conn, named, switching)
            names = {uid: copy.sop_instance_uid for uid, copy in copies.items()}
            if not names or _is_made(conn, row.pk, names):
                return None
            if row.series_pk not in series_uids:
                series_uids[row.series_pk] = series_of_copies(conn, row.series_pk)
        new = companion(
            ds,
            copies,
            series_instance_uid=series_uids[row.series_pk],
            at=archive.clock(),
            equipment=equipment_of(archive.settings),
        )
        if new is None:
            return None
        incoming, header = _write(archive, new)
    except Unavailable:
        raise
    except OSError as error:
        raise StorageFailed(f"a key object or presentation state cannot be read: {error.strerror}") from error
    except Exception as error:  # of pydicom, by what came: it keeps nobody from being migrated
        log.warning(
            "a key object or presentation state cannot be followed, and gets no companion",
            sop_instance_uid=row.sop_instance_uid,
            error=type(error).__name__,
        )
        return None
    return Made(row, names, header, incoming)


def _copies(conn: Connection, uids: Iterable[str], switching: Mapping[int, int]) -> dict[str, Copy]:
    """The copies that stand, or are about to, for these originals."""
    wanted, found = sorted(filter(is_legal_uid, uids)), {}
    for start in range(0, len(wanted), _BATCH):
        for row in conn.execute(_COPIES, {"uids": wanted[start : start + _BATCH]}):
            stands = row.state == State.REPLACED and row.copy_state == State.STORED
            if stands or switching.get(row.pk) == row.copy_pk:
                found[row.sop_instance_uid] = Copy(row.copy_uid, row.series_instance_uid)
    return found


def _is_made(conn: Connection, instance_pk: int, names: Mapping[str, str]) -> bool:
    told = (orjson.loads(text) for text in conn.execute(_MADE, {"instance_pk": instance_pk}).scalars())
    return any(one.get("names") == names for one in told)


def _write(archive: Archive, ds: Dataset) -> tuple[Incoming, Header]:
    """Bytes, name, the bytes again (law 1)."""
    content = encoded(ds)
    meta = FileMeta(str(ds.SOPClassUID), str(ds.SOPInstanceUID), _EXPLICIT)
    incoming = archive.cold.receive(meta, at=archive.real_clock(), expected_bytes=len(content))
    try:
        incoming.write(content)
        incoming.settle()
        read_back(archive.cold, incoming)
        header = read_header(
            incoming.fd,
            offset=incoming.data_set_offset,
            length=incoming.data_set_bytes,
            transfer_syntax_uid=_EXPLICIT,
            default_charset=archive.settings.dicom.default_charset,
        )
    except BaseException:
        incoming.discard()
        raise
    incoming.close()  # a study may have hundreds
    return incoming, header


def discard(made: Iterable[Made]) -> None:
    """Their files go: nothing refers to them."""
    for one in made:
        one.incoming.discard()


def wanted(conn: Connection, one: Made) -> bool:
    """Asked in the transaction that files it: its object still stands, and nobody else has made it."""
    stands = conn.execute(_STATE, {"instance_pk": one.row.pk}).scalar() == State.STORED
    return stands and not _is_made(conn, one.row.pk, one.names)


def file(conn: Connection, one: Made, *, study_pk: int, at: datetime) -> None:
    """Its row and its fact, inside a write of `archive.commit`."""
    told = {"original": one.row.sop_instance_uid, "names": dict(one.names), "at": at.isoformat()}
    file_companion(conn, study_pk=study_pk, row=one.row, incoming=one.incoming, header=one.header, told=told, at=at)


# -- of objects that came after the switch -------------------------------------------------------------------------


def lacking(conn: Connection, *, real_now: datetime, limit: int) -> list[int]:
    """Switched studies (keys) that something came for since their dates were computed, and those that `complete`
    failed for; but those that rest. To be asked before `compute_due`, which forgets that something came."""
    changed = select(study.c.pk).where(study.c.policy_version.is_(None))  # each by its index
    failed = select(life_failure.c.study_pk).where(life_failure.c.step == STEP)
    pending = study.c.pk.in_(union_all(changed, failed))
    found = select(study.c.pk).where(pending, *_MAY_LACK, may_try(STEP, real_now)).order_by(study.c.pk)
    return list(conn.execute(found.limit(limit)).scalars())


def complete(archive: Archive, study_pk: int) -> int:
    """Make the companions that a switched study lacks; how many.

    Raises:
        Unavailable: a volume or the index is away; those that were filed stand, the next call makes the rest.
    """
    made = make(archive, study_pk, switching={})
    count = 0
    try:
        while made:
            one = made.pop(0)
            at, now = archive.clock(), archive.real_clock()
            write = partial(_file_alone, one=one, study_pk=study_pk, at=at, now=now)
            count += filed(archive, one.incoming, write) is None
    finally:
        discard(made)
    return count


def _file_alone(conn: Connection, *, one: Made, study_pk: int, at: datetime, now: datetime) -> Stays | None:
    known = terms(conn, study_pk, lock=True)
    if known is None or not wanted(conn, one):
        return Stays.CHANGED
    file(conn, one, study_pk=study_pk, at=at)
    detail = {"migration": "named in a companion: copies of replaced images", "companions": 1}
    tell(conn, known, "C", detail)
    announce(conn, known.study_instance_uid, at=now)
    return None
