"""Sending stored instances, for C-GET on the caller's association and for C-MOVE on one of ours.

An instance leaves as it lies: heads, and ranges of its file. Where the RIS or a person has corrected what its header
says, it leaves corrected (REQ-DCM-70); a peer that does not take its syntax gets it without loss in another that it
takes (REQ-DCM-41).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from archive.clock import monotonic
from archive.dicom import lossless
from archive.dicom.syntaxes import EXPLICIT_BE
from archive.dicom.transcode import alternatives
from archive.errors import NotAcceptable, StorageFailed
from archive.outgoing import Outgoing
from archive.retrieve import Stored
from dicom_scp import dimse
from dicom_scp.associate import Proposed
from dicom_scp.classes import PLAIN
from dicom_scp.dimse import Field
from dicom_scp.ends import AbortReason, ProtocolError, TooSlow
from dicom_scp.exchange import Context, Exchange, Message
from dicom_scp.requestor import Requestor

MOST_CONTEXTS = 128  # odd numbers of one byte


def propose(stored: Iterable[Stored]) -> tuple[Proposed, ...]:
    """The contexts for sending these: each class in each syntax it is stored in, then in plain little endian, then in
    a compressed syntax that loses nothing.

    One syntax a context where it matters, so that the peer's answer says whether it takes it. What goes beyond 128
    is not proposed, fall-backs first.
    """
    pairs = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in stored)
    wanted: list[tuple[str, tuple[str, ...]]] = [(uid, (syntax,)) for uid, syntax in pairs if syntax != EXPLICIT_BE]
    recoded = dict.fromkeys(uid for uid, syntax in pairs if alternatives(syntax))
    for fallback, classes in ((PLAIN, dict.fromkeys(uid for uid, _ in pairs)), (lossless.SYNTAXES, recoded)):
        for uid in classes:
            rest = tuple(syntax for syntax in fallback if (uid, syntax) not in pairs)
            if rest:
                wanted.append((uid, rest))
    return tuple(Proposed(2 * place + 1, uid, syntaxes) for place, (uid, syntaxes) in enumerate(wanted[:MOST_CONTEXTS]))


def routes(contexts: Mapping[int, Context]) -> dict[str, dict[str, int]]:
    """Where each class can be sent: transfer syntax to context, for the contexts on which we may send."""
    found: dict[str, dict[str, int]] = {}
    for context in contexts.values():
        if context.we_send:
            found.setdefault(context.abstract_syntax, {}).setdefault(context.transfer_syntax, context.id)
    return found


class Sender:
    """Sub-operations on one association, one after the other.

    Args:
        leaving: an instance as it leaves (`archive.outgoing`).
        answered: waits for the response to a sub-operation with this Message ID, and returns its status.
        between: called from time to time while a long instance is being sent.
        originator: who asked for the C-MOVE, and the Message ID of that request.
        bulk: False sends instances without pixels and other bulk data, in whatever syntax the peer takes.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        leaving: Callable[[Stored], Outgoing],
        answered: Callable[[int], int],
        between: Callable[[], None] = lambda: None,
        originator: tuple[str, int] | None = None,
        bulk: bool = True,
    ) -> None:
        self._exchange = exchange
        self._bulk = bulk
        self._leaving = leaving
        self._answered = answered
        self._between = between
        self._originator = originator
        self._routes = routes(exchange.contexts)
        self._message_id = 0

    def send(self, stored: Stored) -> int:
        """Send one instance; the status of the peer's answer.

        Raises:
            NotAcceptable: the peer takes its class in no syntax that would lose nothing; it was not sent.
            UnreadableInstance: it is to leave corrected, and its elements cannot be followed; it was not sent.
            StorageFailed: its file is missing or has another length; it was not sent.
            AssociationEnd: in its kinds, CopyEnded when the file failed on the way.
        """
        refused = NotAcceptable("the peer takes this class in no syntax that would lose nothing")
        for context_id, syntax in self._routes_of(stored):
            try:
                return self._send_as(stored, context_id, syntax)
            except NotAcceptable as error:  # nothing was sent
                refused = error
        raise refused

    def _send_as(self, stored: Stored, context_id: int, syntax: str) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        command = dimse.store_request(
            self._message_id, stored.sop_class_uid, stored.sop_instance_uid, originator=self._originator
        )
        leaving = self._leaving(stored)
        if self._bulk and leaving.intact(syntax):
            self._send_file(context_id, command, stored)
        else:
            pieces = leaving.data_set(syntax, bulk=self._bulk)
            self._exchange.send_pieces(context_id, command, pieces, between=self._between)
        return self._answered(self._message_id)

    def _send_file(self, context_id: int, command: bytes, stored: Stored) -> None:
        fd = stored.open()
        try:
            self._exchange.send_file(
                context_id,
                command,
                fd,
                offset=stored.data_set_offset,
                length=stored.data_set_bytes,
                between=self._between,
            )
        except OSError as error:
            raise StorageFailed(f"the copy cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)

    def _routes_of(self, stored: Stored) -> Iterator[tuple[int, str]]:
        """Context and syntax of each way to send it: as it is stored, then without loss in what the peer takes."""
        by_syntax = self._routes.get(stored.sop_class_uid, {})
        own = stored.transfer_syntax_uid
        others: Iterable[str] = alternatives(own) if self._bulk else dict.fromkeys((*PLAIN, *by_syntax))
        for syntax in dict.fromkeys((own, *others)):
            if syntax in by_syntax:
                yield by_syntax[syntax], syntax


def store_status(message: Message, message_id: int) -> int:
    """The status that a message gives as the answer to a C-STORE-RQ. Raises ProtocolError when it is not one."""
    command = message.command
    if (
        command.field != Field.C_STORE_RSP
        or command.status is None
        or command.responding_to != message_id
        or command.has_data_set
    ):
        raise ProtocolError("something else than an answer to C-STORE", AbortReason.UNEXPECTED_PDU)
    return command.status


def receive_beside(requestor: Requestor, caller: Exchange, look: Callable[[], bool]) -> Message:
    """The next message on an association of ours. Meanwhile `look` is called when `caller` has something to say,
    until it returns True: that was a C-CANCEL."""
    exchange = requestor.exchange
    until = monotonic() + requestor.seconds
    looking = True
    while looking and not exchange.has_input():
        if not exchange.transport.wait_beside(caller.transport, until):
            raise TooSlow("the destination does not answer")
        if caller.has_input():
            looking = not look()
    return requestor.receive(until)
