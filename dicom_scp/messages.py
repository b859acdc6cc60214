"""What a service is asked and what it answers, free of sockets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from archive.access import Actor
from archive.dicom.file_meta import FileMeta


class Answer(NamedTuple):
    """A response: status (PS3.7 Annex C), data set, Error Comment (0000,0902), Offending Element (0000,0901) as tags.

    The comment is ASCII and names no patient; 64 characters of it are sent. `error_id` is Error ID (0000,0903);
    `sop_instance_uid` the instance that an N-CREATE without one made.
    """

    status: int
    data_set: bytes | None = None
    comment: str = ""
    offending: tuple[int, ...] = ()
    error_id: int | None = None
    sop_instance_uid: str = ""


class FindRequest(NamedTuple):
    """A C-FIND-RQ: its identifier as received, and what extended negotiation agreed (PS3.4 C.5.1.1)."""

    sop_class_uid: str
    identifier: bytes
    transfer_syntax_uid: str
    relational: bool
    combined_datetime: bool
    actor: Actor
    empty_values: bool = False
    multiple_values: bool = False
    timezone: bool = False


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE-RQ: what is announced, and the data set as it arrives, in pieces that are good until the next come.
    `scope` is the association; `fetched`: we asked another archive for it."""

    meta: FileMeta
    data_set: Iterator[Sequence[memoryview]]
    actor: Actor
    scope: str
    fetched: bool = False


@dataclass(frozen=True, slots=True)
class NormalizedRequest:
    """An N-CREATE, N-SET, N-ACTION or N-EVENT-REPORT request (PS3.7 §10.1).

    `attributes` is its data set as DICOM JSON, in Unicode; `type` the Action Type ID or Event Type ID, if any.
    """

    sop_class_uid: str
    sop_instance_uid: str
    type: int | None
    attributes: dict[str, Any]
    actor: Actor
    calling_ae: str
    scope: str


@dataclass(frozen=True, slots=True)
class RetrieveRequest:
    """A C-GET-RQ or C-MOVE-RQ. `scope` is this message of its association."""

    sop_class_uid: str
    identifier: bytes
    transfer_syntax_uid: str
    actor: Actor
    calling_ae: str
    scope: str
    destination: str = ""  # C-MOVE
