"""C-FIND of the Patient Root and Study Root models (PS3.4 C.4.1): the request checked, one query, answers as bytes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from datetime import timezone
from functools import lru_cache
from typing import Any, NamedTuple

from archive.access import Action, demand
from archive.audit.record import Event, Outcome, refused
from archive.core import Archive
from archive.dicom.attributes import LEVELS, Level
from archive.dicom.charset import SPECIFIC_CHARACTER_SET
from archive.dicom.elements import Encoding, encoding_of
from archive.errors import InvalidQuery, NotAllowed, Rejected, Unsupported
from archive.index import query as index
from archive.index.alternates import ALTERNATE_REPRESENTATIONS
from archive.index.asked import audit_query
from archive.index.computed import INSTANCE_AVAILABILITY
from archive.index.match import Key, each_value, is_asking
from archive.index.query import TIMEZONE_OFFSET, Query, Search
from archive.index.zones import zone_of
from dicom_scp.identifier import Asked, Encoder, Field, Identifier, Row, Shape, decode
from dicom_scp.messages import Answer, FindRequest
from dicom_scp.status import Status

PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
QUERY_RETRIEVE_LEVEL = 0x00080052
RETRIEVE_AE_TITLE = 0x00080054

_ROOTS = {
    PATIENT_ROOT_FIND: {level.value: level for level in LEVELS},
    STUDY_ROOT_FIND: {level.value: level for level in LEVELS[1:]},
}
_UNIQUE = {Level.PATIENT: 0x00100020, Level.STUDY: 0x0020000D, Level.SERIES: 0x0020000E}
_REMEMBERED_BYTES = 1024  # of an identifier
_NO_VALUE = '""'  # asks for what has none, where that was negotiated
# Not keys: they say how the identifier is to be read. Only an instance has an alternate representation; above, the
# attribute is known, and always without a value.
_ABOUT_THE_REQUEST = frozenset({SPECIFIC_CHARACTER_SET, QUERY_RETRIEVE_LEVEL})
_ALWAYS_EMPTY = {ALTERNATE_REPRESENTATIONS: "SQ"}


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """What requests of one shape have in common, whatever values they ask for. Each shape has one: see `_form`."""

    fields: tuple[Field, ...]
    want: frozenset[int]
    vrs: dict[int, str]  # of the elements that may be keys
    matchable: frozenset[int]
    whole: bool  # every element is known; else it is left out of the answers (REQ-DCM-30)


def find(request: FindRequest, archive: Archive) -> Generator[Answer, None, None]:
    """Answer one C-FIND-RQ: a pending answer for each match, then the last. Closing the iterator ends the query.

    With more matches than `dicom.find_limit`, the last answer is A700 (REQ-DCM-38).

    Raises:
        NotAllowed: the peer may not query; the refusal is audited.
        UnreadableInstance, InvalidQuery: the identifier cannot be read, or breaks the rules of its model.
        Unavailable: the index cannot be read, or the query cannot be audited.
    """
    return answers(request, archive, _plan, may=Action.FIND)


class Plan(NamedTuple):
    """A request that was understood: the rows that match on a connection, what encodes them in the form in which they
    are asked for, and the status of each."""

    rows: Callable[[Any], Iterable[Row]]
    encoder: Encoder
    pending: Status
    unit: str = "matches"  # of what is found, in the words of an answer


def answers(
    request: FindRequest,
    archive: Archive,
    plan_of: Callable[[FindRequest, Archive], Plan],
    *,
    may: Action,
) -> Generator[Answer, None, None]:
    """What every C-FIND has in common: who may ask, the audit of the query, the limit, the last answer. See `find`."""
    _demand(request, archive, may)
    limit = archive.settings.dicom.find_limit
    try:
        plan = plan_of(request, archive)
    except Rejected:
        audit_query(archive.commit, request.actor, parameters=_parameters(request), outcome=Outcome.MINOR_FAILURE)
        raise
    audit_query(archive.commit, request.actor, parameters=_parameters(request))  # queued before the answer (law 4)
    with archive.reading() as conn:
        for number, row in enumerate(plan.rows(conn)):
            if number == limit:
                yield Answer(Status.OUT_OF_RESOURCES, comment=f"more than {limit} {plan.unit}: narrow the query")
                return
            yield Answer(plan.pending, plan.encoder.encode(row))
    yield Answer(Status.SUCCESS)


def _demand(request: FindRequest, archive: Archive, action: Action) -> None:
    """Raise NotAllowed when the peer may not ask this; the refusal is audited before (law 4)."""
    try:
        demand(request.actor, action)
    except NotAllowed as error:
        refused(archive.commit, request.actor, Event.QUERY, "E", reason=str(error), detail=_parameters(request))
        raise


class _Rules(NamedTuple):
    """What a plan depends on beside the request: settings, `dicom.…`."""

    default_charset: str
    strict_hierarchy: bool
    ae_title: str
    find_limit: int


def _plan(request: FindRequest, archive: Archive) -> Plan:
    settings = archive.settings.dicom
    rules = _Rules(settings.default_charset, settings.strict_hierarchy, settings.ae_title, settings.find_limit)
    return (_remembered if len(request.identifier) <= _REMEMBERED_BYTES else _understood)(request, rules)


def _understood(request: FindRequest, rules: _Rules) -> Plan:
    encoding = encoding_of(request.transfer_syntax_uid)
    identifier = decode(request.identifier, encoding, default_charset=rules.default_charset)
    level = _level(request, identifier)
    if not request.relational:
        levels = _ROOTS[request.sop_class_uid].values()
        _check_hierarchy(levels, level, identifier, strict=rules.strict_hierarchy)
    form = _form(level, identifier.shape, rules.ae_title)
    keys: list[Key] = []
    pending = Status.PENDING if form.whole else Status.PENDING_WITHOUT_KEYS
    for asked in identifier.given:
        tag = asked.tag
        if tag not in form.vrs:
            continue
        key = key_of(request, asked, form.vrs[tag])
        if is_asking(key):
            if tag in form.matchable:
                keys += each_value(key) if request.multiple_values else (key,)
            elif tag != TIMEZONE_OFFSET:  # says how the request means its times, as nothing else was negotiated
                pending = Status.PENDING_WITHOUT_KEYS
    query = Query(
        level,
        tuple(keys),
        want=form.want,
        combined_datetime=request.combined_datetime,
        zone=_zone(request, identifier),
        limit=rules.find_limit + 1,
        quality=Action.QUALITY in request.actor.may,
    )
    return Plan(Search(query).rows, _encoder(form, encoding, identifier.charsets), pending)


_remembered = lru_cache(maxsize=1024)(_understood)  # a workstation asks for its lists again and again


@lru_cache(maxsize=256)
def _form(level: Level, shape: Shape, ae_title: str) -> _Form:
    returnable = index.returnable(level)
    fields = [
        Field(QUERY_RETRIEVE_LEVEL, "CS", constant=level.value),
        Field(RETRIEVE_AE_TITLE, "AE", constant=ae_title),
        Field(INSTANCE_AVAILABILITY, "CS"),
    ]
    known = {QUERY_RETRIEVE_LEVEL, RETRIEVE_AE_TITLE, INSTANCE_AVAILABILITY}
    vrs: dict[int, str] = {}
    whole = True
    for tag, written, nested in shape:
        if tag in _ABOUT_THE_REQUEST or tag & 0xFFFF == 0:
            continue
        vr = returnable.get(tag) or _ALWAYS_EMPTY.get(tag)
        if vr is None and tag != RETRIEVE_AE_TITLE:
            whole = False
            continue
        vrs[tag] = vr or written
        if tag not in known and vr is not None:
            known.add(tag)
            fields.append(Field(tag, vr, nested if vr == "SQ" else None))
    if TIMEZONE_OFFSET not in known and level is not Level.PATIENT:
        fields.append(Field(TIMEZONE_OFFSET, "SH", optional=True))  # REQ-DCM-31, 45
    want = frozenset(field.tag for field in fields if field.tag in returnable)
    return _Form(tuple(fields), want, vrs, index.matchable(level), whole)


@lru_cache(maxsize=256)
def _encoder(form: _Form, encoding: Encoding, charsets: tuple[str, ...]) -> Encoder:
    return Encoder(form.fields, encoding, charsets=charsets)


def _level(request: FindRequest, identifier: Identifier) -> Level:
    levels = _ROOTS.get(request.sop_class_uid)
    if levels is None:
        raise Unsupported("only the Patient Root and Study Root models are answered")
    asked = identifier.elements.get(QUERY_RETRIEVE_LEVEL)
    level = None if asked is None else levels.get(asked.text)
    if level is None:
        raise InvalidQuery(f"Query/Retrieve Level must be one of {', '.join(levels)}", tag=QUERY_RETRIEVE_LEVEL)
    return level


def _check_hierarchy(levels: Iterable[Level], level: Level, identifier: Identifier, *, strict: bool) -> None:
    """The unique keys above the level are required (PS3.4 C.4.1.2.1), one value each.

    Unless strict, the Series Instance UID may be missing or `*`: a study's instances are asked so (REQ-DCM-36).
    """
    for above in levels:
        if above is level:
            return
        tag = _UNIQUE[above]
        asked = identifier.elements.get(tag)
        text = asked.text if asked is not None else ""
        if strict and ("\\" in text or "*" in text or "?" in text):
            raise InvalidQuery("a unique key above the level needs one value", tag=tag)
        if not text.strip("*") and (strict or above is not Level.SERIES):
            raise InvalidQuery("a unique key above the level is missing", tag=tag)


def _zone(request: FindRequest, identifier: Identifier) -> timezone | None:
    """The time zone that the request is asked in, where that was negotiated (REQ-DCM-34)."""
    asked = identifier.elements.get(TIMEZONE_OFFSET)
    if not request.timezone or asked is None or not asked.text.strip(" \0"):
        return None
    zone = zone_of(asked.text)
    if zone is None:
        raise InvalidQuery("Timezone Offset From UTC is written as +0200", tag=TIMEZONE_OFFSET)
    return zone


def key_of(request: FindRequest, asked: Asked, vr: str) -> Key:
    """A matching key of an element of the request; of a sequence its first item (PS3.4 C.2.2.2.6)."""
    if vr == "SQ":
        item = (asked.items or ((),))[:1]
        return Key(asked.tag, "SQ", items=tuple(key_of(request, inner, inner.vr) for inner in item[0]))
    empty = request.empty_values and asked.text.strip(" \0") == _NO_VALUE
    return Key(asked.tag, vr, asked.text, empty=empty)


def _parameters(request: FindRequest) -> dict[str, str]:
    """What was asked (PS3.15 A.5.3.10), as it came: nothing of the answers."""
    return {
        "sop_class": request.sop_class_uid,
        "transfer_syntax": request.transfer_syntax_uid,
        "query": b64encode(request.identifier).decode("ascii"),
    }
