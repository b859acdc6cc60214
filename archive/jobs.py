"""Work that one process owes to another: rows of one table, claimed, done, tried again, given up (STYLE §1).

`dicom.*` jobs are done by the DICOM edge, `hl7.*` by the HL7 listener, all others by retention. A job is put in the
transaction that causes it, and done at least once: a worker that dies is succeeded when its lease is over. All times
are real ones (law 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from time import sleep
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, update

from archive.clock import monotonic
from archive.core import Archive
from archive.errors import Busy
from archive.schema import job
from archive.schema.types import AnyRow

LEASE = timedelta(minutes=15)  # for one attempt; `extend` gives as much again
ATTEMPTS = 10  # then the job is dead: a person looks at it
# Who is told or sent something may be switched off over a weekend: more than two days.
ATTEMPTS_OF = {"dicom.send": 20, "dicom.commitment": 24, "dicom.availability": 24, "dicom.mpps": 24, "hl7.omi": 24}
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(hours=6)  # between attempts, doubling
KEPT = timedelta(days=7)  # jobs that are done are forgotten after this; dead ones stay
_POLL_SECONDS = 0.1
_OPEN = ("due", "leased")
_LATE = timedelta(minutes=1)  # nobody waits any more so long after the patience for an answer


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its worker, or whoever asked for it, sees it."""

    id: int
    kind: str
    payload: dict[str, Any]
    state: str  # due, leased, done, dead
    attempts: int
    holder: str | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    due_at: datetime
    finished_at: datetime | None


def put(
    conn: Connection,
    kind: str,
    payload: Mapping[str, Any],
    *,
    at: datetime,
    after: timedelta = timedelta(0),
    once: bool = False,
) -> int:
    """Owe a job, in the transaction that causes it; its id. `at` is real time; it is not begun until `after` it.
    `once`: not if the same is due already; that is then done as soon, also when it waits for its next attempt."""
    conn.execute(delete(job).where(job.c.state == "done", job.c.finished_at < at - KEPT))
    said = _text(payload)
    if once:
        same = (job.c.state == "due", job.c.kind == kind, job.c.payload == said)
        known = conn.execute(select(job.c.pk).where(*same).limit(1)).scalar()
        if known is not None:
            sooner = update(job).where(job.c.pk == known, job.c.state == "due", job.c.due_at > at + after)
            conn.execute(sooner.values(due_at=at + after))
            return int(known)
    values = {
        "kind": kind,
        "payload": said,
        "state": "due",
        "due_at": at + after,
        "attempts": 0,
        "created_at": at,
    }
    return int(conn.execute(job.insert().returning(job.c.pk), values).scalar_one())


def claim(archive: Archive, kinds: Sequence[str], *, holder: str) -> Job | None:
    """A job of one of `kinds` that is due, now leased to `holder`; None: nothing is due, or others were quicker."""
    due = _due(kinds, archive.real_clock())
    with archive.reading() as conn:
        pks = list(conn.execute(select(job.c.pk).where(due).order_by(job.c.due_at, job.c.pk).limit(8)).scalars())
    for pk in pks:
        claimed = archive.commit.run(partial(_claim, pk=pk, due=due, holder=holder, at=archive.real_clock()))
        if claimed is not None:
            return claimed
    return None


def _due(kinds: Sequence[str], now: datetime) -> ColumnElement[bool]:
    """Those to be done now, and those whose worker did not come back."""
    ready = and_(job.c.state == "due", job.c.due_at <= now)
    return and_(job.c.kind.in_(list(kinds)), or_(ready, and_(job.c.state == "leased", job.c.lease_until < now)))


def _claim(conn: Connection, *, pk: int, due: ColumnElement[bool], holder: str, at: datetime) -> Job | None:
    values = {"state": "leased", "holder": holder, "lease_until": at + LEASE, "attempts": job.c.attempts + 1}
    if conn.execute(update(job).where(job.c.pk == pk, due).values(values)).rowcount != 1:
        return None
    claimed = _job(conn.execute(select(job).where(job.c.pk == pk)).one())
    if claimed.attempts <= ATTEMPTS_OF.get(claimed.kind, ATTEMPTS):
        return claimed
    dead = {"state": "dead", "error": "its workers do not come back", "finished_at": at, "holder": None}
    conn.execute(update(job).where(job.c.pk == pk).values(dead))
    return None


def extend(archive: Archive, one: Job) -> bool:
    """Ask for more time; False: another has it, or it is over."""
    return archive.commit.run(lambda conn: prolong(conn, one, at=archive.real_clock()))


def prolong(conn: Connection, one: Job, *, at: datetime, lease: timedelta = LEASE, progress: bool = False) -> bool:
    """`extend`, in a transaction of its worker. With `progress` its attempts are counted anew."""
    counted = {"attempts": 1} if progress else {}
    return _settle(conn, one, {"lease_until": at + lease, **counted})


def finish(archive: Archive, one: Job, result: Mapping[str, Any]) -> bool:
    """It is done; `result` is what JSON can hold. False: another took it over meanwhile."""
    values = {
        "state": "done",
        "result": orjson.dumps(dict(result)).decode(),
        "error": None,
        "finished_at": archive.real_clock(),
        "lease_until": None,
    }
    return archive.commit.run(lambda conn: _settle(conn, one, values))


def fail(archive: Archive, one: Job, error: str, *, again: bool = True) -> bool:
    """It failed. Tried again later and later, as often as its kind is; not `again`: dead at once. `error` names no
    patient."""
    now = archive.real_clock()

    def write(conn: Connection) -> bool:
        values: dict[str, Any] = {"error": error, "lease_until": None, "holder": None}
        attempts = conn.execute(select(job.c.attempts).where(job.c.pk == one.id)).scalar() or 0
        if again and attempts < ATTEMPTS_OF.get(one.kind, ATTEMPTS):
            pause = min(FIRST_PAUSE * 2 ** (attempts - 1), LONGEST_PAUSE)
            values |= {"state": "due", "due_at": now + pause}
        else:
            values |= {"state": "dead", "finished_at": now}
        return _settle(conn, one, values)

    return archive.commit.run(write)


