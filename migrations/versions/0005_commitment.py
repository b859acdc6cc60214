"""Storage commitment, and studies whose availability peers are to be told of.

Revision 0005, from 0004. Adds a column that may be empty and new tables only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("study", sa.Column("notify_at", TIME))
    where = sa.text("notify_at IS NOT NULL")
    op.create_index("ix_study_notify_at", "study", ["notify_at"], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "commitment_request",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("transaction_uid", TEXT_C, nullable=False),
        sa.Column("ae_title", TEXT_C, nullable=False),
        sa.Column("instances", sa.Text(), nullable=False),
        sa.Column("duplicate", sa.Integer(), nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("failed", sa.Text()),
        sa.Column("reported_at", TIME),
        sa.PrimaryKeyConstraint("pk", name="pk_commitment_request"),
    )
    for column in ("transaction_uid", "asked_at"):
        op.create_index(f"ix_commitment_request_{column}", "commitment_request", [column])
    op.create_table(
        "commitment",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("transaction_uid", TEXT_C, nullable=False),
        sa.Column("ae_title", TEXT_C, nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_commitment"),
        sa.UniqueConstraint(
            "study_instance_uid",
            "transaction_uid",
            "ae_title",
            name="uq_commitment_study_instance_uid_transaction_uid_ae_title",
        ),
    )


def downgrade() -> None:
    op.drop_table("commitment")
    op.drop_table("commitment_request")
    op.drop_index("ix_study_notify_at", "study")
    op.drop_column("study", "notify_at")
