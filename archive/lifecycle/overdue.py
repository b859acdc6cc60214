"""Studies whose time is over, but for what a person can end: a hold, a birth date that nobody knows."""

from __future__ import annotations

from datetime import date

import orjson
from sqlalchemy import Connection, or_, select

from archive.lifecycle.compute import on_hold
from archive.policy import BLOCKS, Policy
from archive.schema import study

_PAGE = 1000


def overdue(conn: Connection, policy: Policy, *, today: date) -> dict[int, str]:
    """The studies (keys) that would go today, and the rule that keeps each."""
    found: dict[int, str] = {}
    after = 0
    kept = select(study.c.pk, study.c.keep_reasons).where(
        study.c.policy_version == policy.version, or_(study.c.keep_until.is_(None), on_hold(today))
    )
    while rows := conn.execute(kept.where(study.c.pk > after).order_by(study.c.pk).limit(_PAGE)).all():
        for row in rows:
            if rule := _blocks(orjson.loads(row.keep_reasons or "[]"), today.isoformat()):
                found[row.pk] = rule
        after = rows[-1].pk
    return found


def _blocks(reasons: list[dict[str, str | None]], today: str) -> str:
    """The rule that keeps a study which all others let go; "" when there is none. ISO dates compare as text."""
    standing = [one for one in reasons if (until := one["until"]) is None or until > today]
    if standing and all(one["rule"] in BLOCKS for one in standing):
        return str(standing[0]["rule"])
    return ""
