"""Age: holds, announcements, purges and what they leave; what suspends removal."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

hold = Table(
    "hold",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("study_instance_uid", Text_C, nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("until", String(8)),  # YYYYMMDD, the last day; NULL: until it is removed
    Column("placed_by", Text_C, nullable=False),
    Column("placed_at", UtcDateTime, nullable=False),
    Column("removed_by", Text_C),
    Column("removed_at", UtcDateTime),
)

# One purge of one study: begun with state `purging`, finished with `done`; it outlives the study.
purge = Table(
    "purge",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("study_instance_uid", Text_C, nullable=False, index=True),
    Column("patient", Text_C, nullable=False),  # as the audit names it
    Column("state", String(12), nullable=False, index=True),
    Column("begun_at", UtcDateTime, nullable=False),
    Column("done_at", UtcDateTime),
    Column("certificate", Text, nullable=False),  # JSON: what, legal basis, policy version, digests
    Column("note_uid", Text_C, nullable=False),  # SOP Instance UID of the rejection note (113039, DCM)
    Column("note_path", Text, nullable=False),  # relative to the hot tier
    Column("note_digest", String(64), nullable=False),
)

tombstone = Table(
    "tombstone",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("sop_instance_uid", Text_C, nullable=False, unique=True),
    Column("series_instance_uid", Text_C, nullable=False),
    Column("study_instance_uid", Text_C, nullable=False, index=True),
    Column("sop_class_uid", Text_C, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("purge_id", String(36), nullable=False, index=True),
    Column("at", UtcDateTime, nullable=False),
)

purge_approval = Table(
    "purge_approval",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("study_instance_uid", Text_C, nullable=False),
    Column("user", Text_C, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    UniqueConstraint("study_instance_uid", "user"),
)

# While one of these is not lifted, nothing is removed.
suspension = Table(
    "suspension",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("kind", String(16), nullable=False),  # clock (DD-26), rebuilt (sheet 00 §8)
    Column("detail", Text, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("lifted_by", Text_C),
    Column("lifted_at", UtcDateTime),
    Column("reason", Text),
)

# At most one row: the last tick, by the system's clock.
last_tick = Table(
    "last_tick",
    METADATA,
    Column("pk", Integer, primary_key=True),
    Column("real_at", UtcDateTime, nullable=False),
)

# A study that a step of its life failed for: tried again later and later, the others go on.
life_failure = Table(
    "life_failure",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("study_pk", ForeignKey("study.pk"), nullable=False),
    Column("step", String(12), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("retry_at", UtcDateTime, nullable=False),  # real time
    Column("error", Text, nullable=False),
    UniqueConstraint("study_pk", "step"),
    Index("ix_life_failure_retry_at", "retry_at"),
)
