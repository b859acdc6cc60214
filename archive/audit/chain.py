"""The hash chain of one writing process (REQ-SEC-04): each row carries the hash of the one before.

The hash of a row is SHA-256 over the UTF-8 JSON of this array, without spaces, non-ASCII characters as they are:

    [chain, seq, previous, time, event, action, outcome, user, source, door, patient, study, detail]

`time` is written `2026-01-05T10:15:00.000000Z`, numbers are JSON numbers, a missing patient or study is `null`, and
`detail` is the stored text itself. `previous` of row 0 is the hash of `[chain, opened_at, process, follows]`, all as
text. What is not in the hash is `pk`, the number that the database gives to the row.

`follows` names the chains that were opened just before this one, with their length and head at that moment, so that a
chain that disappears whole is missed by its neighbours.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import structlog
from sqlalchemy import Connection, bindparam, desc, insert, select, update

from archive.clock import Clock
from archive.schema import audit, audit_chain
from archive.schema.prepared import Prepared

log = structlog.get_logger(__name__)

FOLLOWED = 4  # chains that a new one names
HASHED = (
    "chain",
    "seq",
    "previous",
    "time",
    "event",
    "action",
    "outcome",
    "user",
    "source",
    "door",
    "patient",
    "study",
    "detail",
)

_INSERT_ROWS = Prepared(insert(audit), columns=[*HASHED, "hash"])
_OPEN = insert(audit_chain)
_MOVE = Prepared(
    update(audit_chain)
    .where(
        audit_chain.c.chain == bindparam("at_chain"),
        audit_chain.c.rows == bindparam("from_rows"),
        audit_chain.c.head == bindparam("from_head"),
    )
    .values(rows=bindparam("to_rows"), head=bindparam("to_head"))
)
_HEAD = (
    select(audit_chain.c.rows, audit_chain.c.head)
    .where(audit_chain.c.chain == bindparam("at_chain"))
    .with_for_update()  # waits for a COMMIT whose answer was lost
)
_LATEST = (
    select(audit_chain.c.chain, audit_chain.c.rows, audit_chain.c.head)
    .order_by(desc(audit_chain.c.opened_at), audit_chain.c.chain)
    .limit(FOLLOWED)
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row to append; `detail` is JSON text."""

    time: datetime
    event: str
    action: str
    outcome: int
    user: str
    source: str
    door: str
    patient: str | None
    study: str | None
    detail: str


def time_text(time: datetime) -> str:
    """The canonical form of a time: UTC, microseconds, `Z`."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


def digest_of(values: list[str | int | None]) -> str:
    """SHA-256 of the canonical JSON of `values`, in hexadecimal."""
    try:
        text = orjson.dumps(values)
    except TypeError:  # lone surrogates, or a number beyond 64 bits: in a row that somebody has altered
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()


def genesis(chain: str, *, opened_at: str, process: str, follows: str) -> str:
    """What row 0 has as `previous`."""
    return digest_of([chain, opened_at, process, follows])


def row_hash(values: Mapping[str, str | int | None]) -> str:
    """The hash of a row: `values` has its columns by name, `time` as `time_text` gives it."""
    return digest_of([values[column] for column in HASHED])


@dataclass(frozen=True, slots=True)
class _Head:
    chain: str
    rows: int
    head: str


class AuditChain:
    """The chain of one process; the `Ledger` of its GroupCommit.

    Touched by the commit thread alone, so it has no lock. Rows that a failed attempt recorded are dropped with it; the
    attempt that runs again records them again. The chain begins at its first row: a process that changes nothing
    leaves none.
    """

    def __init__(self, process: str, time: Clock) -> None:
        self.time = time
        self._process = process
        self._rows: list[Row] = []
        self._settled: list[Callable[[bool], None]] = []
        self._standing: _Head | None = None  # what the database is known to hold
        self._moved: _Head | None = None  # what it holds if this COMMIT succeeds
        self._sure = True

    def append(self, row: Row, *, settled: Callable[[bool], None] | None = None) -> None:
        """Add a row to the present transaction. `settled(committed)` is called in the commit thread at its end."""
        self._rows.append(row)
        if settled is not None:
            self._settled.append(settled)

    def flush(self, conn: Connection) -> None:
        """Write the rows recorded since the last settlement, and move the head with them."""
        if not self._rows:
            return
        start = self._find(conn) or self._open(conn)
        head, values = _linked(start, self._rows)
        if self._move(conn, start, head) != 1:
            # somebody else touched our head: this is what verify-audit reports; the rows still have to be kept
            log.error("the head of the audit chain is not the one that was left", chain=start.chain)
            start = self._open(conn)
            head, values = _linked(start, self._rows)
            self._move(conn, start, head)
        _INSERT_ROWS.run_all(conn, values)
        self._moved = head

    def settle(self, *, committed: bool) -> None:
        """The transaction ended: keep what was written, or forget it."""
        if committed:
            self._standing = self._moved or self._standing
        else:
            self._sure = False  # it may have been committed all the same: ask before the next row
        self._moved = None
        self._rows.clear()
        told, self._settled = self._settled, []
        for settled in told:
            settled(committed)

    def _find(self, conn: Connection) -> _Head | None:
        """Where to go on. After a rollback the database is asked: its COMMIT may have happened."""
        if self._standing is None or self._sure:
            self._sure = True  # no chain yet: a new one has a new name, whatever became of the last attempt
            return self._standing
        chain = self._standing.chain
        found = conn.execute(_HEAD, {"at_chain": chain}).one_or_none()
        if found is None:
            log.error("the head of the audit chain is gone", chain=chain)
            self._standing = None
            return None
        self._standing = _Head(chain, found.rows, found.head)
        self._sure = True
        return self._standing

    def _open(self, conn: Connection) -> _Head:
        chain, opened_at = str(uuid.uuid4()), self.time.real()  # a fact of the process, not of the archive
        follows = json.dumps([list(row) for row in conn.execute(_LATEST)], separators=(",", ":"))
        first = genesis(chain, opened_at=time_text(opened_at), process=self._process, follows=follows)
        conn.execute(
            _OPEN,
            {
                "chain": chain,
                "opened_at": opened_at,
                "process": self._process,
                "rows": 0,
                "head": first,
                "follows": follows,
            },
        )
        return _Head(chain, 0, first)

    def _move(self, conn: Connection, start: _Head, head: _Head) -> int:
        return _MOVE.run(
            conn,
            {
                "at_chain": start.chain,
                "from_rows": start.rows,
                "from_head": start.head,
                "to_rows": head.rows,
                "to_head": head.head,
            },
        )


def _linked(start: _Head, rows: list[Row]) -> tuple[_Head, list[dict[str, object]]]:
    """The rows as the table keeps them, linked from `start`, and the head after them."""
    values: list[dict[str, object]] = []
    seq, previous = start.rows, start.head
    for row in rows:
        columns: dict[str, str | int | None] = {
            "chain": start.chain,
            "seq": seq,
            "previous": previous,
            "time": time_text(row.time),
            "event": row.event,
            "action": row.action,
            "outcome": row.outcome,
            "user": row.user,
            "source": row.source,
            "door": row.door,
            "patient": row.patient,
            "study": row.study,
            "detail": row.detail,
        }
        own = row_hash(columns)
        values.append({**columns, "time": row.time, "hash": own})
        seq, previous = seq + 1, own
    return _Head(start.chain, seq, previous), values
