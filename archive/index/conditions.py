"""Criteria of `archive.index.match` as SQL.

A condition is built twice, and the second time seldom: first as a `Shape`, nested tuples that name columns,
operators and parameters, beside the parameters' values; then, once for each shape, as SQLAlchemy's expression. So a
query's text never depends on its values, and its compiled form is found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, ColumnElement, Table, and_, bindparam, exists, false, literal_column, or_, select, tuple_
from sqlalchemy.types import Text

from archive.dicom.attributes import ATTRIBUTES, Attribute, Level, Match
from archive.dicom.person_name import alternatives
from archive.index.functions import first_group, unindexed
from archive.index.match import MAX_NUMBER, AnyOf, Between, Criterion, Empty, Exact, Key, Name, Number, Wild, criterion
from archive.instance import CURRENT, JUDGED
from archive.schema import imaging_order, instance, patient, series, study

Shape = tuple[Any, ...]

TABLES: dict[Level, Table] = {
    Level.PATIENT: patient,
    Level.STUDY: study,
    Level.SERIES: series,
    Level.IMAGE: instance,
}
# The key of the row above, in the rows of the level below it.
PARENT_KEYS: dict[Level, Column[Any]] = {
    Level.PATIENT: study.c.patient_pk,
    Level.STUDY: series.c.study_pk,
    Level.SERIES: instance.c.series_pk,
}
_BY_NAME = {table.name: table for table in (*TABLES.values(), imaging_order)}  # orders: archive.workflow.worklist
NEVER: Shape = ("never",)
_ESCAPE = "!"
_GROUP = "first_group:"  # before a column: the first group of the name in it
_PATIENTS = "patients"  # operator: the study's patient is among those that meet a condition
_PLAIN = "+"  # before a column: off its index
ON_STUDY = frozenset({"modality", "sop_class"})  # operators: one of the study's series, instances, meets a condition
_SAFE = re.compile(r"[A-Za-z0-9.^ -]+")  # the same in JSON as it is

# The columns with an index, from the one that narrows a query down most. A query starts from the best of those that
# it asks for; the rest are compared in the rows, whatever the database would make of them without statistics.
_RANKS = {
    column: rank
    for rank, column in enumerate(
        (
            "instance.sop_instance_uid",
            "series.series_instance_uid",
            "study.study_instance_uid",
            "study.accession_number",
            "patient.pk",
            "patient.patient_id",
            "patient.patient_name",
            "patient.birth_date",
            "study.study_date",
            "series.pps_start_date",
            "study.referring_physician_name",
            "study.study_id",
        )
    )
}
_SHORT = 3  # a prefix of fewer characters leads to too many rows: better start from another key
_NO_RANK = 1000


@dataclass(slots=True)
class Parameters:
    """Values by the names that a shape uses: `p0`, `p1`…, in the order of their making."""

    values: dict[str, Any] = field(default_factory=dict)

    def add(self, value: Any) -> str:
        name = f"p{len(self.values)}"
        self.values[name] = value
        return name

    def short(self) -> frozenset[str]:
        """The names of texts that are too short to start from as a prefix."""
        return frozenset(
            [name for name, value in self.values.items() if isinstance(value, str) and len(value) < _SHORT]
        )


_COLUMNS = {one.tag: f"{TABLES[one.level].name}.{one.column}" for one in ATTRIBUTES if one.column is not None}


def column_of(attribute: Attribute) -> str:
    """`table.column`, as shapes name it. Only for attributes with a column."""
    return _COLUMNS[attribute.tag]


def condition(attribute: Attribute, wanted: Criterion, parameters: Parameters) -> tuple[Shape | None, bool]:
    """The shape that selects what meets `wanted`, and whether it is exact.

    Not exact: it may let through what does not meet the criterion, so the rows are to be matched again. None: it
    selects nothing out at all. Only for attributes with a column.
    """
    column = column_of(attribute)
    if isinstance(wanted, AnyOf):
        found = [condition(attribute, choice, parameters) for choice in wanted.choices]
        shapes = [shape for shape, _ in found if shape is not None]
        return (("or", *shapes) if len(shapes) == len(found) else None), all(exact for _, exact in found)
    if isinstance(wanted, Empty):  # a date that is none has no column either
        return ("or", ("null", column), ("eq", column, parameters.add(""))) if _is_text(attribute) else (
            "null",
            column,
        ), False
    if isinstance(wanted, Name):
        return _name(column, wanted, parameters)
    if attribute.match is Match.INTEGER:
        return _integer(column, wanted, parameters), True
    return text_condition(column, wanted, parameters), True


def _is_text(attribute: Attribute) -> bool:
    return attribute.match in (Match.TEXT, Match.NAME, Match.UID)


def text_condition(column: str, wanted: Criterion, parameters: Parameters) -> Shape:
    """For text, UIDs, dates and times."""
    if isinstance(wanted, Exact):
        if len(wanted.values) == 1:
            return ("eq", column, parameters.add(wanted.values[0]))
        return ("in", column, parameters.add(list(wanted.values)))
    if isinstance(wanted, Wild):
        return _wild(column, column, wanted.pattern, parameters)
    if isinstance(wanted, Between):
        if wanted.low == wanted.high:
            return ("eq", column, parameters.add(wanted.low))
        ends: list[Shape] = []
        if wanted.low is not None:
            ends.append(("ge", column, parameters.add(wanted.low)))
        if wanted.high is not None:
            ends.append(("le", column, parameters.add(wanted.high)))
        return ("and", *ends)
    raise TypeError(f"{type(wanted).__name__} is matched row by row")


def combined(date: Attribute, days: Between, time: Attribute, times: Between, parameters: Parameters) -> Shape:
    """One interval from the first day's time to the last day's (REQ-DCM-35, PS3.4 C.2.2.2.5.4)."""
    columns = (column_of(date), column_of(time))
    ends: list[Shape] = []
    for operator, day, at in (("ge", days.low, times.low), ("le", days.high, times.high)):
        if day is None:
            continue
        if at is None:
            ends.append((operator, columns[0], parameters.add(day)))
        else:
            ends.append((f"row_{operator}", columns, (parameters.add(day), parameters.add(at))))
    return ("and", *ends)


def _integer(column: str, wanted: Criterion, parameters: Parameters) -> Shape:
    if not isinstance(wanted, Number):
        raise TypeError(f"{type(wanted).__name__} on a number")
    if wanted.value != int(wanted.value) or abs(wanted.value) > MAX_NUMBER:
        return NEVER
    return ("eq", column, parameters.add(int(wanted.value)))


def _wild(column: str, expression: str, wild: str, parameters: Parameters) -> Shape:
    """Text before the first wildcard becomes a range, which finds its way by the index; the rest is LIKE."""
    prefix = re.split(r"[*?]", wild, maxsplit=1)[0]
    parts: list[Shape] = []
    if prefix:
        parts += _starting(column, prefix, parameters)
    elif expression != column:  # a cheap look first
        parts.append(("like", column, parameters.add(_like(wild) + "%")))
    if wild[len(prefix) :].strip("*"):
        parts.append(("like", expression, parameters.add(_like(wild))))
    return ("and", *parts)


def _starting(column: str, prefix: str, parameters: Parameters) -> list[Shape]:
    ends: list[Shape] = [("ge", column, parameters.add(prefix))]
    after = _after(prefix)
    if after:
        ends.append(("lt", column, parameters.add(after)))
    return ends


def _after(prefix: str) -> str:
    """The first text, in bytewise order, behind all that begin with `prefix`; "" when there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)  # over the surrogates
        prefix = prefix[:-1]
    return ""


