"""Finding patients, studies, series and instances: one for C-FIND and QIDO-RS (PS3.4 C.2.2.2, PS3.18 10.6).

A `Query` becomes one statement whose text depends on its shape alone; its rows are streamed. What has no column is
matched on the rows (`archive.index.match`), in pages, with paging and limit applied after. Cost follows the number of
matches, not the size of the index: a selective key leads, and where there is none, rows are walked in the order of an
index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timezone
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

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
from archive.index.rows import PAGE, Above, Reader, Row, by_key, pages
from archive.index.statements import DEPTH, Form, counting, keyed

Interval = tuple[int, int, Between, Between]  # tags of a date and a time, what is asked of them as one

TIMEZONE_OFFSET = zones.OFFSET
_ON_STUDY = {
    MODALITIES_IN_STUDY: ("modality", "series.modality"),
    SOP_CLASSES_IN_STUDY: ("sop_class", "instance.sop_class_uid"),
}
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_DATE_AND_TIME = ((0x00080020, 0x00080030), (0x00400244, 0x00400245))  # study, performed procedure step


class Query(NamedTuple):
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


class _Shaped(NamedTuple):
    """What queries of one shape have in common, whatever values they ask for. Each shape has one: see `_shaped`."""

    form: Form
    above: Mapping[Level, tuple[int, ...]]  # computed attributes of the levels above


class _Plan(NamedTuple):
    shaped: _Shaped
    values: dict[str, Any]  # of the statement's parameters
    residual: list[Key]  # matched on the rows
    intervals: list[Interval]  # likewise
    zone: timezone | None  # in which the rows are matched

    @property
    def by_rows(self) -> bool:
        """Whether something is matched on the rows."""
        return bool(self.residual or self.intervals)

    def meets(self, row: Row) -> bool:
        if self.zone is not None:
            row = zones.turned(row, self.zone)
        return row_meets(self.residual, row) and all(zones.within(row, *one) for one in self.intervals)


class Search:
    """A query, ready to be run any number of times on any connection. Immutable.

    Raises:
        InvalidQuery: a key cannot be matched, or its value is none of its VR.
    """

    def __init__(self, query: Query) -> None:
        self._query = query
        self._plan = _planned(query, None)
        asked = {key.tag: criterion(key) for key in query.keys if key.tag in (_PATIENT_ID, _ISSUER)}
        self._identifier, self._issuer = asked.get(_PATIENT_ID), asked.get(_ISSUER)

    def rows(self, conn: Connection) -> Iterator[Row]:
        """The matches: see `find`."""
        query = self._query
        try:
            plan = self._on(conn)
        except SQLAlchemyError as error:
            raise IndexUnavailable("the index cannot be read") from error
        rows = _translated(_filtered(conn, plan, query)) if plan.by_rows else _direct(conn, plan.shaped, plan.values)
        return rows if query.zone is None else (zones.turned(row, query.zone) for row in rows)

    def count(self, conn: Connection, *, at_most: int) -> int:
        """How many rows match: see `count`."""
        try:
            plan = self._on(conn)
            if plan.by_rows:
                return sum(1 for _ in islice(_translated(_candidates(conn, plan, self._query)), at_most))
            ((total,),) = counting(plan.shaped.form).all(conn, plan.values)
        except SQLAlchemyError as error:
            raise IndexUnavailable("the index cannot be read") from error
        return int(total)

    def _on(self, conn: Connection) -> _Plan:
        """An identifier that was merged away stands for whoever survived, and so does its issuer."""
        issuer = self._issuer
        if not isinstance(self._identifier, Exact):
            return self._plan
        pks = survivors(
            conn, self._identifier.values, issued=lambda written: issuer is None or accepts(issuer, "LO", [written])
        )
        return self._plan if pks is None else _planned(self._query, pks)


def find(conn: Connection, query: Query) -> Iterator[Row]:
    """The matches, as DICOM JSON, in a stable order: studies from the newest on, the rest as they are numbered.

    A row holds what the levels of `query.want` keep, at least what was wanted of it; an attribute that the entity
    lacks is absent. Read within the transaction of `conn`, page by page.

    Raises:
        InvalidQuery: a key cannot be matched, or its value is none of its VR.
        IndexUnavailable: the database failed.
    """
    return Search(query).rows(conn)


def count(conn: Connection, query: Query, *, at_most: int) -> int:
    """How many rows match, without regard to `limit` and `offset`; counting ends at `at_most`."""
    return Search(query._replace(want=frozenset(), limit=at_most, offset=0)).count(conn, at_most=at_most)


def _translated(rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error


def _planned(query: Query, patients: list[int] | None) -> _Plan:
    """The plan of a query; with `patients`, these (keys) are meant by its Patient ID and issuer."""
    parameters = Parameters()
    residual: list[Key] = []
    wanted = {key.tag: _checked(query.level, key) for key in query.keys}
    where: list[Shape] = []
    if patients is not None:
        where.append(("in", "patient.pk", parameters.add(patients)))
        del wanted[_PATIENT_ID]
        wanted.pop(_ISSUER, None)
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
    paged = query.limit is not None or query.offset > 0
    shaped = _shaped(query.level, query.want, (tuple(where), parameters.short()), paged, query.quality)
    values = parameters.values
    if paged:
        values["limit"] = _ALL if query.limit is None else query.limit
        values["offset"] = query.offset
    return _Plan(shaped, values, residual, intervals, query.zone)


_ALL = 2**62


@lru_cache(maxsize=512)
def _shaped(
    level: Level, want: frozenset[int], asked: tuple[tuple[Shape, ...], frozenset[str]], paged: bool, quality: bool
) -> _Shaped:
    where, short = asked
    shapes, selective = lead(where, level, short)
    loads, own, above = _sources(level, want)
    parents = _sorted(set(above))
    form = Form(level, shapes, loads, parents, own, selective=selective, paged=paged, quality=quality)
    return _Shaped(form, above)


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


def _direct(conn: Connection, shaped: _Shaped, values: dict[str, Any]) -> Iterator[Row]:
    read = Reader(shaped.form).read
    above = Above(conn, shaped.form, shaped.above) if shaped.above else None
    try:
        for page in pages(conn, shaped.form, values):
            if above is None:
                for found in page:
                    yield read(found)
                continue
            rows = [(found, read(found)) for found in page]
            above.add(rows)
            for _, row in rows:
                yield row
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error


def _candidates(conn: Connection, plan: _Plan, query: Query) -> Iterator[int]:
    """The keys of the rows that meet all, in order."""
    loaded = {_level(key.tag) for key in plan.residual} | {_level(one[0]) for one in plan.intervals}
    if query.zone is not None:
        loaded.add(Level.STUDY)  # its zone
    form = plan.shaped.form._replace(loads=_sorted(loaded), parents=(), computed=(), paged=False)
    read = Reader(form).read
    for page in pages(conn, form, plan.values):
        for values in page:
            if plan.meets(read(values)):
                yield values[0]


def _filtered(conn: Connection, plan: _Plan, query: Query) -> Iterator[Row]:
    stop = None if query.limit is None else query.offset + query.limit
    keys = islice(_candidates(conn, plan, query), query.offset, stop)
    wanted = plan.shaped.form
    form = keyed(
        query.level, loads=wanted.loads, parents=wanted.parents, computed=wanted.computed, quality=query.quality
    )
    above = Above(conn, plan.shaped.form, plan.shaped.above)
    while some := list(islice(keys, PAGE)):
        found = by_key(conn, form, some)
        page = [found[key] for key in some if key in found]
        above.add(page)
        yield from (row for _, row in page)
