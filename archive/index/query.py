"""Finding patients, studies, series and instances: one for C-FIND and QIDO-RS (PS3.4 C.2.2.2, PS3.18 10.6).

A `Query` becomes one statement whose text depends on its shape alone; its rows are streamed. What has no column is
matched on the rows (`archive.index.match`), in pages, with paging and limit applied after. Cost follows the number of
matches, not the size of the index: a selective key leads, and where there is none, rows are walked in the order of an
index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timezone
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from archive.dicom.attributes import ATTRIBUTES, BY_TAG, Level
from archive.errors import IndexUnavailable, InvalidQuery
from archive.index import zones
from archive.index.aliases import survivors
from archive.index.computed import COMPUTED, COMPUTED_BY_TAG, MODALITIES_IN_STUDY, SOP_CLASSES_IN_STUDY
from archive.index.conditions import (
    TABLES,
    Parameters,
    Shape,
    column_of,
    combined,
    condition,
    hints,
    lead,
    text_condition,
)
from archive.index.match import Between, Criterion, Exact, Key, Wild, accepts, criterion, is_asking, row_meets
from archive.index.statements import DEPTH, Form, counting, keyed, prepared

Row = dict[str, Any]  # DICOM JSON: eight hexadecimal digits to {"vr": …, "Value": […]}

Interval = tuple[int, int, Between, Between]  # tags of a date and a time, what is asked of them as one

TIMEZONE_OFFSET = zones.OFFSET
PAGE = 200  # rows fetched at a time
_ON_STUDY = {
    MODALITIES_IN_STUDY: ("modality", "series.modality"),
    SOP_CLASSES_IN_STUDY: ("sop_class", "instance.sop_class_uid"),
}
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_DATE_AND_TIME = ((0x00080020, 0x00080030), (0x00400244, 0x00400245))  # study, performed procedure step


@dataclass(frozen=True, slots=True)
class Query:
    """What to find at `level`.

    `want` names the attributes to be given back, by tag; those of the levels above may be among them. `keys` must all
    match (AND). `limit` None is all.
    """

    level: Level
    keys: tuple[Key, ...] = ()
    want: frozenset[int] = frozenset()
    combined_datetime: bool = False  # REQ-DCM-35: date and time ranges are one interval
    zone: timezone | None = None  # in which dates and times are asked and given (archive.index.zones); None: as kept
    limit: int | None = None
    offset: int = 0
    quality: bool = False  # what was rejected for quality reasons too; counts leave it out (REQ-DCM-42)


@lru_cache(maxsize=8)
def returnable(level: Level) -> Mapping[int, str]:
    """The attributes that can be asked back at a level, and their VR: its own, and those of the levels above."""
    own = {found.tag: found.vr for found in ATTRIBUTES if DEPTH[found.level] <= DEPTH[level]}
    computed = {found.tag: found.vr for found in COMPUTED if found.level is None or DEPTH[found.level] <= DEPTH[level]}
    return own | computed


@lru_cache(maxsize=8)
def matchable(level: Level) -> frozenset[int]:
    """The attributes that can be matched at a level."""
    own = {found.tag for found in ATTRIBUTES if DEPTH[found.level] <= DEPTH[level]} - {TIMEZONE_OFFSET}
    return frozenset(own | set(_ON_STUDY) if level is not Level.PATIENT else own)


def is_multivalued(tag: int) -> bool:
    """Whether several keys for this attribute are met each by another of its values."""
    attribute = BY_TAG.get(tag)
    return tag in _ON_STUDY or (attribute is not None and attribute.column is None and attribute.vr != "SQ")


@dataclass(slots=True)
class _Plan:
    form: Form
    parameters: Parameters
    residual: tuple[Key, ...]  # matched on the rows
    residual_loads: tuple[Level, ...]
    above: Mapping[Level, tuple[int, ...]]  # computed attributes of the levels above
    zone: timezone | None = None  # in which the rows are matched
    intervals: tuple[Interval, ...] = ()

    @property
    def by_rows(self) -> bool:
        """Whether something is matched on the rows."""
        return bool(self.residual or self.intervals)

    def meets(self, row: Row) -> bool:
        if self.zone is not None:
            row = zones.turned(row, self.zone)
        return row_meets(self.residual, row) and all(zones.within(row, *one) for one in self.intervals)


def find(conn: Connection, query: Query) -> Iterator[Row]:
    """The matches, as DICOM JSON, in a stable order: studies from the newest on, the rest as they are numbered.

    A row holds what the levels of `query.want` keep, at least what was wanted of it; an attribute that the entity
    lacks is absent. Read within the transaction of `conn`, page by page.

    Raises:
        InvalidQuery: a key cannot be matched, or its value is none of its VR.
        IndexUnavailable: the database failed.
    """
    try:
        plan = _plan(conn, query)
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error
    rows = _translated(_filtered(conn, plan, query) if plan.by_rows else _direct(conn, plan, query))
    return rows if query.zone is None else (zones.turned(row, query.zone) for row in rows)


def count(conn: Connection, query: Query, *, at_most: int) -> int:
    """How many rows match, without regard to `limit` and `offset`; counting ends at `at_most`."""
    try:
        plan = _plan(conn, replace(query, want=frozenset(), limit=at_most, offset=0))
        if plan.by_rows:
            return sum(1 for _ in islice(_translated(_candidates(conn, plan)), at_most))
        ((total,),) = counting(plan.form).all(conn, plan.parameters.values | {"limit": at_most, "offset": 0})
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error
    return int(total)


def _translated(rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error


def _plan(conn: Connection, query: Query) -> _Plan:
    parameters = Parameters()
    where: list[Shape] = []
    residual: list[Key] = []
    wanted = {key.tag: _checked(query.level, key) for key in query.keys}
    where += _survivors(conn, wanted, parameters)
    intervals: list[Interval] = []
    if query.zone is not None:
        where += _zoned(query, wanted, parameters, residual, intervals)
    elif query.combined_datetime:
        where += _intervals(wanted, parameters)
    for key in query.keys:
        if key.tag not in wanted:
            continue
        attribute = BY_TAG.get(key.tag)
        if key.tag in _ON_STUDY:
            where += _on_study(key, parameters)
        elif attribute is None or attribute.column is None:
            if is_asking(key):
                residual.append(key)
                where += hints(key, TABLES[_level(key.tag)].name, parameters)
        else:
            asked = wanted[key.tag]
            if asked is not None:
                shape, exact = condition(attribute, asked, parameters)
                where += [shape] if shape else []
                residual += [] if exact else [key]
    loads, own, above = _sources(query.level, query.want)
    shapes, selective = lead(where, query.level, parameters)
    form = Form(
        level=query.level,
        where=shapes,
        loads=loads,
        parents=_sorted(set(above)),
        computed=own,
        selective=selective,
        paged=query.limit is not None or query.offset > 0,
        quality=query.quality,
    )
    loaded = {_level(key.tag) for key in residual} | {_level(one[0]) for one in intervals}
    if query.zone is not None and loaded:
        loaded.add(Level.STUDY)  # its zone
    return _Plan(form, parameters, tuple(residual), _sorted(loaded), above, query.zone, tuple(intervals))


@lru_cache(maxsize=256)
def _sources(
    level: Level, want: frozenset[int]
) -> tuple[tuple[Level, ...], tuple[int, ...], Mapping[Level, tuple[int, ...]]]:
    """Where what is wanted comes from: the levels whose attributes are read; the computed attributes of the query's
    level, and those of the levels above."""
    loads = {_level(tag) for tag in want if tag in BY_TAG}
    if loads and level is not Level.PATIENT:
        loads.add(Level.STUDY)  # its time zone goes with every date and time (REQ-DCM-45)
    computed: dict[Level, tuple[int, ...]] = {}
    for tag in sorted(want):
        if tag in COMPUTED_BY_TAG:
            of = COMPUTED_BY_TAG[tag].level or level
            computed[of] = (*computed.get(of, ()), tag)
    return _sorted(loads), computed.pop(level, ()), computed


def _checked(level: Level, key: Key) -> Criterion | None:
    if key.tag not in matchable(level):
        raise InvalidQuery(f"({key.tag >> 16:04X},{key.tag & 0xFFFF:04X}) is no matching key here", tag=key.tag)
    return None if key.vr == "SQ" else criterion(key)


def _survivors(conn: Connection, wanted: dict[int, Criterion | None], parameters: Parameters) -> Iterator[Shape]:
    """An identifier that was merged away stands for whoever survived: takes it, and its issuer, out of `wanted`."""
    identifier, issuer = wanted.get(_PATIENT_ID), wanted.get(_ISSUER)
    if not isinstance(identifier, Exact):
        return
    pks = survivors(conn, identifier.values, issued=lambda written: issuer is None or accepts(issuer, "LO", [written]))
    if pks is not None:
        yield ("in", "patient.pk", parameters.add(pks))
        del wanted[_PATIENT_ID]
        wanted.pop(_ISSUER, None)


def _zoned(
    query: Query,
    wanted: dict[int, Criterion | None],
    parameters: Parameters,
    residual: list[Key],
    intervals: list[Interval],
) -> Iterator[Shape]:
    """Takes dates and times out of `wanted`: the days around them are selected, the rest is matched on the rows."""
    for date, time in zones.PAIRS:
        days, times = wanted.get(date), wanted.get(time)
        if query.combined_datetime and isinstance(days, Between) and isinstance(times, Between):
            intervals.append((date, time, days, times))
        else:
            residual += [key for key in query.keys if key.tag in (date, time) and wanted.get(key.tag) is not None]
        if isinstance(days, Between) and BY_TAG[date].column is not None:
            around = zones.widened(days)
            if around.low or around.high:
                yield text_condition(column_of(BY_TAG[date]), around, parameters)
        for tag in (date, time):
            wanted.pop(tag, None)


def _intervals(wanted: dict[int, Criterion | None], parameters: Parameters) -> Iterator[Shape]:
    """Takes the pairs of date and time out of `wanted`."""
    for date, time in _DATE_AND_TIME:
        days, times = wanted.get(date), wanted.get(time)
        if isinstance(days, Between) and isinstance(times, Between):
            yield combined(BY_TAG[date], days, BY_TAG[time], times, parameters)
            del wanted[date], wanted[time]


def _on_study(key: Key, parameters: Parameters) -> Iterator[Shape]:
    """ModalitiesInStudy and SOPClassesInStudy match when any of the study's does, for any value (REQ-DCM-44)."""
    operator, column = _ON_STUDY[key.tag]
    values = [value.strip(" \0") for value in key.value.split("\\")]
    values = [value for value in values if value]
    if not values or any(not value.strip("*") for value in values):
        return
    exact = tuple(value for value in values if not set(value) & {"*", "?"})
    shapes = [text_condition(column, Exact(exact), parameters)] if exact else []
    shapes += [text_condition(column, Wild(value), parameters) for value in values if value not in exact]
    yield (operator, ("or", *shapes))


