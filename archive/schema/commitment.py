"""Storage commitment (PS3.4 Annex J): what peers ask, and what was promised."""

from __future__ import annotations

from sqlalchemy import Column, Integer, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

# A transaction from its request until a month later. Times are real ones.
commitment_request = Table(
    "commitment_request",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("transaction_uid", Text_C, nullable=False, index=True),
    Column("ae_title", Text_C, nullable=False),  # who asked, and is told
    Column("instances", Text, nullable=False),  # JSON list of [SOP Class UID, SOP Instance UID], as asked
    Column("duplicate", Integer, nullable=False),  # 1: its Transaction UID was in use
    Column("asked_at", UtcDateTime, nullable=False, index=True),
    Column("failed", Text),  # JSON object: place in `instances` to verdict; NULL: not decided yet
    Column("reported_at", UtcDateTime),  # the peer has answered
)

# What was promised, for good: how many instances of a study, to whom, in which transaction.
commitment = Table(
    "commitment",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("study_instance_uid", Text_C, nullable=False),
    Column("transaction_uid", Text_C, nullable=False),
    Column("ae_title", Text_C, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("study_instance_uid", "transaction_uid", "ae_title"),
)
