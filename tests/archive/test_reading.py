"""`Archive.reading`: one state of the index for each use, on a connection that is used again and again."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from archive.core import Archive
from archive.errors import IndexUnavailable
from archive.schema import patient
from archive.schema.prepared import Prepared, run_text

_COUNT = Prepared(select(func.count()).select_from(patient))


def count(conn: Connection) -> int:
    ((found,),) = _COUNT.all(conn, {})
    return int(found)


def add(archive: Archive, number: int) -> None:
    row = {"identity_key": str(number), "patient_id": str(number), "issuer": "", "patient_name": "", "provisional": 0}
    archive.commit.run(
        lambda conn: conn.execute(patient.insert(), {**row, "attributes": "{}", "created_at": archive.clock()})
    )


def test_each_use_sees_one_state_and_the_next_use_what_was_committed_meanwhile(archive: Archive) -> None:
    for number in range(3):
        with archive.reading() as conn:
            assert count(conn) == number
            add(archive, number)
            assert count(conn) == number
            assert conn.execute(select(func.count()).select_from(patient)).scalar() == number  # the other way


def test_a_use_that_ends_its_transaction_itself_begins_another(archive: Archive) -> None:
    for number in range(3):
        with archive.reading() as conn:
            assert count(conn) == 2 * number
            conn.commit()
            add(archive, 2 * number)
            assert count(conn) == 2 * number + 1
            add(archive, 2 * number + 1)
            assert count(conn) == 2 * number + 1


def test_what_goes_wrong_leaves_nothing_open_for_the_next(archive: Archive) -> None:
    for _ in range(3):
        with pytest.raises((IndexUnavailable, DBAPIError)), archive.reading() as conn:
            assert count(conn) == 0
            run_text(conn, "no statement")
        with pytest.raises(ZeroDivisionError), archive.reading() as conn:
            assert count(conn) / 0
    add(archive, 1)
    with archive.reading() as conn:
        assert count(conn) == 1