def retry(conn: Connection, id: int, *, at: datetime) -> bool:
    """Have a dead job done after all, or one that waits for its next attempt done now. False: it is neither."""
    values = {"state": "due", "due_at": at, "attempts": 0, "finished_at": None}
    ready = (job.c.pk == id, job.c.state.in_(("dead", "due")))
    return conn.execute(update(job).where(*ready).values(values)).rowcount == 1


def cancel(conn: Connection, id: int, *, by: str, at: datetime) -> bool:
    """Give a job up: it is dead. Whoever is at it is not heard any more. False: it is over already."""
    values = {"state": "dead", "error": f"cancelled by {by}", "finished_at": at, "holder": None, "lease_until": None}
    return conn.execute(update(job).where(job.c.pk == id, job.c.state.in_(_OPEN)).values(values)).rowcount == 1


def list_jobs(
    conn: Connection, *, kind: str | None = None, state: str | None = None, before: int = 0, limit: int
) -> list[Job]:
    """Jobs, the latest first; those whose number is below `before`, when that is given."""
    wanted = [column == value for column, value in ((job.c.kind, kind), (job.c.state, state)) if value is not None]
    if before:
        wanted.append(job.c.pk < before)
    return [_job(row) for row in conn.execute(select(job).where(*wanted).order_by(job.c.pk.desc()).limit(limit))]


def find(conn: Connection, id: int) -> Job | None:
    """One job; None when there is none, or it was done and forgotten."""
    row = conn.execute(select(job).where(job.c.pk == id)).one_or_none()
    return None if row is None else _job(row)


def _settle(conn: Connection, one: Job, values: Mapping[str, Any]) -> bool:
    mine = (job.c.pk == one.id, job.c.state == "leased", job.c.holder == one.holder)
    return conn.execute(update(job).where(*mine).values(values)).rowcount == 1


def is_doubled(archive: Archive, one: Job) -> bool:
    """Whether a worker is at another job that asks for the very same."""
    same = (job.c.kind == one.kind, job.c.payload == _text(one.payload), job.c.pk != one.id)
    leased = (job.c.state == "leased", job.c.lease_until >= archive.real_clock())
    with archive.reading() as conn:
        return conn.execute(select(job.c.pk).where(*same, *leased).limit(1)).first() is not None


def wait(archive: Archive, id: int, *, seconds: float) -> Job:
    """The job as it is when it is done or dead, or after `seconds`. Raises LookupError when there is none."""
    deadline = monotonic() + seconds
    while True:
        with archive.reading() as conn:
            found = find(conn, id)
        if found is None:
            raise LookupError(f"no job {id}")
        if found.state not in _OPEN or monotonic() >= deadline:
            return found
        sleep(_POLL_SECONDS)


def ask(
    archive: Archive,
    kind: str,
    payload: Mapping[str, Any],
    *,
    seconds: float,
    also: Callable[[Connection], object] | None = None,
    forget: bool = False,
) -> dict[str, Any]:
    """Have another process do a job, and wait for its result. `also` is written in the transaction that puts it;
    `forget`: once it is over, or nobody waits any more, nothing of it stays here (`forget_left` for one who died).

    Raises:
        Busy: nobody took it in time (it is then withdrawn), it is still at it, or it failed.
    """

    def write(conn: Connection) -> int:
        if also is not None:
            also(conn)
        return put(conn, kind, payload, at=archive.real_clock())

    id = archive.commit.run(write)
    try:
        found = wait(archive, id, seconds=seconds)
    finally:
        if forget:  # whoever is at it is not heard any more
            archive.commit.run(partial(_forget, id=id))
    if forget and found.state in _OPEN:
        raise Busy("no process took it in time")
    if found.state == "done":
        return found.result or {}
    if found.state == "dead":
        raise Busy(found.error or "it failed")
    if archive.commit.run(lambda conn: _withdraw(conn, id, archive.real_clock())):
        raise Busy("no process took it: is the one for this work running?")
    raise Busy("it takes longer than anybody waits; it goes on")


def forget_left(archive: Archive, kind: str, *, seconds: float) -> None:
    """Delete what was asked with `forget` and that patience by processes that died while they waited."""
    before = archive.real_clock() - timedelta(seconds=seconds) - _LATE
    left = (job.c.state.in_((*_OPEN, "done", "dead")), job.c.kind == kind, job.c.created_at < before)
    with archive.reading() as conn:
        if conn.execute(select(job.c.pk).where(*left).limit(1)).first() is None:
            return
    archive.commit.run(lambda conn: conn.execute(delete(job).where(*left)))


def _forget(conn: Connection, *, id: int) -> None:
    conn.execute(delete(job).where(job.c.pk == id))


def _withdraw(conn: Connection, id: int, at: datetime) -> bool:
    values = {"state": "dead", "error": "nobody took it in time", "finished_at": at}
    return conn.execute(update(job).where(job.c.pk == id, job.c.state == "due").values(values)).rowcount == 1


def _text(payload: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(payload)).decode()


def _job(row: AnyRow) -> Job:
    return Job(
        id=row.pk,
        kind=row.kind,
        payload=orjson.loads(row.payload),
        state=row.state,
        attempts=row.attempts,
        holder=row.holder,
        result=None if row.result is None else orjson.loads(row.result),
        error=row.error,
        created_at=row.created_at,
        due_at=row.due_at,
        finished_at=row.finished_at,
    )
