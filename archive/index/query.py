"""Finding patients, studies, series and instances: one for C-FIND and QIDO-RS (PS3.4 C.2.2.2, PS3.18 10.6).

A `Query` becomes one statement whose text depends on its shape alone; its rows are streamed. What has no column is
matched on the rows (`archive.index.match`), in pages, with paging and limit applied after. Cost follows the number of
matches, not the size of the index: a selective key leads, and where there is none, rows are walked in the order of an
index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, FromClause, Select, String, bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError

from archive.dicom.attributes import ATTRIBUTES, BY_TAG, Level
from archive.errors import IndexUnavailable, InvalidQuery
from archive.index.computed import COMPUTED, COMPUTED_BY_TAG, MODALITIES_IN_STUDY, SOP_CLASSES_IN_STUDY
from archive.index.conditions import (
    TABLES,
    Parameters,
    Shape,
    build,
    columns,
    combined,
    condition,
    constant,
    hints,
    lead,
    text_condition,
    visible,
)
from archive.index.match import Between, Criterion, Exact, Key, Wild, criterion, is_asking, row_meets
from archive.schema import instance, patient, series, study

Row = dict[str, Any]  # DICOM JSON: eight hexadecimal digits to {"vr": …, "Value": […]}

TIMEZONE_OFFSET = 0x00080201
PAGE = 200  # rows fetched at a time
_LEVELS = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE)
_DEPTH = {level: depth for depth, level in enumerate(_LEVELS)}
_ON_STUDY = {
    MODALITIES_IN_STUDY: ("modality", "series.modality"),
    SOP_CLASSES_IN_STUDY: ("sop_class", "instance.sop_class_uid"),
}
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
    limit: int | None = None
    offset: int = 0


@lru_cache(maxsize=8)
def returnable(level: Level) -> Mapping[int, str]:
    """The attributes that can be asked back at a level, and their VR: its own, and those of the levels above."""
    own = {found.tag: found.vr for found in ATTRIBUTES if _DEPTH[found.level] <= _DEPTH[level]}
    computed = {
        found.tag: found.vr for found in COMPUTED if found.level is None or _DEPTH[found.level] <= _DEPTH[level]
    }
    return own | computed


@lru_cache(maxsize=8)
def matchable(level: Level) -> frozenset[int]:
    """The attributes that can be matched at a level."""
    own = {found.tag for found in ATTRIBUTES if _DEPTH[found.level] <= _DEPTH[level]} - {TIMEZONE_OFFSET}
    return frozenset(own | set(_ON_STUDY) if level is not Level.PATIENT else own)


@dataclass(frozen=True, slots=True)
class _Form:
    """The shape of a statement: all that its text depends on."""

    level: Level
    where: tuple[Shape, ...]
    loads: tuple[Level, ...]  # levels whose attributes are read, from the root down
    computed: tuple[int, ...]
    selective: bool
    paged: bool


@dataclass(slots=True)
class _Plan:
    form: _Form
    parameters: Parameters
    residual: tuple[Key, ...] = ()  # matched on the rows
    residual_loads: tuple[Level, ...] = field(default=())


def find(conn: Connection, query: Query) -> Iterator[Row]:
    """The matches, as DICOM JSON, in a stable order: studies from the newest on, the rest as they are numbered.

    A row holds what the levels of `query.want` keep, at least what was wanted of it; an attribute that the entity
    lacks is absent. Read within the transaction of `conn`, page by page.

    Raises:
        InvalidQuery: a key cannot be matched, or its value is none of its VR.
        IndexUnavailable: the database failed.
    """
    plan = _plan(query)
    rows = _direct(conn, plan, query) if not plan.residual else _filtered(conn, plan, query)
    return _translated(rows)


def count(conn: Connection, query: Query, *, at_most: int) -> int:
    """How many rows match, without regard to `limit` and `offset`; counting ends at `at_most`."""
    plan = _plan(replace(query, want=frozenset(), limit=at_most, offset=0))
    if plan.residual:
        return sum(1 for _ in islice(_translated(_candidates(conn, plan)), at_most))
    try:
        total = conn.execute(_counting(plan.form), plan.parameters.values | {"limit": at_most, "offset": 0}).scalar()
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error
    return int(total or 0)


def _translated(rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error


def _plan(query: Query) -> _Plan:
    parameters = Parameters()
    where: list[Shape] = []
    residual: list[Key] = []
    wanted = {key.tag: _checked(query.level, key) for key in query.keys}
    if query.combined_datetime:
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
    loads = {_level(tag) for tag in query.want if tag in BY_TAG}
    if loads and query.level is not Level.PATIENT:
        loads.add(Level.STUDY)  # its time zone goes with every date and time (REQ-DCM-45)
    shapes, selective = lead(where, query.level, parameters)
    form = _Form(
        level=query.level,
        where=shapes,
        loads=_sorted(loads),
        computed=tuple(sorted(tag for tag in query.want if tag in COMPUTED_BY_TAG)),
        selective=selective,
        paged=query.limit is not None or query.offset > 0,
    )
    return _Plan(form, parameters, tuple(residual), _sorted({_level(key.tag) for key in residual}))


def _checked(level: Level, key: Key) -> Criterion | None:
    if key.tag not in matchable(level):
        raise InvalidQuery(f"({key.tag >> 16:04X},{key.tag & 0xFFFF:04X}) is no matching key here", tag=key.tag)
    return None if key.vr == "SQ" else criterion(key)


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
    return tuple(sorted(levels, key=_DEPTH.__getitem__))


# -- statements ---------------------------------------------------------------------------------------------------


def _tables(form: _Form) -> FromClause:
    """The level's table, and those above as far as something is asked of them."""
    needed = {*form.loads, *(COMPUTED_BY_TAG[tag].level or form.level for tag in form.computed), form.level}
    asked = {column.partition(".")[0] for shape in form.where for column in columns(shape)}
    needed |= {level for level, table in TABLES.items() if table.name in asked}
    if form.level is Level.IMAGE:
        needed.add(Level.SERIES)  # its number is in the order
    top = min(_DEPTH[level] for level in needed if _DEPTH[level] <= _DEPTH[form.level])
    joined: FromClause = TABLES[form.level]
    for level in reversed(_LEVELS[top : _DEPTH[form.level]]):
        joined = joined.join(TABLES[level], _TIES[level])
    return joined


