"""HL7 messages: the raw bytes as they came, and what was answered."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, LargeBinary, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

hl7_message = Table(
    "hl7_message",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("received_at", UtcDateTime, nullable=False, index=True),
    Column("connection", Text, nullable=False),  # address and number of the connection
    Column("raw", LargeBinary, nullable=False),
    # what could be read of its MSH, else ""
    Column("sender", Text_C, nullable=False),  # MSH-3|MSH-4
    Column("control_id", Text_C, nullable=False, index=True),  # MSH-10
    Column("kind", Text_C, nullable=False),  # ADT^A28
    Column("state", String(12), nullable=False, index=True),  # received, applied, refused, repeated
    Column("ack_code", String(2)),
    Column("ack", LargeBinary),
    Column("error", Text),  # the first error: code and location, no value
    Column("answered_at", UtcDateTime),
)

# Idempotence (sheet 20 §3.2): the answer to a message is given once and repeated, whatever the connection.
hl7_answer = Table(
    "hl7_answer",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("sender", Text_C, nullable=False),
    Column("control_id", Text_C, nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the message without MSH-7
    Column("message_pk", ForeignKey("hl7_message.pk"), nullable=False),
    Column("at", UtcDateTime, nullable=False, index=True),
    UniqueConstraint("sender", "control_id"),
)
