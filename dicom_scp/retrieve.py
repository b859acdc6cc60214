"""C-GET and C-MOVE (PS3.4 C.4.2, C.4.3): the sub-operations, and how they ended.

REQ-DCM-39, 40, 41, 43, 46; the cancel of REQ-DCM-38. A retrieve may last for hours and hold a million instances:
nothing is read before its turn, and the 16-bit counts stop at their largest value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

import structlog
from pynetdicom.status import code_to_category

from archive.audit.record import Event, EventType, refused
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.syntaxes import IMPLICIT_LE
from archive.errors import ArchiveError, StorageFailed, Unavailable
from archive.outgoing import outgoing
from archive.retrieve import Access, Stored, again, open_access
from archive.sections import Peer
from dicom_scp import dimse
from dicom_scp.classes import WITHOUT_BULK_GET
from dicom_scp.dimse import Counts, Field
from dicom_scp.ends import AssociationEnd, CopyEnded, NotAssociated, NotTrusted
from dicom_scp.exchange import Exchange, Message
from dicom_scp.messages import Answer, RetrieveRequest
from dicom_scp.requestor import Requestor
from dicom_scp.selection import selected
from dicom_scp.send import Sender, propose, receive_beside, store_status
from dicom_scp.status import Status
from dicom_scp.transport import Transport

log = structlog.get_logger(__name__)

_PENDING_SECONDS = 0.5  # between two pending responses
_MOST_BREAKS = 3  # associations lost in a row, without an instance taken, before the rest counts as failed
_UI_LIMIT = 0xFFFE  # bytes of a UI in explicit little endian
_LO_LIMIT = 64  # characters of an Error Comment (0000,0902)


class _CallerEnded(Exception):
    """The association of the C-MOVE itself ended, not that to the destination."""

    def __init__(self, error: AssociationEnd) -> None:
        super().__init__()
        self.error = error


class _Retrieval:
    """The state of one C-GET or C-MOVE: what was done, what is said of it."""

    def __init__(self, exchange: Exchange, message: Message, stored: list[Stored]) -> None:
        self._exchange = exchange
        self._message = message
        self.stored = stored
        self._place = 0
        self._failed: list[str] = []
        self._replaced: list[Stored] = []  # of those that failed
        self._told = 0.0
        self.counts = Counts(remaining=len(stored))
        self.cancelled = False

    @property
    def current(self) -> Stored | None:
        """The instance whose turn it is; None: all had theirs, or the caller cancelled."""
        return None if self.cancelled or self._place == len(self.stored) else self.stored[self._place]

    def look(self) -> bool:
        """See whether the caller cancels, without waiting."""
        if not self.cancelled and self._exchange.cancelled(self._message.command.message_id):
            self.cancelled = True
        return self.cancelled

    def done(self, status: int | None, access: Access) -> None:
        """Count the current instance, and go to the next. `status` of the peer's answer; None: it could not be sent."""
        one = self.stored[self._place]
        self._place += 1
        self.counts.remaining -= 1
        if status is not None and (status == Status.SUCCESS or code_to_category(status) == "Warning"):
            access.count(one, one.data_set_bytes)
            if status == Status.SUCCESS:
                self.counts.completed += 1
            else:
                self.counts.warning += 1
        else:
            access.failed(one)
            self.counts.failed += 1
            self._failed.append(one.sop_instance_uid)

    def replaced(self, now: Stored) -> None:
        """The current instance is an original that only a lossy copy is left of: it will fail (REQ-DCM-84)."""
        self._replaced.append(now)

    def tell(self) -> None:
        """A pending response, if the last one was long enough ago."""
        now = monotonic()
        if now - self._told >= _PENDING_SECONDS and self.counts.remaining:
            self._told = now
            self._answer(Answer(Status.PENDING))

    def finish(self, comment: str = "") -> None:
        """The final response (PS3.4 C.4.2.1.5)."""
        counts = self.counts
        if counts.remaining:
            status = Status.CANCELLED
        elif not counts.failed and not counts.warning:
            status = Status.SUCCESS
        elif counts.completed or counts.warning:
            status = Status.WARNING
        else:
            status = Status.SUB_OPERATIONS_FAILED
        identifier = None
        if self._failed:
            identifier = _failed_list(self._failed, self._message.context.transfer_syntax)
            comment = comment or self._alternates()
        self._answer(Answer(status, data_set=identifier, comment=comment), remaining=status is Status.CANCELLED)

    def _alternates(self) -> str:
        """What to ask for instead of what was replaced."""
        if not self._replaced:
            return ""
        one = f"see {self._replaced[0].alternate}"
        named = len(self._replaced) == 1 and self._replaced[0].alternate and len(one) <= _LO_LIMIT
        return one if named else "replaced, query alternates"

    def _answer(self, answer: Answer, *, remaining: bool = True) -> None:
        command = dimse.response(self._message.command, answer, counts=self.counts, remaining=remaining)
        self._exchange.send(self._message.context.id, command, answer.data_set)


