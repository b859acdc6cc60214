"""Statements of the hot paths: compiled once for each kind of database, run by its driver (decision 0014).

SQLAlchemy writes the text and says how values are bound; its execution, which costs several times what the database
takes for a row by its key, is left out. What comes back is what the driver gives: plain tuples, of columns that need
no conversion (text and numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NoReturn

from sqlalchemy import Connection, Dialect, Select
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import SelectBase, UpdateBase

from archive.schema.types import UtcDateTime

Values = Mapping[str, Any]
Statement = SelectBase | UpdateBase
Rows = Sequence[Sequence[Any]]
_cursor_names = count()


@dataclass(frozen=True, slots=True)
class _Compiled:
    text: str
    names: tuple[str, ...]  # of its parameters, in the order of the text
    constant: Values  # parameters that the statement itself gives
    converted: tuple[tuple[str, Callable[[Any], Any]], ...]  # parameters whose type has a form of its own to be bound
    positional: bool
    lists: Select[Any] | None  # the statement itself, when parameters are lists: its text depends on their lengths

    def bound(self, values: Values) -> Sequence[Any] | Values:
        """The parameters as the driver takes them."""
        if self.constant or self.converted:
            given = {**self.constant, **values}
            for name, convert in self.converted:
                given[name] = convert(given[name])
            values = given
        return tuple(map(values.__getitem__, self.names)) if self.positional else values


class Prepared:
    """One statement, or what makes it for a kind of database. Its parameters are given by name, all of them.

    `columns`: of an INSERT, those that are given. A SELECT with a list among its parameters (`expanding`) goes
    SQLAlchemy's way. Errors are SQLAlchemy's, and quote no values (REQ-SEC-11). A transaction begins with the first
    statement, as SQLAlchemy's do. Thread-safe.
    """

    def __init__(
        self, statement: Statement | Callable[[Dialect], Statement], *, columns: Sequence[str] | None = None
    ) -> None:
        self._statement = statement
        self._columns = None if columns is None else list(columns)
        self._compiled: dict[str, _Compiled] = {}

    def all(self, conn: Connection, values: Values) -> Rows:
        """Every row."""
        compiled = self._for(conn.dialect)
        if compiled.lists is not None:
            return conn.execute(compiled.lists, dict(values)).all()
        cursor = self._run(conn, compiled, values)
        try:
            rows: Rows = cursor.fetchall()
        except Exception as error:
            _translate(conn, compiled.text, error)
        finally:
            cursor.close()
        return rows

    def first(self, conn: Connection, values: Values) -> Sequence[Any] | None:
        """The first row, None when there is none. For statements that give one at most."""
        rows = self.all(conn, values)
        return rows[0] if rows else None

    def run(self, conn: Connection, values: Values) -> int:
        """Execute a statement without rows; how many rows it touched."""
        cursor = self._run(conn, self._for(conn.dialect), values)
        touched = cursor.rowcount
        cursor.close()
        return touched

    def run_all(self, conn: Connection, rows: Sequence[Values]) -> None:
        """Execute a statement without rows once for each of several sets of values."""
        compiled = self._for(conn.dialect)
        cursor = _begun(conn).cursor()
        try:
            bound: Any = [compiled.bound(values) for values in rows]
            cursor.executemany(compiled.text, bound)
        except Exception as error:
            _translate(conn, compiled.text, error)
        finally:
            cursor.close()

    def pages(self, conn: Connection, values: Values, *, size: int, streamed: bool) -> Iterator[Rows]:
        """The rows, `size` at a time. `streamed`: they may be many, and are not to lie in memory all at once."""
        compiled = self._for(conn.dialect)
        if compiled.lists is not None:
            options = {"stream_results": True, "max_row_buffer": size} if streamed else {}
            result = conn.execute(compiled.lists, dict(values), execution_options=options)
            try:
                yield from result.partitions(size)
            finally:
                result.close()
            return
        cursor = (self._run_streamed if streamed else self._run)(conn, compiled, values)
        try:
            full = True
            while full:
                try:
                    rows = cursor.fetchmany(size)
                except Exception as error:
                    _translate(conn, compiled.text, error)
                full = len(rows) == size
                if rows:
                    yield rows
        finally:
            cursor.close()

    def _run(self, conn: Connection, compiled: _Compiled, values: Values) -> DBAPICursor:
        try:
            cursor: DBAPICursor = _begun(conn).execute(compiled.text, compiled.bound(values))
        except Exception as error:
            _translate(conn, compiled.text, error)
        return cursor

    def _run_streamed(self, conn: Connection, compiled: _Compiled, values: Values) -> DBAPICursor:
        """SQLite gives rows as they are asked for; PostgreSQL does with a cursor that has a name."""
        if compiled.positional:
            return self._run(conn, compiled, values)
        cursor: DBAPICursor = _begun(conn).cursor(f"rows_{next(_cursor_names)}")
        try:
            cursor.execute(compiled.text, compiled.bound(values))
        except Exception as error:
            cursor.close()
            _translate(conn, compiled.text, error)
        return cursor

    def _for(self, dialect: Dialect) -> _Compiled:
        try:
            return self._compiled[dialect.name]
        except KeyError:
            compiled = self._compiled[dialect.name] = self._compile(dialect)
            return compiled

    def _compile(self, dialect: Dialect) -> _Compiled:
        statement = self._statement(dialect) if callable(self._statement) else self._statement
        made = statement.compile(dialect=dialect, column_keys=self._columns)
        converted: list[tuple[str, Callable[[Any], Any]]] = []
        for name, bound in made.binds.items():
            times = isinstance(bound.type, UtcDateTime)
            convert = _time_converter(dialect) if times else bound.type.dialect_impl(dialect).bind_processor(dialect)
            if convert is not None:
                converted.append((name, convert))
        for column in statement.selected_columns if isinstance(statement, SelectBase) else ():
            if column.type.dialect_impl(dialect).result_processor(dialect, None) is not None:
                raise TypeError(f"{column} has to be converted when it is read: not for a prepared statement")
        expanding = any(bound.expanding for bound in made.binds.values())
        return _Compiled(
            text=str(made),
            names=tuple(made.positiontup or made.binds),
            constant={name: bound.value for name, bound in made.binds.items() if not bound.required},
            converted=tuple(converted),
            positional=dialect.positional,
            lists=statement if expanding and isinstance(statement, Select) else None,
        )


_TIMES: dict[str, Callable[[Any], Any]] = {}


def _time_converter(dialect: Dialect) -> Callable[[Any], Any] | None:
    """What makes of a time what a driver takes. The rows of one arrival have the same: it is made once."""
    convert = UtcDateTime().dialect_impl(dialect).bind_processor(dialect)
    return None if convert is None else _TIMES.setdefault(dialect.name, lru_cache(maxsize=64)(convert))


def run_text(conn: Connection, text: str) -> None:
    """Have the driver of a connection execute a text without rows or parameters, in or outside a transaction."""
    try:
        driver: Any = conn.connection.dbapi_connection
        driver.execute(text).close()
    except Exception as error:
        _translate(conn, text, error)


def _begun(conn: Connection) -> Any:
    """The driver's own connection, in a transaction: both drivers have an `execute` that gives a cursor."""
    if not conn.in_transaction():
        conn.begin()
    return conn.connection.dbapi_connection


def _translate(conn: Connection, text: str, error: Exception) -> NoReturn:
    """Raise the driver's error as SQLAlchemy would."""
    dbapi = conn.dialect.loaded_dbapi
    if not isinstance(error, dbapi.Error):
        raise error
    quote_nothing(error)
    driver = conn.connection.dbapi_connection
    gone = driver is not None and conn.dialect.is_disconnect(error, driver, None)
    if gone:
        conn.invalidate(error)
    raise DBAPIError.instance(
        text, None, error, dbapi.Error, hide_parameters=True, connection_invalidated=gone, dialect=conn.dialect
    ) from error


def quote_nothing(error: BaseException) -> None:
    """Keep the first line of a message: in those below, PostgreSQL quotes the values of rows (REQ-SEC-11)."""
    error.args = tuple(arg.partition("\n")[0] if isinstance(arg, str) else arg for arg in error.args)
