"""One message from its bytes to its acknowledgement: journal, reading, rules, handler, one transaction, ACK.

The acknowledgement is the receipt, so it comes last: what it says is committed (REQ-HL7-23).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from archive import messages
from archive.access import HL7_MAY, Actor, Door
from archive.audit.record import Event, EventType, Outcome, record
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import ArchiveError, CommitInDoubt, Conflict, StorageFull, Unavailable
from archive.identity.acts import Write
from archive.messages import MAX_NAME, Connection, Head, State
from hl7_listener import ack, structure
from hl7_listener.ack import Problem, Verdict
from hl7_listener.context import Context, Handler, Reply, Warning
from hl7_listener.dispatch import handler_of, known, query_of
from hl7_listener.message import NULL, HL7Error, Message, Segment, head, parse

log = structlog.get_logger(__name__)

Act = Callable[[Connection], tuple[State, Verdict]]

_EVENTS = {
    "ADT": Event.PATIENT_RECORD,
    **dict.fromkeys(("ORM", "OMG", "OMI"), Event.ORDER_RECORD),
    **dict.fromkeys(("QBP", "QCN"), Event.QUERY),
}
_TAKEN = Verdict("AE", (Problem(205, "MSH^1^10", "this control ID was used for a message with other content"),))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that came, before anything is made of it."""

    raw: bytes
    msh: Segment | None  # None: it has none
    head: Head
    at: datetime
    actor: Actor


def arrival_of(raw: bytes, *, source: str, at: datetime) -> Arrival:
    """What can be said of a message without reading it. Never raises."""
    msh = head(raw)
    sender = _sender(msh)
    kind = "" if msh is None else f"{msh.value(9) or ''}^{msh.value(9, 2) or ''}".rstrip("^")
    control_id = "" if msh is None else msh.value(10) or ""
    if len(sender) > MAX_NAME or len(control_id) > MAX_NAME:
        control_id = ""  # two that are alike so far would be taken for one
    named = Head(_bounded(sender), _bounded(control_id), _bounded(kind), _digest(raw))
    return Arrival(raw, msh, named, at, Actor(user=named.sender, source=source, door=Door.HL7, may=HL7_MAY))


def sender_of(raw: bytes) -> str:
    """Whose message this is, for the order among those of one sender: `MSH-3|MSH-4`. Never raises."""
    return _sender(head(raw))


def receive(archive: Archive, arrival: Arrival, *, connection: str) -> bytes:
    """Answer one message. Never raises: the answer is an ACK, whatever happens.

    Raw bytes are durable before anything is made of them (REQ-HL7-07); what the ACK says is durable before it is
    returned. The same message a second time is answered as the first time, and not applied (REQ-HL7-24).
    """
    try:
        _demand_room(archive)
        keep = partial(messages.keep, raw=arrival.raw, head=arrival.head, connection=connection, at=arrival.at)
        pk = archive.commit.run(keep)
    except Exception as error:
        return ack.build(arrival.msh, _verdict(error, arrival), at=arrival.at)
    return _answer(archive, arrival, pk)


def replay(archive: Archive, pk: int, *, actor: Actor) -> str:
    """Apply a message of the journal again, as `actor`: a repair after a refusal or a breakdown. Returns MSA-1.

    Raises:
        NotFound: no such message.
        Conflict: it was applied, or is the repetition of another.
    """
    with archive.reading() as conn:
        found = messages.stored(conn, pk)
    if found.state in (State.APPLIED, State.REPEATED):
        raise Conflict(f"message {pk} was {found.state}: nothing is to be repaired")
    known_as = arrival_of(found.raw, source=found.connection, at=archive.clock())
    arrival = Arrival(found.raw, known_as.msh, known_as.head, known_as.at, actor)
    _answer(archive, arrival, pk)
    with archive.reading() as conn:
        return messages.stored(conn, pk).ack_code or "AR"


def unread(archive: Archive, beginning: bytes) -> bytes:
    """The answer to a message that was not read to its end: it is above `hl7.max_message_bytes`, or several connections
    hold too much that is not complete (REQ-HL7-04)."""
    log.error("an HL7 message is too long", limit=archive.settings.hl7.max_message_bytes)
    problem = Problem(207, "", f"too long: more than {archive.settings.hl7.max_message_bytes} bytes at a time")
    return ack.build(head(beginning), Verdict("AR", (problem,)), at=archive.clock())


