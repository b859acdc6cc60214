"""The feed of changes: what became of studies, numbered in the order in which others may see it (archive.changes)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

change = Table(
    "change",
    METADATA,
    Column("pk", Key, primary_key=True),  # the number in the feed
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(12), nullable=False),  # archive.changes.Kind
    Column("study_instance_uid", Text_C, nullable=False),
    Column("series_instance_uid", Text_C),
    Column("sop_instance_uid", Text_C),
    Column("source", String(8), nullable=False),  # where it was seen, instance or fact; removed: that row is gone
    Column("source_pk", BigInteger, nullable=False),
    UniqueConstraint("source", "source_pk", "study_instance_uid"),
)
