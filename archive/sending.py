"""Instances that are to leave for a peer, and what became of each: the rows behind the job `dicom.send`.

Somebody asks (`ask`), or rules have written down what they want (`archive.forwarding`) and its study has been quiet
(`gather`). What the peer has acknowledged is recorded while it is sent (`record_progress`), so that a job goes on where
it stopped. A row goes with its job, a week after that was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, exists, func, select, update

from archive import jobs
from archive.access import SYSTEM, Action, Actor, Door, demand
from archive.audit.record import Event, record
from archive.core import Archive
from archive.errors import Conflict, InvalidRequest, NotFound
from archive.index.patients import owner_of
from archive.instance import HIDDEN, State
from archive.jobs import Job
from archive.retrieve import select as select_stored
from archive.schema import instance, job, sending
from archive.schema.upsert import insert
from archive.sections import Forward, Peer

KIND = "dicom.send"
REJECTIONS = "[sharing]"  # the rule by which rejection notes leave (archive.sharing); no rule of the settings
LEASE = timedelta(minutes=2)  # beyond an answer's patience, of a job that says every second how far it is


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a job is, in instances."""

    waiting: int = 0
    sent: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.waiting + self.sent + self.failed


@dataclass(frozen=True, slots=True)
class Waiting:
    """An instance whose turn has not come."""

    pk: int
    sop_instance_uid: str


def peer_named(archive: Archive, name: str) -> Peer:
    """A peer that can be called, as its table in `dicom.peers` is named. Raises NotFound."""
    peer = archive.settings.dicom.peers.get(name)
    if peer is None or peer.host is None or peer.port is None:
        raise NotFound(f"no peer {name[:64]!r} with host and port in dicom.peers")
    return peer


def actor_of(one: Job) -> Actor:
    """Who asked for a job: its images leave in their name."""
    asked = one.payload
    return Actor(
        user=str(asked["user"]), source=str(asked["source"]), door=Door(asked["door"]), may=frozenset({Action.EXPORT})
    )


def ask(
    archive: Archive,
    peer: str,
    *,
    actor: Actor,
    study_uids: Sequence[str] = (),
    series_uids: Sequence[str] = (),
    instance_uids: Sequence[str] = (),
) -> tuple[int, int]:
    """Have what satisfies all of what is given sent to a peer: the number of the job, and of its instances. What comes
    to the study later is not part of it.

    Raises:
        NotAllowed: sending images away is `export media` (sheet 60 §5).
        InvalidRequest: nothing is named. NotFound: no such peer, or nothing of this is here.
        Unavailable: the index cannot be read or written; nothing was asked for.
    """
    demand(actor, Action.EXPORT)
    peer_named(archive, peer)
    if not (study_uids or series_uids or instance_uids):
        raise InvalidRequest("name a study, series or instances")
    stored = select_stored(archive, study_uids=study_uids, series_uids=series_uids, instance_uids=instance_uids)
    if not stored:
        raise NotFound("nothing of this is held here")
    studies = {one.study_instance_uid: one.patient for one in stored}
    named = [(one.study_instance_uid, one.sop_instance_uid) for one in stored]

    def write(conn: Connection) -> int:
        at = archive.real_clock()
        id = _put(conn, peer, actor, study=next(iter(studies)) if len(studies) == 1 else None, rule=None, at=at)
        rows = [
            {"job_pk": id, "study_instance_uid": of, "sop_instance_uid": uid, "state": "waiting", "at": at}
            for of, uid in named
        ]
        conn.execute(sending.insert(), rows)
        for uid, whose in studies.items():
            _begun(conn, actor, id, peer, study=uid, patient=whose, rule=None)
        return id

    return archive.commit.run(write), len(named)


def owe_notes(conn: Connection, peer: str, *, study: str, notes: Iterable[str], at: datetime) -> bool:
    """Have rejection notes sent to a peer, each once, in the write that causes it; False: none was new."""
    known = select(sending.c.sop_instance_uid).where(sending.c.rule == REJECTIONS)
    new = sorted(set(notes) - set(conn.execute(known.where(sending.c.study_instance_uid == study)).scalars()))
    if not new:
        return False
    id = _put(conn, peer, SYSTEM, study=study, rule=REJECTIONS, at=at)
    row = {"rule": REJECTIONS, "job_pk": id, "study_instance_uid": study, "state": "waiting", "at": at}
    conn.execute(insert(conn, sending).on_conflict_do_nothing(), [{**row, "sop_instance_uid": uid} for uid in new])
    _begun(conn, SYSTEM, id, peer, study=study, patient=owner_of(conn, study), rule=REJECTIONS)
    return True


