"""The states of an instance, and of each of its copies (docs/instance.md). Pure.

Finding, counting, retrieving and removing all ask here which representation is current; nobody compares states by
himself.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, StrEnum


class Outcome(Enum):
    """What became of a received instance: a durable fact, not an error."""

    STORED = "stored"
    COERCED = "stored; Patient ID or its issuer will leave changed"  # B000 (REQ-DCM-18)
    TRUNCATED = "stored; Pixel Data is shorter than it says"  # B007, as the next two
    WITHOUT_MODALITY = "stored; Modality is missing"
    WITHOUT_SIZE = "stored; Rows or Columns of its Pixel Data are missing"
    STORED_HELD = "stored, held back"  # contradicts the record: out of view until a person settles it
    ALREADY_STORED = "already stored"  # a good copy of the same instance stands
    REPAIRED = "repaired"  # same bytes, and no good copy stood: the resend is the good copy now
    SAME_UID = "same UID, other bytes"  # not yet an answer: see archive.ingest
    QUARANTINED = "quarantined"  # the UID is taken by other content: kept aside, work item opened, C0D1


# Outcomes that file a new instance in sight.
TAKEN_IN = frozenset(
    {Outcome.STORED, Outcome.COERCED, Outcome.TRUNCATED, Outcome.WITHOUT_MODALITY, Outcome.WITHOUT_SIZE}
)


class State(StrEnum):
    """Where an instance is in its life. A row exists from `stored` or `held` on."""

    STORED = "stored"  # hot, lossless, current
    HELD = "held"  # kept, out of view until a person settles what it contradicts (REQ-DCM-19)
    PENDING = "pending"  # a derived copy in grace: unknown at every door while its original is current (REQ-DCM-83)
    UNFIT = "unfit"  # rejected for quality reasons (113001): for whoever judges quality alone (sheet 30 §9)
    REJECTED = "rejected"  # rejected for good, or a note that is evidence: seen by nobody
    REPLACED = "replaced"  # only its derived copy is left: UNAVAILABLE with the alternate, 410 (REQ-DCM-84)
    PURGING = "purging"  # its purge has begun (law 2): a tombstone to others


class Rejection(StrEnum):
    """Why an instance is not to be used any more, as DCM codes it (IHE IOCM, sheet 30 §9). The strictest last."""

    QUALITY = "113001"  # Rejected for Quality Reasons
    WORKLIST = "113038"  # Incorrect Modality Worklist Entry
    SAFETY = "113037"  # Rejected for Patient Safety Reasons
    EXPIRED = "113039"  # Data Retention Policy Expired


class CopyState(StrEnum):
    """What is known of one copy."""

    OK = "ok"
    DAMAGED = "damaged"  # a check found bytes that are not those of its digest, or no file
    PURGING = "purging"  # removal has begun (law 2)


class Availability(StrEnum):
    """Instance Availability (0008,0056), best first."""

    ONLINE = "ONLINE"
    NEARLINE = "NEARLINE"
    OFFLINE = "OFFLINE"
    UNAVAILABLE = "UNAVAILABLE"


# Instances that others see: found, counted, retrieved.
CURRENT = frozenset({State.STORED})
# Instances of which nobody outside knows, yet.
UNSEEN = frozenset({State.HELD, State.PENDING})
# Instances that are answered for when they are asked by their SOP Instance UID.
KNOWN = CURRENT | {State.REPLACED}
# Instances that are seen by whoever judges quality (`Action.QUALITY`).
JUDGED = CURRENT | {State.UNFIT}
# Instances that were rejected; `state_before` says what they were.
HIDDEN = frozenset({State.UNFIT, State.REJECTED})


def hidden_as(rejections: Collection[str]) -> State | None:
    """What an instance is of which these rejections stand; None: it is not hidden."""
    if not rejections:
        return None
    return State.UNFIT if set(rejections) == {Rejection.QUALITY} else State.REJECTED


def availability(tier: str | None) -> Availability:
    """Of one instance, by the tier of its best good copy; None: no good copy is left."""
    if tier is None:
        return Availability.UNAVAILABLE
    return Availability.ONLINE if tier == "hot" else Availability.NEARLINE
