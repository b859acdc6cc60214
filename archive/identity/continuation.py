"""Where the answer to a query of patients goes on: pointers that live for ten minutes (HL7 2.5 5.6.3, REQ-HL7-92)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select

from archive.errors import NotFound
from archive.schema import query_pointer

LIFE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one sender; `digest` of what it asks, so that a pointer continues no other."""

    sender: str  # MSH-3|MSH-4
    tag: str
    digest: str


def point(conn: Connection, query: Query, pointer: str, *, after: int, at: datetime) -> None:
    """Let `pointer` (unique, 36 characters at most) lead to what follows the patient numbered `after`; `at` is real
    time. Pointers that are over are forgotten."""
    conn.execute(delete(query_pointer).where(query_pointer.c.expires_at <= at))
    values = {"pointer": pointer, "sender": query.sender, "tag": query.tag, "query": query.digest, "after_pk": after}
    conn.execute(insert(query_pointer), {**values, "expires_at": at + LIFE})


def follow(conn: Connection, query: Query, pointer: str, *, at: datetime) -> int:
    """After which patient the answer goes on.

    Raises:
        NotFound: no such pointer, or none of this query, or its time is over.
    """
    row = conn.execute(select(query_pointer).where(query_pointer.c.pointer == pointer)).one_or_none()
    if row is None or row.expires_at <= at or Query(row.sender, row.tag, row.query) != query:
        raise NotFound("this continuation pointer is not known, or its time is over")
    return int(row.after_pk)


def cancel(conn: Connection, *, sender: str, tag: str) -> None:
    """Nobody asks for the rest of this query any more."""
    conn.execute(delete(query_pointer).where(query_pointer.c.sender == sender, query_pointer.c.tag == tag))
