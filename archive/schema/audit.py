"""The follow-up of accesses: rows that are only ever appended, in hash chains (REQ-SEC-04, law 4)."""

from __future__ import annotations

from sqlalchemy import Column, Integer, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

# One chain per writing process. The head moves in the transaction of the rows, so that a lost tail shows.
audit_chain = Table(
    "audit_chain",
    METADATA,
    Column("chain", String(36), primary_key=True),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("process", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("head", String(64), nullable=False),
    # JSON: [chain, rows, head] of the chains opened just before, as they stood: a chain that vanishes is missed
    Column("follows", Text, nullable=False),
)

audit = Table(
    "audit",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("chain", String(36), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("time", UtcDateTime, nullable=False, index=True),
    Column("event", String(32), nullable=False, index=True),
    Column("action", String(1), nullable=False),  # C R U D E (PS3.15 A.5)
    Column("outcome", Integer, nullable=False),  # 0 4 8 12 (PS3.15 A.5)
    Column("user", Text_C, nullable=False, index=True),
    Column("source", Text_C, nullable=False),
    Column("door", String(12), nullable=False),
    Column("patient", Text_C, index=True),  # as archive.dicom.patient_id.cx gives it
    Column("study", Text_C, index=True),
    Column("detail", Text, nullable=False),  # JSON
    UniqueConstraint("chain", "seq"),
)