def _like(wild: str) -> str:
    escaped = re.sub(r"([%_!])", rf"{_ESCAPE}\1", wild)
    return escaped.replace("*", "%").replace("?", "_")


def _name(column: str, wanted: Name, parameters: Parameters) -> tuple[Shape | None, bool]:
    if not wanted.anchored:
        return _any_group(column, wanted, parameters), False
    keys = alternatives(wanted.asked)
    if len(keys) == 1 and not re.search(r"[*?]", keys[0]):
        # `=` and `\` end a group; both begin what else may follow the name in the column
        whole = keys[0]
        first = ("eq", _GROUP + column, parameters.add(whole))
        return ("and", *_starting(column, whole, parameters), first), True
    if len(keys) == 1:
        return _wild(column, _GROUP + column, keys[0], parameters), True
    prefix = re.split(r"[*?]", keys[-1], maxsplit=1)[0]  # the shortest key is how all others begin
    choices: list[Shape] = [("like", _GROUP + column, parameters.add(_like(key))) for key in keys]
    return ("and", *(_starting(column, prefix, parameters) if prefix else ()), ("or", *choices)), True


def _any_group(column: str, wanted: Name, parameters: Parameters) -> Shape | None:
    """What a name that meets the criterion surely has: its first group, or the longest run of the letters asked."""
    first, equals, _ = wanted.asked.partition("=")
    if equals:
        if not first or not first.isascii():
            return None
        return _name(column, Name(first), parameters)[0]
    runs = re.split(r"[*?]", alternatives(wanted.asked)[-1])
    longest = max(runs, key=len)
    return ("like", column, parameters.add(f"%{_like(longest)}%")) if longest else None


