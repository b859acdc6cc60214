"""How soon images were there, as the archive measured it itself.

Revision 0012, from 0011. Adds a new table only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "probe",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("door", sa.String(12), nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("series_instance_uid", TEXT_C, nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_seconds", sa.Float()),
        sa.Column("all_seconds", sa.Float()),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_probe"),
    )
    op.create_index("ix_probe_at", "probe", ["at"])


def downgrade() -> None:
    """Back to 0007: measurements are forgotten by the database, not by the journal."""
    op.drop_table("probe")