def get(request: RetrieveRequest, archive: Archive, exchange: Exchange, message: Message) -> None:
    """Answer a C-GET-RQ: the instances go back on the association that asks (PS3.4 C.4.3).

    An instance whose class the caller does not take as SCP fails.
    """
    begun = _begin(request, archive, exchange, message)
    if begun is None:
        return
    retrieval, access = begun

    def answered(message_id: int) -> int:
        while True:
            received = exchange.receive(monotonic() + archive.settings.dicom.dimse_seconds)
            if received is not None and received.command.field == Field.C_STORE_RSP:
                return store_status(received, message_id)
            if Exchange.is_cancel(received, message.command.message_id):
                retrieval.cancelled = True

    sender = Sender(
        exchange,
        leaving=partial(outgoing, archive),
        answered=answered,
        bulk=request.sop_class_uid != WITHOUT_BULK_GET,
    )
    while (one := retrieval.current) is not None and not retrieval.look():
        retrieval.done(_send(archive, sender, retrieval, one, request.scope), access)
        retrieval.tell()
    retrieval.finish()


def move(
    request: RetrieveRequest,
    archive: Archive,
    exchange: Exchange,
    message: Message,
    *,
    attach: Callable[[Transport], None],
) -> None:
    """Answer a C-MOVE-RQ: the instances go to a known peer on an association of ours (PS3.4 C.4.2)."""
    peer = archive.settings.dicom.callers().get(request.destination)
    if peer is None or not peer.host or not peer.port:
        log.warning("unknown move destination", scope=request.scope)
        _refuse(exchange, message, Answer(Status.UNKNOWN_DESTINATION, comment="the move destination is not known"))
        return
    begun = _begin(request, archive, exchange, message)
    if begun is None:
        return
    retrieval, access = begun
    comment = ""
    try:
        _transfer(request, archive, peer, retrieval, access, exchange=exchange, message=message, attach=attach)
    except _CallerEnded as ended:
        raise ended.error from None
    except AssociationEnd as error:
        log.warning("the move destination failed", destination=request.destination, why=str(error), scope=request.scope)
        comment = "the move destination cannot be reached, or broke off"
        if isinstance(error, NotTrusted):
            _alert(archive, request, str(error))
        while retrieval.current is not None:
            retrieval.done(None, access)
    retrieval.finish(comment)


def _alert(archive: Archive, request: RetrieveRequest, reason: str) -> None:
    """Who answers is not the destination, or does not believe us: nothing was sent (REQ-SEC-01)."""
    refused(
        archive.commit,
        request.actor,
        Event.SECURITY_ALERT,
        "E",
        reason=reason,
        detail={"type": EventType.NODE_AUTHENTICATION, "destination": request.destination},
    )


def _transfer(
    request: RetrieveRequest,
    archive: Archive,
    peer: Peer,
    retrieval: _Retrieval,
    access: Access,
    *,
    exchange: Exchange,
    message: Message,
    attach: Callable[[Transport], None],
) -> None:
    """Send all that is left. A lost association is opened again, and what was on its way is sent once more: storing
    is idempotent. Raises AssociationEnd when the destination is given up."""
    proposed = propose(one for one in retrieval.stored if not one.replaced)
    caller = _Caller(retrieval)
    breaks, taken, retried = 0, 0, None
    while retrieval.current is not None:
        requestor = Requestor.open(archive.settings, request.destination, peer, proposed, opened=attach)
        try:
            with requestor:
                _feed(requestor, caller, exchange, message, request=request, archive=archive, access=access)
        except AssociationEnd as error:
            counts = retrieval.counts
            breaks = breaks + 1 if counts.completed + counts.warning == taken else 1
            taken = counts.completed + counts.warning
            if breaks == _MOST_BREAKS:
                raise
            log.warning("the association to the destination was lost", why=str(error), scope=request.scope)
            one = retrieval.current
            if one is not None and (one is retried or isinstance(error, CopyEnded)):
                retrieval.done(None, access)
            retried = one


