"""Which message goes to which handler, which query to which answer."""

from __future__ import annotations

from hl7_listener import adt, orders, pdq, visits
from hl7_listener.context import Handler, Handlers, Queries, Query
from hl7_listener.message import HL7Error, Message

HANDLERS: Handlers = {**adt.HANDLERS, **visits.HANDLERS, **orders.HANDLERS, **pdq.HANDLERS}
QUERIES: Queries = {**pdq.QUERIES}


def known(kind: str, event: str) -> None:
    """Raise HL7Error unless something takes messages of this type and event: 200 the type, 201 the event is not."""
    taken = HANDLERS.keys() | QUERIES.keys()
    if (kind, event) in taken:
        return
    if kind not in {one for one, _ in taken}:
        raise HL7Error(200, "MSH^1^9", "this type of message is not supported")
    raise HL7Error(201, "MSH^1^9", "this event is not supported")


def handler_of(message: Message) -> Handler:
    """The handler of a message that is no query. Raises HL7Error 200 or 201 when there is none."""
    known(message.type, message.event)
    return HANDLERS[message.type, message.event]


def query_of(message: Message) -> Query | None:
    """What answers a query; None: this message is none."""
    return QUERIES.get((message.type, message.event))
