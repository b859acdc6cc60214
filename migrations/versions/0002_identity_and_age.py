"""What the RIS says of patients and orders; age, holds and purges; HL7 messages; the journal of facts; jobs.

Revision 0002, from 0001. Adds columns that may be empty and new tables only.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def _added() -> dict[str, list[sa.Column[Any]]]:
    """New columns of the tables of 0001, made anew for each use."""
    return {
        "patient": [
            sa.Column("received_attributes", sa.Text()),
            sa.Column("corrections", sa.Text()),
            sa.Column("record", sa.Text()),
            sa.Column("version", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("ins", TEXT_C),
            sa.Column("merged_into_pk", sa.BigInteger()),
            sa.Column("tombstone", sa.String(8)),
        ],
        "study": [
            sa.Column("received_attributes", sa.Text()),
            sa.Column("corrections", sa.Text()),
            sa.Column("policy_version", sa.String(16)),
            sa.Column("keep_until", sa.String(8)),
            sa.Column("keep_reasons", sa.Text()),
            sa.Column("online_until", sa.String(8)),
            sa.Column("grace_until", TIME),
            sa.Column("announced_at", TIME),
            sa.Column("purge_on", sa.String(8)),
        ],
        "instance": [
            sa.Column("identity", sa.String(32)),
            sa.Column("derived_from_pk", sa.BigInteger()),
            sa.Column("derivation", sa.Text()),
        ],
        "work_item": [sa.Column("closed_by", TEXT_C), sa.Column("resolution", sa.Text())],
    }


INDEXED = {
    "patient": ("ins", "merged_into_pk"),
    "study": ("policy_version", "keep_until", "online_until", "grace_until", "purge_on"),
    "instance": ("derived_from_pk",),
}
PURGING = ("instance", "location")  # each with an index of its rows that are being removed
NEW = (
    "patient_revision",
    "imaging_order",
    "hl7_answer",
    "hl7_message",
    "hold",
    "purge",
    "tombstone",
    "purge_approval",
    "suspension",
    "last_tick",
    "life_failure",
    "lease",
    "fact",
    "job",
)


def _key(table: str) -> tuple[sa.Column[Any], sa.PrimaryKeyConstraint]:
    return sa.Column("pk", KEY, nullable=False), sa.PrimaryKeyConstraint("pk", name=f"pk_{table}")


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def _unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=f"uq_{table}_{'_'.join(columns)}")


def _belongs(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{to}.pk"], name=f"fk_{table}_{column}")


def upgrade() -> None:
    for table, columns in _added().items():
        for column in columns:
            op.add_column(table, column)
    for table, names in INDEXED.items():
        for name in names:
            _index(table, name)
    where = sa.text("state = 'purging'")
    for table in PURGING:
        op.create_index(f"ix_{table}_purging", table, ["pk"], sqlite_where=where, postgresql_where=where)
    _identity()
    _messages()
    _life()
    _operations()


def _identity() -> None:
    op.create_table(
        "patient_revision",
        *_key("patient_revision"),
        sa.Column("patient_pk", KEY, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user", TEXT_C, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        _belongs("patient_revision", "patient_pk", "patient"),
        _unique("patient_revision", "patient_pk", "version"),
    )
    op.create_table(
        "imaging_order",
        *_key("imaging_order"),
        sa.Column("accession_number", TEXT_C, nullable=False),
        sa.Column("step_id", TEXT_C, nullable=False),
        sa.Column("patient_pk", KEY, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("placer_number", TEXT_C, nullable=False),
        sa.Column("filler_number", TEXT_C, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        _belongs("imaging_order", "patient_pk", "patient"),
        _unique("imaging_order", "accession_number", "step_id"),
    )
    for column in ("patient_pk", "study_instance_uid", "placer_number", "status"):
        _index("imaging_order", column)


def _messages() -> None:
    op.create_table(
        "hl7_message",
        *_key("hl7_message"),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("connection", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("sender", TEXT_C, nullable=False),
        sa.Column("control_id", TEXT_C, nullable=False),
        sa.Column("kind", TEXT_C, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("ack_code", sa.String(2)),
        sa.Column("ack", sa.LargeBinary()),
        sa.Column("error", sa.Text()),
        sa.Column("answered_at", TIME),
    )
    for column in ("received_at", "control_id", "state"):
        _index("hl7_message", column)
    op.create_table(
        "hl7_answer",
        *_key("hl7_answer"),
        sa.Column("sender", TEXT_C, nullable=False),
        sa.Column("control_id", TEXT_C, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("message_pk", KEY, nullable=False),
        sa.Column("at", TIME, nullable=False),
        _belongs("hl7_answer", "message_pk", "hl7_message"),
        _unique("hl7_answer", "sender", "control_id"),
    )
    _index("hl7_answer", "at")


def _life() -> None:
    op.create_table(
        "hold",
        *_key("hold"),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("until", sa.String(8)),
        sa.Column("placed_by", TEXT_C, nullable=False),
        sa.Column("placed_at", TIME, nullable=False),
        sa.Column("removed_by", TEXT_C),
        sa.Column("removed_at", TIME),
        _unique("hold", "id"),
    )
    _index("hold", "study_instance_uid")
    op.create_table(
        "purge",
        *_key("purge"),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("patient", TEXT_C, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("begun_at", TIME, nullable=False),
        sa.Column("done_at", TIME),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("note_uid", TEXT_C, nullable=False),
        sa.Column("note_path", sa.Text(), nullable=False),
        sa.Column("note_digest", sa.String(64), nullable=False),
        _unique("purge", "id"),
    )
    for column in ("study_instance_uid", "state"):
        _index("purge", column)
    op.create_table(
        "tombstone",
        *_key("tombstone"),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("series_instance_uid", TEXT_C, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("sop_class_uid", TEXT_C, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("purge_id", sa.String(36), nullable=False),
        sa.Column("at", TIME, nullable=False),
        _unique("tombstone", "sop_instance_uid"),
    )
    for column in ("study_instance_uid", "purge_id"):
        _index("tombstone", column)
    op.create_table(
        "purge_approval",
        *_key("purge_approval"),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("user", TEXT_C, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        _unique("purge_approval", "study_instance_uid", "user"),
    )
    op.create_table(
        "suspension",
        *_key("suspension"),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("lifted_by", TEXT_C),
        sa.Column("lifted_at", TIME),
        sa.Column("reason", sa.Text()),
    )
    op.create_table(
        "last_tick",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("real_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_last_tick"),
    )
    op.create_table(
        "life_failure",
        *_key("life_failure"),
        sa.Column("study_pk", KEY, nullable=False),
        sa.Column("step", sa.String(12), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retry_at", TIME, nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        _belongs("life_failure", "study_pk", "study"),
        _unique("life_failure", "study_pk", "step"),
    )
    _index("life_failure", "retry_at")


def _operations() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(36), nullable=False),
        sa.Column("until", TIME, nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
    op.create_table(
        "fact",
        *_key("fact"),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("subject", TEXT_C, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("journaled", sa.Integer(), nullable=False),
    )
    _index("fact", "journaled")
    op.create_table(
        "job",
        *_key("job"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("holder", sa.String(36)),
        sa.Column("lease_until", TIME),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("result", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
    )
    _index("job", "state", "kind")


def downgrade() -> None:
    """Back to 0001: what the RIS said and what was purged is forgotten by the database, not by the journal."""
    for table in NEW:
        op.drop_table(table)
    for table in PURGING:
        op.drop_index(f"ix_{table}_purging", table_name=table)
    for table, names in INDEXED.items():
        for name in names:
            op.drop_index(f"ix_{table}_{name}", table_name=table)
    for table, columns in _added().items():
        for column in columns:
            op.drop_column(table, column.name)