def _put(conn: Connection, peer: str, actor: Actor, *, study: str | None, rule: str | None, at: datetime) -> int:
    asked = {"user": actor.user, "source": actor.source, "door": str(actor.door)}
    return jobs.put(conn, KIND, {"peer": peer, "study": study, "rule": rule, **asked}, at=at)


def _begun(
    conn: Connection, actor: Actor, id: int, peer: str, *, study: str, patient: str | None, rule: str | None
) -> None:
    detail = {"job": id, "peer": peer, **({"rule": rule} if rule else {})}
    record(conn, actor, Event.BEGIN_TRANSFERRING, "E", patient=patient, study=study, detail=detail)


# what is held back waits for the person who settles it, what was rejected for the end of its rejection
_out_of_sight = exists().where(
    instance.c.sop_instance_uid == sending.c.sop_instance_uid, instance.c.state.in_([State.HELD, *sorted(HIDDEN)])
)
_UNCLAIMED = and_(sending.c.job_pk.is_(None), ~_out_of_sight)
_QUIET = (
    select(sending.c.rule, sending.c.study_instance_uid, func.max(sending.c.at).label("last"))
    .where(_UNCLAIMED)
    .group_by(sending.c.rule, sending.c.study_instance_uid)
)


def gather(archive: Archive) -> int:
    """Make a job of what a rule wants sent of a study that has been quiet; how many jobs.

    What a rule wanted that is not in the settings any more, or not enabled, waits until it is.
    """
    rules = {rule.name: rule for rule in archive.settings.dicom.forward if rule.enabled}
    if not rules:
        return 0
    now = archive.real_clock()
    with archive.reading() as conn:
        ready = [
            (rules[row.rule], row.study_instance_uid)
            for row in conn.execute(_QUIET)
            if row.rule in rules and row.last <= now - timedelta(seconds=rules[row.rule].quiet_seconds)
        ]
    return sum(archive.commit.run(lambda conn, one=one: _gathered(conn, *one, at=now)) for one in ready)  # type: ignore[misc]


def _gathered(conn: Connection, rule: Forward, study_uid: str, *, at: datetime) -> bool:
    """One job for a rule and a study; False: another process was quicker."""
    id = _put(conn, rule.to, SYSTEM, study=study_uid, rule=rule.name, at=at)
    mine = (sending.c.rule == rule.name, sending.c.study_instance_uid == study_uid, _UNCLAIMED)
    if conn.execute(update(sending).where(*mine).values(job_pk=id)).rowcount == 0:
        conn.execute(delete(job).where(job.c.pk == id))
        return False
    _begun(conn, SYSTEM, id, rule.to, study=study_uid, patient=owner_of(conn, study_uid), rule=rule.name)
    return True


def waiting(archive: Archive, one: Job) -> list[Waiting]:
    """What a job has still to send; what was on its way when a peer went comes last."""
    wanted = select(sending.c.pk, sending.c.sop_instance_uid).where(
        sending.c.job_pk == one.id, sending.c.state == "waiting"
    )
    with archive.reading() as conn:
        return [
            Waiting(row.pk, row.sop_instance_uid)
            for row in conn.execute(wanted.order_by(sending.c.why.isnot(None), sending.c.pk))
        ]


def record_progress(
    conn: Connection,
    one: Job,
    *,
    sent: Sequence[int],
    failed: Sequence[tuple[int, str]],
    at: datetime,
    patience_seconds: float,
) -> bool:
    """Write down what became of instances, by `Waiting.pk`, and ask for more time: as long as an answer may take, and
    LEASE. False: the job was cancelled, or another has it; nothing is written."""
    lease = LEASE + timedelta(seconds=patience_seconds)
    if not jobs.prolong(conn, one, at=at, lease=lease, progress=bool(sent)):
        return False
    if sent:
        done = update(sending).where(sending.c.pk.in_(list(sent)))
        conn.execute(done.values(state="sent", why=None, at=at))
    for pk, why in failed:
        conn.execute(update(sending).where(sending.c.pk == pk).values(state="failed", why=why, at=at))
    return True