def _level(tag: int) -> Level:
    return BY_TAG[tag].level


def _sorted(levels: set[Level]) -> tuple[Level, ...]:
    return tuple(sorted(levels, key=DEPTH.__getitem__))


class _Reader:
    """Rows of a statement as DICOM JSON. The text of a parent is parsed once while its children follow each other."""

    def __init__(self, form: Form) -> None:
        self._first = 1 + len(form.parents)
        self._computed = [(one.key, one.vr, one.value) for one in (COMPUTED_BY_TAG[tag] for tag in form.computed)]
        self._last: list[tuple[str, Row]] = [("", {})] * len(form.loads)

    def read(self, values: Any) -> Row:
        row: Row = {}
        for position in range(len(self._last)):
            text = values[self._first + position]
            if text != self._last[position][0]:
                self._last[position] = (text, orjson.loads(text))
            row.update(self._last[position][1])
        for position, (key, vr, value_of) in enumerate(self._computed, self._first + len(self._last)):
            value = value_of(values[position])
            row[key] = {"vr": vr, "Value": value} if value else {"vr": vr}
        return row


class _Above:
    """Computed attributes of the parents of rows: one statement for a page, and each parent once in a row of pages."""

    def __init__(self, conn: Connection, plan: _Plan) -> None:
        self._conn = conn
        self._levels = [(position, level, plan.above[level]) for position, level in enumerate(plan.form.parents, 1)]
        self._known: dict[Level, dict[int, Row]] = {level: {} for level in plan.above}
        self._quality = plan.form.quality

    def add(self, page: list[tuple[Any, Row]]) -> None:
        """Complete the rows of a page, given with the values that they were read from."""
        for position, level, tags in self._levels:
            wanted = {values[position] for values, _ in page}
            known = {key: row for key, row in self._known[level].items() if key in wanted}
            missing = wanted - known.keys()
            if missing:
                found = _by_key(self._conn, keyed(level, computed=tags, quality=self._quality), sorted(missing))
                known |= {key: row for key, (_, row) in found.items()}
            self._known[level] = known
            for values, row in page:
                row.update(known.get(values[position], {}))


