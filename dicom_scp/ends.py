"""How an association ends before its time. Everything here unwinds one association's thread, nothing more."""

from __future__ import annotations

from enum import IntEnum


class AbortReason(IntEnum):
    """Reasons of an A-ABORT by the service provider (PS3.8 §9.3.8)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class AssociationEnd(Exception):
    """The association is over; nothing more can be said on it, except where noted."""


class ConnectionGone(AssociationEnd):
    """The peer closed or reset the connection, or somebody here shut it."""


class TooSlow(AssociationEnd):
    """A deadline passed. The association is aborted."""


class NotTrusted(AssociationEnd):
    """TLS was not agreed on, or the certificate is not the peer's (ITI-19). Nothing of DICOM can be said."""


class PeerAborted(AssociationEnd):
    """The peer sent A-ABORT."""


class ProtocolError(AssociationEnd):
    """The peer broke PS3.7 or PS3.8. The association is aborted with `reason`."""

    def __init__(self, detail: str, reason: AbortReason = AbortReason.INVALID_PARAMETER) -> None:
        super().__init__(detail)
        self.reason = reason


class NotAssociated(AssociationEnd):
    """A destination refused our association, or accepted none of its contexts."""


class CopyEnded(AssociationEnd):
    """A stored file failed while it was being sent. What was begun cannot be finished: the association is aborted."""
