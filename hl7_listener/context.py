"""What a handler of messages is given, and what it may say beside success."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from archive.access import Actor
from archive.authorities import Authorities
from archive.config import Settings
from archive.identity.acts import Write
from archive.messages import Connection
from hl7_listener.message import HL7Error, Message


@dataclass(frozen=True, slots=True)
class Context:
    """The circumstances in which a message is applied."""

    settings: Settings
    authorities: Authorities
    at: datetime  # archive.clock()
    actor: Actor  # the sender
    message_pk: int  # row of hl7_message


@dataclass(frozen=True, slots=True)
class Warning:
    """The message was integrated with a reservation: AA, and an ERR of severity W. Fields as of HL7Error."""

    code: int
    location: str
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a query. `write` is what of it is kept, the audit first of all, in the transaction that keeps the
    answer too; safe to run twice."""

    kind: str  # MSH-9
    segments: tuple[str, ...]  # behind MSA and ERR, with the usual delimiters
    write: Write
    errors: tuple[HL7Error, ...] = ()  # why it cannot be answered: the first one is MSA-1, each is an ERR


Handler = Callable[[Connection, Message, Context], list[Warning]]
"""Applies one message inside the transaction that also keeps its acknowledgement.

Raises HL7Error or ArchiveError: nothing is applied. Safe to run twice (`archive.commit`)."""

Query = Callable[[Connection, Message, Context, datetime], Reply]
"""Answers one query from a connection to read with, outside of any transaction; the time is the real one."""

Queries = dict[tuple[str, str], Query]  # by type and event
Handlers = dict[tuple[str, str], Handler]  # by type and event, MSH-9.1 and MSH-9.2