def _demand_room(archive: Archive) -> None:
    if archive.hot.free_bytes() < 0:
        raise StorageFull("the free space is below storage.reserve_bytes")


def _answer(archive: Archive, arrival: Arrival, pk: int) -> bytes:
    message: Message | None = None
    act: Act = _nothing
    try:
        with archive.reading() as conn:  # before reading it: an answer stands, whatever this version makes of it
            earlier = messages.answered(conn, arrival.head)
        if earlier is None or earlier.message_pk == pk:
            _demand_head(archive, arrival)
            message = parse(arrival.raw, default_charset=archive.settings.hl7.default_charset)
            context = Context(archive.settings, archive.authorities, arrival.at, arrival.actor, pk)
            query = query_of(message)
            if query is not None:
                with archive.reading() as conn:  # nobody who writes waits for it
                    reply = query(conn, message, context, archive.real_clock())
                act = partial(_give, reply=reply)
            else:
                handler = handler_of(message)
                tolerated = structure.check(message)
                act = partial(_apply, handler=handler, message=message, context=context, tolerated=tolerated)
        answer = archive.commit.run(partial(_settle, arrival=arrival, pk=pk, act=act))
        if archive.journal.behind:  # the answer may repeat what was said of facts that still have no line
            raise CommitInDoubt("the journal of facts is not complete")
        return answer
    except CommitInDoubt as error:  # perhaps it was applied: nothing is said of it but that
        return ack.build(arrival.msh, _verdict(error, arrival), at=arrival.at)
    except Exception as error:
        verdict = _verdict(error, arrival)
        after = error.after if isinstance(error, HL7Error) else None
    patient = _patient_of(archive, message)
    try:
        refuse = partial(_refuse, arrival=arrival, verdict=verdict, patient=patient, after=after)
        return archive.commit.run(partial(_settle, arrival=arrival, pk=pk, act=refuse))
    except Exception as error:  # the refusal cannot be written down: that is the answer (law 4)
        return ack.build(arrival.msh, _verdict(error, arrival), at=arrival.at)


def _settle(conn: Connection, *, arrival: Arrival, pk: int, act: Act) -> bytes:
    """Give the earlier answer of this control ID, if there is one; else do as `act` says. Keeps and returns the ACK."""
    earlier = messages.answered(conn, arrival.head)
    mine = earlier is not None and earlier.message_pk == pk  # refused before, and applied again by a person
    if earlier is None or (mine and earlier.code != "AA"):
        state, verdict = act(conn)
        answer = ack.build(arrival.msh, verdict, at=arrival.at)
    elif earlier.digest == arrival.head.digest:
        state, verdict = State.REPEATED, Verdict(earlier.code)
        answer = ack.repeat(arrival.msh, earlier.ack, at=arrival.at)
    else:
        state, verdict = _refuse(conn, arrival=arrival, verdict=_TAKEN)
        answer = ack.build(arrival.msh, verdict, at=arrival.at)
    messages.close(conn, pk, state, code=verdict.code, ack=answer, error=verdict.error, at=arrival.at)
    if earlier is None and verdict.code != "AR" and arrival.head.control_id:
        messages.remember(conn, arrival.head, pk, at=arrival.at)
    return answer


def _apply(
    conn: Connection, *, handler: Handler, message: Message, context: Context, tolerated: list[Warning]
) -> tuple[State, Verdict]:
    return State.APPLIED, ack.accepted([*tolerated, *handler(conn, message, context)])


def _give(conn: Connection, *, reply: Reply) -> tuple[State, Verdict]:
    reply.write(conn)
    return State.REFUSED if reply.errors else State.APPLIED, ack.answer(reply)


def _nothing(_conn: Connection) -> tuple[State, Verdict]:
    """What is to be done of a message that was answered before; `_settle` does not come here."""
    raise Unavailable("the earlier answer to this message is gone")


