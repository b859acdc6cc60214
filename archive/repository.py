"""The audit repository of the network (IHE ATNA, ITI-20; REQ-SEC-02 to 04): every row of the audit leaves for it, those
of a chain in their order, and waits here while it is away.

What a chain has sent is counted in the database (`audit_sent`), in the transaction after its receipt: a batch that was
not confirmed is sent again, so a row may arrive twice and never not at all. A chain is counted by itself: its rows
become visible in their order, whatever other processes commit meanwhile.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, func, select

from archive import tls
from archive.access import SYSTEM
from archive.audit import syslog
from archive.audit.chain import time_text
from archive.audit.message import Reporter, message
from archive.audit.record import Event, EventType, Outcome, record
from archive.config import ConfigError, Settings
from archive.core import Archive
from archive.schema import audit, audit_chain, audit_sent, repository_state
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

log = structlog.get_logger(__name__)

BATCH = 100  # rows of a chain in one sending
BATCH_BYTES = 128 << 10  # in one sending, at least a row: received within its patience, however slow the line
CHAINS = 64  # in one sending; the oldest first
ROWS = 500  # read for one sending: no more of the chains once there are so many
_SENT = func.coalesce(audit_sent.c.rows, 0)
_BEHIND = (
    select(audit_chain.c.chain, audit_chain.c.rows, _SENT.label("sent"))
    .select_from(audit_chain.outerjoin(audit_sent, audit_sent.c.chain == audit_chain.c.chain))
    .where(audit_chain.c.rows > _SENT)
    .order_by(audit_chain.c.opened_at, audit_chain.c.chain)
)
_ROWS = (
    select(audit)
    .where(audit.c.chain == bindparam("of_chain"), audit.c.seq >= bindparam("sent"))
    .order_by(audit.c.seq)
    .limit(BATCH)
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that are next, of a row each, and where each of their chains then stands."""

    records: Sequence[bytes]
    standing: Mapping[str, int]  # of each chain: its rows that are sent, once these are


