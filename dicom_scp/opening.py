"""A series sent as for a C-MOVE, to a storage SCP of our own that keeps nothing: how soon images are at their
destination (`archive.probing`)."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable
from functools import partial

from archive.access import Door
from archive.clock import monotonic
from archive.config import Settings
from archive.core import Archive
from archive.dicom.file_meta import IMPLEMENTATION_CLASS_UID
from archive.errors import Busy, NotFound
from archive.outgoing import outgoing
from archive.probing import PROBE, Measured, Prober, Subject
from archive.retrieve import open_access, select
from archive.sections import Peer
from dicom_scp import dimse, pdu
from dicom_scp.associate import AssociateAccept, Result, UserInformation, decode_request, encode_accept
from dicom_scp.classes import Service
from dicom_scp.ends import AssociationEnd, NotAssociated
from dicom_scp.exchange import Context, Exchange
from dicom_scp.messages import Answer
from dicom_scp.pdu import Fragment, Reader
from dicom_scp.requestor import Requestor
from dicom_scp.send import Sender, propose, store_status
from dicom_scp.status import Status
from dicom_scp.transport import Transport

_AE_TITLE = "PROBE"
_ARRIVE_SECONDS = 10.0  # until our own association has to be there


def prober(archive: Archive) -> Prober:
    """What measures this door, now and then."""
    return Prober(archive, Door.DICOM, open_series)


def open_series(archive: Archive, subject: Subject, goes_on: Callable[[], bool]) -> Measured:
    """Select, audit, associate and send, one image after the other, each acknowledged.

    Raises AssociationEnd or ArchiveError: it did not work. Busy: it was told not to go on.
    """
    settings = archive.settings
    scope = uuid.uuid4().hex
    first, sent = 0.0, 0
    started = monotonic()
    found = select(archive, study_uids=[subject.study_instance_uid], series_uids=[subject.series_instance_uid])
    found = [one for one in found if one.sop_instance_uid in subject.instances]
    if not found:
        raise NotFound("nothing of this series is there any more")
    access = open_access(archive, found, actor=PROBE, scope=scope, destination=_AE_TITLE)
    try:
        peer = Peer(host="127.0.0.1", port=_listen(settings))
        with Requestor.open(settings, _AE_TITLE, peer, propose(found)) as requestor:
            sender = Sender(
                requestor.exchange,
                leaving=partial(outgoing, archive),
                answered=lambda message_id: store_status(requestor.receive(), message_id),
            )
            for one in found:
                if not goes_on():
                    raise Busy("the archive stops")
                if (status := sender.send(one)) != Status.SUCCESS:
                    raise NotAssociated(f"an image was answered {status:04X}")
                first = first or monotonic() - started
                sent += one.data_set_bytes
                access.count(one, one.data_set_bytes)
    finally:
        archive.accesses.end_scope(scope)
    return Measured(len(found), sent, first, monotonic() - started)


def _listen(settings: Settings) -> int:
    """The port at which one association is awaited, by a thread that ends by itself when none comes."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(_ARRIVE_SECONDS)
    port = int(listening.getsockname()[1])
    threading.Thread(target=_take_all, args=(listening, settings), name="probe sink", daemon=True).start()
    return port


def _take_all(listening: socket.socket, settings: Settings) -> None:
    """One association: whatever it brings is read, forgotten, and acknowledged."""
    with contextlib.suppress(OSError, AssociationEnd):
        with listening:
            sock, _ = listening.accept()
        transport = Transport(sock)
        try:
            _serve(transport, settings)
        finally:
            transport.close()


def _serve(transport: Transport, settings: Settings) -> None:
    dicom = settings.dicom
    reader = Reader(transport, limit=dicom.max_pdu, seconds=dicom.dimse_seconds)
    asked = reader.next(monotonic() + dicom.artim_seconds, whole=True)
    assert not isinstance(asked, Fragment)
    request = decode_request(asked.body)
    contexts = {
        one.id: Context(one.id, one.abstract_syntax, one.transfer_syntaxes[0], Service.STORAGE)
        for one in request.contexts
    }
    results = tuple(Result(one.id, 0, one.transfer_syntax) for one in contexts.values())
    user = UserInformation(max_pdu=dicom.max_pdu, implementation_class_uid=IMPLEMENTATION_CLASS_UID)
    accept = encode_accept(AssociateAccept(request.called, request.calling, results, user))
    transport.send([accept], monotonic() + dicom.dimse_seconds)
    exchange = Exchange(
        transport, reader, contexts=contexts, peer_max_pdu=request.user.max_pdu, dimse_seconds=dicom.dimse_seconds
    )
    while (message := exchange.receive(monotonic() + dicom.dimse_seconds)) is not None:
        exchange.drain()
        exchange.send(message.context.id, dimse.response(message.command, Answer(Status.SUCCESS)))
    transport.send([pdu.RELEASE_RP], monotonic() + dicom.dimse_seconds)