def _refuse(
    conn: Connection, *, arrival: Arrival, verdict: Verdict, patient: str | None = None, after: Write | None = None
) -> tuple[State, Verdict]:
    """The refusal is audited in the transaction that keeps it (law 4), with what a person has to look at."""
    if after is not None:
        after(conn)
    kind = arrival.head.kind.partition("^")[0]
    event = _EVENTS.get(kind, Event.SECURITY_ALERT)
    detail = {"reason": verdict.error or "", "message": arrival.head.control_id, "kind": arrival.head.kind}
    if event is Event.SECURITY_ALERT:
        detail["type"] = EventType.RESTRICTED_FUNCTION
    outcome = Outcome.MAJOR_FAILURE if verdict is ack.BUG else Outcome.SERIOUS_FAILURE
    action = "E" if event in (Event.SECURITY_ALERT, Event.QUERY) else "U"
    record(conn, arrival.actor, event, action, outcome=outcome, patient=patient, detail=detail)
    return State.REFUSED, verdict


def _demand_head(archive: Archive, arrival: Arrival) -> None:
    """What MSH has to hold, before the rest is read. Raises HL7Error, in the order of sheet 20 §3."""
    msh = arrival.msh
    if msh is None:
        raise HL7Error(100, "MSH^1", "the message does not begin with a readable MSH segment")
    if not msh.value(10):
        raise HL7Error(101, "MSH^1^10", "the control ID is missing")
    if len(msh.value(10) or "") > MAX_NAME:
        raise HL7Error(102, "MSH^1^10", f"the control ID is longer than {MAX_NAME} characters")
    if len(_sender(msh)) > MAX_NAME:
        raise HL7Error(102, "MSH^1^3", f"sending application and facility are longer than {MAX_NAME} characters")
    if not msh.value(9):
        raise HL7Error(101, "MSH^1^9", "the type of the message is missing")
    known(msh.value(9) or "", msh.value(9, 2) or "")
    if msh.value(11) not in archive.settings.hl7.processing_ids:
        raise HL7Error(202, "MSH^1^11", "this processing ID is not taken here")


def _verdict(error: Exception, arrival: Arrival) -> Verdict:
    """The answer to an error, logged once, without anything of the message's content."""
    facts = {"kind": arrival.head.kind, "sender": arrival.head.sender, "control_id": arrival.head.control_id}
    if isinstance(error, HL7Error):
        log.warning("an HL7 message is refused", code=error.code, location=error.location, **facts)
        return ack.refusal(error)
    if isinstance(error, Unavailable):
        log.error("an HL7 message cannot be applied now", error=type(error).__name__, detail=str(error), **facts)
        return ack.refusal(error)
    if isinstance(error, ArchiveError):
        log.warning("an HL7 message is refused", error=type(error).__name__, **facts)
        return ack.refusal(error)
    log.error("an HL7 message could not be applied: a bug", exc_info=error, **facts)
    return ack.BUG


def _patient_of(archive: Archive, message: Message | None) -> str | None:
    """Whom a refused message is about, for the audit: the first identifier of type PI in PID-3, else the first."""
    pid = None if message is None else message.first("PID")
    if pid is None:
        return None
    repetitions = sorted(pid.field(3), key=lambda one: one.component(5) != "PI")
    identifier = repetitions[0].component(1) if repetitions else None
    if identifier is None or identifier is NULL:
        return None
    issuer = archive.authorities.issuer(repetitions[0].component(4) or "", repetitions[0].component(4, 2) or "")
    return cx(identifier[:MAX_NAME], issuer[:MAX_NAME])


def _sender(msh: Segment | None) -> str:
    return "|" if msh is None else f"{msh.value(3) or ''}|{msh.value(4) or ''}"


def _bounded(text: str) -> str:
    """What both databases can keep and index."""
    return text.replace("\0", "\ufffd")[:MAX_NAME]


def _digest(raw: bytes) -> str:
    """SHA-256 of a message without MSH-7, the time at which it is sent: what a repetition has in common."""
    start = raw.find(b"MSH")
    sign = raw[start + 3 : start + 4]
    position = start
    for _ in range(6):  # behind the sixth separator begins MSH-7
        position = raw.find(sign, position + 1) if sign and position >= 0 else -1
    sha = hashlib.sha256()
    end = min(
        (found for found in (raw.find(one, position + 1) for one in (sign, b"\r", b"\n")) if found > 0), default=-1
    )
    if start < 0 or position < 0 or end < 0:
        sha.update(raw)
    else:
        sha.update(memoryview(raw)[: position + 1])
        sha.update(memoryview(raw)[end:])
    return sha.hexdigest()
