"""The only way out: which copies answer a request, and the audit of handing them over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, or_

from archive import waiting
from archive.access import Actor
from archive.audit.accesses import Access as StudyAccess
from archive.audit.record import Event
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import Gone, StorageFailed, unreadable
from archive.index.conditions import constant, current
from archive.index.held import held_back
from archive.instance import CURRENT, HIDDEN, JUDGED, CopyState, State
from archive.schema import instance, location, patient, series, study, tombstone
from archive.schema.prepared import Prepared
from archive.schema.types import AnyRow


@dataclass(frozen=True, slots=True)
class Stored:
    """The current representation of an instance, and its best copy. Offsets and lengths in bytes."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str  # absolute; "" when no good copy is left
    file_bytes: int
    data_set_offset: int
    pixel_offset: int | None  # of the Pixel Data element, from the start of the data set
    digest: str
    patient: str  # as an audit row names it
    tier: str = "hot"
    identity: str = ""  # digest of what the header says of patient and study (archive.dicom.corrections); "" not known
    patient_corrections: str = ""  # JSON, archive.index.correct; "" when there are none
    study_corrections: str = ""
    # of an original that only its derived copy is left of: SOP Instance and Series Instance UID of that copy
    alternate: str = ""
    alternate_series: str = ""
    replaced: bool = False  # and so it has no copy; never sent, never substituted (REQ-DCM-84)

    @property
    def gone(self) -> Gone:
        """Why a replaced original is not given, and what to ask for."""
        place = (self.study_instance_uid, self.alternate_series, self.alternate) if self.alternate else ()
        return Gone(
            "only a lossy copy of this instance is left, under a UID of its own", alternate=self.alternate, place=place
        )

    @property
    def data_set_bytes(self) -> int:
        return self.file_bytes - self.data_set_offset

    def stands(self) -> bool:
        """Whether its copy lies where the index says, as long as it was stored.

        Raises WouldWait: nobody may wait here, and the other tier is slow or far away.
        """
        if self.tier != "hot":
            waiting.demand()
        try:
            return bool(self.path) and os.stat(self.path).st_size == self.file_bytes
        except OSError:
            return False

    def open(self) -> int:
        """A descriptor on the file; the caller closes it.

        Raises:
            Gone: it was replaced.
            StorageFailed: the copy is missing, or not as long as it was stored.
        """
        if self.replaced:
            raise self.gone
        if not self.path:
            raise StorageFailed("no good copy of this instance is left: see «minipacs verify»")
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(error) from error
        if os.fstat(fd).st_size != self.file_bytes:
            os.close(fd)
            raise StorageFailed("the copy is not as long as it was stored: see «minipacs verify»")
        return fd


_LAST = constant(1 << 30)
_ORDER = (
    study.c.pk,
    func.coalesce(series.c.series_number, _LAST),
    series.c.pk,
    func.coalesce(instance.c.instance_number, _LAST),
    instance.c.pk,
)
_NAMES = (
    instance.c.pk,
    study.c.study_instance_uid,
    series.c.series_instance_uid,
    instance.c.sop_instance_uid,
    instance.c.sop_class_uid,
    instance.c.digest,
    patient.c.patient_id,
    patient.c.issuer,
)
# The tree first, the copies outer: an instance without a good copy is still one that was asked for. The state of a copy
# is in the text: as a parameter it might be the one of a partial index, and SQLite would plan anew each time.
_SELECT: Select[Any] = (
    sql.select(
        *_NAMES,
        location.c.transfer_syntax_uid,
        location.c.tier,
        location.c.path,
        location.c.file_bytes,
        location.c.data_set_offset,
        location.c.pixel_offset,
        instance.c.identity,
        patient.c.corrections.label("patient_corrections"),
        study.c.corrections.label("study_corrections"),
    )
    .select_from(
        patient.join(study)
        .join(series)
        .join(instance)
        .outerjoin(
            location,
            and_(location.c.instance_pk == instance.c.pk, location.c.state == constant(str(CopyState.OK))),
        )
    )
    .order_by(
        *_ORDER,
        location.c.tier.desc(),  # hot before cold
        location.c.pk,
    )
)
_copy, _copy_series = instance.alias("copy"), series.alias("copy_series")
_REPLACED: Select[Any] = (
    sql.select(
        *_NAMES,
        _copy.c.sop_instance_uid.label("alternate"),
        _copy_series.c.series_instance_uid.label("alternate_series"),
    )
    .select_from(
        patient.join(study)
        .join(series)
        .join(instance)
        .outerjoin(_copy, and_(_copy.c.derived_from_pk == instance.c.pk, _copy.c.state.in_(sorted(CURRENT))))
        .outerjoin(_copy_series, _copy_series.c.pk == _copy.c.series_pk)
    )
    .where(instance.c.state == constant(str(State.REPLACED)))
    .order_by(*_ORDER, _copy.c.pk)
)
_PURGED = sql.select(tombstone.c.pk)
_REJECTED = (
    sql.select(instance.c.pk)
    .select_from(instance.join(series).join(study))
    .where(instance.c.state.in_(sorted(HIDDEN)), ~held_back())
)
_AT_ONCE = 5000  # UIDs in one statement
_UIDS = (
    study.c.study_instance_uid == bindparam("study"),
    series.c.series_instance_uid == bindparam("series"),
    instance.c.sop_instance_uid == bindparam("instance"),
)


