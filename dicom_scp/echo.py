"""C-ECHO (PS3.4 Annex A): answered to every accepted caller, and asked of a peer."""

from __future__ import annotations

from archive.config import Settings
from archive.dicom.syntaxes import IMPLICIT_LE
from archive.sections import Peer
from dicom_scp import dimse
from dicom_scp.associate import Proposed
from dicom_scp.classes import VERIFICATION
from dicom_scp.ends import NotAssociated, ProtocolError
from dicom_scp.messages import Answer
from dicom_scp.requestor import Requestor
from dicom_scp.status import Status


def echo() -> Answer:
    """Answer one C-ECHO-RQ."""
    return Answer(Status.SUCCESS)


def verify(settings: Settings, ae_title: str, peer: Peer) -> int:
    """Ask a peer whether it answers, on an association of its own; its status, 0 when all is well (REQ-DCM-01).

    Raises AssociationEnd in its kinds: it cannot be reached, refuses us, or breaks off.
    """
    with Requestor.open(settings, ae_title, peer, (Proposed(1, VERIFICATION, (IMPLICIT_LE,)),)) as requestor:
        if not requestor.exchange.contexts:
            raise NotAssociated("the peer does not take verification")
        requestor.exchange.send(1, dimse.echo_request(1))
        message = requestor.receive()
        if message.command.field != dimse.Field.C_ECHO_RSP or message.command.status is None:
            raise ProtocolError("something else than an answer to C-ECHO")
        return message.command.status
