"""The processes that are alive, the clock of the test bed, leases, measurements, the journal of facts, and what is told
and asked outside: the audit repository, time servers."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, String, Table, Text

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

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

# Who may do alone what only one process may do at a time: the retention tick.
lease = Table(
    "lease",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("holder", String(36), nullable=False),
    Column("until", UtcDateTime, nullable=False),  # real time
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
)

# How soon images were there, as the archive measured it itself (archive.probing).
probe = Table(
    "probe",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("at", UtcDateTime, nullable=False, index=True),  # real time
    Column("door", String(12), nullable=False),
    Column("study_instance_uid", Text_C, nullable=False),
    Column("series_instance_uid", Text_C, nullable=False),
    Column("images", Integer, nullable=False),
    Column("sent_bytes", BigInteger, nullable=False),
    Column("first_seconds", Float),
    Column("all_seconds", Float),
    Column("error", Text),
)

# Facts that no image carries, as they are appended to the journal beside the files (archive.journal).
fact = Table(
    "fact",
    METADATA,
    Column("pk", Key, primary_key=True),  # the order of the facts, in the journal too
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(24), nullable=False),
    Column("subject", Text_C, nullable=False),
    Column("body", Text, nullable=False),  # JSON
    # 1: in the file; 0: not known to be; read from it: 2 not applied yet, 3 could not be (archive.rebuild)
    Column("journaled", Integer, nullable=False, index=True),
)

# How far each chain of the audit has been handed to the audit repository (archive.repository).
audit_sent = Table(
    "audit_sent",
    METADATA,
    Column("chain", String(36), primary_key=True),
    Column("rows", Integer, nullable=False),  # the first rows of the chain: so many are sent
)

# At most one row: how the last sending to the audit repository went. Real times.
repository_state = Table(
    "repository_state",
    METADATA,
    Column("pk", Integer, primary_key=True),
    Column("tried_at", UtcDateTime, nullable=False),
    Column("failing_since", UtcDateTime),  # NULL: it takes what it is sent
    Column("why", Text),
)

# At most one row: the clock of this machine as time servers saw it last (archive.timekeeping). Real times.
clock_check = Table(
    "clock_check",
    METADATA,
    Column("pk", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("offset_seconds", Float),  # of the servers' time from ours; NULL: none answered
    Column("servers", Integer, nullable=False),  # that answered
    Column("why", Text),  # what is wrong; NULL: nothing is
)
