"""The first schema: index, copies, work items, quarantine, accounts, audit, processes.

Revision 0001, from nothing.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def _key(table: str) -> tuple[sa.Column[Any], sa.PrimaryKeyConstraint]:
    return sa.Column("pk", KEY, nullable=False), sa.PrimaryKeyConstraint("pk", name=f"pk_{table}")


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def _unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=f"uq_{table}_{'_'.join(columns)}")


def _belongs(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{to}.pk"], name=f"fk_{table}_{column}")


def upgrade() -> None:
    _index_tables()
    _copies()
    _people()
    _work()
    _audit()
    _operations()


def _index_tables() -> None:
    op.create_table(
        "patient",
        *_key("patient"),
        sa.Column("identity_key", TEXT_C, nullable=False),
        sa.Column("patient_id", TEXT_C, nullable=False),
        sa.Column("issuer", TEXT_C, nullable=False),
        sa.Column("patient_name", TEXT_C, nullable=False),
        sa.Column("birth_date", sa.String(8)),
        sa.Column("sex", TEXT_C),
        sa.Column("provisional", sa.Integer(), nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        _unique("patient", "identity_key"),
    )
    for column in ("patient_id", "patient_name", "birth_date"):
        _index("patient", column)

    op.create_table(
        "study",
        *_key("study"),
        sa.Column("patient_pk", KEY, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("study_date", sa.String(8)),
        sa.Column("study_time", sa.String(13)),
        sa.Column("accession_number", TEXT_C),
        sa.Column("study_id", TEXT_C),
        sa.Column("referring_physician_name", TEXT_C),
        sa.Column("study_description", TEXT_C),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("first_received_at", TIME, nullable=False),
        _belongs("study", "patient_pk", "patient"),
        _unique("study", "study_instance_uid"),
    )
    for column in ("patient_pk", "accession_number", "study_id", "referring_physician_name"):
        _index("study", column)
    _index("study", "study_date", "study_time")

    op.create_table(
        "series",
        *_key("series"),
        sa.Column("study_pk", KEY, nullable=False),
        sa.Column("series_instance_uid", TEXT_C, nullable=False),
        sa.Column("modality", TEXT_C),
        sa.Column("series_number", sa.Integer()),
        sa.Column("series_description", TEXT_C),
        sa.Column("body_part_examined", TEXT_C),
        sa.Column("pps_start_date", sa.String(8)),
        sa.Column("pps_start_time", sa.String(13)),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        _belongs("series", "study_pk", "study"),
        _unique("series", "series_instance_uid"),
    )
    for column in ("study_pk", "pps_start_date"):
        _index("series", column)


def _copies() -> None:
    op.create_table(
        "instance",
        *_key("instance"),
        sa.Column("series_pk", KEY, nullable=False),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("sop_class_uid", TEXT_C, nullable=False),
        sa.Column("instance_number", sa.Integer()),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("attributes", sa.Text(), nullable=False),
        _belongs("instance", "series_pk", "series"),
        _unique("instance", "sop_instance_uid"),
    )
    _index("instance", "series_pk", "state")

    op.create_table(
        "location",
        *_key("location"),
        sa.Column("instance_pk", KEY, nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.Column("path", TEXT_C, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("transfer_syntax_uid", TEXT_C, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("file_bytes", sa.BigInteger(), nullable=False),
        sa.Column("data_set_offset", sa.Integer(), nullable=False),
        sa.Column("pixel_offset", sa.BigInteger()),
        sa.Column("verified_at", TIME),
        _belongs("location", "instance_pk", "instance"),
        _unique("location", "tier", "path"),
    )
    _index("location", "instance_pk")


def _people() -> None:
    op.create_table(
        "account",
        *_key("account"),
        sa.Column("name", TEXT_C, nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("disabled", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        _unique("account", "name"),
    )
    op.create_table(
        "token",
        *_key("token"),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", TEXT_C, nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        _unique("token", "id"),
        _unique("token", "secret_hash"),
    )
    op.create_table(
        "session",
        *_key("session"),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("account_pk", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        _unique("session", "secret_hash"),
    )
    _index("session", "account_pk")


def _work() -> None:
    op.create_table(
        "work_item",
        *_key("work_item"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", TEXT_C, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("patient_pk", KEY),
        sa.Column("study_instance_uid", TEXT_C),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("closed_at", TIME),
        _belongs("work_item", "patient_pk", "patient"),
        _unique("work_item", "kind", "subject"),
    )
    _index("work_item", "state", "kind")

    op.create_table(
        "quarantined",
        *_key("quarantined"),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("path", TEXT_C, nullable=False),
        sa.Column("transfer_syntax_uid", TEXT_C, nullable=False),
        sa.Column("file_bytes", sa.BigInteger(), nullable=False),
        sa.Column("data_set_offset", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("first_received_at", TIME, nullable=False),
        sa.Column("last_received_at", TIME, nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        _unique("quarantined", "sop_instance_uid", "digest"),
    )


def _audit() -> None:
    op.create_table(
        "audit_chain",
        sa.Column("chain", sa.String(36), nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("follows", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("chain", name="pk_audit_chain"),
    )
    op.create_table(
        "audit",
        *_key("audit"),
        sa.Column("chain", sa.String(36), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("action", sa.String(1), nullable=False),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("user", TEXT_C, nullable=False),
        sa.Column("source", TEXT_C, nullable=False),
        sa.Column("door", sa.String(12), nullable=False),
        sa.Column("patient", TEXT_C),
        sa.Column("study", TEXT_C),
        sa.Column("detail", sa.Text(), nullable=False),
        _unique("audit", "chain", "seq"),
    )
    for column in ("time", "event", "user", "patient", "study"):
        _index("audit", column)


def _operations() -> None:
    op.create_table(
        "process",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("edge", sa.String(12), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("beat_at", TIME, nullable=False),
        sa.Column("clock_generation", sa.Integer(), nullable=False),
        sa.Column("listening", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_process"),
    )
    op.create_table(
        "simulated_clock",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("real_anchor", TIME),
        sa.Column("shown", TIME),
        sa.PrimaryKeyConstraint("pk", name="pk_simulated_clock"),
    )


def downgrade() -> None:
    """Only an empty archive can go back to nothing; the images stay on disk."""
    for table in (
        "simulated_clock",
        "process",
        "audit",
        "audit_chain",
        "quarantined",
        "work_item",
        "session",
        "token",
        "account",
        "location",
        "instance",
        "series",
        "study",
        "patient",
    ):
        op.drop_table(table)