_TIES: dict[Level, ColumnElement[bool]] = {
    Level.PATIENT: study.c.patient_pk == patient.c.pk,
    Level.STUDY: series.c.study_pk == study.c.pk,
    Level.SERIES: instance.c.series_pk == series.c.pk,
}
_PARENT_KEYS = {Level.PATIENT: study.c.patient_pk, Level.STUDY: series.c.study_pk, Level.SERIES: instance.c.series_pk}


def _order(form: _Form) -> list[ColumnElement[Any]]:
    """The order of an index, so that a page without selective keys is read off it. With one, the same order as
    expressions: no index serves these, and the planner starts from the key."""
    if form.level is Level.PATIENT:
        order: list[tuple[ColumnElement[Any], bool]] = [(patient.c.patient_name, False), (patient.c.pk, False)]
    elif form.level is Level.STUDY:
        order = [(study.c.study_date, True), (study.c.study_time, True), (study.c.pk, True)]
    else:
        order = [(series.c.study_pk, False), (series.c.series_number, False), (series.c.pk, False)]
        if form.level is Level.IMAGE:
            order += [(instance.c.instance_number, False), (instance.c.pk, False)]
    if form.selective:
        order = [(_as_expression(column), descending) for column, descending in order]
    return [column.desc() if descending else column.asc() for column, descending in order]


