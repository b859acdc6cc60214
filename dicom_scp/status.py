"""Outcomes and errors of the archive as DIMSE statuses (table 2.3 of sheet 10; PS3.4 B.2.3, C.4; PS3.7 Annex C)."""

from __future__ import annotations

from enum import IntEnum

from archive import errors
from archive.errors import ArchiveError, AttributeRefused, InvalidQuery, UidMismatch
from archive.instance import Outcome
from dicom_scp.messages import Answer


class Status(IntEnum):
    """Status (0000,0900)."""

    SUCCESS = 0x0000
    INVALID_ATTRIBUTE = 0x0106
    ATTRIBUTE_LIST_ERROR = 0x0107
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_INSTANCE = 0x0111
    NO_SUCH_INSTANCE = 0x0112
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_INSTANCE = 0x0117
    CLASS_INSTANCE_CONFLICT = 0x0119
    MISSING_ATTRIBUTE = 0x0120
    MISSING_ATTRIBUTE_VALUE = 0x0121
    CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORISED = 0x0124
    DUPLICATE_TRANSACTION = 0x0131  # a Failure Reason of PS3.3 C.14.1.1, no status
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNISED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    CANNOT_COUNT_MATCHES = 0xA701
    SUB_OPERATIONS_FAILED = 0xA702
    UNKNOWN_DESTINATION = 0xA801
    DOES_NOT_MATCH_CLASS = 0xA900
    WARNING = 0xB000  # C-STORE: coercion of data elements
    BREAKS_CLASS = 0xB007
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
    errors.AttributeRefused: Status.INVALID_ATTRIBUTE,  # or what `refusal` finds more exact
    errors.TooLarge: Status.OUT_OF_RESOURCES,
    errors.Unsupported: Status.CLASS_NOT_SUPPORTED,
    errors.NotAcceptable: Status.CANNOT_UNDERSTAND,
    errors.NotAuthenticated: Status.NOT_AUTHORISED,
    errors.NotAllowed: Status.NOT_AUTHORISED,
    errors.InvalidRequest: Status.DOES_NOT_MATCH_CLASS,
    errors.Conflict: Status.REFUSED_BY_SITE,
    errors.StillKept: Status.REFUSED_BY_SITE,
    errors.IdentifierInUse: Status.REFUSED_BY_SITE,
    errors.MergedAway: Status.REFUSED_BY_SITE,
    errors.InsNotQualified: Status.REFUSED_BY_SITE,
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


def _warned(outcome: Outcome, status: Status, tag: int) -> Answer:
    """Stored as it is, and something is to be known of it (PS3.4 B.2.3)."""
    return Answer(status, comment=outcome.value, offending=(tag,))


OF_OUTCOME: dict[Outcome, Answer] = {
    Outcome.STORED: Answer(Status.SUCCESS),
    Outcome.COERCED: _warned(Outcome.COERCED, Status.WARNING, 0x00100020),
    Outcome.TRUNCATED: _warned(Outcome.TRUNCATED, Status.BREAKS_CLASS, 0x7FE00010),
    Outcome.WITHOUT_MODALITY: _warned(Outcome.WITHOUT_MODALITY, Status.BREAKS_CLASS, 0x00080060),
    Outcome.WITHOUT_SIZE: _warned(Outcome.WITHOUT_SIZE, Status.BREAKS_CLASS, 0x00280010),
    Outcome.STORED_HELD: Answer(Status.SUCCESS),
    Outcome.ALREADY_STORED: Answer(Status.SUCCESS),
    Outcome.REPAIRED: Answer(Status.SUCCESS),
    Outcome.QUARANTINED: Answer(
        Status.UID_CONFLICT, comment="SOP Instance UID already holds other content", offending=(0x00080018,)
    ),
}

_OF_FAULT = {
    "missing": Status.MISSING_ATTRIBUTE,
    "empty": Status.MISSING_ATTRIBUTE_VALUE,
    "wrong": Status.INVALID_ATTRIBUTE,
}
_BUG_COMMENT = "internal error, see the log of the archive"
STORE_BUG = Answer(Status.BUG, comment=_BUG_COMMENT)  # 0110 is not a C-STORE status
BUG = Answer(Status.PROCESSING_FAILURE, comment=_BUG_COMMENT)


def refusal(error: ArchiveError) -> Answer:
    """The answer to a request that ended in `error`: status, Error Comment, Offending Element."""
    status = next(OF_ERROR[kind] for kind in type(error).__mro__ if kind in OF_ERROR)
    offending: tuple[int, ...] = ()
    if isinstance(error, AttributeRefused):
        status = _OF_FAULT[error.fault]
    if isinstance(error, UidMismatch | InvalidQuery | AttributeRefused) and error.tag is not None:
        offending = (error.tag,)
    return Answer(status, comment=str(error), offending=offending)


def normalized_refusal(error: ArchiveError, *, malformed: Status) -> Answer:
    """The same for a DIMSE-N request, which knows other statuses (PS3.7 §10.1, Annex C); `malformed` is its own for a
    data set that cannot be read or does not say what it has to."""
    if isinstance(error, AttributeRefused):
        return refusal(error)
    if isinstance(error, errors.TooLarge | errors.Unavailable):
        status = Status.RESOURCE_LIMITATION
    elif isinstance(error, errors.NotAllowed | errors.NotAuthenticated):
        status = Status.NOT_AUTHORISED
    elif isinstance(error, errors.UnreadableInstance | errors.InvalidRequest):
        status = malformed
    else:
        status = Status.PROCESSING_FAILURE
    return Answer(status, comment=str(error))
