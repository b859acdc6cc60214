"""Statements that the driver runs: rows, errors and transactions as with SQLAlchemy's own execution, both databases."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from archive.core import Archive
from archive.errors import IndexUnavailable
from archive.schema import account, audit
from archive.schema.prepared import Prepared

ADD = Prepared(account.insert(), columns=("name", "password_hash", "roles", "disabled", "created_at"))
NAMES = Prepared(select(account.c.name).where(account.c.name >= bindparam("first")).order_by(account.c.name))
SOME = Prepared(
    select(account.c.name).where(account.c.name.in_(bindparam("names", expanding=True))).order_by(account.c.name)
)
CLOSE = Prepared(update(account).where(account.c.name == bindparam("of")).values(disabled=1, roles='["closed"]'))


def values(archive: Archive, name: str) -> dict[str, Any]:
    return {"name": name, "password_hash": "x", "roles": "[]", "disabled": 0, "created_at": archive.clock()}


@pytest.fixture
def five(archive: Archive) -> Archive:
    archive.commit.run(lambda conn: ADD.run_all(conn, [values(archive, name) for name in "abcde"]))
    return archive


def test_values_are_bound_as_their_types_say_and_constants_with_them(five: Archive) -> None:
    at = five.clock()
    five.commit.run(lambda conn: ADD.run(conn, {**values(five, "f"), "created_at": at}))
    assert five.commit.run(lambda conn: CLOSE.run(conn, {"of": "f"})) == 1
    assert five.commit.run(lambda conn: CLOSE.run(conn, {"of": "nobody"})) == 0
    with five.reading() as conn:
        row = conn.execute(select(account).where(account.c.name == "f")).one()
    assert (row.created_at, row.disabled, row.roles) == (at, 1, '["closed"]')


def test_rows_come_in_pages_or_all_at_once(five: Archive) -> None:
    with five.reading() as conn:
        assert [name for (name,) in NAMES.all(conn, {"first": "b"})] == ["b", "c", "d", "e"]
        assert NAMES.first(conn, {"first": "z"}) is None
        for streamed in (False, True):
            pages = [len(page) for page in NAMES.pages(conn, {"first": "a"}, size=2, streamed=streamed)]
            assert pages == [2, 2, 1]
            assert [len(page) for page in NAMES.pages(conn, {"first": "b"}, size=2, streamed=streamed)] == [2, 2]


def test_a_list_may_have_any_length(five: Archive) -> None:
    with five.reading() as conn:
        for names in (["a"], ["e", "b", "nobody"], []):
            wanted = [(name,) for name in sorted(set(names) & set("abcde"))]
            assert [tuple(row) for row in SOME.all(conn, {"names": names})] == wanted
            pages = list(SOME.pages(conn, {"names": names}, size=10, streamed=True))
            assert [tuple(row) for page in pages for row in page] == wanted


def test_a_column_that_is_converted_when_it_is_read_is_refused(five: Archive) -> None:
    times = Prepared(select(account.c.created_at))
    with five.reading() as conn, pytest.raises(TypeError):
        times.all(conn, {})


def test_it_is_part_of_the_transaction_of_its_connection(five: Archive) -> None:
    with five.reading() as conn:
        assert len(NAMES.all(conn, {"first": "a"})) == 5
        five.commit.run(lambda conn: ADD.run(conn, values(five, "f")))
        assert len(NAMES.all(conn, {"first": "a"})) == 5  # one state of the index (REQ-DCM-83)
        conn.rollback()
        assert len(NAMES.all(conn, {"first": "a"})) == 6

    def fails(conn: Connection) -> None:
        ADD.run(conn, values(five, "g"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        five.commit.run(fails)
    with five.reading() as conn:
        assert len(NAMES.all(conn, {"first": "a"})) == 6


@pytest.mark.req("REQ-SEC-11")
def test_an_error_is_sqlalchemys_and_quotes_no_value(five: Archive) -> None:
    name = "DUPONT^Anne"
    five.commit.run(lambda conn: ADD.run(conn, values(five, name)))
    for write in (lambda conn: ADD.run(conn, values(five, name)), lambda conn: ADD.run_all(conn, [values(five, name)])):
        with pytest.raises(IntegrityError) as caught:
            five.commit.run(write)
        told = "".join(traceback.format_exception(caught.value))
        assert "unique" in told.lower()
        assert name not in told


def test_a_table_that_is_away_is_an_error_of_the_index_and_the_connection_lives(five: Archive) -> None:
    gone = Prepared(select(audit.c.pk).where(audit.c.pk == bindparam("pk")))
    five.commit.run(lambda conn: conn.exec_driver_sql("ALTER TABLE audit RENAME TO away"))
    with pytest.raises((IndexUnavailable, OperationalError, ProgrammingError)), five.reading() as conn:
        gone.all(conn, {"pk": 1})
    five.commit.run(lambda conn: conn.exec_driver_sql("ALTER TABLE away RENAME TO audit"))
    with five.reading() as conn:
        assert gone.all(conn, {"pk": 0}) == []
        assert len(NAMES.all(conn, {"first": "a"})) == 5


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_a_connection_that_broke_is_not_used_again(five: Archive) -> None:
    with pytest.raises(IndexUnavailable), five.reading() as conn:
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with five.engine.connect() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
        NAMES.all(conn, {"first": "a"})
    with five.reading() as conn:
        assert len(NAMES.all(conn, {"first": "a"})) == 5


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_reading_again_uses_the_same_connection_and_sees_what_was_committed(five: Archive) -> None:
    with five.reading() as first:
        NAMES.all(first, {"first": "a"})
        with five.reading() as second:
            assert second is not first
    with five.reading() as again:
        assert again in (first, second)
    assert not again.connection.dbapi_connection.in_transaction  # between two readings nothing is held
    with pytest.raises(ZeroDivisionError), five.reading() as conn:
        NAMES.all(conn, {"first": "a"})
        raise ZeroDivisionError
    assert conn.closed  # something went wrong with it: it is not kept
    five.commit.run(lambda conn: ADD.run(conn, values(five, "f")))
    with five.reading() as conn:
        assert len(NAMES.all(conn, {"first": "a"})) == 6
