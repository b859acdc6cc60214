"""The only way out: which copies answer a request, and the audit of handing them over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_

from archive.access import Actor
from archive.audit.accesses import Access as StudyAccess
from archive.audit.record import Event
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import StorageFailed
from archive.instance import CURRENT, CopyState
from archive.schema import instance, location, patient, series, study
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
    identity: str = ""  # digest of what the header says of patient and request (archive.dicom.coerce); "" not known
    patient_corrections: str = ""  # JSON, archive.index.correct; "" when there are none
    study_corrections: str = ""

    @property
    def data_set_bytes(self) -> int:
        return self.file_bytes - self.data_set_offset

    def open(self) -> int:
        """A descriptor on the file; the caller closes it.

        Raises:
            StorageFailed: the copy is missing, or not as long as it was stored.
        """
        if not self.path:
            raise StorageFailed("no good copy of this instance is left: see «minipacs verify»")
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageFailed(f"the copy cannot be read: {error.strerror}") from error
        if os.fstat(fd).st_size != self.file_bytes:
            os.close(fd)
            raise StorageFailed("the copy is not as long as it was stored: see «minipacs verify»")
        return fd


# The tree first, the copies outer: an instance without a good copy is still one that was asked for.
_SELECT: Select[Any] = (
    sql.select(
        instance.c.pk,
        study.c.study_instance_uid,
        series.c.series_instance_uid,
        instance.c.sop_instance_uid,
        instance.c.sop_class_uid,
        location.c.transfer_syntax_uid,
        location.c.tier,
        location.c.path,
        location.c.file_bytes,
        location.c.data_set_offset,
        location.c.pixel_offset,
        instance.c.digest,
        instance.c.identity,
        patient.c.patient_id,
        patient.c.issuer,
        patient.c.corrections.label("patient_corrections"),
        study.c.corrections.label("study_corrections"),
    )
    .select_from(
        patient.join(study)
        .join(series)
        .join(instance)
        .outerjoin(location, and_(location.c.instance_pk == instance.c.pk, location.c.state == CopyState.OK))
    )
    .where(instance.c.state.in_(sorted(CURRENT)))
    .order_by(
        study.c.pk,
        func.coalesce(series.c.series_number, 1 << 30),
        series.c.pk,
        func.coalesce(instance.c.instance_number, 1 << 30),
        instance.c.pk,
        location.c.tier.desc(),  # hot before cold
        location.c.pk,
    )
)
_AT_ONCE = 5000  # UIDs in one statement


def select(
    archive: Archive,
    *,
    patient_id: str | None = None,
    issuer: str | None = None,
    study_uids: Sequence[str] = (),
    series_uids: Sequence[str] = (),
    instance_uids: Sequence[str] = (),
) -> list[Stored]:
    """Every current instance that satisfies all of what is given, by study, series number and instance number.

    An empty list when there is none, or when nothing was asked for.

    Raises:
        IndexUnavailable: the database cannot be read.
    """
    narrow: list[ColumnElement[bool]] = []
    if patient_id is not None:
        narrow.append(patient.c.patient_id == patient_id)
        if issuer:
            narrow.append(or_(patient.c.issuer == issuer, patient.c.issuer == ""))
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
    with archive.reading() as conn:
        if not lists:
            return _rows(archive, conn, narrow)
        column, uids = lists[-1]
        found: list[Stored] = []
        for start in range(0, len(uids), _AT_ONCE):
            found += _rows(archive, conn, [*narrow, column.in_(uids[start : start + _AT_ONCE])])
        return found


def _rows(archive: Archive, conn: Connection, where: Sequence[ColumnElement[bool]]) -> list[Stored]:
    found: list[Stored] = []
    last = None
    for row in conn.execute(_SELECT.where(*where)):
        if row.pk != last:
            found.append(_stored(archive, row))
        last = row.pk
    return found


def _stored(archive: Archive, row: AnyRow) -> Stored:
    return Stored(
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid or "",
        path=archive.tier(row.tier).path(row.path) if row.path else "",
        file_bytes=row.file_bytes or 0,
        data_set_offset=row.data_set_offset or 0,
        pixel_offset=row.pixel_offset,
        digest=row.digest,
        patient=cx(row.patient_id, row.issuer),
        tier=row.tier or "",
        identity=row.identity or "",
        patient_corrections=row.patient_corrections or "",
        study_corrections=row.study_corrections or "",
    )


class Access:
    """The audited handing over of a selection; `count` each object that left."""

    def __init__(self, by_study: dict[str, StudyAccess]) -> None:
        self._by_study = by_study

    def count(self, stored: Stored, sent_bytes: int) -> None:
        self._by_study[stored.study_instance_uid].count(instances=1, bytes=sent_bytes)

    def failed(self, stored: Stored) -> None:
        self._by_study[stored.study_instance_uid].count(instances=0, failed=1)


def open_access(
    archive: Archive, stored: Iterable[Stored], *, actor: Actor, scope: str = "", destination: str = ""
) -> Access:
    """Commit the opening audit row of each study (law 4). Call it before the first byte leaves.

    `destination` names who receives when it is not the actor.
    """
    by_study: dict[str, StudyAccess] = {}
    for one in stored:
        if one.study_instance_uid not in by_study:
            access = archive.accesses.access(
                actor,
                Event.INSTANCES_TRANSFERRED,
                "R",
                study=one.study_instance_uid,
                patient=one.patient,
                scope=scope,
                destination=destination,
            )
            access.open()
            by_study[one.study_instance_uid] = access
    return Access(by_study)