def hints(key: Key, table: str, parameters: Parameters) -> Iterator[Shape]:
    """Texts that a row's JSON must have somewhere for the key to match: spares parsing most rows."""
    if key.vr == "SQ":
        for inner in key.items:
            yield from hints(inner, table, parameters)
        return
    wanted = criterion(key)
    if isinstance(wanted, Exact) and len(wanted.values) == 1 and _SAFE.fullmatch(wanted.values[0]):
        yield ("like", f"{table}.attributes", parameters.add(f"%{wanted.values[0]}%"))


def columns(shape: Shape) -> Iterator[str]:
    """The columns, as `table.column`, that a shape compares in the rows themselves (not in those below a study)."""
    operator = shape[0]
    if operator in ("and", "or"):
        for part in shape[1:]:
            yield from columns(part)
    elif operator in ON_STUDY or operator == _PATIENTS:
        yield "study.pk"
    elif operator in ("row_ge", "row_le"):
        yield from (column.removeprefix(_PLAIN) for column in shape[1])
    elif operator != "never":
        yield shape[1].removeprefix(_GROUP).removeprefix(_PLAIN)


def lead(where: Iterable[Shape], level: Level, short: Set[str]) -> tuple[tuple[Shape, ...], bool]:
    """The shapes, all but the one to start from kept from using their indexes; and whether that one leads to few
    rows by its index. A study's date does not: it is the order that studies are given back in.

    `short`: see `Parameters`.
    """
    shapes = list(where)
    ranks = [_rank(shape, short) for shape in shapes]
    best = min(ranks, default=_NO_RANK)
    first = ranks.index(best) if best < _NO_RANK else None
    if first is None and level is not Level.PATIENT:
        # a wildcard in front: read through the names, which are less than the studies
        for position, shape in enumerate(shapes):
            if set(columns(shape)) == {"patient.patient_name"}:
                shapes[position] = (_PATIENTS, shape)
                return tuple(shapes), True
    kept = tuple(shape if position == first else off_index(shape) for position, shape in enumerate(shapes))
    selective = first is not None and not (level is Level.STUDY and set(columns(shapes[first])) <= _STUDY_ORDER)
    return kept, selective


_STUDY_ORDER = {"study.study_date", "study.study_time"}


def _rank(shape: Shape, short: Set[str]) -> int:
    operator = shape[0]
    if operator == "and":
        return min((_rank(part, short) for part in shape[1:]), default=_NO_RANK)
    if operator in ("row_ge", "row_le"):
        return _RANKS.get(shape[1][0], _NO_RANK)
    if operator not in ("eq", "in", "ge", "le"):
        return 0 if operator == "never" else _NO_RANK
    rank = _RANKS.get(shape[1], _NO_RANK)
    wide = operator == "ge" and shape[1] != "study.study_date" and shape[2] in short
    return rank + len(_RANKS) if wide and rank < _NO_RANK else rank


