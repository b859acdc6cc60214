"""What documents say of other instances: key objects, rejection notes, radiation dose reports.

Revision 0007, from 0006. Adds a column that may be empty and new tables only.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def _key(table: str) -> tuple[sa.Column[Any], sa.PrimaryKeyConstraint]:
    return sa.Column("pk", KEY, nullable=False), sa.PrimaryKeyConstraint("pk", name=f"pk_{table}")


def upgrade() -> None:
    op.add_column("instance", sa.Column("state_before", sa.String(12)))
    op.create_table(
        "reference",
        *_key("reference"),
        sa.Column("instance_pk", sa.BigInteger(), nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("series_instance_uid", TEXT_C, nullable=False),
        sa.Column("sop_class_uid", TEXT_C, nullable=False),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("frames", sa.Text()),
        sa.Column("with_uid", TEXT_C),
    )
    op.create_table(
        "rejection",
        *_key("rejection"),
        sa.Column("note_uid", TEXT_C, nullable=False),
        sa.Column("code", sa.String(16), nullable=False),
        sa.Column("note_study", TEXT_C, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("rejected_at", TIME, nullable=False),
        sa.Column("rejected_by", TEXT_C, nullable=False),
        sa.Column("applied_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("revoked_by", TEXT_C),
        sa.Column("reason", sa.Text()),
        sa.UniqueConstraint("note_uid", "sop_instance_uid", name="uq_rejection_note_uid_sop_instance_uid"),
    )
    op.create_table(
        "dose",
        *_key("dose"),
        sa.Column("instance_pk", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("template", sa.String(16)),
        sa.Column("event_uid", TEXT_C),
        sa.Column("at", sa.String(26)),
        sa.Column("label", sa.Text()),
        sa.Column("ctdi_vol_mgy", sa.Float()),
        sa.Column("dlp_mgycm", sa.Float()),
        sa.Column("dap_gym2", sa.Float()),
        sa.Column("agd_mgy", sa.Float()),
        sa.Column("activity_mbq", sa.Float()),
        sa.Column("device_uid", TEXT_C),
        sa.Column("device", sa.Text()),
    )
    for table, column in INDEXED:
        op.create_index(f"ix_{table}_{column}", table, [column])


INDEXED = (
    ("reference", "instance_pk"),
    ("reference", "study_instance_uid"),
    ("reference", "sop_instance_uid"),
    ("rejection", "sop_instance_uid"),
    ("rejection", "study_instance_uid"),
    ("dose", "instance_pk"),
    ("dose", "event_uid"),
)


def downgrade() -> None:
    """Back to 0006: what was rejected is forgotten by the database, not by the journal."""
    for table in ("dose", "rejection", "reference"):
        op.drop_table(table)
    op.drop_column("instance", "state_before")