def _feed(
    requestor: Requestor,
    caller: _Caller,
    exchange: Exchange,
    message: Message,
    *,
    request: RetrieveRequest,
    archive: Archive,
    access: Access,
) -> None:
    """Send what is left on one association, looking at the caller's in between."""
    if not requestor.exchange.contexts:
        raise NotAssociated("the destination accepts none of the contexts")

    def answered(message_id: int) -> int:
        return store_status(receive_beside(requestor, exchange, caller.look), message_id)

    sender = Sender(
        requestor.exchange,
        leaving=partial(outgoing, archive),
        answered=answered,
        between=caller.look_and_tell,
        originator=(request.calling_ae, message.command.message_id),
    )
    retrieval = caller.retrieval
    while (one := retrieval.current) is not None and not caller.look():
        retrieval.done(_send(archive, sender, retrieval, one, request.scope), access)
        caller.tell()


class _Caller:
    """What is heard from and said to the caller while the destination is served; its end is not the destination's."""

    def __init__(self, retrieval: _Retrieval) -> None:
        self.retrieval = retrieval

    def look(self) -> bool:
        try:
            return self.retrieval.look()
        except AssociationEnd as error:
            raise _CallerEnded(error) from error

    def tell(self) -> None:
        try:
            self.retrieval.tell()
        except AssociationEnd as error:
            raise _CallerEnded(error) from error

    def look_and_tell(self) -> None:
        self.look()
        self.tell()


def _begin(
    request: RetrieveRequest, archive: Archive, exchange: Exchange, message: Message
) -> tuple[_Retrieval, Access] | None:
    """What is to be sent, its access audited (law 4); None: there is nothing to send, and that was answered."""
    try:
        stored = selected(request, archive)
        access = open_access(archive, stored, actor=request.actor, scope=request.scope, destination=request.destination)
    except Unavailable as error:
        log.error("retrieve refused", error=type(error).__name__, why=str(error), scope=request.scope)
        _refuse(exchange, message, Answer(Status.CANNOT_COUNT_MATCHES, comment=str(error)))
        return None
    retrieval = _Retrieval(exchange, message, stored)
    while (one := retrieval.current) is not None and one.replaced:
        _not_sent(one.gone, one, request.scope)
        retrieval.replaced(one)
        retrieval.done(None, access)
    if retrieval.current is None:
        retrieval.finish()
        return None
    return retrieval, access


def _send(archive: Archive, sender: Sender, retrieval: _Retrieval, stored: Stored, scope: str) -> int | None:
    """Send one instance; the peer's status, or None when it could not be sent and the association goes on.

    A file that is gone since the selection may lie in the other tier now, the same bytes: it is sent from there. An
    original that was replaced meanwhile fails; its copy is never sent in its stead.
    """
    try:
        try:
            status = sender.send(stored)
        except StorageFailed:
            now = again(archive, stored)
            if now is None:
                raise
            if now.replaced:
                retrieval.replaced(now)
            status = sender.send(now)
    except ArchiveError as error:
        _not_sent(error, stored, scope)
        return None
    if status != Status.SUCCESS:
        log.warning("a peer did not take an instance", status=f"{status:04X}", scope=scope)
    return status


def _not_sent(error: ArchiveError, stored: Stored, scope: str) -> None:
    tell = log.error if isinstance(error, Unavailable) else log.warning
    tell(
        "an instance was not sent",
        error=type(error).__name__,
        why=str(error),
        sop_instance_uid=stored.sop_instance_uid,
        scope=scope,
    )


def _refuse(exchange: Exchange, message: Message, answer: Answer) -> None:
    exchange.send(message.context.id, dimse.response(message.command, answer))


def _failed_list(uids: list[str], transfer_syntax: str) -> bytes:
    """A data set with Failed SOP Instance UID List (0008,0058); in explicit VR as many as a UI can hold."""
    explicit = transfer_syntax != IMPLICIT_LE
    if explicit:
        uids = uids[: _UI_LIMIT // 65]
    value = "\\".join(uids).encode("ascii", "replace")
    value += b"\0" * (len(value) % 2)
    if explicit:
        return struct.pack("<HH2sH", 0x0008, 0x0058, b"UI", len(value)) + value
    return struct.pack("<HHI", 0x0008, 0x0058, len(value)) + value
