"""The feed of changes.

Revision 0013, from 0012. Adds a new table only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "change",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("series_instance_uid", TEXT_C),
        sa.Column("sop_instance_uid", TEXT_C),
        sa.Column("source", sa.String(8), nullable=False),
        sa.Column("source_pk", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_change"),
        sa.UniqueConstraint(
            "source", "source_pk", "study_instance_uid", name="uq_change_source_source_pk_study_instance_uid"
        ),
    )


def downgrade() -> None:
    op.drop_table("change")
