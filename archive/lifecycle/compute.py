"""The dates of each study, computed anew whenever a fact changed, and which studies they make due (sheet 00 §8).

Whatever changes a fact sets `study.policy_version` to NULL in its own transaction; until the dates are computed anew
nothing is removed. That a change is never overlooked rests on locks (SQLite has one writer, so needs none of this):

- `_compute` takes the rows of a study and its patient FOR UPDATE before it reads a fact, and skips the study when
  somebody else has them; it holds them until its COMMIT.
- Whoever changes a fact has one of the two rows when it does so, until its own COMMIT: reception takes the study's (FOR
  KEY SHARE, with which receptions share it) when it looks at `policy_version`, a new study its patient's by its foreign
  key; the others UPDATE the study.

So either the change was committed before the facts were read, or it finds what was computed, and forgets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    exists,
    or_,
    select,
    union_all,
    update,
)

from archive.config import Settings
from archive.core import Archive
from archive.errors import Busy, CommitInDoubt
from archive.instance import State
from archive.lifecycle.announce import withdraw
from archive.lifecycle.facts import HOT, Known, gather
from archive.lifecycle.guard import on_hold, terms
from archive.policy import Decision, Policy, decide, dose_until, grace_days, local_day
from archive.schema import instance, life_failure, patient, series, study

log = structlog.get_logger(__name__)

BATCH = 10  # studies in one transaction: some milliseconds for each, and others wait meanwhile
_LISTED = 10_000  # studies in one call at most

_VERSION: BindParameter[str] = bindparam("version")
_STALE: Select[Any] = select(  # three look-ups in the index, where one condition would read the whole table
    union_all(
        select(study.c.pk).where(study.c.policy_version.is_(None)),
        select(study.c.pk).where(study.c.policy_version < _VERSION),
        select(study.c.pk).where(study.c.policy_version > _VERSION),
    ).subquery()
).limit(_LISTED)
_CLAIM = (
    select(study.c.pk)
    .join_from(study, patient)
    .where(
        study.c.pk.in_(bindparam("pks", expanding=True)),
        or_(study.c.policy_version.is_(None), study.c.policy_version != _VERSION),
    )
    .order_by(study.c.pk)
    .with_for_update(skip_locked=True)
)
_SET = update(study).where(study.c.pk == bindparam("study_pk"))
_BY_UID = select(study.c.pk).where(study.c.study_instance_uid == bindparam("uid"))


def policy_of(settings: Settings) -> Policy:
    """The policy that these settings make."""
    return Policy(settings.retention, settings.all_sites)


def compute_due(archive: Archive, *, batch: int = BATCH) -> int:
    """Compute the dates of studies whose facts, or whose policy, changed; how many.

    A study that is being received or corrected at this moment is left to the next call. Where the date of an announced
    study moves, its announcement is withdrawn in the same transaction. `batch` studies in one transaction, ten
    thousand in one call. One that cannot be computed is logged, and kept; the others go on (FIELD, pain 3).

    Raises:
        Unavailable: the index cannot be read or written; what was computed stands.
    """
    version = policy_of(archive.settings).version
    with archive.reading() as conn:
        pks = sorted(conn.execute(_STALE, {"version": version}).scalars())
    return sum(_compute_some(archive, pks[start : start + batch]) for start in range(0, len(pks), batch))


def _compute_some(archive: Archive, pks: Sequence[int]) -> int:
    try:
        return archive.commit.run(partial(_compute, archive=archive, pks=pks))
    except (Busy, CommitInDoubt):
        raise
    except Exception as error:  # one of them, or the database
        if len(pks) > 1:
            return sum(_compute_some(archive, [pk]) for pk in pks)
        with archive.reading() as conn:  # raises when it is the database
            uid = conn.execute(select(study.c.study_instance_uid).where(study.c.pk == pks[0])).scalar()
        log.exception("the dates of a study cannot be computed: it is kept", study=uid, error=type(error).__name__)
        return 0


def _compute(conn: Connection, *, archive: Archive, pks: Sequence[int]) -> int:
    policy = policy_of(archive.settings)
    today = local_day(archive.clock())
    claimed = list(conn.execute(_CLAIM, {"pks": pks, "version": policy.version}).scalars())
    for known in gather(conn, archive.settings, claimed):
        decision = decide(known.facts, policy)
        conn.execute(_SET.values(policy_version=policy.version, **_columns(known, decision)), {"study_pk": known.pk})
        if known.announced_at is not None and (decision.keep_until is None or decision.keep_until > today):
            announced = terms(conn, known.pk)
            assert announced is not None
            withdraw(conn, announced, "kept longer")
    return len(claimed)


def _columns(known: Known, decision: Decision) -> dict[str, str | None]:
    keep_until = decision.keep_until
    return {
        "keep_until": None if keep_until is None else f"{keep_until:%Y%m%d}",
        "keep_reasons": orjson.dumps([reason.shape() for reason in decision.reasons]).decode(),
        "online_until": f"{decision.online_until:%Y%m%d}" if known.hot else None,  # nothing is left to move
    }


def decide_one(conn: Connection, settings: Settings, study_pk: int) -> tuple[Known, Decision] | None:
    """The facts of a study as they are at this moment, and what they decide; None: there is no such study."""
    known = gather(conn, settings, [study_pk])
    return (known[0], decide(known[0].facts, policy_of(settings))) if known else None


def explain(archive: Archive, study_instance_uid: str) -> dict[str, Any]:
    """`keep_until` of a study for `/api/v1`: `date` (None keeps) and `reasons`, from the facts of this moment."""
    with archive.reading() as conn:
        pk = conn.execute(_BY_UID, {"uid": study_instance_uid}).scalar()
        found = None if pk is None else decide_one(conn, archive.settings, pk)
    if found is None:
        return {"date": None, "reasons": []}
    decision = found[1]
    return {
        "date": None if decision.keep_until is None else decision.keep_until.isoformat(),
        "reasons": [reason.shape() for reason in decision.reasons],
    }


def announced(conn: Connection, study_instance_uid: str) -> dict[str, Any] | None:
    """The announcement of a study's purge for `/api/v1`: when it was made, and the first day of the purge; None: there
    is none."""
    found = select(study.c.announced_at, study.c.purge_on).where(study.c.study_instance_uid == study_instance_uid)
    row = conn.execute(found).first()
    if row is None or row.announced_at is None or row.purge_on is None:
        return None
    return {"at": row.announced_at.isoformat(), "purge_on": date.fromisoformat(row.purge_on).isoformat()}


def dose_reports_until(conn: Connection, settings: Settings, study_pk: int) -> date | None:
    """The first day on which the radiation dose reports of a study may go; they outlive its images."""
    found = decide_one(conn, settings, study_pk)
    return None if found is None else dose_until(found[0].facts, policy_of(settings))


def originals_stay_days(conn: Connection, settings: Settings, study_pk: int) -> int | None:
    """How many days the originals of a study stay beside their lossy copies, once these are verified (DD-25)."""
    found = decide_one(conn, settings, study_pk)
    return None if found is None else grace_days(found[0].facts, policy_of(settings))


@dataclass(frozen=True, slots=True)
class Due:
    """A study that something is due for, since `day` (YYYYMMDD)."""

    pk: int
    day: str


def due_for_migration(conn: Connection, policy: Policy, *, today: date, real_now: datetime, limit: int) -> list[Due]:
    """Studies whose images may leave the hot tier, those first that could longest. Neither those on hold, nor those
    in grace, nor those whose last try (`life_failure`, step `migrate`) is to be repeated later."""
    ready = (study.c.online_until <= f"{today:%Y%m%d}", study.c.grace_until.is_(None), ~on_hold(today), HOT)
    return _due(conn, policy, study.c.online_until, *ready, may_try("migrate", real_now), limit=limit)


def due_for_announcement(conn: Connection, policy: Policy, *, today: date, real_now: datetime, limit: int) -> list[Due]:
    """Studies that may go and whose purge is not announced yet (step `announce`)."""
    ready = (study.c.keep_until <= f"{today:%Y%m%d}", study.c.announced_at.is_(None), _has_instances())
    return _due(conn, policy, study.c.keep_until, *ready, may_try("announce", real_now), limit=limit)


def due_for_purge(conn: Connection, policy: Policy, *, today: date, real_now: datetime, limit: int) -> list[Due]:
    """Studies whose notice is over (step `purge`). Whoever purges checks again inside its transaction."""
    day = f"{today:%Y%m%d}"
    ready = (study.c.purge_on <= day, study.c.keep_until <= day, study.c.announced_at.is_not(None), ~on_hold(today))
    return _due(conn, policy, study.c.purge_on, *ready, may_try("purge", real_now), limit=limit)


def _due(
    conn: Connection, policy: Policy, day: ColumnElement[Any], *conditions: ColumnElement[bool], limit: int
) -> list[Due]:
    found = (
        select(study.c.pk, day.label("day"))
        .where(study.c.policy_version == policy.version, *conditions)
        .order_by(day, study.c.pk)
        .limit(limit)
    )
    return [Due(row.pk, row.day) for row in conn.execute(found)]


def _has_instances() -> ColumnElement[bool]:
    return exists().where(
        series.c.study_pk == study.c.pk, instance.c.series_pk == series.c.pk, instance.c.state != State.PURGING
    )


def may_try(step: str, real_now: datetime) -> ColumnElement[bool]:
    """A condition on `study`: `step` did not fail for it, or rests no longer."""
    later = (life_failure.c.study_pk == study.c.pk, life_failure.c.step == step, life_failure.c.retry_at > real_now)
    return ~exists().where(*later)
