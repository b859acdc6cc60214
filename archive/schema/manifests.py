"""Manifests of studies: the key objects that a sharing network publishes (sheet 50 §3)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

manifest = Table(
    "manifest",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("study_instance_uid", Text_C, nullable=False),
    Column("series_instance_uid", Text_C, nullable=False),  # one for all manifests of a study
    Column("sop_instance_uid", Text_C, nullable=False, unique=True),
    Column("number", Integer, nullable=False),  # Instance Number: 1, and one more with each change
    Column("fingerprint", String(64), nullable=False),  # SHA-256 of what it says beside its own UID, number and time
    Column("listed", Text, nullable=False),  # JSON: the SOP Instance UIDs that it names
    Column("made_at", UtcDateTime, nullable=False),
    Column("made_by", Text_C, nullable=False),
    UniqueConstraint("study_instance_uid", "number"),
)

# At most one row (pk 1): up to which number of which feed of changes the DRIMbox was told (archive.sharing). An index
# that is made anew has none: what changed after a manifest was made is told again.
sharing_told = Table(
    "sharing_told",
    METADATA,
    Column("pk", Integer, primary_key=True),
    Column("feed", String(32), nullable=False),
    Column("number", BigInteger, nullable=False),
)
