"""What an audit repository was sent, what time servers said of the clock, and the manifests of studies.

Revision 0011, from 0010. Adds new tables only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "audit_sent",
        sa.Column("chain", sa.String(36), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("chain", name="pk_audit_sent"),
    )
    op.create_table(
        "repository_state",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("tried_at", TIME, nullable=False),
        sa.Column("failing_since", TIME),
        sa.Column("why", sa.Text()),
        sa.PrimaryKeyConstraint("pk", name="pk_repository_state"),
    )
    op.create_table(
        "clock_check",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("offset_seconds", sa.Float()),
        sa.Column("servers", sa.Integer(), nullable=False),
        sa.Column("why", sa.Text()),
        sa.PrimaryKeyConstraint("pk", name="pk_clock_check"),
    )
    op.create_table(
        "manifest",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("series_instance_uid", TEXT_C, nullable=False),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("listed", sa.Text(), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", TEXT_C, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_manifest"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_manifest_sop_instance_uid"),
        sa.UniqueConstraint("study_instance_uid", "number", name="uq_manifest_study_instance_uid_number"),
    )


def downgrade() -> None:
    """Back to 0007: a repository that is set again is sent everything once more."""
    for table in ("manifest", "clock_check", "repository_state", "audit_sent"):
        op.drop_table(table)
