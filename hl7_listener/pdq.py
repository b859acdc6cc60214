"""Patient Demographics Query, supplier: QBP^Q22 answered by RSP^K22 (ITI-21, ITI TF-2 3.21; REQ-HL7-90 to 92).

A query is answered from a connection to read with; what is kept of it, its audit row and where it goes on, is written
in the transaction that keeps the answer.
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice

from archive.audit.record import Event, Outcome, record
from archive.errors import InvalidQuery, NotFound
from archive.identity import continuation, demographics
from archive.identity.acts import Connection
from archive.identity.demographics import INS, SEXES, Asked, Domain, Found, Wanted
from hl7_listener.ack import same
from hl7_listener.adt import segment as needed
from hl7_listener.context import Context, Handlers, Queries, Reply, Warning
from hl7_listener.encoding import Delimiters, escape
from hl7_listener.message import HL7Error, Message, Segment
from hl7_listener.person import pid_of, segment
from hl7_listener.values import calendar_day, text

KIND = "RSP^K22^RSP_K21"
MOST = 1000  # patients in one answer, whatever is asked for; the rest follows by a pointer
MAX_TAG = 255
_SIGNS = Delimiters()
_ADDRESS = {"1": "street", "1.1": "street", "3": "city", "4": "state", "5": "postal_code", "6": "country"}
_PARAMETERS = {
    "PID.3.1": "identifier",
    "PID.3.4": "namespace",
    "PID.3.4.1": "namespace",
    "PID.3.4.2": "oid",
    "PID.3.4.3": "oid type",
    "PID.3.5": "type",
    "PID.5.1": "family",
    "PID.5.1.1": "family",
    "PID.5.2": "given",
    "PID.7": "born",
    "PID.7.1": "born",
    "PID.8": "sex",
    **{f"PID.11.{part}": name for part, name in _ADDRESS.items()},
    **{f"PID.13{part}": "phone" for part in ("", ".1", ".12")},
    **{f"PID.18{part}": "account" for part in ("", ".1")},
}


class _UnknownDomains(HL7Error):
    """Nobody here has an identifier of these domains: each of them is told (ITI TF-2 3.21, case 3)."""

    def __init__(self, places: Sequence[str]) -> None:
        super().__init__(204, places[0], _UNKNOWN_DOMAIN)
        self.others = tuple(HL7Error(204, place, _UNKNOWN_DOMAIN) for place in places[1:])


_UNKNOWN_DOMAIN = "nobody here has an identifier of this domain"


@dataclass(frozen=True, slots=True)
class _Page:
    """What of the answer is wanted now."""

    size: int = MOST
    after: int = 0
    total: int | None = None  # as the first page counted it


@dataclass(slots=True)
class _Answer:
    """What was found, and where it goes on."""

    found: list[Found] = field(default_factory=list)
    total: int = 0
    pointer: str | None = None  # to the rest


def demographics_query(conn: Connection, message: Message, context: Context, now: datetime) -> Reply:
    """QBP^Q22. What cannot be answered has an answer of the same structure, with AE or AR in QAK-2."""
    qpd = message.first("QPD")
    try:
        queriers = context.settings.hl7.queries
        if queriers is not None and message.sender not in queriers:
            raise HL7Error(207, "MSH^1^3", "this sender may not query patients (hl7.queries)")
        qpd = needed(message, "QPD")
        query = continuation.Query(message.sender, _tag(qpd), _digest(qpd))
        asked = _asked(conn, qpd, context)
        page = _page(conn, message, query, now)
        try:
            answer = _find(conn, asked, page)
        except InvalidQuery as error:
            raise HL7Error(102, qpd.at(3), str(error)) from error
    except HL7Error as error:
        errors = (error, *(error.others if isinstance(error, _UnknownDomains) else ()))
        write = partial(_audit, message=message, context=context, qpd=qpd, error=error)
        return Reply(KIND, tuple(_said(qpd, error.ack)), write, errors)
    body = [*_said(qpd, "OK" if answer.found else "NF", answer)]
    body += [pid_of(one, context.authorities, seq=seq) for seq, one in enumerate(answer.found, 1)]
    if answer.pointer is not None:
        body.append(segment("DSC", answer.pointer, "I"))

    def write_found(conn: Connection) -> None:
        _audit(conn, message=message, context=context, qpd=qpd)
        if answer.pointer is not None:
            continuation.point(conn, query, answer.pointer, after=answer.found[-1].pk, at=now)

    return Reply(KIND, tuple(body), write_found)


def cancel(conn: Connection, message: Message, context: Context) -> list[Warning]:
    """QCN^J01: nobody asks for the rest of a query any more."""
    qid = needed(message, "QID")
    tag = text(qid.value(1))
    if not tag:
        raise HL7Error(101, qid.at(1), "the tag of the query is missing")
    continuation.cancel(conn, sender=message.sender, tag=tag)
    return []


QUERIES: Queries = {("QBP", "Q22"): demographics_query}
HANDLERS: Handlers = {("QCN", "J01"): cancel}


def _find(conn: Connection, asked: Asked, page: _Page) -> _Answer:
    found = list(islice(demographics.find(conn, asked, after=page.after), page.size + 1))
    answer = _Answer(found[: page.size])
    more = len(found) > page.size
    if page.total is not None:
        answer.total = page.total
    else:
        answer.total = demographics.count(conn, asked) if more or page.after else len(found)
    answer.pointer = f"{secrets.token_hex(8)}.{answer.total}" if more else None
    return answer


def _tag(qpd: Segment) -> str:
    if not text(qpd.value(1)):
        raise HL7Error(101, qpd.at(1), "the name of the query is missing")
    tag = text(qpd.value(2))
    if not tag:
        raise HL7Error(101, qpd.at(2), "the tag of the query is missing")
    if len(tag) > MAX_TAG:
        raise HL7Error(102, qpd.at(2), f"longer than {MAX_TAG} characters")
    return tag


def _digest(qpd: Segment) -> str:
    return hashlib.sha256(_written(qpd).encode()).hexdigest()


def _asked(conn: Connection, qpd: Segment, context: Context) -> Asked:
    """QPD-3 and QPD-8. Raises HL7Error 101 nothing is asked, 102, 103 a parameter, 204 a domain."""
    given: dict[str, tuple[str, str]] = {}  # value and place
    for number, one in enumerate(qpd.field(3), 1):
        name, value = text(one.component(1)).lstrip("@"), text(one.component(2))
        place = qpd.at(3, number)
        if not value:
            continue
        if name not in _PARAMETERS:
            raise HL7Error(103, place, "patients are not looked for by this parameter")
        if given.setdefault(_PARAMETERS[name], (value, place))[1] != place:
            raise HL7Error(102, place, "this parameter is given twice")
    domains = _domains(conn, qpd, context)
    if not given:
        raise HL7Error(101, qpd.at(3), "at least one parameter is needed")
    said = {name: value for name, (value, _) in given.items()}
    return Asked(
        identifiers=_identifiers(conn, said, qpd, context),
        family=said.get("family", ""),
        given=(said["given"],) if "given" in said else (),
        born=calendar_day(*given["born"]) if "born" in given else None,
        sexes=_sexes(*given["sex"]) if "sex" in given else frozenset(),
        address=tuple((name, said[name]) for name in demographics.ADDRESS_PARTS if name in said),
        phone=said.get("phone", ""),
        account=said.get("account", ""),
        domains=domains,
    )


def _sexes(value: str, place: str) -> frozenset[str]:
    if value not in SEXES:
        raise HL7Error(103, place, "no such sex in table 0001")
    return frozenset({SEXES[value]})


def _identifiers(
    conn: Connection, said: Mapping[str, str], qpd: Segment, context: Context
) -> tuple[tuple[Wanted, ...], ...]:
    """The identifier that is asked for; without who assigned it, anybody's."""
    namespace, oid = said.get("namespace", ""), said.get("oid", "")
    accepted = context.settings.identity.ins_oids
    if "identifier" not in said:
        if said.keys() & {"namespace", "oid", "type"}:
            raise HL7Error(101, qpd.at(3), "an authority is asked for without an identifier (@PID.3.1)")
        return ()
    domain = Domain(ins=tuple(accepted)) if said.get("type") == INS else None
    if namespace or oid:
        domain = demographics.domain_of(conn, context.authorities, accepted, namespace, oid)
        if domain is None:  # nobody here has an identifier of it
            return ((),)
    return ((Wanted(said["identifier"], domain),),)


