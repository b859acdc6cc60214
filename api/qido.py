"""QIDO-RS: the six resources of PS3.18 10.6 (REQ-DCM-93), on the queries that C-FIND uses too."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api import accept, auth
from api.documents import documents
from api.wado import uid_of, wish_of
from archive.access import Action
from archive.audit.record import Outcome
from archive.dicom.attributes import BY_KEYWORD, BY_TAG, Level
from archive.dicom.dictionary import holds_several, public_vr, tag_of
from archive.dicom.json import CHARACTER_SET
from archive.errors import InvalidQuery, InvalidRequest, Rejected
from archive.index import query as index
from archive.index.alternates import ALTERNATE_REPRESENTATIONS
from archive.index.asked import audit_query
from archive.index.computed import COMPUTED, COMPUTED_BY_TAG
from archive.index.match import Key, each_value, is_asking
from archive.index.query import TIMEZONE_OFFSET, Query
from archive.index.rows import Row

EMPTY = '""'  # what a key says that asks for no value (PS3.4 C.2.2.2.7)
SHOWN = 20  # parameters that a warning names
COUNTED = 1000  # further results are counted up to here
_SWITCHES = ("fuzzymatching", "emptyvaluematching", "multiplevaluematching", "strict")
_STUDY_UID, _SERIES_UID, _SOP_UID = "0020000D", "0020000E", "00080018"
_PATH = {"study": 0x0020000D, "series": 0x0020000E}
_RETRIEVE_URL = 0x00081190
_MODALITIES = 0x00080061

# What each resource gives back whatever is asked (PS3.18 Tables 10.6.3-3 to 10.6.3-5): the second of each pair only
# when it is known.
_STUDY_ATTRIBUTES = (
    frozenset(
        {
            0x00080020, 0x00080030, 0x00080050, 0x00080056, 0x00080061, 0x00080090, 0x00081190, 0x00100010, 0x00100020,
            0x00100030, 0x00100040, 0x0020000D, 0x00200010, 0x00201206, 0x00201208,
        }
    ),
    frozenset({TIMEZONE_OFFSET, 0x00081030}),
)  # fmt: skip
_SERIES_ATTRIBUTES = (
    frozenset(
        {0x00080056, 0x00080060, 0x00081190, 0x0020000D, 0x0020000E, 0x00200011, 0x00201209, 0x00400244, 0x00400245}
    ),
    frozenset({TIMEZONE_OFFSET, 0x0008103E, 0x00400275}),
)
_INSTANCE_ATTRIBUTES = (
    frozenset({0x00080016, 0x00080018, 0x00080056, 0x00081190, 0x0020000D, 0x0020000E, 0x00200013}),
    frozenset({TIMEZONE_OFFSET, 0x00280010, 0x00280011, 0x00280100, 0x00280008}),
)
_LEVEL_ATTRIBUTES = {
    Level.STUDY: _STUDY_ATTRIBUTES,
    Level.SERIES: _SERIES_ATTRIBUTES,
    Level.IMAGE: _INSTANCE_ATTRIBUTES,
}
_UNTOLD = {f"{tag:08X}" for tag in COMPUTED_BY_TAG}  # given without a value only when they are asked for
_TAGS = {
    **{keyword: attribute.tag for keyword, attribute in BY_KEYWORD.items()},
    **{computed.keyword: computed.tag for computed in COMPUTED},
    "RetrieveURL": _RETRIEVE_URL,
}


@dataclass(slots=True)
class _Asked:
    """A request, read. `ignored` are parameters that are not known here."""

    keys: dict[int, Key] = field(default_factory=dict)
    included: set[int] = field(default_factory=set)
    everything: bool = False
    limit: int | None = None
    offset: int = 0
    strict: bool = False
    fuzzymatching: bool = False
    emptyvaluematching: bool = False
    multiplevaluematching: bool = False
    warnings: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def studies(request: Request) -> Response:
    """Search for studies."""
    return _search(request, Level.STUDY)


def series(request: Request) -> Response:
    """Search for series, in all studies or in one."""
    return _search(request, Level.SERIES)


def instances(request: Request) -> Response:
    """Search for instances: in all studies, in one, or in one series."""
    return _search(request, Level.IMAGE)


router = APIRouter()
for _path, _endpoint in (
    ("/studies", studies),
    ("/studies/{study}/series", series),
    ("/studies/{study}/instances", instances),
    ("/studies/{study}/series/{series}/instances", instances),
    ("/series", series),
    ("/instances", instances),
):
    router.add_route(_path, _endpoint, methods=["GET"])


def _search(request: Request, level: Level) -> Response:
    """Runs in a worker thread. 200, 204 for no match, 400, 401, 403, 406, 503."""
    actor = auth.demand_right(request, Action.FIND)
    form = wish_of(request).demand(accept.METADATA)
    archive = auth.archive_of(request)
    parameters = {
        "resource": request.url.path,
        "query": b64encode(request.url.query.encode()).decode("ascii"),
    }
    most = archive.settings.dicom.find_limit
    try:
        asked = _read(request, level)
        fields = _fields(request, level, asked)
        limit = min(asked.limit or most, most)
        query = Query(
            level,
            tuple(key for key in _keys(asked) if is_asking(key)),
            want=frozenset(tag for tag in fields if tag in index.returnable(level)),
            limit=limit + 1,
            offset=asked.offset,
            quality=Action.QUALITY in actor.may,
        )
    except Rejected:
        audit_query(archive.commit, actor, parameters=parameters, outcome=Outcome.MINOR_FAILURE)
        raise
    audit_query(archive.commit, actor, parameters=parameters)  # queued before the answer (law 4)
    service = f"{request.base_url}dicom-web"
    answer = _Answer(fields, level, service)
    with archive.reading() as conn:
        found = [answer.of(row) for row in index.find(conn, query)]
        if len(found) > limit:
            found.pop()
            asked.warnings.append(_more(index.count(conn, query, at_most=asked.offset + limit + COUNTED), asked, limit))
    if asked.ignored:
        asked.warnings.append(f"The following parameters are not supported and were ignored: {_names(asked.ignored)}")
    response = documents(found, form) if found else Response(status_code=204)
    for warning in asked.warnings:
        response.headers.append("Warning", f'299 {service}: "{warning}"')
    return response


def _more(total: int, asked: _Asked, limit: int) -> str:
    further = total - asked.offset - limit
    number = f"{further} or more" if further == COUNTED else str(further)
    return f"There are {number} additional results that can be requested"


# -- the request --------------------------------------------------------------------------------------------------


def _read(request: Request, level: Level) -> _Asked:
    """Raises InvalidRequest or InvalidQuery (400)."""
    asked = _Asked()
    given = request.query_params.multi_items()
    for name, value in given:  # how the others are read
        if name in _SWITCHES:
            setattr(asked, name, _truth(name, value))
    for name, value in given:
        if name == "includefield":
            _include(asked, value, level)
        elif name in ("limit", "offset"):
            setattr(asked, name, _count(name, value))
        elif name != "accept" and name not in _SWITCHES:
            _match(asked, name, value, level)
    if asked.limit == 0:
        raise InvalidRequest("limit must be 1 or more")
    for name, tag in _PATH.items():
        if name in request.path_params:
            uid = uid_of(request, name)
            if tag in asked.keys:
                raise InvalidQuery(f"the {name} is given in the address already", tag=tag)
            asked.keys[tag] = Key(tag, "UI", uid)
    if asked.strict and asked.ignored:
        raise InvalidRequest(f"not supported here: {_names(asked.ignored)}")
    return asked


def _include(asked: _Asked, value: str, level: Level) -> None:
    """Attributes by keyword or tag; one inside a sequence stands for the sequence, which is given back whole."""
    for name in value.split(","):
        if name.strip() == "all":
            asked.everything = True
            continue
        tag = _tag(name.strip().split(".")[0])
        if tag is not None and (tag in index.returnable(level) or tag == _RETRIEVE_URL):
            asked.included.add(tag)
        else:
            asked.ignored.append(f"includefield={_shown(name)}")


def _match(asked: _Asked, name: str, value: str, level: Level) -> None:
    parts = name.split(".")
    path = [tag for tag in map(_tag, parts) if tag is not None]
    vr = index.returnable(level).get(path[0], "") if path else ""
    if len(path) < len(parts) or path[0] not in index.matchable(level) or (vr == "SQ") != (len(path) > 1):
        asked.ignored.append(_shown(name))
        return
    first = path[0]
    asked.included.add(first)
    known = asked.keys.get(first)
    if len(path) == 1:
        if known is not None:
            raise InvalidQuery("an attribute is given twice", tag=first)
        asked.keys[first] = _key(asked, first, vr, value)
    else:
        asked.keys[first] = _within(asked, known or Key(first, "SQ"), path[1:], value)


def _keys(asked: _Asked) -> Iterable[Key]:
    """What has to be met, all of it; several values of an attribute each, where that was asked (PS3.4 C.2.2.2.8)."""
    for key in asked.keys.values():
        yield from each_value(key) if asked.multiplevaluematching else (key,)


def _key(asked: _Asked, tag: int, vr: str, value: str) -> Key:
    """What is asked of one attribute."""
    if asked.emptyvaluematching and value == EMPTY:
        return Key(tag, vr, value, empty=True)
    value = _listed(asked, tag, vr, value)
    if asked.fuzzymatching and vr == "PN":
        value = "\\".join(map(_fuzzy, value.split("\\")))
    return Key(tag, vr, value)


def _listed(asked: _Asked, tag: int, vr: str, value: str) -> str:
    """Where several values may be asked, they are joined by backslashes, as in C-FIND."""
    listed = vr == "UI" or tag == _MODALITIES or (asked.multiplevaluematching and holds_several(tag))
    return value.replace(",", "\\") if listed else value


def _fuzzy(name: str) -> str:
    """Names whose components begin so; where there is a wildcard already it says how."""
    if not name or set(name) & set("*?"):
        return name
    return "=".join("^".join(f"{part}*" for part in group.split("^")) for group in name.split("="))


def _within(asked: _Asked, sequence: Key, path: list[int], value: str) -> Key:
    """The sequence's key with one more key in its item."""
    tag, rest = path[0], path[1:]
    vr = _vr(tag)
    others = tuple(inner for inner in sequence.items if inner.tag != tag)
    known = next((inner for inner in sequence.items if inner.tag == tag), None)
    if (vr == "SQ") != bool(rest) or (known is not None and not rest):
        raise InvalidQuery("an attribute of a sequence is given twice, or is not of this form", tag=tag)
    if rest:
        inner = _within(asked, known or Key(tag, "SQ"), rest, value)
    else:
        inner = Key(tag, vr, _listed(asked, tag, vr, value))
    return sequence._replace(items=(*others, inner))