@lru_cache
def _named(depth: int, quality: bool) -> Prepared:
    return Prepared(_SELECT.where(*_UIDS[:depth], current(quality=quality)))


def named(
    archive: Archive, study_uid: str, series_uid: str = "", instance_uid: str = "", *, quality: bool = False
) -> list[Stored]:
    """Every current instance of one study, of one series, or one: what `select` gives for these UIDs, in a fraction of
    its time.

    Raises:
        IndexUnavailable: the database cannot be read.
        WouldWait: nobody may wait here, and it is more than one, or a database that has to be asked.
    """
    given = {"study": study_uid, "series": series_uid, "instance": instance_uid}
    asked = {name: uid for name, uid in given.items() if uid}
    found: list[Stored] = []
    last = None
    with archive.reading(brief=bool(instance_uid)) as conn:
        for row in _named(len(asked), quality).all(conn, asked):
            if row[0] != last:
                found.append(_of_columns(archive, *row))
            last = row[0]
    return found


def select(
    archive: Archive,
    *,
    patient_id: str | None = None,
    issuer: str | None = None,
    study_uids: Sequence[str] = (),
    series_uids: Sequence[str] = (),
    instance_uids: Sequence[str] = (),
    replaced: bool = False,
    quality: bool = False,
    hidden: bool = False,
) -> list[Stored]:
    """Every current instance that satisfies all of what is given, by study, series number and instance number.

    An empty list when there is none, or when nothing was asked for. `patient_id` may be one that was merged away.
    With `replaced`, the originals of which only a derived copy is left come too, at the end: `Stored.replaced`. With
    `quality`, what was rejected for quality reasons (113001) is there like any other; with `hidden`, whatever was
    rejected.

    Raises:
        IndexUnavailable: the database cannot be read.
    """
    narrow: list[ColumnElement[bool]] = []
    if patient_id is not None:
        narrow.append(patient.c.pk.in_(_patients(patient_id, archive.authorities.issuer(issuer or ""))))
    lists = [
        (column, uids)
        for column, uids in (
            (study.c.study_instance_uid, study_uids),
            (series.c.series_instance_uid, series_uids),
            (instance.c.sop_instance_uid, instance_uids),
        )
        if uids
    ]
    if not narrow and not lists:
        return []
    lists.sort(key=lambda pair: len(pair[1]))
    narrow += [column.in_(list(uids)) for column, uids in lists[:-1]]
    states = CURRENT | HIDDEN if hidden else JUDGED if quality else CURRENT
    seen = _SELECT.where(instance.c.state.in_(sorted(states)))
    statements = (seen, _REPLACED) if replaced else (seen,)
    with archive.reading() as conn:  # one state of the index, however many statements
        if not lists:
            return [one for statement in statements for one in _rows(archive, conn, statement.where(*narrow))]
        column, uids = lists[-1]
        found: list[Stored] = []
        for statement in statements:
            for start in range(0, len(uids), _AT_ONCE):
                part = statement.where(*narrow, column.in_(uids[start : start + _AT_ONCE]))
                found += _rows(archive, conn, part)
        return found


def _patients(patient_id: str, issuer: str) -> Select[Any]:
    """The patients with this identifier, or the survivors of those that had it (REQ-DCM-37)."""
    mine = [patient.c.patient_id == patient_id]
    if issuer:
        mine.append(or_(patient.c.issuer == issuer, patient.c.issuer == ""))
    return sql.select(func.coalesce(patient.c.merged_into_pk, patient.c.pk)).where(*mine)


