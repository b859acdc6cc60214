"""Taking over another archive: which of its studies are known, and which of their instances are here.

The rows of `pulled_study` outlive a stop or a crash: who pulls again goes on with what is not complete. They are also
the report: for each study what the other archive announces and lists, what came, what was here before, what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import orjson
from sqlalchemy import Connection, func, select

from archive.schema import instance, pulled_study, series, study, tombstone
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

_UIDS_AT_ONCE = 5000  # in one statement
_KEPT_MISSING = 1000  # UIDs of what is missing, kept with a study


@dataclass(frozen=True, slots=True)
class Listed:
    """An instance that the other archive lists. `sop_class_uid` "": it does not say."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str


@dataclass(frozen=True, slots=True)
class Announced:
    """A study as a query at study level gives it. `instances` None: the other archive does not say how many."""

    study_instance_uid: str
    study_date: str
    instances: int | None


@dataclass(frozen=True, slots=True)
class Checked:
    """A study as it stood when it was last looked at. `state`: found, complete, incomplete."""

    study_instance_uid: str
    study_date: str
    state: str
    announced: int | None = None
    listed: int = 0
    already_here: int = 0  # before anything was asked for
    missing: int = 0
    missing_uids: tuple[str, ...] = ()  # the first of them
    why: str = ""

    @property
    def pulled(self) -> int:
        """What came by being asked for."""
        return max(0, self.listed - self.already_here - self.missing)


def here(conn: Connection, uids: Sequence[str]) -> set[str]:
    """Those SOP Instance UIDs that need not come: held, in whatever state, or purged at the end of their retention."""
    found: set[str] = set()
    for start in range(0, len(uids), _UIDS_AT_ONCE):
        some = list(uids[start : start + _UIDS_AT_ONCE])
        for table in (instance, tombstone):
            column = table.c.sop_instance_uid
            found.update(conn.execute(select(column).where(column.in_(some))).scalars())
    return found


def note(conn: Connection, peer: str, found: Iterable[Announced], *, at: datetime) -> None:
    """Studies that the other archive has; those that are known keep their state."""
    rows = [
        {
            "peer": peer,
            "study_instance_uid": one.study_instance_uid,
            "study_date": one.study_date[:8],
            "announced": one.instances,
            "listed": 0,
            "already_here": 0,
            "missing": 0,
            "missing_uids": "[]",
            "state": "found",
            "checked_at": at,
        }
        for one in found
    ]
    if rows:
        conn.execute(insert(conn, pulled_study).on_conflict_do_nothing(), rows)


def settle(conn: Connection, peer: str, checked: Checked, *, at: datetime) -> None:
    """What became of a study."""
    values = {
        "study_date": checked.study_date[:8],
        "announced": checked.announced,
        "listed": checked.listed,
        "already_here": checked.already_here,
        "missing": checked.missing,
        "missing_uids": orjson.dumps(checked.missing_uids[:_KEPT_MISSING]).decode(),
        "state": checked.state,
        "why": checked.why or None,
        "checked_at": at,
    }
    keys = {"peer": peer, "study_instance_uid": checked.study_instance_uid}
    added = insert(conn, pulled_study).values({**keys, **values})
    conn.execute(added.on_conflict_do_update(index_elements=list(keys), set_=values))


def last(conn: Connection, peer: str, study_uid: str) -> Checked | None:
    """A study as it stood when it was last looked at."""
    wanted = select(pulled_study).where(pulled_study.c.peer == peer, pulled_study.c.study_instance_uid == study_uid)
    row = conn.execute(wanted).one_or_none()
    return None if row is None else _checked(row)


def known(conn: Connection, peer: str) -> set[str]:
    """The Study Instance UIDs that were found at another archive."""
    wanted = select(pulled_study.c.study_instance_uid).where(pulled_study.c.peer == peer)
    return set(conn.execute(wanted).scalars())


def instances_here(conn: Connection, study_uid: str) -> int:
    """How many instances of a study are held."""
    wanted = (
        select(func.count())
        .select_from(study.join(series).join(instance))
        .where(study.c.study_instance_uid == study_uid)
    )
    return int(conn.execute(wanted).scalar_one())


def report(conn: Connection, peer: str, *, since: date | None, until: date | None) -> Iterator[Checked]:
    """The studies of another archive, by date; without limits those without a date too."""
    wanted = select(pulled_study).where(pulled_study.c.peer == peer)
    if since is not None:
        wanted = wanted.where(pulled_study.c.study_date >= f"{since:%Y%m%d}")
    if until is not None:
        wanted = wanted.where(pulled_study.c.study_date <= f"{until:%Y%m%d}", pulled_study.c.study_date != "")
    for row in conn.execute(wanted.order_by(pulled_study.c.study_date, pulled_study.c.pk)):
        yield _checked(row)


def _checked(row: AnyRow) -> Checked:
    return Checked(
        study_instance_uid=row.study_instance_uid,
        study_date=row.study_date,
        state=row.state,
        announced=row.announced,
        listed=row.listed,
        already_here=row.already_here,
        missing=row.missing,
        missing_uids=tuple(orjson.loads(row.missing_uids)),
        why=row.why or "",
    )
