"""SQL that SQLite and PostgreSQL say differently."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text


class listed(FunctionElement[str]):
    """The different values of a column, separated by commas; NULL for none."""

    inherit_cache = True
    type = Text()
    name = "listed"


@compiles(listed, "postgresql")
def _listed_postgresql(element: listed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"string_agg(DISTINCT {compiler.process(element.clauses, **kw)}, ',')"


@compiles(listed, "sqlite")
def _listed_sqlite(element: listed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"group_concat(DISTINCT {compiler.process(element.clauses, **kw)})"


class joined(FunctionElement[str]):
    """All values of a column, separated by commas; NULL for none. Of few, it costs less than `listed`."""

    inherit_cache = True
    type = Text()
    name = "joined"


@compiles(joined, "postgresql")
def _joined_postgresql(element: joined, compiler: SQLCompiler, **kw: Any) -> str:
    return f"string_agg({compiler.process(element.clauses, **kw)}, ',')"


@compiles(joined, "sqlite")
def _joined_sqlite(element: joined, compiler: SQLCompiler, **kw: Any) -> str:
    return f"group_concat({compiler.process(element.clauses, **kw)})"


class first_group(FunctionElement[str]):
    """The first component group of the first value of a folded person name."""

    inherit_cache = True
    type = Text()
    name = "first_group"


@compiles(first_group, "postgresql")
def _first_group_postgresql(element: first_group, compiler: SQLCompiler, **kw: Any) -> str:
    column = compiler.process(element.clauses, **kw)
    return f"split_part(split_part({column}, '=', 1), '\\', 1)"


@compiles(first_group, "sqlite")
def _first_group_sqlite(element: first_group, compiler: SQLCompiler, **kw: Any) -> str:
    column = compiler.process(element.clauses, **kw)
    group = f"substr({column}, 1, instr({column} || '=', '=') - 1)"
    return f"substr({group}, 1, instr({group} || '\\', '\\') - 1)"


class unindexed(FunctionElement[Any]):
    """The column itself, kept from SQLite's choice of an index (PostgreSQL chooses by its statistics)."""

    inherit_cache = True
    name = "unindexed"


@compiles(unindexed, "postgresql")
def _unindexed_postgresql(element: unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(unindexed, "sqlite")
def _unindexed_sqlite(element: unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


class first_value(FunctionElement[str]):
    """`first_value(attributes, "00080020")`: the first value of an element in a column of DICOM JSON, as text; NULL for
    none."""

    inherit_cache = True
    type = Text()
    name = "first_value"


@compiles(first_value, "postgresql")
def _first_value_postgresql(element: first_value, compiler: SQLCompiler, **kw: Any) -> str:
    """A NUL, with which some equipment pads its values, is legal JSON that PostgreSQL has no text for: it is left out
    (an escaped backslash before `u0000` is none)."""
    column, key = (compiler.process(clause, **kw) for clause in element.clauses)
    sound = rf"regexp_replace({column}, '(?<!\\)((?:\\\\)*)\\u0000', '\1', 'g')"
    text = rf"CASE WHEN position('\u0000' in {column}) > 0 THEN {sound} ELSE {column} END"
    return f"(({text})::json #>> ARRAY[{key}, 'Value', '0'])"


@compiles(first_value, "sqlite")
def _first_value_sqlite(element: first_value, compiler: SQLCompiler, **kw: Any) -> str:
    column, key = element.clauses
    return f"json_extract({compiler.process(column, **kw)}, '$.\"' || {compiler.process(key, **kw)} || '\".Value[0]')"