def _tag(name: str) -> int | None:
    """The attribute's tag, by its keyword or eight hexadecimal digits; None when the dictionary has no such one."""
    if name in _TAGS:
        return _TAGS[name]
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return int(name, 16)
    return tag_of(name)


def _vr(tag: int) -> str:
    known = BY_TAG.get(tag)
    if known is not None:
        return known.vr
    vr = public_vr(tag)
    if vr == "UN":
        raise InvalidQuery("no such attribute", tag=tag)
    return vr.split(" or ", maxsplit=1)[0]


def _count(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", value.strip()):
        raise InvalidRequest(f"{name} must be a number")
    return int(value)


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false")
    return value.lower() == "true"


def _names(ignored: list[str]) -> str:
    """The first of them: a header has bounds."""
    return ", ".join(ignored[:SHOWN]) + (f" and {len(ignored) - SHOWN} more" if len(ignored) > SHOWN else "")


def _shown(name: str) -> str:
    """A parameter's name, fit for a header."""
    return re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:64]


# -- the answer ---------------------------------------------------------------------------------------------------


def _fields(request: Request, level: Level, asked: _Asked) -> dict[int, bool]:
    """The attributes of each result; True: only where it is known.

    Attributes of the levels above come along as far as the address does not name them (PS3.18 10.6.3.3), their
    counts only when they are asked for: they would be the same in each result.
    """
    fields: dict[int, bool] = {}
    if asked.everything:
        levels = {level, Level.PATIENT} if level is Level.STUDY else {level}
        own = [attribute.tag for attribute in BY_TAG.values() if attribute.level in levels]
        own += [computed.tag for computed in COMPUTED if computed.level in levels]
        fields |= dict.fromkeys(own, True)
    above = {Level.SERIES: ("study",), Level.IMAGE: ("study", "series")}.get(level, ())
    for name in above:
        if name not in request.path_params:
            required, known = _STUDY_ATTRIBUTES if name == "study" else _SERIES_ATTRIBUTES
            stored = {tag for tag in required if tag in BY_TAG}
            fields |= dict.fromkeys(known, True) | dict.fromkeys(stored, False)
    required, known = _LEVEL_ATTRIBUTES[level]
    if level is Level.IMAGE and 0x00080018 in asked.keys:  # an original that was replaced may be meant (REQ-DCM-83)
        known |= {ALTERNATE_REPRESENTATIONS}
    return fields | dict.fromkeys(known, True) | dict.fromkeys(asked.included, False) | dict.fromkeys(required, False)


