"""One row of the audit, in the transaction of the act that it tells (law 4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum

import orjson
from sqlalchemy import Connection

from archive.access import Actor
from archive.audit.chain import AuditChain, Row
from archive.commit import GroupCommit


class Event(StrEnum):
    """Event ID (PS3.15 A.5.3, CID 400), with the code of DCM as value."""

    APPLICATION_ACTIVITY = "110100"
    AUDIT_LOG_USED = "110101"
    BEGIN_TRANSFERRING = "110102"
    INSTANCES_ACCESSED = "110103"
    INSTANCES_TRANSFERRED = "110104"
    STUDY_DELETED = "110105"
    EXPORT = "110106"
    IMPORT = "110107"
    NETWORK_ENTRY = "110108"
    ORDER_RECORD = "110109"
    PATIENT_RECORD = "110110"
    PROCEDURE_RECORD = "110111"
    QUERY = "110112"
    SECURITY_ALERT = "110113"
    USER_AUTHENTICATION = "110114"


class EventType(StrEnum):
    """Event Type Code (PS3.15 A.5.3, CID 401), kept in a row's detail under `type`."""

    START = "110120"
    STOP = "110121"
    LOGIN = "110122"
    LOGOUT = "110123"
    ATTACH = "110124"
    DETACH = "110125"
    NODE_AUTHENTICATION = "110126"
    OVERRIDE_STARTED = "110127"
    NETWORK_CONFIGURATION = "110128"
    SECURITY_CONFIGURATION = "110129"
    HARDWARE_CONFIGURATION = "110130"
    SOFTWARE_CONFIGURATION = "110131"
    RESTRICTED_FUNCTION = "110132"
    RECORDING_STOPPED = "110133"
    RECORDING_STARTED = "110134"
    OBJECT_ATTRIBUTES_CHANGED = "110135"
    ROLES_CHANGED = "110136"
    USER_ATTRIBUTES_CHANGED = "110137"
    OVERRIDE_STOPPED = "110138"


class Outcome(IntEnum):
    """Event Outcome Indicator (PS3.15 A.5.2)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


ACTIONS = frozenset("CRUDE")  # create, read, update, delete, execute
_OUTCOMES = frozenset(Outcome)


def record(
    conn: Connection,
    actor: Actor,
    event: Event,
    action: str,
    *,
    outcome: int = Outcome.SUCCESS,
    patient: str | None = None,
    study: str | None = None,
    detail: Mapping[str, object] | None = None,
    settled: Callable[[bool], None] | None = None,
) -> None:
    """Append one row to the audit, inside a write of `archive.commit`.

    `action` is one of C R U D E, `outcome` an `Outcome`, `patient` the identifier as `archive.dicom.patient_id.cx`
    gives it ("" is none), `study` the Study Instance UID, `detail` what JSON can hold. `settled(committed)` is called
    when the transaction has ended.

    Raises:
        RuntimeError: `conn` is not the connection of a running `commit.run` or `commit.later`.
        ValueError: an action or outcome that PS3.15 does not know.
    """
    ledger = conn.info.get("ledger")
    if not isinstance(ledger, AuditChain):
        raise RuntimeError("audit rows are recorded inside archive.commit.run or .later, with its connection (law 4)")
    if action not in ACTIONS or outcome not in _OUTCOMES:
        raise ValueError(f"no such action or outcome: {action!r}, {outcome!r}")
    ledger.append(
        Row(
            time=ledger.time.now(),
            event=str(event),
            action=action,
            outcome=int(outcome),
            user=storable(actor.user),
            source=storable(actor.source),
            door=str(actor.door),
            patient=storable(patient) if patient else None,
            study=None if study is None else storable(study),
            detail=_text_of(detail or {}),
        ),
        settled=settled,
    )


def refused(
    commit: GroupCommit,
    actor: Actor,
    event: Event,
    action: str,
    *,
    reason: str,
    outcome: int = Outcome.SERIOUS_FAILURE,
    patient: str | None = None,
    study: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Record a refusal, durably before this returns: then, and only then, say no (law 4).

    Raises Unavailable when the row cannot be written; the answer is then that, not the refusal.
    """
    facts = {"reason": reason, **(detail or {})}
    commit.run(
        lambda conn: record(conn, actor, event, action, outcome=outcome, patient=patient, study=study, detail=facts)
    )


def _text_of(detail: Mapping[str, object]) -> str:
    try:
        return storable(orjson.dumps(dict(detail)).decode())
    except TypeError:  # lone surrogates
        return storable(json.dumps(dict(detail), ensure_ascii=False, separators=(",", ":")))


def storable(text: str) -> str:
    """What both databases can keep: no NUL, no lone surrogate. Anything else stays as it is."""
    if text.isascii():
        return text.replace("\0", "\ufffd")
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
