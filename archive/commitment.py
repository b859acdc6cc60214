"""Storage commitment (PS3.4 Annex J, REQ-DCM-50, 51): what a peer asks to be kept, and what is promised.

A request is a row and a job in one transaction. Its job reads the copies to their end, decides in one transaction that
sees that they still stand, and reports until the peer has answered. A promise needs no guard of its own: nothing that
was received is removed before its day, promised or not (docs/dicom.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Connection, Select, and_, bindparam, delete, func, select, update

from archive import jobs
from archive.access import SYSTEM, Actor
from archive.audit.record import Event, Outcome, record
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import Busy, NotFound
from archive.index.conditions import constant
from archive.instance import CURRENT, CopyState
from archive.integrity import keep_verdicts
from archive.journal import Kind, note
from archive.schema import commitment, commitment_request, instance, location, patient, series, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

JOB = "dicom.commitment"
MOST_INSTANCES = 50_000  # in one request
RECENT = timedelta(days=1)  # a copy that was read to its end, and found good, this long ago need not be read again
KEPT = timedelta(days=30)  # requests are forgotten after this; promises never
_PAGE = 500
_LONG = 1 << 28  # bytes of a file that is not read while somebody waits
_TRIES = 3  # to find, while deciding, that copies were damaged or replaced since they were read

_ASKED = (instance.c.sop_instance_uid.in_(bindparam("uids", expanding=True)), instance.c.state.in_(sorted(CURRENT)))
_GOOD = location.c.state == constant(str(CopyState.OK))
_FACTS: Select[Any] = (
    select(
        instance.c.sop_instance_uid,
        instance.c.sop_class_uid,
        study.c.study_instance_uid,
        patient.c.patient_id,
        patient.c.issuer,
        location.c.pk.label("location_pk"),
        location.c.tier,
        location.c.path,
        location.c.digest,
        location.c.file_bytes,
        location.c.data_set_offset,
        location.c.verified_at,
    )
    .select_from(
        instance.join(series)
        .join(study)
        .join(patient)
        .outerjoin(location, and_(location.c.instance_pk == instance.c.pk, _GOOD))
    )
    .where(*_ASKED)
    .order_by(instance.c.pk, location.c.tier.desc(), location.c.pk)  # hot before cold
)
_STANDING = (  # of some instances, how many have a copy that was read lately
    select(func.count(instance.c.pk.distinct()))
    .join_from(instance, location)
    .where(*_ASKED, _GOOD, location.c.verified_at >= bindparam("since"))
)
_REQUEST = commitment_request.c.pk == bindparam("request")


class Verdict(StrEnum):
    """On one instance that a peer wants to be kept."""

    COMMITTED = "committed"
    UNKNOWN = "no such instance"  # never received, held back, rejected, purged, or only a lossy copy is left
    OTHER_CLASS = "another SOP class"
    DAMAGED = "no good copy"
    DUPLICATE = "Transaction UID in use"


@dataclass(frozen=True, slots=True)
class Reference:
    """An instance as a peer names it."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a request. `reported`: the peer has it."""

    transaction_uid: str
    ae_title: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, Verdict], ...]
    reported: bool


@dataclass(slots=True)
class _Draft:
    """What is about to be decided."""

    committed: list[str] = field(default_factory=list)  # SOP Instance UIDs
    studies: Counter[tuple[str, str]] = field(default_factory=Counter)  # of study and patient: instances committed
    failed: dict[str, str] = field(default_factory=dict)  # place in the request to verdict


@dataclass(frozen=True, slots=True)
class Promise:
    """So many instances of a study were promised to a peer."""

    to: str
    at: datetime
    instances: int
    transaction_uid: str


# -- asking --------------------------------------------------------------------------------------------------------


def ask(
    archive: Archive,
    transaction_uid: str,
    references: Sequence[Reference],
    *,
    actor: Actor,
    ae_title: str,
    after: timedelta = timedelta(0),
) -> int:
    """Take a request from the peer `ae_title`; its key, by which it is decided. Once this returns it will be.

    The same request of the same peer, while it has no report yet, is the same transaction. A Transaction UID that is
    used for anything else fails as a whole. The job comes due `after` so long.

    Raises:
        Unavailable: nothing was promised.
    """
    asked = dict.fromkeys(references)
    content = orjson.dumps([[one.sop_class_uid, one.sop_instance_uid] for one in asked]).decode()
    now = archive.real_clock()

    def write(conn: Connection) -> int:
        conn.execute(delete(commitment_request).where(commitment_request.c.asked_at < now - KEPT))
        pk, duplicate = _known(conn, transaction_uid, ae_title, content)
        if pk is None:
            values = {
                "transaction_uid": transaction_uid,
                "ae_title": ae_title,
                "instances": content,
                "duplicate": int(duplicate),
                "asked_at": now,
            }
            inserted = conn.execute(commitment_request.insert().returning(commitment_request.c.pk), values)
            pk = int(inserted.scalar_one())
        jobs.put(conn, JOB, {"request": pk}, at=now + after, once=True)
        detail = {"commitment": "asked", "transaction": transaction_uid, "instances": len(asked)}
        record(conn, actor, Event.INSTANCES_ACCESSED, "E", detail=detail)
        return pk

    return archive.commit.run(write)


