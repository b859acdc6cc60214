"""Which message goes to which handler."""

from __future__ import annotations

from hl7_listener import adt, orders
from hl7_listener.context import Handler, Handlers
from hl7_listener.message import HL7Error, Message

HANDLERS: Handlers = {**adt.HANDLERS, **orders.HANDLERS}


def handler_of(message: Message) -> Handler:
    """The handler of a message.

    Raises:
        HL7Error: 200 its type, 201 its event is not supported.
    """
    found = HANDLERS.get((message.type, message.event))
    if found is not None:
        return found
    if message.type not in {kind for kind, _ in HANDLERS}:
        raise HL7Error(200, "MSH^1^9", "this type of message is not supported")
    raise HL7Error(201, "MSH^1^9", "this event is not supported")