def again(archive: Archive, stored: Stored) -> Stored | None:
    """The same instance as it stands now, for whoever found its file gone since it was selected: in the other tier, or
    replaced. None: nothing changed, or it is not known any more.

    Raises:
        IndexUnavailable: the database cannot be read.
    """
    now = select(
        archive,
        study_uids=[stored.study_instance_uid],
        series_uids=[stored.series_instance_uid],
        instance_uids=[stored.sop_instance_uid],
        replaced=True,
    )
    return now[0] if now and (now[0].path, now[0].replaced) != (stored.path, stored.replaced) else None


def why_gone(archive: Archive, *, study_uid: str, series_uid: str = "", instance_uid: str = "") -> str:
    """Why what has these UIDs is not given any more (REQ-DCM-92): it was purged, or rejected; "" when it was neither.

    Raises:
        IndexUnavailable: the database cannot be read.
    """
    purged = _PURGED.where(tombstone.c.study_instance_uid == study_uid)
    rejected = _REJECTED.where(study.c.study_instance_uid == study_uid)
    if series_uid:
        purged = purged.where(tombstone.c.series_instance_uid == series_uid)
        rejected = rejected.where(series.c.series_instance_uid == series_uid)
    if instance_uid:
        purged = purged.where(tombstone.c.sop_instance_uid == instance_uid)
        rejected = rejected.where(instance.c.sop_instance_uid == instance_uid)
    with archive.reading() as conn:
        if conn.execute(rejected.limit(1)).first() is not None:
            return "was rejected"
        return "was removed at the end of its retention" if conn.execute(purged.limit(1)).first() is not None else ""


def _rows(archive: Archive, conn: Connection, statement: Select[Any]) -> list[Stored]:
    found: list[Stored] = []
    last = None
    for row in conn.execute(statement):
        if row.pk != last:
            found.append(_of_columns(archive, *row) if "path" in row._fields else _replaced(row))
        last = row.pk
    return found


def _of_columns(archive: Archive, *columns: Any) -> Stored:
    """A row of `_SELECT`."""
    _pk, study_uid, series_uid, uid, sop_class_uid, digest, patient_id, issuer, syntax, tier, path, *more = columns
    file_bytes, data_set_offset, pixel_offset, identity, patient_corrections, study_corrections = more
    return Stored(
        study_uid,
        series_uid,
        uid,
        sop_class_uid,
        syntax or "",
        archive.tier(tier).path(path) if path else "",
        file_bytes or 0,
        data_set_offset or 0,
        pixel_offset,
        digest,
        cx(patient_id, issuer),
        tier or "",
        identity or "",
        patient_corrections or "",
        study_corrections or "",
    )


def _replaced(row: AnyRow) -> Stored:
    return Stored(
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid="",
        path="",
        file_bytes=0,
        data_set_offset=0,
        pixel_offset=None,
        digest=row.digest,
        patient=cx(row.patient_id, row.issuer),
        tier="",
        replaced=True,
        alternate=row.alternate or "",
        alternate_series=row.alternate_series or "",
    )


class Access:
    """The audited handing over of a selection; `count` each object that left."""

    def __init__(self, by_study: dict[str, StudyAccess]) -> None:
        self._by_study = by_study

    def count(self, stored: Stored, sent_bytes: int, *, instances: int = 1) -> None:
        """`instances`: of the study of `stored`, which these bytes are of."""
        self._by_study[stored.study_instance_uid].count(instances=instances, bytes=sent_bytes)

    def failed(self, stored: Stored) -> None:
        self._by_study[stored.study_instance_uid].count(instances=0, failed=1)


def open_access(
    archive: Archive,
    stored: Iterable[Stored],
    *,
    actor: Actor,
    scope: str = "",
    destination: str = "",
    event: Event = Event.INSTANCES_TRANSFERRED,
) -> Access:
    """Commit the opening audit row of each study (law 4). Call it before the first byte leaves.

    `destination` names who receives when it is not the actor.
    """
    by_study: dict[str, StudyAccess] = {}
    for one in stored:
        if one.study_instance_uid not in by_study:
            access = archive.accesses.access(
                actor,
                event,
                "R",
                study=one.study_instance_uid,
                patient=one.patient,
                scope=scope,
                destination=destination,
            )
            access.open()
            by_study[one.study_instance_uid] = access
    return Access(by_study)