def _known(conn: Connection, transaction_uid: str, ae_title: str, content: str) -> tuple[int | None, bool]:
    """The request that waits for its report and is the same; and whether another one has this Transaction UID."""
    rows = conn.execute(
        select(commitment_request)
        .where(commitment_request.c.transaction_uid == transaction_uid)
        .order_by(commitment_request.c.pk)
    ).all()
    duplicate = False
    for row in rows:
        if (row.ae_title, row.instances) != (ae_title, content):
            duplicate = True
        elif row.reported_at is None:
            return int(row.pk), False
    return None, duplicate


# -- deciding ------------------------------------------------------------------------------------------------------


def decide(
    archive: Archive, request: int, *, until: float | None = None, between: Callable[[], None] = lambda: None
) -> Decision | None:
    """The answer to a request, decided once; None: that takes longer than `until` (of the monotonic clock).

    `between` is called after each copy that was read.

    Raises:
        NotFound: there is no such request.
        Unavailable: a volume or the index is away, which says nothing about any instance.
    """
    with archive.reading() as conn:
        row = _row(conn, request)
    if row.failed is not None:
        return _decision(row)
    asked = [] if row.duplicate else [one.sop_instance_uid for one in _references(row)]
    since = archive.clock() - RECENT
    for _ in range(_TRIES):
        if not _read_copies(archive, asked, since=since, until=until, between=between):
            return None
        at = archive.clock()
        with archive.reading() as conn:
            draft = _weigh(conn, row, since=since, at=at)
        if draft is not None:
            write = partial(_decide, request=request, draft=draft, since=since, at=at)
            if archive.commit.run(write):
                with archive.reading() as conn:
                    return _decision(_row(conn, request))
    raise Busy("copies change while they are read")


def _row(conn: Connection, request: int) -> AnyRow:
    row = conn.execute(select(commitment_request).where(_REQUEST), {"request": request}).one_or_none()
    if row is None:
        raise NotFound("the request is not known any more")
    return row


def _references(row: AnyRow) -> list[Reference]:
    return [Reference(*pair) for pair in orjson.loads(row.instances)]


def _decision(row: AnyRow) -> Decision:
    failed = {int(place): Verdict(verdict) for place, verdict in orjson.loads(row.failed).items()}
    asked = _references(row)
    return Decision(
        transaction_uid=row.transaction_uid,
        ae_title=row.ae_title,
        committed=tuple(one for place, one in enumerate(asked) if place not in failed),
        failed=tuple((asked[place], verdict) for place, verdict in sorted(failed.items())),
        reported=row.reported_at is not None,
    )


def _found(conn: Connection, uids: Sequence[str]) -> Iterator[tuple[str, list[AnyRow]]]:
    """Each current instance among some, with a row for each of its copies that nothing bad is known of."""
    rows = conn.execute(_FACTS, {"uids": list(uids)}).all()
    for uid, copies in groupby(rows, key=lambda row: str(row.sop_instance_uid)):
        yield uid, list(copies)


def _was_read(row: AnyRow, since: datetime, now: datetime) -> bool:
    return row.verified_at is not None and since <= row.verified_at <= now


def _read_copies(
    archive: Archive, uids: Sequence[str], *, since: datetime, until: float | None, between: Callable[[], None]
) -> bool:
    """See to it that of each instance a copy was read to its end lately; False: not by `until`. What was seen is kept
    with the copies, as `minipacs verify` keeps it."""
    for start in range(0, len(uids), _PAGE):
        with archive.reading() as conn:
            found = list(_found(conn, uids[start : start + _PAGE]))
        verdicts: list[dict[str, Any]] = []
        in_time = True
        for _, copies in found:
            if copies[0].location_pk is None or _stands(archive, copies, since=since):
                continue
            if until is not None and (monotonic() >= until or copies[0].file_bytes > _LONG):
                in_time = False
                break
            verdicts += _read(archive, copies, between)
        if verdicts:
            archive.commit.run(partial(keep_verdicts, verdicts=verdicts, at=archive.clock()))
        if not in_time:
            return False
    return True


def _stands(archive: Archive, copies: Sequence[AnyRow], *, since: datetime) -> bool:
    """Whether one of an instance's copies was read lately, and is still as long as it was."""
    now = archive.clock()
    return any(
        _was_read(row, since, now) and archive.tier(row.tier).length(row.path) == row.file_bytes for row in copies
    )


