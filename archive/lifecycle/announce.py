"""A purge is never a surprise: each is announced first, visible everywhere, and withdrawn by a hold or a changed fact
(sheet 00 §8, rules 4 and 8)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import partial

from sqlalchemy import Connection, bindparam, exists, or_, select, update

from archive.access import SYSTEM
from archive.audit.record import Event, record
from archive.core import Archive
from archive.instance import State
from archive.lifecycle.guard import Blocker, Terms, is_due, keeps, terms
from archive.policy import local_day
from archive.schema import hold, instance, series, study


def announce(archive: Archive, study_pk: int, *, policy_version: str) -> Blocker | None:
    """Announce the purge of a study whose date has come: visible from now on, purged at the end of the notice.

    Returns what keeps it; None when it is announced now. A study that is announced already stays as it is.
    """
    at = archive.clock()
    notice = timedelta(days=archive.settings.retention.purge_notice_days)
    return archive.commit.run(
        partial(_announce, pk=study_pk, policy_version=policy_version, notice=notice, on=local_day(at), at=at)
    )


def _announce(
    conn: Connection, *, pk: int, policy_version: str, notice: timedelta, on: date, at: datetime
) -> Blocker | None:
    known = terms(conn, pk, lock=True)
    if known is None or not is_due(known, policy_version=policy_version, on=on):
        return Blocker.CHANGED
    if blocker := keeps(conn, known, on=on):
        return blocker
    if known.announced_at is None:
        purge_on = f"{on + notice:%Y%m%d}"
        conn.execute(update(study).where(study.c.pk == pk).values(announced_at=at, purge_on=purge_on))
        said = {"retention": "announced", "keep_until": known.keep_until, "purge_on": purge_on}
        _record(conn, known, said)
    return None


def withdraw_stale(archive: Archive, *, policy_version: str) -> int:
    """Take back the announcements of studies that are not due any more, or on hold; how many."""
    on = local_day(archive.clock())
    with archive.reading() as conn:
        doubtful = list(conn.execute(_DOUBTFUL, {"today": f"{on:%Y%m%d}", "held": str(State.HELD)}).scalars())
    return sum(archive.commit.run(partial(_withdraw, pk=pk, policy_version=policy_version, on=on)) for pk in doubtful)


# Announced, and perhaps not to go: looked at one by one. Those whose date is not computed say nothing yet.
_DOUBTFUL = select(study.c.pk).where(
    study.c.purge_on.is_not(None),
    study.c.policy_version.is_not(None),
    or_(
        study.c.keep_until.is_(None),
        study.c.keep_until > bindparam("today"),
        study.c.study_instance_uid.in_(select(hold.c.study_instance_uid).where(hold.c.removed_at.is_(None))),
        exists().where(
            series.c.study_pk == study.c.pk,
            instance.c.series_pk == series.c.pk,
            or_(instance.c.state == bindparam("held"), instance.c.state_before == bindparam("held")),
        ),
    ),
)


def _withdraw(conn: Connection, *, pk: int, policy_version: str, on: date) -> bool:
    known = terms(conn, pk, lock=True)
    why = "" if known is None or known.announced_at is None else _why(conn, known, policy_version, on)
    if known is None or not why:
        return False
    withdraw(conn, known, why)
    return True


def _why(conn: Connection, known: Terms, policy_version: str, on: date) -> str:
    """Why an announcement does not stand; "" when it does. What is not computed yet says nothing."""
    if known.policy_version is None:
        return ""
    if blocker := keeps(conn, known, on=on):
        return str(blocker)
    return "" if is_due(known, policy_version=policy_version, on=on) else "kept longer"


def withdraw(conn: Connection, known: Terms, why: str) -> None:
    """Take an announcement back, inside a write of `archive.commit`. It has to be made, and waited for, anew."""
    conn.execute(update(study).where(study.c.pk == known.pk).values(announced_at=None, purge_on=None))
    _record(conn, known, {"retention": "withdrawn", "why": why, "purge_on": known.purge_on})


def _record(conn: Connection, known: Terms, said: Mapping[str, object]) -> None:
    record(
        conn, SYSTEM, Event.INSTANCES_ACCESSED, "U",
        patient=known.patient, study=known.study_instance_uid, detail=said,
    )  # fmt: skip
