"""Outcomes and errors of the archive as DIMSE statuses (table 2.3 of sheet 10; PS3.4 B.2.3, C.4; PS3.7 Annex C)."""

from __future__ import annotations

from enum import IntEnum

from archive import errors
from archive.errors import ArchiveError, InvalidQuery, UidMismatch
from archive.instance import Outcome
from dicom_scp.messages import Answer


class Status(IntEnum):
    """Status (0000,0900)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    INVALID_INSTANCE = 0x0117
    CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORISED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNISED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    OUT_OF_RESOURCES = 0xA700
    CANNOT_COUNT_MATCHES = 0xA701
    SUB_OPERATIONS_FAILED = 0xA702
    UNKNOWN_DESTINATION = 0xA801
    DOES_NOT_MATCH_CLASS = 0xA900
    WARNING = 0xB000
    BUG = 0xC000
    CANNOT_UNDERSTAND = 0xC001
    UID_CONFLICT = 0xC0D1
    REFUSED_BY_SITE = 0xC0F1
    GONE = 0xC0F2
    REJECTED_BEFORE = 0xC0F3
    CANCELLED = 0xFE00
    PENDING = 0xFF00
    PENDING_WITHOUT_KEYS = 0xFF01


PENDING = frozenset({Status.PENDING, Status.PENDING_WITHOUT_KEYS})

# Every error of the archive, by its own name: a new one has to be thought about here.
OF_ERROR: dict[type[ArchiveError], Status] = {
    errors.ArchiveError: Status.BUG,
    errors.Rejected: Status.CANNOT_UNDERSTAND,
    errors.UnreadableInstance: Status.CANNOT_UNDERSTAND,
    errors.UidMismatch: Status.DOES_NOT_MATCH_CLASS,
    errors.InvalidQuery: Status.DOES_NOT_MATCH_CLASS,
    errors.TooLarge: Status.OUT_OF_RESOURCES,
    errors.Unsupported: Status.CLASS_NOT_SUPPORTED,
    errors.NotAcceptable: Status.CANNOT_UNDERSTAND,
    errors.NotAuthenticated: Status.NOT_AUTHORISED,
    errors.NotAllowed: Status.NOT_AUTHORISED,
    errors.InvalidRequest: Status.DOES_NOT_MATCH_CLASS,
    errors.Conflict: Status.REFUSED_BY_SITE,
    errors.IdentifierInUse: Status.REFUSED_BY_SITE,
    errors.MergedAway: Status.REFUSED_BY_SITE,
    errors.NotFound: Status.CANNOT_UNDERSTAND,
    errors.Gone: Status.GONE,
    errors.RejectedBefore: Status.REJECTED_BEFORE,
    errors.Unavailable: Status.OUT_OF_RESOURCES,
    errors.StorageFull: Status.OUT_OF_RESOURCES,
    errors.StorageFailed: Status.OUT_OF_RESOURCES,
    errors.IndexUnavailable: Status.OUT_OF_RESOURCES,
    errors.Busy: Status.OUT_OF_RESOURCES,
    errors.CommitInDoubt: Status.OUT_OF_RESOURCES,
}

OF_OUTCOME: dict[Outcome, Answer] = {
    Outcome.STORED: Answer(Status.SUCCESS),
    Outcome.STORED_HELD: Answer(Status.SUCCESS),
    Outcome.ALREADY_STORED: Answer(Status.SUCCESS),
    Outcome.REPAIRED: Answer(Status.SUCCESS),
    Outcome.QUARANTINED: Answer(
        Status.UID_CONFLICT, comment="SOP Instance UID already holds other content", offending=(0x00080018,)
    ),
}

_BUG_COMMENT = "internal error, see the log of the archive"
STORE_BUG = Answer(Status.BUG, comment=_BUG_COMMENT)  # 0110 is not a C-STORE status
BUG = Answer(Status.PROCESSING_FAILURE, comment=_BUG_COMMENT)


def refusal(error: ArchiveError) -> Answer:
    """The answer to a request that ended in `error`: status, Error Comment, Offending Element."""
    status = next(OF_ERROR[kind] for kind in type(error).__mro__ if kind in OF_ERROR)
    offending: tuple[int, ...] = ()
    if isinstance(error, UidMismatch | InvalidQuery) and error.tag is not None:
        offending = (error.tag,)
    return Answer(status, comment=str(error), offending=offending)