class _Answer:
    """Rows of the index as results: the fields in ascending order, and where to retrieve each."""

    def __init__(self, fields: Mapping[int, bool], level: Level, service: str) -> None:
        vrs: Mapping[int, str] = {**index.returnable(level), _RETRIEVE_URL: "UR"}
        self._fields = [(f"{tag:08X}", {"vr": vrs[tag]}, fields[tag]) for tag in sorted(fields)]
        self._level = level
        self._service = service

    def of(self, row: Row) -> Row:
        """One result."""
        row["00081190"] = {"vr": "UR", "Value": [self._address(row)]}
        result: Row = dict(CHARACTER_SET)
        for key, empty, optional in self._fields:
            element = row.get(key)
            if element is not None and not (optional and key in _UNTOLD and "Value" not in element):
                result[key] = element
            elif not optional:
                result[key] = empty
        return result

    def _address(self, row: Row) -> str:
        address = f"{self._service}/studies/{_first(row, _STUDY_UID)}"
        if self._level is not Level.STUDY:
            address += f"/series/{_first(row, _SERIES_UID)}"
        if self._level is Level.IMAGE:
            address += f"/instances/{_first(row, _SOP_UID)}"
        return address


def _first(row: Row, key: str) -> str:
    values: Iterable[Any] = row[key]["Value"]
    return str(next(iter(values)))
