"""The statements of `archive.index.query`: built and compiled once for each form (`archive.schema.prepared`). Nothing
here depends on the values that are asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, FromClause, Select, String, bindparam, func, or_, select

from archive.dicom.attributes import LEVELS, Level
from archive.index.computed import COMPUTED_BY_TAG
from archive.index.conditions import PARENT_KEYS, TABLES, Shape, build, columns, constant, visible
from archive.instance import JUDGED, KNOWN
from archive.schema import instance, patient, series, study
from archive.schema.prepared import Prepared

DEPTH = {level: depth for depth, level in enumerate(LEVELS)}


class Form(NamedTuple):
    """The shape of a statement: all that its text depends on."""

    level: Level
    where: tuple[Shape, ...]
    loads: tuple[Level, ...]  # levels whose attributes are read, from the root down
    parents: tuple[Level, ...]  # levels whose keys are given along
    computed: tuple[int, ...]  # of this level
    selective: bool
    paged: bool
    quality: bool = False  # what was rejected for quality reasons too


def keyed(
    level: Level,
    *,
    loads: tuple[Level, ...] = (),
    parents: tuple[Level, ...] = (),
    computed: tuple[int, ...],
    quality: bool = False,
) -> Form:
    """Rows by their keys."""
    where: tuple[Shape, ...] = (("in", f"{TABLES[level].name}.pk", "keys"),)
    return Form(level, where, loads, parents, computed, selective=True, paged=False, quality=quality)


def _tables(form: Form) -> FromClause:
    """The level's table, and those above as far as something is asked of them."""
    asked = {column.partition(".")[0] for shape in form.where for column in columns(shape)}
    needed = {form.level, *form.loads, *form.parents, *(level for level in LEVELS if TABLES[level].name in asked)}
    if form.level is Level.IMAGE:
        needed.add(Level.SERIES)  # its number is in the order
    top = min(DEPTH[level] for level in needed)
    joined: FromClause = TABLES[form.level]
    for level in reversed(LEVELS[top : DEPTH[form.level]]):
        joined = joined.join(TABLES[level], PARENT_KEYS[level] == TABLES[level].c.pk)
    return joined


def _order(form: Form) -> list[ColumnElement[Any]]:
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


_NAMED = ("instance.sop_instance_uid", "instance.pk")


def _seen(form: Form) -> ColumnElement[bool]:
    """What others may see of the level; asked by its SOP Instance UID, also an original that was replaced (REQ-DCM-83).

    Rows by their keys were found so, or by such a UID.
    """
    named = (shape[0] in ("eq", "in") and shape[1].removeprefix("+") in _NAMED for shape in form.where)
    if form.level is Level.IMAGE and any(named):
        states = KNOWN | JUDGED if form.quality else KNOWN
        return or_(*(instance.c.state == constant(str(state)) for state in sorted(states)))
    return visible(form.level, quality=form.quality)


@lru_cache(maxsize=512)
def prepared(form: Form) -> Prepared:
    """The statement of a form, ready to be run."""
    return Prepared(statement(form))


def statement(form: Form) -> Select[Any]:
    """Columns: the key, the keys of `form.parents`, the attributes of `form.loads`, the values of `form.computed`."""
    own = TABLES[form.level]
    inner = (
        select(own.c.pk, *(PARENT_KEYS[level].label(f"{level.name}_pk") for level in form.parents))
        .select_from(_tables(form))
        .where(_seen(form), *(build(shape) for shape in form.where))
        .order_by(*_order(form))
    )
    if form.paged:
        inner = inner.limit(bindparam("limit")).offset(bindparam("offset"))
    if not form.selective:  # read off the index row by row: take the attributes along
        inner = inner.add_columns(*(TABLES[level].c.attributes.label(f"{level.name}_text") for level in form.loads))
        if not form.computed:
            return inner
        page = inner.subquery("page")
        texts: list[Any] = [page.c[f"{level.name}_text"] for level in form.loads]
    else:  # the attributes only of those that remain, not of all that are sorted
        links = {level: PARENT_KEYS[level] for level in form.loads if level not in (form.level, *form.parents)}
        page = inner.add_columns(*(key.label(f"{level.name}_pk") for level, key in links.items())).subquery("page")
        texts = []
        for level in form.loads:
            table, key = TABLES[level].alias(), page.c.pk if level is form.level else page.c[f"{level.name}_pk"]
            texts.append(select(table.c.attributes).where(table.c.pk == key).scalar_subquery())
    parents = (page.c[f"{level.name}_pk"] for level in form.parents)
    values = (COMPUTED_BY_TAG[tag].select(form.level, page.c.pk) for tag in form.computed)
    return select(page.c.pk, *parents, *texts, *values)


@lru_cache(maxsize=128)
def counting(form: Form) -> Prepared:
    """How many rows there are, up to a limit."""
    own = TABLES[form.level]
    inner = select(own.c.pk).select_from(_tables(form)).where(_seen(form), *(build(one) for one in form.where))
    page = inner.limit(bindparam("limit")).offset(bindparam("offset")).subquery()
    return Prepared(select(func.count()).select_from(page))
