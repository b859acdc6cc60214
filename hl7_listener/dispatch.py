"""Which message goes to which handler."""

from __future__ import annotations

from hl7_listener import adt, orders, visits
from hl7_listener.context import Handler, Handlers
from hl7_listener.message import HL7Error, Message

HANDLERS: Handlers = {**adt.HANDLERS, **visits.HANDLERS, **orders.HANDLERS}


def known(kind: str, event: str) -> None:
    """Raise HL7Error unless some handler takes messages of this type and event: 200 the type, 201 the event is not."""
    if (kind, event) in HANDLERS:
        return
    if kind not in {taken for taken, _ in HANDLERS}:
        raise HL7Error(200, "MSH^1^9", "this type of message is not supported")
    raise HL7Error(201, "MSH^1^9", "this event is not supported")


def handler_of(message: Message) -> Handler:
    """The handler of a message. Raises HL7Error 200 or 201 when there is none."""
    known(message.type, message.event)
    return HANDLERS[message.type, message.event]
