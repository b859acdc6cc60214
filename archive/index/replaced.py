"""Originals and the lossy copies derived from them: the facts of it that no image carries, and their way back.

A study's fact REPLACED tells of each original that only its copy is left of, all that is needed to know it without its
bytes (REQ-DCM-83, 84), and of each that lies in cold storage alone what its file does not say: when it was received,
why it was not compressed. A fact DERIVED tells whose copy an instance is, as long as both are there; or whose companion
(REQ-DCM-87): then `derivation` has `names`, and it was in sight from its first moment on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, exists, or_, select, update

from archive.index.conditions import constant
from archive.index.rejections import settle
from archive.instance import CopyState, State
from archive.journal import Kind, note
from archive.schema import instance, location, series, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

_copy = instance.alias("copy")
_BY_PK = instance.c.pk == bindparam("instance_pk")
_BY_UID = select(instance).where(instance.c.sop_instance_uid == bindparam("uid"))
_COPIES_OF = (
    select(instance.c.pk)
    .where(instance.c.derived_from_pk == bindparam("instance_pk"), instance.c.state == constant(str(State.STORED)))
    .order_by(instance.c.pk)
)
_STATE = update(instance).where(_BY_PK)
_SERIES = (  # what a row of `series` says, but for its keys
    "modality", "series_number", "series_description", "body_part_examined", "pps_start_date", "pps_start_time",
)  # fmt: skip
_ORIGINALS = (
    select(
        instance,
        series.c.series_instance_uid,
        series.c.attributes.label("series_attributes"),
        series.c.created_at,
        *(series.c[name] for name in _SERIES),
        _copy.c.sop_instance_uid.label("copy_uid"),
        _copy.c.digest.label("copy_digest"),
    )
    .select_from(instance.join(series).outerjoin(_copy, _copy.c.derived_from_pk == instance.c.pk))
    .where(
        series.c.study_pk == bindparam("study_pk"),
        or_(
            instance.c.state == constant(str(State.REPLACED)), instance.c.state_before == constant(str(State.REPLACED))
        ),
    )
    .order_by(instance.c.pk, _copy.c.pk)
)
_other = location.alias("other")
_MOVED = (  # held in cold storage alone, as they were received
    select(
        instance.c.sop_instance_uid,
        instance.c.digest,
        instance.c.source,
        instance.c.received_at,
        instance.c.derivation,
    )
    .select_from(instance.join(series))
    .where(
        series.c.study_pk == bindparam("study_pk"),
        or_(instance.c.state == constant(str(State.STORED)), instance.c.state_before == constant(str(State.STORED))),
        instance.c.derived_from_pk.is_(None),
        ~exists().where(
            _other.c.instance_pk == instance.c.pk, _other.c.tier == "hot", _other.c.state != CopyState.PURGING
        ),
    )
    .order_by(instance.c.pk)
)
_STUDY_OF = select(series.c.study_pk).join_from(instance, series).where(_BY_PK)
_HELD = select(location.c.pk).where(
    location.c.instance_pk == bindparam("instance_pk"), location.c.state == constant(str(CopyState.OK))
)


def derived_of(conn: Connection, instance_pk: int) -> list[int]:
    """The keys of the lossy copies that stand for an original."""
    return list(conn.execute(_COPIES_OF, {"instance_pk": instance_pk}).scalars())


def bring_back(conn: Connection, instance_pk: int, *, at: datetime) -> None:
    """A replaced original whose lossy copy is lost comes again: it is the current one, its copy out of sight until
    migration has made another. Inside a write of `archive.commit`."""
    for copy_pk in derived_of(conn, instance_pk):
        conn.execute(_STATE.values(state=State.PENDING), {"instance_pk": copy_pk})
    conn.execute(_STATE.values(state=State.STORED), {"instance_pk": instance_pk})
    study_pk = conn.execute(_STUDY_OF, {"instance_pk": instance_pk}).scalar_one()
    conn.execute(update(study).where(study.c.pk == study_pk).values(policy_version=None, grace_until=None))
    note_replaced(conn, study_pk, at=at)


def note_replaced(conn: Connection, study_pk: int, *, at: datetime) -> None:
    """Record which originals of the study are replaced, all of them, and what is known of each; and what is known of
    those that lie in cold storage alone."""
    uid = conn.execute(select(study.c.study_instance_uid).where(study.c.pk == study_pk)).scalar_one()
    first_received_at = conn.execute(select(study.c.first_received_at).where(study.c.pk == study_pk)).scalar_one()
    parts: dict[str, dict[str, Any]] = {}
    originals: dict[int, dict[str, Any]] = {}
    for row in conn.execute(_ORIGINALS, {"study_pk": study_pk}):
        parts.setdefault(row.series_instance_uid, _series(row))
        originals.setdefault(row.pk, _original(row))
    body = {
        "first_received_at": first_received_at.isoformat(),
        "series": parts,
        "originals": list(originals.values()),
        "moved": [_moved(row) for row in conn.execute(_MOVED, {"study_pk": study_pk})],
    }
    note(conn, Kind.REPLACED, uid, body, at=at)


def _series(row: AnyRow) -> dict[str, Any]:
    return {
        **{name: row._mapping[name] for name in _SERIES},
        "attributes": orjson.loads(row.series_attributes),
        "created_at": row.created_at.isoformat(),
    }


def _original(row: AnyRow) -> dict[str, Any]:
    return {
        "uid": row.sop_instance_uid,
        "class": row.sop_class_uid,
        "series": row.series_instance_uid,
        "number": row.instance_number,
        "digest": row.digest,
        "source": row.source,
        "received_at": row.received_at.isoformat(),
        "identity": row.identity,
        "attributes": orjson.loads(row.attributes),
        "copy": row.copy_uid,
        "copy_digest": row.copy_digest,
    }


def _moved(row: AnyRow) -> dict[str, Any]:
    return {
        "uid": row.sop_instance_uid,
        "digest": row.digest,
        "source": row.source,
        "received_at": row.received_at.isoformat(),
        "derivation": orjson.loads(row.derivation) if row.derivation else None,
    }


def note_derived(conn: Connection, sop_instance_uid: str, body: Mapping[str, Any], *, at: datetime) -> None:
    """Record of a lossy copy or companion `original`, `digest`, `source`, `identity`, `derivation`; or, an empty body,
    that it is removed."""
    note(conn, Kind.DERIVED, sop_instance_uid, body, at=at)


# -- the way back, for `minipacs rebuild-index`: files first, then facts -------------------------------------------


def restore_derived(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make it true again that the instance `subject` is a lossy copy in grace, or a companion, or that it was removed.

    Its file was taken in as any instance: without it there is nothing to restore, and while no good copy of its
    original is there it stays in sight (law 7). Idempotent.
    """
    row = conn.execute(_BY_UID, {"uid": subject}).first()
    if row is None:
        return
    if not body:
        conn.execute(_STATE.values(state=State.PURGING), {"instance_pk": row.pk})
        conn.execute(update(location).where(location.c.instance_pk == row.pk).values(state=CopyState.PURGING))
        return
    if row.digest != body["digest"]:
        return
    said: dict[str, Any] = {
        "source": body["source"],
        "identity": body["identity"],
        "derivation": orjson.dumps(body["derivation"]).decode(),
    }
    original = conn.execute(_BY_UID, {"uid": body["original"]}).first()
    if original is not None:
        said["derived_from_pk"] = original.pk
        if "names" in body["derivation"]:  # a companion: in sight, also when what came was held back and accepted
            said.update({"state": State.STORED} if row.state == State.HELD else {})
        elif State.STORED in (original.state, original.state_before) and _held(conn, original.pk):
            said |= {"state": State.PENDING, "state_before": None}
    conn.execute(_STATE.values(**said), {"instance_pk": row.pk})
    settle(conn, [subject], at=at)


