"""Storage Commitment Push Model SCP (PS3.4 Annex J; REQ-DCM-50): N-ACTION in, N-EVENT-REPORT out.

The answer to an N-ACTION says that the request is durable, no more. The report goes on an association of ours on which
we are the SCP, until the peer has answered it; to a peer that wants it, first on the association of the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from archive import commitment, jobs
from archive.clock import monotonic
from archive.commitment import Decision, Reference, Verdict
from archive.core import Archive
from archive.dicom.header import is_legal_uid
from archive.errors import Busy, InvalidRequest, TooLarge
from archive.jobs import Job
from dicom_scp.associate import Proposed, Role
from dicom_scp.classes import COMMITMENT_PUSH, PLAIN, Service, service_of
from dicom_scp.dimse import Field
from dicom_scp.messages import Answer, NormalizedRequest
from dicom_scp.peers import peer_of
from dicom_scp.requestor import Requestor
from dicom_scp.status import Status

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
_REQUEST_COMMITMENT = 1  # Action Type ID
_COMPLETE, _FAILURES = 1, 2  # Event Type ID
HERE_SECONDS = 5.0  # to read the copies while the peer keeps the association of its request
_ANSWER_SECONDS = 10.0  # for the peer to answer the report on it; then the job reports
_EXTEND_SECONDS = 300.0

_TRANSACTION, _RETRIEVE_AE = "00081195", "00080054"
_REFERENCED, _FAILED, _REASON = "00081199", "00081198", "00081197"
_CLASS, _INSTANCE = "00081150", "00081155"
_REASONS = {
    Verdict.UNKNOWN: Status.NO_SUCH_INSTANCE,
    Verdict.OTHER_CLASS: Status.CLASS_INSTANCE_CONFLICT,
    Verdict.DAMAGED: Status.PROCESSING_FAILURE,
    Verdict.DUPLICATE: Status.DUPLICATE_TRANSACTION,
}


@dataclass(frozen=True, slots=True)
class Report:
    """An N-EVENT-REPORT: its Event Type ID, and its Event Information as DICOM JSON."""

    type: int
    attributes: dict[str, Any]


def ask(request: NormalizedRequest, archive: Archive) -> tuple[Answer, int | None]:
    """Answer an N-ACTION-RQ; with the key of the request, when it was taken.

    Raises:
        InvalidRequest: the Action Information does not say what it has to (PS3.4 Table J.3-1).
        TooLarge: it names more instances than one request may.
        Unavailable: nothing was promised.
    """
    if request.type != _REQUEST_COMMITMENT:
        return Answer(Status.NO_SUCH_ACTION, comment="Request Storage Commitment is action type 1"), None
    if request.sop_instance_uid != WELL_KNOWN:
        return Answer(Status.NO_SUCH_INSTANCE, comment=f"the instance is {WELL_KNOWN}"), None
    transaction_uid = _uid(request.attributes, _TRANSACTION, "Transaction UID")
    sequence = request.attributes.get(_REFERENCED, {})
    items = sequence.get("Value") if sequence.get("vr") == "SQ" else None
    if not items:
        raise InvalidRequest("Referenced SOP Sequence is missing or empty")
    if len(items) > commitment.MOST_INSTANCES:
        raise TooLarge(f"more than {commitment.MOST_INSTANCES} instances in one request")
    here = reports_here(archive, request.calling_ae)
    taken = commitment.ask(
        archive,
        transaction_uid,
        [Reference(_uid(item, _CLASS, "a class"), _uid(item, _INSTANCE, "an instance")) for item in items],
        actor=request.actor,
        ae_title=request.calling_ae,
        after=timedelta(seconds=HERE_SECONDS + _ANSWER_SECONDS if here else 0),
    )
    return Answer(Status.SUCCESS), taken


def _uid(attributes: dict[str, Any], tag: str, name: str) -> str:
    value = str(next(iter(attributes.get(tag, {}).get("Value") or ()), None) or "")
    if not is_legal_uid(value):
        raise InvalidRequest(f"{name} is missing or no UID")
    return value


def reports_here(archive: Archive, calling_ae: str) -> bool:
    """Whether this peer wants its report on the association of its request."""
    peer = archive.settings.dicom.callers().get(calling_ae)
    return peer is not None and peer.commit_association == "same"


def ready(archive: Archive, request: int) -> Report | None:
    """The report, if it can be made while the peer waits; None: the job will.

    Raises:
        Unavailable: it cannot be made now.
    """
    until = monotonic() + HERE_SECONDS
    decision = commitment.decide(archive, request, until=until)
    return None if decision is None or decision.reported or monotonic() > until else _report(archive, decision)


def report(archive: Archive, job: Job) -> dict[str, Any]:
    """Decide on a request, and tell the peer that asked, on an association of its own (`dicom_scp.duties`).

    Raises:
        AssociationEnd, Unavailable: it was not told, or has not answered well.
        NotFound: the settings do not say where it is.
    """
    request = int(job.payload["request"])
    decision = commitment.decide(archive, request, between=_Lease(archive, job))
    assert decision is not None
    if not decision.reported:
        peer = peer_of(archive, decision.ae_title)
        proposed = (Proposed(1, COMMITMENT_PUSH, PLAIN),)
        roles = {COMMITMENT_PUSH: Role(scu=False, scp=True)}
        said = _report(archive, decision)
        settings = archive.settings
        with Requestor.open(settings, decision.ae_title, peer, proposed, roles=roles) as requestor:
            answer = requestor.perform(
                Field.N_EVENT_REPORT_RQ, COMMITMENT_PUSH, WELL_KNOWN, said.attributes, type=said.type
            )
        if answer.status != Status.SUCCESS:
            raise Busy(f"the peer answered {answer.status:04X}")
        commitment.reported(archive, request)
    return {"committed": len(decision.committed), "failed": len(decision.failed)}


class _Lease:
    """Keeps a job while copies are read."""

    def __init__(self, archive: Archive, job: Job) -> None:
        self._archive, self._job = archive, job
        self._next = monotonic() + _EXTEND_SECONDS

    def __call__(self) -> None:
        if monotonic() < self._next:
            return
        self._next = monotonic() + _EXTEND_SECONDS
        if not jobs.extend(self._archive, self._job):
            raise Busy("another process took this over")


def _report(archive: Archive, decision: Decision) -> Report:
    """PS3.4 Table J.3-2."""
    failed = [
        {**_item(one), _REASON: {"vr": "US", "Value": [int(_reason(one, verdict))]}} for one, verdict in decision.failed
    ]
    attributes: dict[str, Any] = {
        _TRANSACTION: {"vr": "UI", "Value": [decision.transaction_uid]},
        _RETRIEVE_AE: {"vr": "AE", "Value": [archive.settings.dicom.ae_title]},
    }
    if decision.committed:
        attributes[_REFERENCED] = {"vr": "SQ", "Value": list(map(_item, decision.committed))}
    if failed:
        attributes[_FAILED] = {"vr": "SQ", "Value": failed}
    return Report(_FAILURES if failed else _COMPLETE, attributes)


def _reason(one: Reference, verdict: Verdict) -> Status:
    """Failure Reason (0008,1197), PS3.3 C.14.1.1."""
    unknown_class = verdict is Verdict.UNKNOWN and service_of(one.sop_class_uid) is not Service.STORAGE
    return Status.CLASS_NOT_SUPPORTED if unknown_class else _REASONS[verdict]


def _item(one: Reference) -> dict[str, Any]:
    return {
        _CLASS: {"vr": "UI", "Value": [one.sop_class_uid]},
        _INSTANCE: {"vr": "UI", "Value": [one.sop_instance_uid]},
    }
