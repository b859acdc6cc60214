"""MPPS as SCP: N-CREATE and N-SET of Modality Performed Procedure Step (PS3.4 Annex F, REQ-DCM-53); as SCU: what
modalities say is said on to the RIS (REQ-DCM-54)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from archive import jobs, mpps
from archive.core import Archive
from archive.dicom.uids import new_uid
from archive.errors import ArchiveError, Busy, Conflict, IdentifierInUse, NotFound, UidMismatch, Unavailable
from archive.jobs import Job
from dicom_scp import status
from dicom_scp.associate import Proposed
from dicom_scp.classes import MODALITY_PERFORMED_PROCEDURE_STEP, PLAIN
from dicom_scp.dimse import Field
from dicom_scp.messages import Answer, NormalizedRequest
from dicom_scp.peers import peer_of
from dicom_scp.requestor import Requestor
from dicom_scp.status import Status

log = structlog.get_logger(__name__)

ENDED = 0xA710  # Error ID: Performed Procedure Step Object may no longer be updated (PS3.4 F.7.2.2.2)


def create(request: NormalizedRequest, archive: Archive) -> Answer:
    """Answer one N-CREATE-RQ. The status is the receipt, so it comes last."""
    uid = request.sop_instance_uid or new_uid()
    try:
        mpps.create(archive, uid, request.attributes, actor=request.actor, calling_ae=request.calling_ae)
    except ArchiveError as error:
        _log(request, error)
        if isinstance(error, IdentifierInUse):
            return Answer(Status.DUPLICATE_INSTANCE, comment=str(error))
        if isinstance(error, UidMismatch):
            return Answer(Status.INVALID_INSTANCE, comment=str(error))
        return status.normalized_refusal(error, malformed=Status.PROCESSING_FAILURE)
    return Answer(Status.SUCCESS, sop_instance_uid=uid)


def change(request: NormalizedRequest, archive: Archive) -> Answer:
    """Answer one N-SET-RQ, as `create`; with a warning when an attribute that may not change was left as it is."""
    try:
        whole = mpps.change(
            archive, request.sop_instance_uid, request.attributes, actor=request.actor, calling_ae=request.calling_ae
        )
    except ArchiveError as error:
        _log(request, error)
        if isinstance(error, NotFound):
            return Answer(Status.NO_SUCH_INSTANCE, comment=str(error))
        if isinstance(error, Conflict):
            return Answer(Status.PROCESSING_FAILURE, comment=str(error), error_id=ENDED)
        return status.normalized_refusal(error, malformed=Status.PROCESSING_FAILURE)
    if not whole:
        return Answer(Status.ATTRIBUTE_LIST_ERROR, comment="what a step begins with is not changed")
    return Answer(Status.SUCCESS)


def _log(request: NormalizedRequest, error: ArchiveError) -> None:
    tell = log.error if isinstance(error, Unavailable) else log.warning
    tell(
        "a performed procedure step was refused",
        error=type(error).__name__,
        why=str(error),
        sop_instance_uid=request.sop_instance_uid,
        calling_ae=request.calling_ae,
        scope=request.scope,
    )


def forward(archive: Archive, job: Job) -> Mapping[str, Any]:
    """Tell a peer what it does not know yet of a step, in order; what it took is remembered, whatever comes after.

    Raises:
        NotFound: no such step, or nobody knows where the peer is.
        Conflict: the peer refuses for good.
        Busy: it cannot now, or is being told.
        AssociationEnd: it cannot be reached, or breaks off.
    """
    uid, ae_title = str(job.payload["uid"]), str(job.payload["ae_title"])
    peer = peer_of(archive, ae_title)
    if jobs.is_doubled(archive, job):  # two at once would say it in disorder, or twice
        raise Busy("the same is being said to this peer")
    messages = mpps.untold(archive, uid, ae_title)
    if not messages:  # an earlier job said it all
        return {"told": 0}
    proposed = (Proposed(1, MODALITY_PERFORMED_PROCEDURE_STEP, PLAIN),)
    with Requestor.open(archive.settings, ae_title, peer, proposed) as requestor:
        for message in messages:
            operation = Field.N_CREATE_RQ if message.is_new else Field.N_SET_RQ
            answer = requestor.perform(operation, MODALITY_PERFORMED_PROCEDURE_STEP, uid, message.attributes)
            _demand_taken(answer.status or 0, message)
            mpps.told(archive, uid, ae_title, message.version)
    return {"told": len(messages)}


def _demand_taken(answered: int, message: mpps.Message) -> None:
    """Success, a warning, or an N-CREATE that had arrived before its answer was lost."""
    if answered in (Status.SUCCESS, Status.ATTRIBUTE_LIST_ERROR, 0x0116) or answered >> 12 == 0xB:
        return
    if message.is_new and answered == Status.DUPLICATE_INSTANCE:
        return
    what = f"the peer answered {answered:04X} to {'N-CREATE' if message.is_new else 'N-SET'}"
    if answered in (Status.PROCESSING_FAILURE, Status.RESOURCE_LIMITATION) or answered >> 12 in (0xA, 0xC):
        raise Busy(what)
    raise Conflict(what)


def count(archive: Archive, job: Job) -> Mapping[str, Any]:
    """Look for the instances that a step lists (`archive.mpps.count`)."""
    return {"missing": mpps.count(archive, str(job.payload["uid"]), int(job.payload["look"]))}