def restore_replaced(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make it true again which originals of the study `subject` are replaced. Idempotent.

    An original whose bytes are still there goes only where its copy is held, as it was when the study switched.
    """
    study_pk = conn.execute(select(study.c.pk).where(study.c.study_instance_uid == subject)).scalar()
    if study_pk is None:
        return
    first = datetime.fromisoformat(body["first_received_at"])
    conn.execute(
        update(study).where(study.c.pk == study_pk, study.c.first_received_at > first).values(first_received_at=first)
    )
    for one in body["originals"]:
        _restore_original(conn, int(study_pk), one, body["series"][one["series"]])
    for one in body["moved"]:
        _restore_moved(conn, one)
    settle(conn, [one["uid"] for one in (*body["originals"], *body["moved"])], at=at)


def _restore_original(conn: Connection, study_pk: int, one: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    copy = conn.execute(_BY_UID, {"uid": one["copy"]}).first() if one["copy"] else None
    standing = copy is not None and copy.digest == one["copy_digest"] and _held(conn, copy.pk)
    original = conn.execute(_BY_UID, {"uid": one["uid"]}).first()
    if original is None:
        pk = _add_original(conn, study_pk, one, part)
    else:
        pk = int(original.pk)
        gone = State.REPLACED in (original.state, original.state_before) or not _held(conn, pk)
        if not gone and not (standing and original.digest == one["digest"]):
            return
    conn.execute(_STATE.values(state=State.REPLACED, state_before=None), {"instance_pk": pk})
    conn.execute(update(location).where(location.c.instance_pk == pk).values(state=CopyState.PURGING))
    if copy is not None:
        conn.execute(_STATE.values(state=State.STORED, state_before=None, derived_from_pk=pk), {"instance_pk": copy.pk})


def _restore_moved(conn: Connection, one: Mapping[str, Any]) -> None:
    """Its file was taken in with the time at which the copy was made: it was received before."""
    said = {
        "source": one["source"],
        "received_at": datetime.fromisoformat(one["received_at"]),
        "derivation": orjson.dumps(one["derivation"]).decode() if one["derivation"] else None,
    }
    mine = (instance.c.sop_instance_uid == one["uid"]) & (instance.c.digest == one["digest"])
    conn.execute(update(instance).where(mine).values(said))
    its = select(instance.c.series_pk).where(mine).scalar_subquery()
    later = series.c.created_at > said["received_at"]
    conn.execute(update(series).where(series.c.pk == its, later).values(created_at=said["received_at"]))


def _add_original(conn: Connection, study_pk: int, one: Mapping[str, Any], part: Mapping[str, Any]) -> int:
    conn.execute(
        insert(conn, series).on_conflict_do_nothing(index_elements=["series_instance_uid"]),
        {
            **{name: part[name] for name in _SERIES},
            "series_instance_uid": one["series"],
            "study_pk": study_pk,
            "attributes": orjson.dumps(part["attributes"]).decode(),
            "created_at": datetime.fromisoformat(part["created_at"]),
        },
    )
    series_pk = conn.execute(select(series.c.pk).where(series.c.series_instance_uid == one["series"])).scalar_one()
    pk = conn.execute(
        instance.insert().returning(instance.c.pk),
        {
            "series_pk": series_pk,
            "sop_instance_uid": one["uid"],
            "sop_class_uid": one["class"],
            "instance_number": one["number"],
            "state": State.REPLACED,
            "digest": one["digest"],
            "source": one["source"],
            "received_at": datetime.fromisoformat(one["received_at"]),
            "attributes": orjson.dumps(one["attributes"]).decode(),
            "identity": one["identity"],
        },
    ).scalar_one()
    return int(pk)


def _held(conn: Connection, instance_pk: int) -> bool:
    return conn.execute(_HELD, {"instance_pk": instance_pk}).first() is not None