def _domains(conn: Connection, qpd: Segment, context: Context) -> tuple[Domain, ...]:
    """QPD-8: whose identifiers are to be told."""
    accepted = context.settings.identity.ins_oids
    found: list[Domain] = []
    unknown: list[str] = []
    for number, one in enumerate(qpd.field(8), 1):
        namespace, oid = text(one.component(4)), text(one.component(4, 2))
        if not namespace and not oid:
            continue
        domain = demographics.domain_of(conn, context.authorities, accepted, namespace, oid)
        if domain is None:
            unknown.append(qpd.at(8, number))
        else:
            found.append(domain)
    if unknown:
        raise _UnknownDomains(unknown)
    return tuple(found)


def _page(conn: Connection, message: Message, query: continuation.Query, now: datetime) -> _Page:
    """RCP-2 and DSC-1. Raises HL7Error 102, 103 RCP, 204 the pointer."""
    rcp = needed(message, "RCP")
    if (priority := text(rcp.value(1))) not in ("", "I"):
        raise HL7Error(103, rcp.at(1), f"queries are answered at once (I), not {priority[:1]}")
    size = MOST
    if quantity := text(rcp.value(2)):
        if text(rcp.value(2, 2)) not in ("", "RD"):
            raise HL7Error(103, rcp.at(2, 1, 2), "answers are counted in records (RD)")
        if not (quantity.isascii() and quantity.isdigit() and len(quantity) <= 9 and int(quantity)):
            raise HL7Error(102, rcp.at(2, 1, 1), "this is no number of records")
        size = min(int(quantity), MOST)
    dsc = message.first("DSC")
    pointer = "" if dsc is None else text(dsc.value(1))
    if dsc is None or not pointer:
        return _Page(size)
    try:
        after = continuation.follow(conn, query, pointer, at=now)
    except NotFound as error:
        raise HL7Error(204, dsc.at(1), str(error)) from error
    total = pointer.partition(".")[2]
    return _Page(size, after, int(total) if total else None)


def _said(qpd: Segment | None, status: str, answer: _Answer | None = None) -> Iterator[str]:
    """QAK, and QPD as it came."""
    tag = "" if qpd is None else escape(text(qpd.value(2)), _SIGNS)
    counts = ["", ""] if answer is None else [str(answer.total), str(len(answer.found))]
    yield segment("QAK", tag, status, "" if qpd is None else same(qpd, 1), *counts)
    if qpd is not None:
        yield _written(qpd)


def _written(qpd: Segment) -> str:
    return segment("QPD", *(same(qpd, n) for n in range(1, len(qpd.raw_fields) + 1)))


def _audit(
    conn: Connection,
    *,
    message: Message,
    context: Context,
    qpd: Segment | None,
    error: HL7Error | None = None,
) -> None:
    """Who asked what, and nothing of the answer (sheet 40 §2)."""
    asked = "" if qpd is None else b64encode(_written(qpd).encode()).decode("ascii")
    detail = {"type": "ITI-21", "query": asked, "message": message.control_id}
    if error is not None:
        detail["reason"] = str(error)
    outcome = Outcome.SUCCESS if error is None else Outcome.SERIOUS_FAILURE
    record(conn, context.actor, Event.QUERY, "E", outcome=outcome, detail=detail)
