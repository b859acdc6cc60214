"""The processes that are alive, and the clock of the test bed."""

from __future__ import annotations

from sqlalchemy import Column, Integer, String, Table, Text

from archive.schema.types import METADATA, UtcDateTime

process = Table(
    "process",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("edge", String(12), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("beat_at", UtcDateTime, nullable=False),
    Column("clock_generation", Integer, nullable=False),
    Column("listening", Integer, nullable=False),
)

# At most one row. `shown` is what the clock showed at `real_anchor`; NULL: it follows the system again.
simulated_clock = Table(
    "simulated_clock",
    METADATA,
    Column("pk", Integer, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("real_anchor", UtcDateTime),
    Column("shown", UtcDateTime),
)