def _as_expression(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return column.concat(constant("")) if isinstance(column.type, String) else column + constant(0)


@lru_cache(maxsize=512)
def _statement(form: _Form) -> Select[Any]:
    """Columns: the key, the attributes of `form.loads`, the values of `form.computed`."""
    own = TABLES[form.level]
    inner = (
        select(own.c.pk)
        .select_from(_tables(form))
        .where(visible(form.level), *(build(shape) for shape in form.where))
        .order_by(*_order(form))
    )
    if form.paged:
        inner = inner.limit(bindparam("limit")).offset(bindparam("offset"))
    if not form.selective:  # read off the index row by row: take the attributes along
        inner = inner.add_columns(*(TABLES[level].c.attributes.label(f"{level.name}_text") for level in form.loads))
        if not form.computed:
            return inner
    keys = _keys(form)
    page = inner.add_columns(*(column.label(f"{level.name}_pk") for level, column in keys.items())).subquery("page")

    def pk(level: Level) -> ColumnElement[Any]:
        return page.c[f"{level.name}_pk"] if level in keys else page.c.pk

    texts: list[Any] = []
    for level in form.loads:
        if form.selective:  # only of those that remain, not of all that are sorted
            table = TABLES[level].alias()
            texts.append(select(table.c.attributes).where(table.c.pk == pk(level)).scalar_subquery())
        else:
            texts.append(page.c[f"{level.name}_text"])
    values = []
    for tag in form.computed:
        computed = COMPUTED_BY_TAG[tag]
        level = computed.level or form.level
        values.append(computed.select(level, pk(level)))
    return select(page.c.pk, *texts, *values)


def _keys(form: _Form) -> dict[Level, ColumnElement[Any]]:
    """The keys of the levels above, as far as they are needed."""
    needed = {*form.loads, *(COMPUTED_BY_TAG[tag].level or form.level for tag in form.computed)} - {form.level}
    return {level: _PARENT_KEYS[level] for level in _sorted(needed)}


@lru_cache(maxsize=128)
def _counting(form: _Form) -> Select[Any]:
    own = TABLES[form.level]
    inner = select(own.c.pk).select_from(_tables(form)).where(visible(form.level), *(build(one) for one in form.where))
    return select(func.count()).select_from(inner.limit(bindparam("limit")).offset(bindparam("offset")).subquery())


# -- rows ---------------------------------------------------------------------------------------------------------


class _Reader:
    """Rows of a statement as DICOM JSON. The text of a parent is parsed once while its children follow each other."""

    def __init__(self, form: _Form) -> None:
        self._loads = len(form.loads)
        self._computed = [COMPUTED_BY_TAG[tag] for tag in form.computed]
        self._last: list[tuple[str, Row]] = [("", {})] * self._loads

    def read(self, values: Any) -> Row:
        row: Row = {}
        for position in range(self._loads):
            text = values[position + 1]
            known, parsed = self._last[position]
            if text != known:
                parsed = orjson.loads(text)
                self._last[position] = (text, parsed)
            row.update(parsed)
        for position, computed in enumerate(self._computed, self._loads + 1):
            value = computed.value(values[position])
            row[computed.key] = {"vr": computed.vr, "Value": value} if value else {"vr": computed.vr}
        return row


def _direct(conn: Connection, plan: _Plan, query: Query) -> Iterator[Row]:
    reader = _Reader(plan.form)
    for values in _execute(conn, plan.form, plan.parameters.values | _paging(plan.form, query)):
        yield reader.read(values)


def _paging(form: _Form, query: Query) -> dict[str, int]:
    if not form.paged:
        return {}
    return {"limit": _ALL if query.limit is None else query.limit, "offset": query.offset}


_ALL = 2**62


def _execute(conn: Connection, form: _Form, parameters: dict[str, Any]) -> Iterator[Any]:
    """A server-side cursor where many rows may come; a selective key brings few."""
    options = {} if form.selective else {"stream_results": True, "max_row_buffer": PAGE}
    result = conn.execute(_statement(form), parameters, execution_options=options)
    try:
        for rows in result.partitions(PAGE):
            yield from rows
    finally:
        result.close()


def _candidates(conn: Connection, plan: _Plan) -> Iterator[int]:
    """The keys of the rows that meet all, in order."""
    form = replace(plan.form, loads=plan.residual_loads, computed=(), paged=False)
    reader = _Reader(form)
    for values in _execute(conn, form, plan.parameters.values):
        if row_meets(plan.residual, reader.read(values)):
            yield values[0]


def _filtered(conn: Connection, plan: _Plan, query: Query) -> Iterator[Row]:
    stop = None if query.limit is None else query.offset + query.limit
    keys = islice(_candidates(conn, plan), query.offset, stop)
    pk = f"{TABLES[query.level].name}.pk"
    form = replace(plan.form, where=(("in", pk, "keys"),), selective=True, paged=False)
    while page := list(islice(keys, PAGE)):
        reader = _Reader(form)
        found = {values[0]: reader.read(values) for values in _execute(conn, form, {"keys": page})}
        yield from (found[key] for key in page if key in found)