def _read(archive: Archive, copies: Sequence[AnyRow], between: Callable[[], None]) -> list[dict[str, Any]]:
    """Read copies of an instance until one is good; what was seen of each."""
    verdicts: list[dict[str, Any]] = []
    for row in copies:
        bad = archive.tier(row.tier).damage(
            row.path, digest=row.digest, file_bytes=row.file_bytes, data_set_offset=row.data_set_offset
        )
        verdicts.append({"location_pk": row.location_pk, "state": CopyState.DAMAGED if bad else CopyState.OK})
        between()
        if not bad:
            break
    return verdicts


def _weigh(conn: Connection, row: AnyRow, *, since: datetime, at: datetime) -> _Draft | None:
    """What a request comes to, as the index stands; None: a copy has still to be read."""
    draft = _Draft()
    asked = _references(row)
    for start in range(0, len(asked), _PAGE):
        some = asked[start : start + _PAGE]
        found = {} if row.duplicate else dict(_found(conn, [one.sop_instance_uid for one in some]))
        for place, one in enumerate(some, start):
            copies = found.get(one.sop_instance_uid, [])
            verdict = Verdict.DUPLICATE if row.duplicate else _verdict(one, copies, since=since, at=at)
            if verdict is None:
                return None
            if verdict is Verdict.COMMITTED:
                draft.committed.append(one.sop_instance_uid)
                draft.studies[copies[0].study_instance_uid, cx(copies[0].patient_id, copies[0].issuer)] += 1
            else:
                draft.failed[str(place)] = verdict
    return draft


def _decide(conn: Connection, *, request: int, draft: _Draft, since: datetime, at: datetime) -> bool:
    """The transaction that promises. False: what was to be promised does not stand any more."""
    row = conn.execute(select(commitment_request).where(_REQUEST).with_for_update(), {"request": request}).one()
    if row.failed is not None:
        return True
    for start in range(0, len(draft.committed), _PAGE):
        some = draft.committed[start : start + _PAGE]
        if conn.execute(_STANDING, {"uids": some, "since": since}).scalar_one() != len(some):
            return False
    failed = orjson.dumps(draft.failed).decode()
    conn.execute(update(commitment_request).where(_REQUEST).values(failed=failed), {"request": request})
    _promise(conn, row, draft.studies, at=at)
    if draft.failed:
        reasons = Counter(draft.failed.values())
        detail = {"commitment": "refused", "to": row.ae_title, "transaction": row.transaction_uid, **reasons}
        record(conn, SYSTEM, Event.INSTANCES_ACCESSED, "R", outcome=Outcome.MINOR_FAILURE, detail=detail)
    return True


def _verdict(one: Reference, copies: Sequence[AnyRow], *, since: datetime, at: datetime) -> Verdict | None:
    if not copies:
        return Verdict.UNKNOWN
    if copies[0].sop_class_uid != one.sop_class_uid:
        return Verdict.OTHER_CLASS
    if copies[0].location_pk is None:
        return Verdict.DAMAGED
    return Verdict.COMMITTED if any(_was_read(row, since, at) for row in copies) else None


def _promise(conn: Connection, row: AnyRow, kept: Mapping[tuple[str, str], int], *, at: datetime) -> None:
    for (uid, owner), count in sorted(kept.items()):
        said = {"study": uid, "transaction": row.transaction_uid, "to": row.ae_title, "instances": count}
        _keep(conn, said, at=at)
        note(conn, Kind.COMMITMENT, f"{row.transaction_uid} {row.ae_title} {uid}", said, at=at)
        detail = {"commitment": "promised", **{key: said[key] for key in ("to", "transaction", "instances")}}
        record(conn, SYSTEM, Event.INSTANCES_ACCESSED, "R", patient=owner, study=uid, detail=detail)


def _keep(conn: Connection, said: Mapping[str, Any], *, at: datetime) -> None:
    values = {"instances": said["instances"], "at": at}
    conn.execute(
        insert(conn, commitment).on_conflict_do_update(
            index_elements=["study_instance_uid", "transaction_uid", "ae_title"], set_=values
        ),
        {
            "study_instance_uid": said["study"],
            "transaction_uid": said["transaction"],
            "ae_title": said["to"],
            **values,
        },
    )


# -- afterwards ----------------------------------------------------------------------------------------------------


def reported(archive: Archive, request: int) -> None:
    """The peer has answered the report."""
    said = update(commitment_request).where(_REQUEST).values(reported_at=archive.real_clock())
    archive.commit.run(lambda conn: conn.execute(said, {"request": request}))


def promises(conn: Connection, study_instance_uid: str) -> list[Promise]:
    """What was promised of a study, the oldest first."""
    mine = select(commitment).where(commitment.c.study_instance_uid == study_instance_uid)
    return [
        Promise(row.ae_title, row.at, row.instances, row.transaction_uid)
        for row in conn.execute(mine.order_by(commitment.c.at, commitment.c.pk))
    ]


def restore_commitment(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """A promise from its fact (`minipacs rebuild-index`). Safe to repeat."""
    _keep(conn, body, at=at)
