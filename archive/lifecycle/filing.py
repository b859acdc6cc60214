"""The rows of copies in cold storage. Called in writes of `archive.commit`: safe to run twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Select, bindparam, exists, select, update

from archive.config import Settings
from archive.dicom.attributes import Level
from archive.dicom.derive import Derived, Kept
from archive.dicom.header import Header
from archive.dicom.uids import new_uid
from archive.index.conditions import constant
from archive.index.replaced import note_derived
from archive.instance import CopyState, State
from archive.lifecycle.cold import Stays, aged, hot
from archive.schema import instance, location, series
from archive.schema.types import AnyRow
from archive.schema.upsert import insert
from archive.storage.incoming import Incoming

_PAGE = 50
_of_original = instance.alias("of_original")
_its_copy = location.alias("its_copy")
_HAS_COPY = exists().where(
    _its_copy.c.instance_pk == instance.c.pk,
    _its_copy.c.tier == "cold",
    _its_copy.c.state == constant(str(CopyState.OK)),
)
_HAS_DERIVED = exists().where(
    _of_original.c.derived_from_pk == instance.c.pk,
    _of_original.c.state == constant(str(State.PENDING)),
    _its_copy.c.instance_pk == _of_original.c.pk,
    _its_copy.c.state == constant(str(CopyState.OK)),
)
# Images of a study on the hot tier that have no form in cold storage, behind the one with the key `after`.
TO_COPY: Select[Any] = (
    select(
        instance.c.pk,
        instance.c.sop_instance_uid,
        instance.c.identity,
        instance.c.received_at,
        instance.c.series_pk,
        hot.c.pk.label("location_pk"),
        hot.c.path,
        hot.c.transfer_syntax_uid,
        hot.c.digest,
        hot.c.file_bytes,
        hot.c.data_set_offset,
        hot.c.pixel_offset,
    )
    .select_from(instance.join(series).join(hot, hot.c.instance_pk == instance.c.pk))
    .where(
        series.c.study_pk == bindparam("study_pk"),
        instance.c.state == constant(str(State.STORED)),
        hot.c.tier == "hot",
        hot.c.state == constant(str(CopyState.OK)),
        ~_HAS_COPY,
        ~_HAS_DERIVED,
        instance.c.pk > bindparam("after"),
    )
    .order_by(instance.c.pk, hot.c.pk)
    .limit(_PAGE)
)
_original = instance.alias("original")
_SERIES_OF_COPIES = (  # one for each series of originals, the same in every call
    select(series.c.series_instance_uid)
    .select_from(series.join(instance).join(_original, _original.c.pk == instance.c.derived_from_pk))
    .where(_original.c.series_pk == bindparam("of_series_pk"), instance.c.state != State.PURGING)
    .order_by(instance.c.pk)
    .limit(1)
)
_LOCK = select(instance.c.state).where(instance.c.pk == bindparam("instance_pk")).with_for_update()
_COPIED = select(instance.c.pk).where(instance.c.pk == bindparam("instance_pk"), _HAS_COPY | _HAS_DERIVED)


@dataclass(frozen=True, slots=True)
class Work:
    """The study that is being copied, and what allows it."""

    settings: Settings
    study_pk: int
    on: date
    policy_version: str


def series_of_copies(conn: Connection, series_pk: int) -> str:
    """The UID of the series for what is made from that of the key `series_pk`; a new one for the first."""
    return conn.execute(_SERIES_OF_COPIES, {"of_series_pk": series_pk}).scalar() or new_uid()


def _still(conn: Connection, work: Work, row: AnyRow) -> Stays | None:
    """Asked again in the transaction: the study is still due, and nobody else has made this copy."""
    known = aged(conn, work.settings, work.study_pk, on=work.on, lock=True)
    if isinstance(known, Stays):
        return known
    state = conn.execute(_LOCK, {"instance_pk": row.pk}).scalar()
    copied = conn.execute(_COPIED, {"instance_pk": row.pk}).first() is not None
    return Stays.CHANGED if state != State.STORED or copied else None


def file_copy(
    conn: Connection, *, work: Work, row: AnyRow, incoming: Incoming, kept: Kept | None, at: datetime
) -> Stays | None:
    """File a second copy of an original; or why not."""
    if (stays := _still(conn, work, row)) is not None:
        return stays
    _add_location(
        conn, row.pk, incoming, transfer_syntax_uid=row.transfer_syntax_uid, pixel_offset=row.pixel_offset, at=at
    )
    if kept is not None:  # why it stays without loss is kept with it (REQ-DCM-86)
        told = orjson.dumps({**kept.record(), "policy_version": work.policy_version, "at": at.isoformat()}).decode()
        conn.execute(update(instance).where(instance.c.pk == row.pk).values(derivation=told))
    return None


def file_derived(
    conn: Connection, *, work: Work, row: AnyRow, made: Derived[Incoming], header: Header, at: datetime
) -> Stays | None:
    """File a lossy copy: an instance of its own, in grace, that no door knows (REQ-DCM-83); or why not."""
    if (stays := _still(conn, work, row)) is not None:
        return stays
    _file(conn, work.study_pk, row, made.incoming, header, state=State.PENDING, told=made.record(), at=at)
    return None


def file_companion(
    conn: Connection,
    *,
    study_pk: int,
    row: AnyRow,
    incoming: Incoming,
    header: Header,
    told: Mapping[str, Any],
    at: datetime,
) -> None:
    """File the companion of a key object or presentation state: in sight from this COMMIT on (REQ-DCM-87)."""
    _file(conn, study_pk, row, incoming, header, state=State.STORED, told=told, at=at)


def _file(
    conn: Connection,
    study_pk: int,
    row: AnyRow,
    incoming: Incoming,
    header: Header,
    *,
    state: State,
    told: Mapping[str, Any],
    at: datetime,
) -> None:
    """An instance that was made from the one of `row`, its copy in cold storage, and the fact of it."""
    source = "derived:minipacs"
    keys = header.keys[Level.IMAGE]
    pk = conn.execute(
        instance.insert().returning(instance.c.pk),
        {
            "series_pk": _series(conn, study_pk, header, at=at),
            "sop_instance_uid": header.sop_instance_uid,
            "sop_class_uid": header.sop_class_uid,
            "instance_number": keys.get("instance_number"),
            "state": state,
            "digest": incoming.digest,
            "source": source,
            "received_at": at,
            "attributes": orjson.dumps(header.levels[Level.IMAGE]).decode(),
            "identity": row.identity,  # patient and request are those of the original, element by element
            "derived_from_pk": row.pk,
            "derivation": orjson.dumps(dict(told)).decode(),
        },
    ).scalar_one()
    _add_location(
        conn,
        int(pk),
        incoming,
        transfer_syntax_uid=header.transfer_syntax_uid,
        pixel_offset=header.pixel_offset,
        at=at,
    )
    body = {
        "original": row.sop_instance_uid,
        "study": header.study_instance_uid,
        "series": header.series_instance_uid,
        "digest": incoming.digest,
        "source": source,
        "identity": row.identity,
        "derivation": dict(told),
    }
    note_derived(conn, header.sop_instance_uid, body, at=at)


def _series(conn: Connection, study_pk: int, header: Header, *, at: datetime) -> int:
    keys = header.keys[Level.SERIES]
    uid = header.series_instance_uid
    conn.execute(
        insert(conn, series).on_conflict_do_nothing(index_elements=["series_instance_uid"]),
        {
            **{name: value for name, value in keys.items() if name in series.c},
            "series_instance_uid": uid,
            "study_pk": study_pk,
            "attributes": orjson.dumps(header.levels[Level.SERIES]).decode(),
            "created_at": at,
        },
    )
    return int(conn.execute(select(series.c.pk).where(series.c.series_instance_uid == uid)).scalar_one())


def _add_location(
    conn: Connection,
    instance_pk: int,
    incoming: Incoming,
    *,
    transfer_syntax_uid: str,
    pixel_offset: int | None,
    at: datetime,
) -> None:
    conn.execute(
        location.insert(),
        {
            "instance_pk": instance_pk,
            "tier": incoming.tier.name,
            "path": incoming.final,
            "state": CopyState.OK,
            "transfer_syntax_uid": transfer_syntax_uid,
            "digest": incoming.digest,
            "file_bytes": incoming.file_bytes,
            "data_set_offset": incoming.data_set_offset,
            "pixel_offset": pixel_offset,
            "verified_at": at,
        },
    )
