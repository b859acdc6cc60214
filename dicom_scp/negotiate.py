"""Answering an association request: accept or reject, and on which contexts (PS3.8 §7.1, PS3.7 Annex D).

REQ-DCM-02, 05, 06, 07, 08. Only what is implemented is echoed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

from archive import accounts
from archive.access import PEER_MAY, Action, Actor, Door
from archive.core import Archive
from archive.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from archive.dicom.syntaxes import IMPLICIT_LE
from archive.errors import Rejected
from archive.sections import Dicom, Peer
from dicom_scp.associate import (
    APPLICATION_CONTEXT,
    AssociateAccept,
    AssociateRequest,
    Identity,
    Result,
    Role,
    UserInformation,
)
from dicom_scp.classes import COMPOSITE, Service, choose_syntax, service_of
from dicom_scp.exchange import Context

LEAST_MAX_PDU = 1024  # a peer that takes less cannot be served at any speed
_STRANGER = Peer()  # may do what a peer may of which the settings say nothing else
# Bytes of the extended negotiation that are implemented: relational everywhere (PS3.4 C.5.1.1, C.5.2.1, C.5.3.1);
# for C-FIND alone combined date-time (in a worklist always), timezone query adjustment, empty value and multiple value
# matching. For C-MOVE and C-GET the second byte means something else.
OPTIONS = {Service.FIND: (0, 1, 3, 5, 6), Service.MOVE: (0,), Service.GET: (0,), Service.WORKLIST: (1,)}


@dataclass(frozen=True, slots=True)
class Refused:
    """A-ASSOCIATE-RJ: result (1 permanent, 2 transient), source (1 user, 2 ACSE, 3 presentation), reason."""

    result: int
    source: int
    reason: int
    detail: str
    alert: bool = False  # somebody who should not be here: an audit row


@dataclass(frozen=True, slots=True)
class Agreed:
    """What holds for the life of an association."""

    actor: Actor
    contexts: dict[int, Context]
    peer_max_pdu: int
    accept: AssociateAccept


BUSY = Refused(2, 3, 2, "the limit of parallel associations is reached")
CONGESTED = Refused(2, 3, 1, "the archive cannot decide now")
_OLD_PROTOCOL = Refused(1, 2, 2, "no common version of the protocol")
_APPLICATION = Refused(1, 1, 2, "unknown application context")
_CALLED = Refused(1, 1, 7, "unknown called AE title", alert=True)
_CALLING = Refused(1, 1, 3, "unknown calling AE title", alert=True)
_ELSEWHERE = Refused(1, 1, 3, "this AE title does not call from that address", alert=True)
_NO_CERTIFICATE = Refused(1, 1, 3, "this AE title calls with a certificate of its own", alert=True)
_TINY = Refused(1, 1, 1, "the maximum length of a PDU is too small")
_IDENTITY = Refused(1, 2, 1, "the user identity was not accepted")  # audited where it is checked
REFUSALS = (_CALLED, _CALLING, _APPLICATION, _OLD_PROTOCOL, _TINY, _IDENTITY)


def negotiate(archive: Archive, request: AssociateRequest, *, source: str, certificate: str | None) -> Agreed | Refused:
    """Decide on a request that came from the address `source`, its `certificate` being believed (a fingerprint).

    Raises Unavailable when a passcode cannot be checked now.
    """
    settings = archive.settings.dicom
    peer = settings.callers().get(request.calling_ae)
    refused = _refuse(settings, request) or _impostor(peer, source, certificate)
    if refused is not None:
        return refused
    services = (peer or _STRANGER).may
    actor = Actor(
        user=request.calling_ae,
        source=source,
        door=Door.DICOM,
        may=frozenset({Action.VERIFY}).union(*(PEER_MAY[service] for service in services)),
    )
    response: bytes | None = None
    identity = request.user.identity
    if identity is not None and identity.kind in _kinds(settings):
        try:
            actor = _identified(archive, actor, identity)
        except Rejected:
            return _IDENTITY
        response = b"" if identity.response_requested else None
    contexts, results = _contexts(settings, request)
    accepted = {context.abstract_syntax: context.service for context in contexts.values()}
    user = UserInformation(
        max_pdu=settings.max_pdu,
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version=IMPLEMENTATION_VERSION,
        window=None if request.user.window is None else (1, 1),
        roles={
            uid: Role(scu=role.scu, scp=role.scp and accepted[uid] is Service.STORAGE)
            for uid, role in request.user.roles.items()
            if uid in accepted
        },
        extended={
            uid: _echo(accepted[uid], offered)
            for uid, offered in request.user.extended.items()
            if accepted.get(uid) in OPTIONS and uid not in COMPOSITE
        },
        identity_response=response,
    )
    accept = AssociateAccept(request.called, request.calling, results, user)
    return Agreed(actor, contexts, request.user.max_pdu, accept)


def _refuse(settings: Dicom, request: AssociateRequest) -> Refused | None:
    if not request.protocol_version & 1:
        return _OLD_PROTOCOL
    if request.application_context != APPLICATION_CONTEXT:
        return _APPLICATION
    if request.called_ae not in settings.titles():
        return _CALLED
    if not settings.accepts_strangers() and request.calling_ae not in settings.callers():
        return _CALLING
    if 0 < request.user.max_pdu < LEAST_MAX_PDU:
        return _TINY
    return None


def _impostor(peer: Peer | None, source: str, certificate: str | None) -> Refused | None:
    """Whether a known AE title is used by somebody who cannot be that peer (REQ-SEC-01)."""
    if peer is None:
        return None
    if peer.address is not None:
        address = ip_address(source)
        mapped = getattr(address, "ipv4_mapped", None)  # how a socket for both sees the older one
        if (mapped or address) not in peer.address:
            return _ELSEWHERE
    if peer.fingerprints and certificate not in peer.fingerprints:
        return _NO_CERTIFICATE
    return None


def _kinds(settings: Dicom) -> tuple[int, ...]:
    """The kinds of user identity that are used. The others are neither looked at nor answered (PS3.7 §D.3.3.7)."""
    return (1, 2) if settings.jwt.keys is None else (1, 2, 5)


def _identified(archive: Archive, actor: Actor, identity: Identity) -> Actor:
    """The actor under the name that the peer gives (REQ-DCM-05): its rights shrink to those of a checked account.

    A token names the user; its rights are those of the peer.
    """
    if identity.kind == 5:
        token = identity.primary
        user = accounts.vouched_for(archive, archive.settings.dicom.jwt, token, source=actor.source, door=actor.door)
        return replace(actor, user=user)
    name = identity.primary.decode("utf-8", "replace").strip("\0 ")[:64]
    if identity.kind == 1:
        return replace(actor, user=name) if name else actor
    password = identity.secondary.decode("utf-8", "replace")
    account = accounts.authenticate(archive, name, password, source=actor.source, door=actor.door)
    return replace(actor, user=name, may=actor.may & (account.may | {Action.VERIFY}))


def _contexts(settings: Dicom, request: AssociateRequest) -> tuple[dict[int, Context], tuple[Result, ...]]:
    contexts: dict[int, Context] = {}
    results: list[Result] = []
    for proposed in request.contexts:
        uid = proposed.abstract_syntax
        service = service_of(
            uid,
            announced=request.user.service_classes.get(uid, ""),
            unknown_is_storage=settings.unknown_sop_classes,
        )
        syntax = None if service is None else choose_syntax(service, proposed.transfer_syntaxes)
        if service is None or syntax is None:
            first = proposed.transfer_syntaxes[0] if proposed.transfer_syntaxes else IMPLICIT_LE
            results.append(Result(proposed.id, 3 if service is None else 4, first))
            continue
        results.append(Result(proposed.id, 0, syntax))
        options = _echo(service, request.user.extended.get(uid, b""))
        role = request.user.roles.get(uid)
        contexts[proposed.id] = Context(
            id=proposed.id,
            abstract_syntax=uid,
            transfer_syntax=syntax,
            service=service,
            we_send=service is Service.STORAGE and role is not None and role.scp,
            relational=options[0:1] == b"\1",
            combined_datetime=options[1:2] == b"\1",
            timezone=options[3:4] == b"\1",
            empty_values=options[5:6] == b"\1",
            multiple_values=options[6:7] == b"\1",
        )
    return contexts, tuple(results)


def _echo(service: Service, offered: bytes) -> bytes:
    """As many bytes as were offered; 1 only for what was offered and is implemented (REQ-DCM-34)."""
    ours = OPTIONS.get(service, ())
    return bytes(1 if value == 1 and place in ours else 0 for place, value in enumerate(offered))