@dataclass(frozen=True, slots=True)
class State:
    """How it goes with the repository."""

    waiting: int  # rows
    tried_at: datetime | None
    failing_since: datetime | None
    why: str | None

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` gives it."""
        return {
            "waiting": self.waiting,
            "tried_at": self.tried_at,
            "failing_since": self.failing_since,
            "why": self.why,
        }


def reporter_of(settings: Settings) -> Reporter:
    """This archive, as its messages name it."""
    dicom, site = settings.dicom, settings.all_sites[0]
    return Reporter(
        source_id=settings.audit.source_id or dicom.ae_title,
        site_id=site.finess or site.name,
        ae_titles=tuple(sorted(dicom.titles())),
        node=socket.gethostname(),
    )


def send(archive: Archive) -> int:
    """Send the next rows; how many they were, 0 when there are none. Under the lease of whoever sends.

    Raises:
        NotDelivered: the repository is away, and everything waits; it is written down, and logged when it begins.
        Unavailable: the database is away.
    """
    with archive.reading() as conn:
        batch = _next(conn, archive.settings)
    if not batch.standing:
        return 0
    try:
        _deliver(archive.settings, batch.records)
    except (syslog.NotDelivered, ConfigError) as error:
        why = str(error)
        believed = not isinstance(error, syslog.NotBelieved)
        if archive.commit.run(partial(_note, why=why, believed=believed, at=archive.real_clock())):
            log.error("the audit repository is away: audit messages wait", why=why)
        raise syslog.NotDelivered(why) from error
    if archive.commit.run(partial(_count, batch=batch, at=archive.real_clock())):
        log.info("the audit repository is there again")
    return len(batch.records)


def newest(archive: Archive) -> int:
    """The number of the newest row of the audit, 0 for none: cheap, while finding what is to be sent reads every chain.
    Rows of a lower number may still be committed. Raises Unavailable."""
    with archive.reading() as conn:
        return conn.execute(select(func.max(audit.c.pk))).scalar() or 0


def knock(settings: Settings) -> None:
    """Connect to the repository and leave, with nothing said. Raises NotDelivered, ConfigError."""
    _deliver(settings, [])


def state(conn: Connection) -> State:
    """How many rows wait, and why if the repository does not take them."""
    waiting = sum(row.rows - row.sent for row in conn.execute(_BEHIND))
    last = conn.execute(select(repository_state)).one_or_none()
    if last is None:
        return State(waiting, None, None, None)
    return State(waiting, last.tried_at, last.failing_since, last.why)


def warnings(archive: Archive) -> list[str]:
    """What `/readyz` says beside its reasons, to anybody: rows wait for a repository that is away."""
    if not archive.settings.audit.repository.host:
        return []
    with archive.reading() as conn:
        found = state(conn)
    if found.failing_since is None:
        return []
    since = found.failing_since.isoformat(timespec="seconds")
    return [f"audit repository: away since {since}, {found.waiting} messages wait"]


def _next(conn: Connection, settings: Settings) -> Batch:
    found: list[AnyRow] = []
    standing: dict[str, int] = {}
    for chain in conn.execute(_BEHIND.limit(CHAINS)).all():
        if len(found) >= ROWS:
            break
        rows = conn.execute(_ROWS, {"of_chain": chain.chain, "sent": chain.sent}).all()
        if not rows:  # its tail is gone: that is what verify-audit reports; nothing is left to send
            log.error("rows of the audit are missing and cannot be sent", chain=chain.chain)
            standing[chain.chain] = chain.rows
        found += rows
    records: list[bytes] = []
    free = BATCH_BYTES
    reporter = reporter_of(settings)
    for row in sorted(found, key=lambda row: int(row.pk)):
        made = _record(row, reporter)
        if records and len(made) > free:
            break
        free -= len(made)
        records.append(made)
        standing[row.chain] = row.seq + 1
    return Batch(records, standing)


def _record(row: AnyRow, reporter: Reporter) -> bytes:
    return syslog.record(
        message(dict(row._mapping), reporter),
        time=time_text(row.time),
        host=reporter.node,
        process=row.chain,
        warning=row.outcome >= Outcome.SERIOUS_FAILURE,
    )


def _deliver(settings: Settings, records: Sequence[bytes]) -> None:
    to = settings.audit.repository
    context = None if to.transport == "tcp" else tls.requestor(settings.tls, named=not to.fingerprints)
    syslog.deliver(records, to.host, to.port, tls=context, fingerprints=to.fingerprints)


def _count(conn: Connection, *, batch: Batch, at: datetime) -> bool:
    """Write down what was received; True: it had been away."""
    for chain, rows in batch.standing.items():
        adding = insert(conn, audit_sent).values(chain=chain, rows=rows)
        conn.execute(adding.on_conflict_do_update(index_elements=["chain"], set_={"rows": rows}))
    before = conn.execute(select(repository_state.c.failing_since)).scalar()
    _set_state(conn, at=at, since=None, why=None)
    return before is not None


def _note(conn: Connection, *, why: str, believed: bool, at: datetime) -> bool:
    """Write down that it is away, and in the audit that it is not believed (REQ-SEC-01); True: it begins now."""
    before = conn.execute(select(repository_state)).one_or_none()
    since = None if before is None else before.failing_since
    _set_state(conn, at=at, since=since or at, why=why)
    if not believed and (before is None or before.why != why):
        said = {"type": EventType.NODE_AUTHENTICATION, "reason": why, "node": "audit repository"}
        record(conn, SYSTEM, Event.SECURITY_ALERT, "E", outcome=Outcome.SERIOUS_FAILURE, detail=said)
    return since is None


def _set_state(conn: Connection, *, at: datetime, since: datetime | None, why: str | None) -> None:
    values = {"tried_at": at, "failing_since": since, "why": why}
    adding = insert(conn, repository_state).values(pk=1, **values)
    conn.execute(adding.on_conflict_do_update(index_elements=["pk"], set_=values))
