"""INSERT … ON CONFLICT, in the dialect of the connection."""

from __future__ import annotations

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert(conn: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return insert_in(conn.dialect, table)


def insert_in(dialect: Dialect, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The same, where there is no connection yet."""
    return sqlite.insert(table) if dialect.name == "sqlite" else postgresql.insert(table)
