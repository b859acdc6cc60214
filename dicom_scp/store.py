"""C-STORE (PS3.4 Annex B). The status is the receipt, so it comes last."""

from __future__ import annotations

import structlog

from archive.core import Archive
from archive.dicom.header import is_legal_uid
from archive.errors import ArchiveError, Unavailable
from archive.ingest import ingest
from dicom_scp import status
from dicom_scp.messages import Answer, StoreRequest
from dicom_scp.status import Status

log = structlog.get_logger(__name__)

_ILLEGAL = Answer(
    Status.DOES_NOT_MATCH_CLASS, comment="the Affected SOP Instance UID is missing or illegal", offending=(0x00001000,)
)


def store(request: StoreRequest, archive: Archive) -> Answer:
    """Take in one instance while it arrives. A peer that is lost on the way leaves nothing behind."""
    uid = request.meta.sop_instance_uid
    if not is_legal_uid(uid):
        return _ILLEGAL
    try:
        incoming = archive.hot.receive(request.meta, at=archive.clock())
        try:
            for pieces in request.data_set:
                incoming.write(*pieces)
        except BaseException:
            incoming.discard()
            raise
        outcome = ingest(archive, incoming, actor=request.actor, scope=request.scope, forward=not request.fetched)
    except ArchiveError as error:
        tell = log.error if isinstance(error, Unavailable) else log.warning
        tell("C-STORE refused", error=type(error).__name__, why=str(error), sop_instance_uid=uid, scope=request.scope)
        return status.refusal(error)
    return status.OF_OUTCOME[outcome]
