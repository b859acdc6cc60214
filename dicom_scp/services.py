"""From a message to its service: what the caller may do, what is called with what, how it is answered."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import structlog

from archive import commitment as promises
from archive.access import Action, Actor, demand
from archive.audit.record import Event, refused
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.errors import ArchiveError, NotAllowed, TooLarge, Unavailable
from dicom_scp import commitment, dimse, mpps, normalized, retrieve, status, worklist
from dicom_scp.classes import COMMITMENT_PUSH, Service
from dicom_scp.dimse import Command, Field
from dicom_scp.echo import echo
from dicom_scp.ends import AssociationEnd, ProtocolError
from dicom_scp.exchange import Exchange, Message
from dicom_scp.find import find
from dicom_scp.messages import Answer, FindRequest, NormalizedRequest, RetrieveRequest, StoreRequest
from dicom_scp.status import PENDING, Status
from dicom_scp.store import store
from dicom_scp.transport import Transport

log = structlog.get_logger(__name__)

_GATHERED_BYTES = 1 << 15  # pending answers of a C-FIND that leave together…
_GATHERED_SECONDS = 0.02  # …or that have waited this long
_NORMALIZED = frozenset({Field.N_ACTION_RQ, Field.N_CREATE_RQ, Field.N_SET_RQ})
_DEMANDS = {  # a C-FIND demands by itself: its refusal is audited with the query
    Service.VERIFICATION: (Action.VERIFY, Event.NETWORK_ENTRY, "E"),
    Service.STORAGE: (Action.STORE, Event.INSTANCES_TRANSFERRED, "C"),
    Service.MOVE: (Action.SEE, Event.INSTANCES_TRANSFERRED, "R"),
    Service.GET: (Action.SEE, Event.INSTANCES_TRANSFERRED, "R"),
    Service.COMMITMENT: (Action.COMMIT, Event.INSTANCES_ACCESSED, "E"),
    Service.MPPS: (Action.PERFORM, Event.PROCEDURE_RECORD, "C"),
}


@dataclass(slots=True)
class Session:
    """An association as its services see it. `attach` makes a further connection end with it."""

    archive: Archive
    exchange: Exchange
    actor: Actor
    calling_ae: str
    id: str
    attach: Callable[[Transport], None]
    refused: set[Action] = field(default_factory=set)  # audited once for each association
    reports: dict[int, int] = field(default_factory=dict)  # commitment requests, by the Message ID of their report
    asked: int = 0  # requests of ours

    def answer(self, message: Message, answer: Answer) -> None:
        command = dimse.response(message.command, answer)
        self.exchange.send(message.context.id, command, answer.data_set)


def serve(session: Session, message: Message) -> None:
    """Do what a message asks, and answer it. Raises AssociationEnd alone."""
    command, context = message.command, message.context
    if command.is_response:
        _answered(session, command)
        return
    if command.field == Field.C_CANCEL_RQ:
        session.exchange.drain()
        return  # too late: its operation is over
    service = _SERVICES.get((context.service, command.field))
    if service is None:
        answer = Answer(Status.UNRECOGNISED_OPERATION, comment="not an operation of this presentation context")
    elif command.sop_class_uid != context.abstract_syntax:
        answer = Answer(
            Status.CLASS_NOT_SUPPORTED, comment="not the SOP class of the presentation context", offending=(0x00000002,)
        )
    elif command.has_data_set is (service is _echo):
        answer = Answer(Status.MISTYPED_ARGUMENT, comment="a data set is missing, or too much", offending=(0x00000800,))
    else:
        denied = _denied(session, context.service, command)
        if denied is None:
            _run(service, session, message)
            return
        answer = denied
    session.exchange.drain()
    session.answer(message, answer)


def _denied(session: Session, service: Service, command: Command) -> Answer | None:
    """The answer to somebody who may not; it is audited before it is given (law 4)."""
    if service not in _DEMANDS:
        return None
    action, event, letter = _DEMANDS[service]
    try:
        demand(session.actor, action)
    except NotAllowed as error:
        if action not in session.refused:
            log.warning("refused", service=service.value, calling_ae=session.calling_ae, scope=session.id)
            try:
                refused(session.archive.commit, session.actor, event, letter, reason="not allowed for this peer")
            except Unavailable as unavailable:
                return _refusal(command, unavailable)
            session.refused.add(action)
        return _refusal(command, error)
    return None


def _refusal(command: Command, error: ArchiveError) -> Answer:
    """The answer to a request that ended in `error`, in a status that its operation knows."""
    if command.field in _NORMALIZED:
        return status.normalized_refusal(error, malformed=Status.PROCESSING_FAILURE)
    return status.refusal(error)


def _run(service: Callable[[Session, Message], None], session: Session, message: Message) -> None:
    try:
        service(session, message)
    except AssociationEnd:
        raise
    except ArchiveError as error:
        _log(error, session, message)
        session.exchange.drain()
        session.answer(message, _refusal(message.command, error))
    except Exception:
        log.exception("a bug", service=message.context.service.value, scope=session.id)
        session.exchange.drain()
        session.answer(message, status.STORE_BUG if message.command.field == Field.C_STORE_RQ else status.BUG)


def _log(error: ArchiveError, session: Session, message: Message) -> None:
    tell = log.error if isinstance(error, Unavailable) else log.warning
    tell(
        "refused",
        service=message.context.service.value,
        error=type(error).__name__,
        why=str(error),
        scope=session.id,
    )


def _echo(session: Session, message: Message) -> None:
    session.answer(message, echo())


def _store(session: Session, message: Message) -> None:
    command, context = message.command, message.context
    request = StoreRequest(
        meta=FileMeta(
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=context.transfer_syntax,
            source_ae=session.calling_ae,
        ),
        data_set=session.exchange.data_set(),
        actor=session.actor,
        scope=session.id,
        fetched=command.originator in session.archive.settings.dicom.titles(),
    )
    answer = store(request, session.archive)
    session.exchange.drain()
    session.answer(message, answer)


def _find(session: Session, message: Message) -> None:
    _answer_query(find, session, message)


def _worklist(session: Session, message: Message) -> None:
    _answer_query(worklist.find, session, message)


def _answer_query(
    service: Callable[[FindRequest, Archive], Generator[Answer, None, None]], session: Session, message: Message
) -> None:
    context, exchange = message.context, session.exchange
    request = FindRequest(
        sop_class_uid=context.abstract_syntax,
        identifier=_identifier(session),
        transfer_syntax_uid=context.transfer_syntax,
        relational=context.relational,
        combined_datetime=context.combined_datetime,
        actor=session.actor,
        empty_values=context.empty_values,
        multiple_values=context.multiple_values,
        timezone=context.timezone,
    )
    waiting: list[bytes | memoryview] = []
    size, since = 0, monotonic()
    answers = service(request, session.archive)
    try:
        for answer in answers:
            if answer.status in PENDING and exchange.cancelled(message.command.message_id):
                waiting += exchange.encoded(context.id, dimse.response(message.command, Answer(Status.CANCELLED)))
                break
            command = dimse.response(message.command, answer)
            waiting += exchange.encoded(context.id, command, answer.data_set)
            size += len(command) + len(answer.data_set or b"")
            if size >= _GATHERED_BYTES or monotonic() - since > _GATHERED_SECONDS:
                exchange.send_parts(waiting)
                waiting, size, since = [], 0, monotonic()
    finally:
        answers.close()
    exchange.send_parts(waiting)


def _get(session: Session, message: Message) -> None:
    request = _retrieve_request(session, message)
    try:
        retrieve.get(request, session.archive, session.exchange, message)
    finally:
        session.archive.accesses.end_scope(request.scope)


def _move(session: Session, message: Message) -> None:
    request = _retrieve_request(session, message)
    try:
        retrieve.move(request, session.archive, session.exchange, message, attach=session.attach)
    finally:
        session.archive.accesses.end_scope(request.scope)


def _retrieve_request(session: Session, message: Message) -> RetrieveRequest:
    return RetrieveRequest(
        sop_class_uid=message.context.abstract_syntax,
        identifier=_identifier(session),
        transfer_syntax_uid=message.context.transfer_syntax,
        actor=session.actor,
        calling_ae=session.calling_ae,
        scope=f"{session.id}/{message.command.message_id}",
        destination=message.command.move_destination,
    )


def _normalized(
    service: Callable[[NormalizedRequest, Archive], Answer],
) -> Callable[[Session, Message], None]:
    """A normalized service: its data set read whole, one answer."""

    def run(session: Session, message: Message) -> None:
        session.answer(message, service(_normalized_request(session, message), session.archive))

    return run


def _normalized_request(session: Session, message: Message) -> NormalizedRequest:
    command, context = message.command, message.context
    return NormalizedRequest(
        sop_class_uid=context.abstract_syntax,
        sop_instance_uid=command.sop_instance_uid,
        type=command.type,
        attributes=normalized.decode(
            _identifier(session),
            context.transfer_syntax,
            default_charset=session.archive.settings.dicom.default_charset,
        ),
        actor=session.actor,
        calling_ae=session.calling_ae,
        scope=session.id,
    )


def _commit(session: Session, message: Message) -> None:
    """N-ACTION of storage commitment; then, to a peer that wants it here, the report."""
    archive, exchange = session.archive, session.exchange
    try:
        answer, taken = commitment.ask(_normalized_request(session, message), archive)
    except ArchiveError as error:
        _log(error, session, message)
        answer, taken = status.normalized_refusal(error, malformed=Status.INVALID_ARGUMENT_VALUE), None
    session.answer(message, answer)
    if taken is None or not commitment.reports_here(archive, session.calling_ae):
        return
    try:
        report = commitment.ready(archive, taken)
    except ArchiveError as error:  # the job will
        _log(error, session, message)
        return
    if report is None or session.reports or exchange.has_input():  # it wants something else first: the job will
        return
    session.asked = message_id = session.asked % 0xFFFF + 1
    session.reports[message_id] = taken
    command = dimse.normalized_request(
        Field.N_EVENT_REPORT_RQ, message_id, COMMITMENT_PUSH, commitment.WELL_KNOWN, type=report.type
    )
    exchange.send(message.context.id, command, normalized.encode(report.attributes, message.context.transfer_syntax))


def _answered(session: Session, command: Command) -> None:
    """The peer answers a report that it was sent here. Raises ProtocolError: it answers nothing."""
    request = session.reports.pop(command.responding_to, None)
    if request is None or command.field != Field.N_EVENT_REPORT_RQ | dimse.RESPONSE:
        raise ProtocolError("a response to nothing")
    session.exchange.drain()
    if command.status != Status.SUCCESS:  # the job reports again
        log.warning("a report of storage commitment is refused", status=command.status, scope=session.id)
        return
    try:
        promises.reported(session.archive, request)
    except ArchiveError as error:  # likewise
        log.error("an answer cannot be kept", error=type(error).__name__, scope=session.id)


def _identifier(session: Session) -> bytes:
    identifier = session.exchange.identifier()
    if identifier is None:
        raise TooLarge("the identifier is too long")
    return identifier


_SERVICES: dict[tuple[Service, int], Callable[[Session, Message], None]] = {
    (Service.VERIFICATION, Field.C_ECHO_RQ): _echo,
    (Service.STORAGE, Field.C_STORE_RQ): _store,
    (Service.FIND, Field.C_FIND_RQ): _find,
    (Service.MOVE, Field.C_MOVE_RQ): _move,
    (Service.GET, Field.C_GET_RQ): _get,
    (Service.COMMITMENT, Field.N_ACTION_RQ): _commit,
    (Service.WORKLIST, Field.C_FIND_RQ): _worklist,
    (Service.MPPS, Field.N_CREATE_RQ): _normalized(mpps.create),
    (Service.MPPS, Field.N_SET_RQ): _normalized(mpps.change),
}
