"""Looking for what is to be removed: every tick does, and mostly in vain."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Select, text

from archive.core import Archive
from archive.lifecycle.remove import EMPTY, MARKED


@pytest.mark.parametrize("statement", [MARKED, EMPTY], ids=["copies", "instances"])
def test_what_is_marked_is_found_without_reading_millions_of_rows(archive: Archive, statement: Select[Any]) -> None:
    index = "ix_location_purging" if statement is MARKED else "ix_instance_purging"
    bound = statement.params(after=0)
    compiled = bound.compile(archive.engine, compile_kwargs={"literal_binds": True})
    with archive.engine.connect() as conn:
        if conn.dialect.name == "postgresql":
            conn.execute(text("SET LOCAL enable_seqscan = off"))  # which empty tables invite
            conn.execute(text("SET LOCAL enable_bitmapscan = off"))
        explain = "EXPLAIN" if conn.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = "\n".join(str(row) for row in conn.execute(text(f"{explain} {compiled}")))
    assert index in plan