def off_index(shape: Shape) -> Shape:
    """The same condition, kept from the choice of an index."""
    operator = shape[0]
    if operator in ("and", "or") or operator in ON_STUDY:
        return (operator, *(off_index(part) for part in shape[1:]))
    if operator in ("row_ge", "row_le"):
        return (operator, tuple(_PLAIN + column for column in shape[1]), shape[2])
    if operator == "never" or shape[1].startswith((_GROUP, _PLAIN)):
        return shape
    return (operator, _PLAIN + shape[1], *shape[2:])


def constant(value: str | int) -> ColumnElement[Any]:
    """A word or number of ours in the statement's text: never one that came from outside."""
    return literal_column(f"'{value}'" if isinstance(value, str) else str(value))


def current(*, quality: bool = False) -> ColumnElement[bool]:
    """Instances that others see (`archive.instance.CURRENT`), or whoever judges quality."""
    return or_(*(instance.c.state == constant(str(state)) for state in sorted(JUDGED if quality else CURRENT)))


def build(shape: Shape) -> ColumnElement[bool]:  # noqa: PLR0911 - one answer for each operator
    """The expression of a shape."""
    operator = shape[0]
    if operator == "and":
        return and_(*(build(part) for part in shape[1:]))
    if operator == "or":
        return or_(*(build(part) for part in shape[1:]))
    if operator == "never":
        return false()
    if operator == _PATIENTS:
        return study.c.patient_pk.in_(select(patient.c.pk).where(build(shape[1])))
    if operator == "modality":
        return (
            exists(constant(1)).where(series.c.study_pk == study.c.pk, _has_current(), build(shape[1])).correlate(study)
        )
    if operator == "sop_class":
        return (
            exists(constant(1))
            .where(series.c.study_pk == study.c.pk, instance.c.series_pk == series.c.pk, current(), build(shape[1]))
            .correlate(study)
        )
    if operator == "null":
        return _column(shape[1]).is_(None)
    if operator in ("row_ge", "row_le"):
        left = tuple_(*(_column(name) for name in shape[1]))
        right = tuple_(*(bindparam(name, type_=Text()) for name in shape[2]))
        return left >= right if operator == "row_ge" else left <= right
    return _compare(operator, _column(shape[1]), shape[2])


def _compare(operator: str, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    if operator == "in":
        return column.in_(bindparam(name, expanding=True))
    parameter = bindparam(name, type_=column.type)
    if operator == "like":
        return column.like(parameter, escape=_ESCAPE)
    if operator == "eq":
        return column == parameter
    if operator == "ge":
        return column >= parameter
    return column <= parameter if operator == "le" else column < parameter


def _column(name: str) -> ColumnElement[Any]:
    if name.startswith(_GROUP):
        return first_group(_column(name.removeprefix(_GROUP)))
    if name.startswith(_PLAIN):
        column = _column(name.removeprefix(_PLAIN))
        plain = unindexed(column)
        plain.type = column.type
        return plain
    table, _, own = name.partition(".")
    return _BY_NAME[table].c[own]


def _has_current(*, quality: bool = False) -> ColumnElement[bool]:
    seen = current(quality=quality)
    return exists(constant(1)).where(instance.c.series_pk == series.c.pk, seen).correlate(series)


def visible(level: Level, *, quality: bool = False) -> ColumnElement[bool]:
    """Rows of the level with at least one instance that is seen. Served by the indexes on the way down."""
    if level is Level.IMAGE:
        return current(quality=quality)
    if level is Level.SERIES:
        return _has_current(quality=quality)
    below = [series.c.study_pk == study.c.pk, instance.c.series_pk == series.c.pk, current(quality=quality)]
    if level is Level.STUDY:
        return exists(constant(1)).where(*below).correlate(study)
    return exists(constant(1)).where(study.c.patient_pk == patient.c.pk, *below).correlate(patient)
