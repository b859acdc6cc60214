"""The journal of HL7 messages: raw bytes as they came, and the one answer to each (REQ-HL7-07, sheet 20 §3.2).

A message is kept in a commit of its own before anything is made of it. Its answer is kept in the transaction that
applies it, under sender and control ID, so that the same message has the same effect once, whatever the connection.
What is answered AR may come again and is then tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection as Connection  # noqa: PLC0414 - for handlers too, which hand it on
from sqlalchemy import bindparam, insert, select, update

from archive.errors import NotFound
from archive.schema import hl7_answer, hl7_message
from archive.schema.types import AnyRow

MAX_NAME = 255  # characters of a sender, a control ID or a kind; more cannot be told apart here


class State(StrEnum):
    """What became of a message."""

    RECEIVED = "received"  # not answered: power failed, or the database did; the sender sends it again
    APPLIED = "applied"
    REFUSED = "refused"
    REPEATED = "repeated"  # it had been answered before: the same answer, and nothing else


@dataclass(frozen=True, slots=True)
class Head:
    """What names a message: MSH-3 and MSH-4, MSH-10, MSH-9; each "" where it could not be read."""

    sender: str
    control_id: str
    kind: str  # ADT^A28
    digest: str  # SHA-256 of the message without MSH-7


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer that was given to a sender's control ID."""

    message_pk: int
    digest: str
    code: str  # MSA-1: AA or AE
    ack: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of the journal, to be read or applied again."""

    pk: int
    raw: bytes
    connection: str
    state: State
    ack_code: str | None


_KEEP = insert(hl7_message).returning(hl7_message.c.pk)
_ANSWERED = (
    select(hl7_answer.c.message_pk, hl7_answer.c.digest, hl7_message.c.ack_code, hl7_message.c.ack)
    .join(hl7_message, hl7_message.c.pk == hl7_answer.c.message_pk)
    .where(hl7_answer.c.sender == bindparam("sender"), hl7_answer.c.control_id == bindparam("control_id"))
)
_CLOSE = (
    update(hl7_message)
    .where(hl7_message.c.pk == bindparam("message"))
    .values(
        state=bindparam("new_state"),
        ack_code=bindparam("code"),
        ack=bindparam("bytes"),
        error=bindparam("said"),
        answered_at=bindparam("at"),
    )
)
_REMEMBER = insert(hl7_answer)
_COLUMNS = [column for column in hl7_message.c if column.name not in ("raw", "ack")]


def keep(conn: Connection, raw: bytes, head: Head, *, connection: str, at: datetime) -> int:
    """Put a message into the journal; returns its number."""
    values = {
        "received_at": at,
        "connection": connection,
        "raw": raw,
        "sender": head.sender,
        "control_id": head.control_id,
        "kind": head.kind,
        "state": State.RECEIVED,
    }
    return int(conn.execute(_KEEP, values).scalar_one())


def answered(conn: Connection, head: Head) -> Answered | None:
    """The answer that a message of this sender and control ID has had; None for none, or one without control ID."""
    if not head.control_id:
        return None
    row = conn.execute(_ANSWERED, {"sender": head.sender, "control_id": head.control_id}).one_or_none()
    return None if row is None else Answered(row.message_pk, row.digest, row.ack_code, bytes(row.ack))


def remember(conn: Connection, head: Head, pk: int, *, at: datetime) -> None:
    """From now on, this message is the one of its sender and control ID.

    Raises IntegrityError when another is, which `archive.commit` answers by running the write again.
    """
    conn.execute(
        _REMEMBER,
        {
            "sender": head.sender,
            "control_id": head.control_id,
            "digest": head.digest,
            "message_pk": pk,
            "at": at,
        },
    )


def close(conn: Connection, pk: int, state: State, *, code: str, ack: bytes, error: str | None, at: datetime) -> None:
    """Keep the answer to a message: `code` is MSA-1, `ack` the whole of it, `error` the first code and its place."""
    conn.execute(_CLOSE, {"message": pk, "new_state": state, "code": code, "bytes": ack, "said": error, "at": at})


def list_messages(
    conn: Connection,
    *,
    state: State | None = None,
    sender: str | None = None,
    control_id: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Messages without their content, the latest first, older than the one numbered `before`; `id` numbers them."""
    statement = select(*_COLUMNS).order_by(hl7_message.c.pk.desc()).limit(limit)
    for column, wanted in (
        (hl7_message.c.state, state),
        (hl7_message.c.sender, sender),
        (hl7_message.c.control_id, control_id),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if before is not None:
        statement = statement.where(hl7_message.c.pk < before)
    return [_shape(row) for row in conn.execute(statement)]


def stored(conn: Connection, pk: int) -> Stored:
    """One message with its bytes. Raises NotFound."""
    row = conn.execute(select(hl7_message).where(hl7_message.c.pk == pk)).one_or_none()
    if row is None:
        raise NotFound("no HL7 message has this number")
    return Stored(row.pk, bytes(row.raw), row.connection, State(row.state), row.ack_code)


def _shape(row: AnyRow) -> dict[str, Any]:
    return {
        "id": row.pk,
        "received_at": row.received_at.isoformat(),
        "connection": row.connection,
        "sender": row.sender,
        "control_id": row.control_id,
        "kind": row.kind,
        "state": row.state,
        "ack": row.ack_code,
        "error": row.error,
        "answered_at": None if row.answered_at is None else row.answered_at.isoformat(),
    }