def _by_key(conn: Connection, form: Form, keys: list[int]) -> dict[int, tuple[Any, Row]]:
    reader = _Reader(form)
    return {values[0]: (values, reader.read(values)) for values in _execute(conn, form, {"keys": keys})}


def _direct(conn: Connection, plan: _Plan, query: Query) -> Iterator[Row]:
    reader, above = _Reader(plan.form), _Above(conn, plan)
    rows = _execute(conn, plan.form, plan.parameters.values | _paging(plan.form, query))
    while page := [(values, reader.read(values)) for values in islice(rows, PAGE)]:
        above.add(page)
        yield from (row for _, row in page)


def _paging(form: Form, query: Query) -> dict[str, int]:
    if not form.paged:
        return {}
    return {"limit": _ALL if query.limit is None else query.limit, "offset": query.offset}


_ALL = 2**62


def _execute(conn: Connection, form: Form, parameters: dict[str, Any]) -> Iterator[Any]:
    """A server-side cursor where many rows may come; a selective key brings few."""
    for rows in prepared(form).pages(conn, parameters, size=PAGE, streamed=not form.selective):
        yield from rows


def _candidates(conn: Connection, plan: _Plan) -> Iterator[int]:
    """The keys of the rows that meet all, in order."""
    form = replace(plan.form, loads=plan.residual_loads, parents=(), computed=(), paged=False)
    reader = _Reader(form)
    for values in _execute(conn, form, plan.parameters.values):
        if plan.meets(reader.read(values)):
            yield values[0]


def _filtered(conn: Connection, plan: _Plan, query: Query) -> Iterator[Row]:
    stop = None if query.limit is None else query.offset + query.limit
    keys = islice(_candidates(conn, plan), query.offset, stop)
    form = keyed(
        query.level,
        loads=plan.form.loads,
        parents=plan.form.parents,
        computed=plan.form.computed,
        quality=query.quality,
    )
    above = _Above(conn, plan)
    while wanted := list(islice(keys, PAGE)):
        found = _by_key(conn, form, wanted)
        page = [found[key] for key in wanted if key in found]
        above.add(page)
        yield from (row for _, row in page)
