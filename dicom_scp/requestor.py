"""An association that we open (PS3.8 Sta4 to Sta9)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from archive.errors import NotFound
from archive.sections import Dicom, Peer
from dicom_scp import pdu
from dicom_scp.associate import (
    AssociateRequest,
    Proposed,
    Role,
    UserInformation,
    decode_accept,
    encode_request,
    title,
)
from dicom_scp.classes import Service, service_of
from dicom_scp.dimse import RESPONSE, Command, Field, normalized_request
from dicom_scp.ends import AbortReason, AssociationEnd, NotAssociated, PeerAborted, ProtocolError
from dicom_scp.exchange import Context, Exchange, Message
from dicom_scp.normalized import encode
from dicom_scp.pdu import Fragment, Pdu, PduType, Reader
from dicom_scp.transport import Transport

CONNECT_SECONDS = 10.0
_RELEASE_SECONDS = 5.0


def peer_of(archive: Archive, ae_title: str) -> Peer:
    """The peer that is called by this AE title. Raises NotFound: the settings know none, or not where it is."""
    peer = archive.settings.dicom.callers().get(ae_title)
    if peer is None or peer.host is None or peer.port is None:
        raise NotFound(f"dicom.peers has no address for {ae_title}")
    return peer


class Requestor:
    """An open association. As a context manager it is released at the end, aborted after an error."""

    def __init__(self, transport: Transport, reader: Reader, exchange: Exchange, *, dimse_seconds: float) -> None:
        self.transport = transport
        self.exchange = exchange
        self._reader = reader
        self.seconds = dimse_seconds  # patience for an answer
        self._message_id = 0

    @classmethod
    def open(
        cls,
        settings: Dicom,
        ae_title: str,
        peer: Peer,
        proposed: tuple[Proposed, ...],
        *,
        roles: Mapping[str, Role] | None = None,
        opened: Callable[[Transport], None] = lambda _: None,
    ) -> Requestor:
        """Connect to `peer`, known as `ae_title`, and propose contexts; those accepted are `exchange.contexts`.

        `roles` are proposed by SOP class (PS3.7 §D.3.3.4): where we are the SCP of a class on our own association.
        `opened` is told of the transport before anything waits on it, so that it can be shut from outside.

        Raises:
            ConnectionGone, TooSlow: it cannot be reached.
            NotAssociated: it refuses.
        """
        if peer.host is None or peer.port is None:
            raise NotAssociated("the peer has no address")
        transport = Transport.connect(peer.host, peer.port, seconds=min(CONNECT_SECONDS, settings.artim_seconds))
        try:
            opened(transport)
            reader = Reader(transport, limit=settings.max_pdu, seconds=settings.dimse_seconds)
            until = monotonic() + settings.artim_seconds
            request = AssociateRequest(
                called=title(ae_title),
                calling=title(settings.ae_title),
                contexts=proposed,
                user=UserInformation(
                    max_pdu=settings.max_pdu,
                    implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                    implementation_version=IMPLEMENTATION_VERSION,
                    roles=dict(roles or {}),
                ),
            )
            transport.send([encode_request(request)], until)
            contexts, peer_max_pdu = _accepted(reader.next(until, whole=True), proposed)
            exchange = Exchange(
                transport,
                reader,
                contexts=contexts,
                peer_max_pdu=peer_max_pdu,
                dimse_seconds=settings.dimse_seconds,
            )
            return cls(transport, reader, exchange, dimse_seconds=settings.dimse_seconds)
        except BaseException as error:
            if isinstance(error, ProtocolError):
                with contextlib.suppress(AssociationEnd):
                    transport.send([pdu.abort(error.reason)], monotonic() + 1)
            transport.close()
            raise

    def receive(self, until: float | None = None) -> Message:
        """The next message; a peer that asks for release before it has answered is in error."""
        message = self.exchange.receive(monotonic() + self.seconds if until is None else until)
        if message is None:
            raise ProtocolError("a release instead of an answer", AbortReason.UNEXPECTED_PDU)
        return message

    def perform(
        self,
        operation: Field,
        sop_class_uid: str,
        sop_instance_uid: str,
        attributes: Mapping[str, Any],
        *,
        type: int | None = None,
    ) -> Command:
        """Ask for a normalized operation (PS3.7 §10.3), and wait for its answer, whose status is known.

        `attributes` is its data set, as DICOM JSON.

        Raises:
            NotAssociated: the peer did not take this SOP class.
            AssociationEnd: in its other kinds.
        """
        context = next((one for one in self.exchange.contexts.values() if one.abstract_syntax == sop_class_uid), None)
        if context is None:
            raise NotAssociated("the peer does not take this SOP class")
        self._message_id = self._message_id % 0xFFFF + 1
        request = normalized_request(operation, self._message_id, sop_class_uid, sop_instance_uid, type=type)
        self.exchange.send(context.id, request, encode(attributes, context.transfer_syntax))
        message = self.receive()
        answer = message.command
        if (answer.field, answer.responding_to) != (operation | RESPONSE, self._message_id) or answer.status is None:
            raise ProtocolError("something else than the answer to what was asked", AbortReason.UNEXPECTED_PDU)
        self.exchange.drain()
        return answer

    def __enter__(self) -> Requestor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.release()
        else:
            self.abort(error.reason if isinstance(error, ProtocolError) else None)

    def release(self) -> None:
        """A-RELEASE, no longer than a few seconds; then the connection is closed whatever was answered."""
        until = monotonic() + _RELEASE_SECONDS
        try:
            self.transport.send([pdu.RELEASE_RQ], until)
            while True:
                received = self._reader.next(until, whole=True)
                if isinstance(received, Pdu):
                    if received.type is PduType.RELEASE_RQ:  # collision, Sta9: answer, then wait for the answer
                        self.transport.send([pdu.RELEASE_RP], until)
                    else:
                        break
        except AssociationEnd:
            pass  # everything that was promised is done
        finally:
            self.transport.close()

    def abort(self, reason: AbortReason | None = None) -> None:
        """A-ABORT, then close."""
        try:
            with contextlib.suppress(AssociationEnd):
                self.exchange.abort(reason)
        finally:
            self.transport.close()


def _accepted(received: Pdu | Fragment, proposed: tuple[Proposed, ...]) -> tuple[dict[int, Context], int]:
    if isinstance(received, Fragment):
        raise ProtocolError("data before an association", AbortReason.UNEXPECTED_PDU)
    if received.type is PduType.ASSOCIATE_RJ:
        if len(received.body) < 4:
            raise ProtocolError("a rejection without reason")
        result, source, reason = received.body[1:4]
        raise NotAssociated(f"the association was rejected: result {result}, source {source}, reason {reason}")
    if received.type is PduType.ABORT:
        raise PeerAborted("the peer aborted")
    if received.type is not PduType.ASSOCIATE_AC:
        raise ProtocolError("not an answer to an association request", AbortReason.UNEXPECTED_PDU)
    accept = decode_accept(received.body)
    if 0 < accept.user.max_pdu < 12:
        raise ProtocolError("the maximum length of a PDU holds nothing")
    by_id = {one.id: one for one in proposed}
    contexts: dict[int, Context] = {}
    for answer in accept.results:
        one = by_id.get(answer.id)
        if answer.result == 0 and one is not None and answer.transfer_syntax in one.transfer_syntaxes:
            service = service_of(one.abstract_syntax, unknown_is_storage=True) or Service.STORAGE
            contexts[one.id] = Context(
                id=one.id,
                abstract_syntax=one.abstract_syntax,
                transfer_syntax=answer.transfer_syntax,
                service=service,
                we_send=service is Service.STORAGE,
            )
    return contexts, accept.user.max_pdu
