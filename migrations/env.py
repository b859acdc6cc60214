"""Alembic's entry. `migrations.upgrade` hands in a connection; the `alembic` command of a developer gets its own."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from archive.config import load
from archive.engines import make_engine
from archive.schema import METADATA


def run(conn: Connection) -> None:
    """Run what Alembic asks for, in one transaction: DDL rolls back on both databases."""
    context.configure(connection=conn, target_metadata=METADATA, transactional_ddl=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with make_engine(load().database_url).begin() as own:
        run(own)
