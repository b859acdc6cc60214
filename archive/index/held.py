"""Instances that contradict the record (REQ-DCM-19): a person accepts them as they are filed, or rejects them.

Held back they are `held`, and `held_for` names the subject of their work item. Accepted they are current. Rejected they
stay `held`, for nobody: out of view, every byte kept until their study is purged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, func, or_, select, update

from archive.index.correct import facts_changed
from archive.index.rejections import settle
from archive.instance import State
from archive.journal import Kind, note
from archive.schema import instance, series, study
from archive.schema.types import AnyRow
from archive.work_items import Kind as Item
from archive.work_items import Resolved, close_item

_hidden = instance.c.state_before.is_not(None)  # rejected by a note (archive.index.rejections)
_SETTLE = (
    update(instance)
    .where(instance.c.pk == bindparam("instance_pk"))
    .values(
        state=case((_hidden, instance.c.state), else_=bindparam("settled")),
        state_before=case((_hidden, bindparam("settled"))),
        held_for=None,
    )
)
_BY_UID = (
    select(
        instance.c.pk,
        func.coalesce(instance.c.state_before, instance.c.state).label("state"),
        instance.c.digest,
        study.c.patient_pk,
    )
    .select_from(instance.join(series).join(study))
    .where(instance.c.sop_instance_uid == bindparam("uid"))
)
_LEFT = select(instance.c.pk).where(instance.c.held_for == bindparam("s")).limit(1)


def waiting() -> ColumnElement[bool]:
    """A condition on `instance`: it is held back, and nobody has settled it."""
    return and_(held_back(), instance.c.held_for.is_not(None))


def held_back() -> ColumnElement[bool]:
    """A condition on `instance`: it is held back, or was rejected by a note while it was. Nobody outside knows it."""
    return func.coalesce(instance.c.state_before, instance.c.state) == State.HELD


def settle_held(
    conn: Connection, subject: str, resolved: Resolved, *, study_instance_uid: str | None, accept: bool
) -> Sequence[AnyRow]:
    """Accept or reject every instance that waits for the work item about `subject`; their rows, with
    `study_instance_uid` of the study in which each is filed. Inside a write of `archive.commit`."""
    before = and_(instance.c.held_for == "", study.c.study_instance_uid == study_instance_uid)  # held by release 0002
    rows = conn.execute(
        select(
            instance.c.pk,
            instance.c.sop_instance_uid,
            instance.c.digest,
            study.c.study_instance_uid,
            study.c.patient_pk,
        )
        .select_from(instance.join(series).join(study))
        .where(held_back(), or_(instance.c.held_for == subject, before))
        .order_by(instance.c.pk)
        .with_for_update(of=instance)
    ).all()
    for row in rows:
        _settle(conn, row.pk, accept=accept)
        body = {"accepted": accept, "digest": row.digest, "item": subject, **resolved.said}
        note(conn, Kind.HELD, row.sop_instance_uid, body, at=resolved.at)
    settle(conn, [row.sop_instance_uid for row in rows], at=resolved.at)  # who sees it, if a note names it
    for patient_pk in sorted({row.patient_pk for row in rows}):
        facts_changed(conn, patient_pk)
    return rows


def _settle(conn: Connection, instance_pk: int, *, accept: bool) -> None:
    state = State.STORED if accept else State.HELD
    conn.execute(_SETTLE, {"instance_pk": instance_pk, "settled": state})


def restore_held(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make it true again that the instance `subject` was accepted or rejected (`rebuild-index`). Idempotent."""
    row = conn.execute(_BY_UID, {"uid": subject}).first()
    if row is None or row.digest != body["digest"]:
        return
    if row.state == State.HELD or (row.state == State.STORED and not body["accepted"]):
        _settle(conn, row.pk, accept=body["accepted"])
        settle(conn, [subject], at=at)
        facts_changed(conn, row.patient_pk)
    if conn.execute(_LEFT, {"s": body["item"]}).first() is None:
        close_item(conn, Item.IDENTITY_CONFLICT, body["item"], at=at, by=body["by"], resolution=body["resolution"])