def interrupted(conn: Connection, one: Waiting, why: str, *, at: datetime) -> None:
    """It was on its way when the peer went: nobody knows whether the peer has it."""
    conn.execute(update(sending).where(sending.c.pk == one.pk).values(why=why, at=at))


def counts(conn: Connection, ids: Iterable[int]) -> dict[int, Counts]:
    """How far jobs are."""
    wanted = (
        select(sending.c.job_pk, sending.c.state, func.count().label("instances"))
        .where(sending.c.job_pk.in_(list(ids)))
        .group_by(sending.c.job_pk, sending.c.state)
    )
    found: dict[int, dict[str, int]] = {}
    for row in conn.execute(wanted):
        found.setdefault(row.job_pk, {})[row.state] = row.instances
    return {id: Counts(**states) for id, states in found.items()}


def failures(conn: Connection, id: int, *, limit: int) -> list[dict[str, Any]]:
    """What a job could not send, and why."""
    wanted = (
        select(sending.c.study_instance_uid, sending.c.sop_instance_uid, sending.c.why.label("reason"))
        .where(sending.c.job_pk == id, sending.c.state == "failed")
        .order_by(sending.c.pk)
    )
    return [dict(row._mapping) for row in conn.execute(wanted.limit(limit))]


def described(archive: Archive, found: Sequence[Job]) -> list[dict[str, Any]]:
    """Jobs without anything of a patient: a payload may hold a message of the RIS."""
    sendings = [one.id for one in found if one.kind == KIND]
    with archive.reading() as conn:
        known = counts(conn, sendings) if sendings else {}
    items = []
    for one in found:
        said: dict[str, Any] = {
            "id": one.id,
            "kind": one.kind,
            "state": one.state,
            "attempts": one.attempts,
            "created_at": one.created_at,
            "due_at": one.due_at if one.state == "due" else None,
            "finished_at": one.finished_at,
            "error": one.error,
        }
        if one.kind == KIND:
            far = known.get(one.id, Counts())
            said |= {
                "peer": one.payload["peer"],
                "study": one.payload["study"],
                "rule": one.payload["rule"],
                "asked_by": one.payload["user"],
                "waiting": far.waiting,
                "sent": far.sent,
                "failed": far.failed,
            }
        items.append(said)
    return items


def jobs_of(archive: Archive, study_uid: str, *, limit: int) -> list[Job]:
    """The jobs that sent something of a study, or will, the latest first."""
    ids = select(sending.c.job_pk).where(sending.c.study_instance_uid == study_uid, sending.c.job_pk.isnot(None))
    with archive.reading() as conn:
        found = conn.execute(select(job.c.pk).where(job.c.pk.in_(ids)).order_by(job.c.pk.desc()).limit(limit))
        return [one for pk in found.scalars() if (one := jobs.find(conn, pk)) is not None]


def retry(archive: Archive, id: int, *, actor: Actor) -> None:
    """Have a job done that was given up, or that waits for its next attempt; of a sending what failed, too.

    Raises NotAllowed; NotFound; Conflict: it is being done, or is done.
    """

    def write(conn: Connection) -> bool:
        at = archive.real_clock()
        if not jobs.retry(conn, id, at=at):
            return False
        failed = (sending.c.job_pk == id, sending.c.state == "failed")
        conn.execute(update(sending).where(*failed).values(state="waiting", at=at))
        _administered(conn, actor, id, "retry")
        return True

    demand(actor, Action.ADMINISTER)
    _decide(archive, id, archive.commit.run(write))


def cancel(archive: Archive, id: int, *, actor: Actor) -> None:
    """Give a job up. A sending stops within a second or two; what was sent stays sent.

    Raises NotAllowed; NotFound; Conflict: it is over.
    """

    def write(conn: Connection) -> bool:
        if not jobs.cancel(conn, id, by=actor.user, at=archive.real_clock()):
            return False
        _administered(conn, actor, id, "cancel")
        return True

    demand(actor, Action.ADMINISTER)
    _decide(archive, id, archive.commit.run(write))


def _administered(conn: Connection, actor: Actor, id: int, act: str) -> None:
    record(conn, actor, Event.APPLICATION_ACTIVITY, "U", detail={"job": id, "act": act})


def _decide(archive: Archive, id: int, done: bool) -> None:
    if done:
        return
    with archive.reading() as conn:
        found = jobs.find(conn, id)
    if found is None:
        raise NotFound("no such job")
    raise Conflict(f"the job is {found.state}")
