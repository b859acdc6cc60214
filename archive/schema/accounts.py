"""Local accounts, API tokens and the sessions of the desk. Secrets are stored hashed."""

from __future__ import annotations

from sqlalchemy import Column, Integer, String, Table, Text

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

account = Table(
    "account",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("name", Text_C, nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),  # argon2id
    Column("roles", Text, nullable=False),  # JSON list
    Column("disabled", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

token = Table(
    "token",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("name", Text_C, nullable=False),
    Column("secret_hash", String(64), nullable=False, unique=True),  # SHA-256 of 256 random bits
    Column("roles", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

session = Table(
    "session",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("account_pk", Integer, nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)
