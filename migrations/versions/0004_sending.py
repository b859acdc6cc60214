"""What is to leave for peers; studies that are taken over from another archive.

Revision 0004, from 0003. New tables only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "sending",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("rule", sa.String(64)),
        sa.Column("job_pk", KEY),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("why", sa.Text()),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_pk"], ["job.pk"], name="fk_sending_job_pk", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pk", name="pk_sending"),
    )
    op.create_index("ix_sending_job_pk_state", "sending", ["job_pk", "state"])
    op.create_index("ix_sending_study_instance_uid", "sending", ["study_instance_uid"])
    unclaimed, by_rule = sa.text("job_pk IS NULL"), sa.text("rule IS NOT NULL")
    op.create_index(
        "ix_sending_quiet",
        "sending",
        ["rule", "study_instance_uid"],
        sqlite_where=unclaimed,
        postgresql_where=unclaimed,
    )
    op.create_index(
        "uq_sending_rule",
        "sending",
        ["sop_instance_uid", "rule"],
        unique=True,
        sqlite_where=by_rule,
        postgresql_where=by_rule,
    )
    op.create_table(
        "pulled_study",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("peer", TEXT_C, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("study_date", sa.String(8), nullable=False),
        sa.Column("announced", sa.Integer()),
        sa.Column("listed", sa.Integer(), nullable=False),
        sa.Column("already_here", sa.Integer(), nullable=False),
        sa.Column("missing", sa.Integer(), nullable=False),
        sa.Column("missing_uids", sa.Text(), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("why", sa.Text()),
        sa.Column("checked_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_pulled_study"),
        sa.UniqueConstraint("peer", "study_instance_uid", name="uq_pulled_study_peer_study_instance_uid"),
    )
    op.create_index("ix_pulled_study_peer_study_date", "pulled_study", ["peer", "study_date"])


def downgrade() -> None:
    op.drop_table("pulled_study")
    op.drop_table("sending")
