"""What waits for a person, and what one process owes to another."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

work_item = Table(
    "work_item",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("kind", String(32), nullable=False),  # sheet 20 §10, and uid_conflict
    Column("subject", Text_C, nullable=False),  # what it is about: one open item for a kind and a subject
    Column("state", String(8), nullable=False),  # open or closed
    Column("patient_pk", ForeignKey("patient.pk")),
    Column("study_instance_uid", Text_C),
    Column("evidence", Text, nullable=False),  # JSON
    Column("opened_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime),
    Column("closed_by", Text_C),
    Column("resolution", Text),  # how it was settled, and why
    Index("ix_work_item_state_kind", "state", "kind"),
    UniqueConstraint("kind", "subject"),
)

# Other bytes under a UID that is taken (REQ-DCM-15): kept in the hot tier without being an instance, once for a UID
# and a digest, until a person settles the work item.
quarantined = Table(
    "quarantined",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("sop_instance_uid", Text_C, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("path", Text_C, nullable=False),
    Column("transfer_syntax_uid", Text_C, nullable=False),
    Column("file_bytes", BigInteger, nullable=False),
    Column("data_set_offset", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("first_received_at", UtcDateTime, nullable=False),
    Column("last_received_at", UtcDateTime, nullable=False),
    Column("times", Integer, nullable=False),
    Column("former", Integer, nullable=False, server_default="0"),  # 1: it was the instance, until it was replaced
    UniqueConstraint("sop_instance_uid", "digest"),
)

# Work owed to another process (archive.jobs).
job = Table(
    "job",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("kind", String(32), nullable=False),  # retention.run
    Column("payload", Text, nullable=False),  # JSON
    Column("state", String(8), nullable=False),  # due, leased, done, dead
    Column("due_at", UtcDateTime, nullable=False),  # real time, as the rest
    Column("holder", String(36)),
    Column("lease_until", UtcDateTime),
    Column("attempts", Integer, nullable=False),
    Column("result", Text),  # JSON
    Column("error", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Index("ix_job_state_kind", "state", "kind"),
)
