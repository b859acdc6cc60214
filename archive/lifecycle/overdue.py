"""Studies whose time is over, but for what a person can end: a hold, a birth date that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import orjson
from sqlalchemy import Connection, Select, bindparam, select

from archive.policy import BLOCKS, Policy
from archive.schema import hold, study
from archive.schema.types import AnyRow

_PAGE = 1000
_KEPT = select(study.c.pk, study.c.keep_reasons).where(study.c.policy_version == bindparam("version"))
_FOR_EVER = _KEPT.where(study.c.keep_until.is_(None))
_HELD = _KEPT.where(
    study.c.keep_until > bindparam("today"),
    study.c.study_instance_uid.in_(select(hold.c.study_instance_uid).where(hold.c.removed_at.is_(None))),
)


def overdue(conn: Connection, policy: Policy, *, today: date) -> dict[int, str]:
    """The studies (keys) that would go today, and the rule that keeps each."""
    found: dict[int, str] = {}
    where = {"version": policy.version, "today": f"{today:%Y%m%d}"}
    for statement in (_FOR_EVER, _HELD):
        for row in _pages(conn, statement, where):
            if rule := _blocks(orjson.loads(row.keep_reasons or "[]"), today.isoformat()):
                found[row.pk] = rule
    return found


def _pages(conn: Connection, statement: Select[Any], where: dict[str, str]) -> Iterator[AnyRow]:
    after = 0
    while rows := conn.execute(statement.where(study.c.pk > after).order_by(study.c.pk).limit(_PAGE), where).all():
        yield from rows
        after = rows[-1].pk


def _blocks(reasons: list[dict[str, str | None]], today: str) -> str:
    """The rule that keeps a study which all others let go; "" when there is none. ISO dates compare as text."""
    standing = [one for one in reasons if (until := one["until"]) is None or until > today]
    if standing and all(one["rule"] in BLOCKS for one in standing):
        return str(standing[0]["rule"])
    return ""
