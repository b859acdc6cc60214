"""One association that a peer opens: its thread, its states (PS3.8 §9.2), its end.

The acceptor never starts a release, so the states here are few: waiting for the request (Sta2), established (Sta6),
and waiting for the peer to close (Sta13). Whatever goes wrong ends this association alone.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import uuid

import structlog

from archive.access import Actor, Door
from archive.audit.record import Event, EventType, Outcome, refused
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, Unavailable
from dicom_scp import pdu
from dicom_scp.associate import AssociateRequest, decode_request, encode_accept
from dicom_scp.ends import (
    AbortReason,
    AssociationEnd,
    ConnectionGone,
    NotTrusted,
    PeerAborted,
    ProtocolError,
    TooSlow,
)
from dicom_scp.exchange import Exchange
from dicom_scp.negotiate import CONGESTED, Agreed, Refused, negotiate
from dicom_scp.pdu import Fragment, PduType, Reader
from dicom_scp.secure import SecureTransport
from dicom_scp.services import Session, serve
from dicom_scp.transport import Transport

log = structlog.get_logger(__name__)

_FAREWELL_SECONDS = 1.0  # for the peer to close after it was turned away


class Association:
    """Serves one connection in the thread that calls `run`; `stop`, `expire` and `kill` come from another.

    `tls`: it came in on the port with TLS.
    """

    def __init__(
        self,
        archive: Archive,
        sock: socket.socket,
        source: str,
        *,
        tls: ssl.SSLContext | None = None,
        refuse: Refused | None = None,
    ) -> None:
        self._archive = archive
        self._settings = archive.settings.dicom
        self._source = source
        self._refuse = refuse
        self._transport = Transport(sock) if tls is None else SecureTransport(sock, tls)
        self._reader = Reader(self._transport, limit=self._settings.max_pdu, seconds=self._settings.dimse_seconds)
        self._onward: Transport | None = None
        self._lock = threading.Lock()
        self._idle = True  # between messages: may be ended at once
        self._stopping = False
        self._accepted_at = monotonic()
        self.id = uuid.uuid4().hex
        self._log = log.bind(scope=self.id, source=source)

    # --- from other threads

    def stop(self) -> None:
        """Finish the message that is being served, if any, then end."""
        with self._lock:
            self._stopping = True
            if self._idle:
                self._transport.stop_reading()

    def expire(self) -> None:
        """End now; what is being served is broken off, and the peer told so."""
        with self._lock:
            self._stopping = True
            self._transport.stop_reading()
            if self._onward is not None:
                self._onward.shut()

    def kill(self) -> None:
        """End now, whether or not the peer reads what it is told."""
        self._transport.shut()

    # --- the thread

    def run(self) -> None:
        """Serve until the end of the association. Raises nothing."""
        try:
            self._shake_hands()
            request = self._await_request()
            agreed = self._decide(request)
            if agreed is not None:
                self._serve(request, agreed)
        except PeerAborted:
            self._log.info("association aborted by the peer")
        except ConnectionGone as error:
            if self._stopping:
                self._abort(AbortReason.NOT_SPECIFIED)
            self._log.info("association lost", why=str(error), stopping=self._stopping)
        except NotTrusted as error:
            self._turn_away(str(error))
        except TooSlow as error:
            self._log.warning("association aborted", why=str(error))
            self._abort(AbortReason.NOT_SPECIFIED)
        except AssociationEnd as error:
            self._log.warning("association aborted", why=str(error))
            self._abort(error.reason if isinstance(error, ProtocolError) else AbortReason.NOT_SPECIFIED)
        except Exception:
            self._log.exception("a bug ended an association")
            self._abort(AbortReason.NOT_SPECIFIED)
        finally:
            self._transport.close()
            self._archive.accesses.end_scope(self.id)

    def _shake_hands(self) -> None:
        """TLS, where it is spoken; ARTIM covers it and the request. Log lines from here on name the certificate."""
        self._transport.handshake(self._accepted_at + self._settings.artim_seconds)
        if self._transport.certificate is not None:
            self._log = self._log.bind(certificate=self._transport.certificate)

    def _await_request(self) -> AssociateRequest:
        """Sta2: the request, whole, before ARTIM runs out."""
        received = self._reader.next(self._accepted_at + self._settings.artim_seconds, whole=True)
        if isinstance(received, Fragment):
            raise ProtocolError("data before an association", AbortReason.UNEXPECTED_PDU)
        if received.type is PduType.ABORT:
            raise PeerAborted("the peer aborted")
        if received.type is not PduType.ASSOCIATE_RQ:
            raise ProtocolError(f"{received.type.name} before an association", AbortReason.UNEXPECTED_PDU)
        return decode_request(received.body)

    def _decide(self, request: AssociateRequest) -> Agreed | None:
        """Accept, or reject and wait for the peer to close."""
        refusal = self._refuse
        if refusal is None:
            try:
                outcome = negotiate(
                    self._archive, request, source=self._source, certificate=self._transport.certificate
                )
                if isinstance(outcome, Agreed):
                    self._send(encode_accept(outcome.accept))
                    return outcome
                refusal = outcome
                if refusal.alert:
                    self._alert(request.calling_ae, refusal.detail, called_ae=request.called_ae)
            except Unavailable:
                refusal = CONGESTED
        self._log.warning("association rejected", calling_ae=request.calling_ae, why=refusal.detail)
        self._send(pdu.reject(refusal.result, refusal.source, refusal.reason))
        self._linger()
        return None

    def _turn_away(self, why: str) -> None:
        """No TLS, or a certificate that is not believed: told to the audit, then to the peer."""
        self._log.warning("TLS was not agreed on", why=why)
        try:
            self._alert(self._source, why)
        except ArchiveError as error:
            self._log.error("a refusal is missing in the audit", error=type(error).__name__)
        self._transport.turn_away(monotonic() + _FAREWELL_SECONDS)

    def _alert(self, user: str, reason: str, **detail: str) -> None:
        """Somebody knocked who has no business here: told before the answer (law 4)."""
        refused(
            self._archive.commit,
            Actor(user=user, source=self._source, door=Door.DICOM, may=frozenset()),
            Event.SECURITY_ALERT,
            "E",
            reason=reason,
            outcome=Outcome.SERIOUS_FAILURE,
            detail={"type": EventType.NODE_AUTHENTICATION, **detail},
        )

    def _serve(self, request: AssociateRequest, agreed: Agreed) -> None:
        """Sta6: one message after the other, until release."""
        settings = self._settings
        exchange = Exchange(
            self._transport,
            self._reader,
            contexts=agreed.contexts,
            peer_max_pdu=agreed.peer_max_pdu,
            dimse_seconds=settings.dimse_seconds,
        )
        session = Session(
            archive=self._archive,
            exchange=exchange,
            actor=agreed.actor,
            calling_ae=request.calling_ae,
            id=self.id,
            attach=self._attach,
        )
        self._log.info("association accepted", calling_ae=request.calling_ae, contexts=len(agreed.contexts))
        messages = 0
        while True:
            self._rest()
            message = exchange.receive(monotonic() + settings.idle_seconds)
            self._work()
            if message is None:
                break
            serve(session, message)
            messages += 1
        self._log.info("association released", messages=messages)
        self._send(pdu.RELEASE_RP)
        self._linger()

    def _rest(self) -> None:
        with self._lock:
            if self._stopping:
                raise ConnectionGone("the archive is stopping")
            self._idle = True

    def _work(self) -> None:
        with self._lock:
            self._idle = False

    def _attach(self, transport: Transport) -> None:
        """A connection of ours that ends with this association."""
        with self._lock:
            self._onward = transport
            if self._stopping:
                transport.shut()

    def _send(self, data: bytes) -> None:
        self._transport.send([data], monotonic() + self._settings.dimse_seconds)

    def _abort(self, reason: AbortReason) -> None:
        """Say A-ABORT and let the peer close (Sta13)."""
        with contextlib.suppress(AssociationEnd):
            self._transport.send([pdu.abort(reason)], monotonic() + 1)
            self._linger()

    def _linger(self) -> None:
        """Sta13: the peer closes; ARTIM bounds the wait."""
        with self._lock:
            self._idle = True
            if self._stopping:
                return
        self._transport.linger(monotonic() + self._settings.artim_seconds)
