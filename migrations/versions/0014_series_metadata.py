"""The metadata of series, ready to be told.

Revision 0014, from 0013. Adds a new table only; it fills by itself.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "series_metadata",
        sa.Column("series_pk", KEY, nullable=False, autoincrement=False),
        sa.Column("form", sa.String(32), nullable=False),
        sa.Column("sources", sa.LargeBinary(), nullable=False),
        sa.Column("lines", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("series_pk", name="pk_series_metadata"),
        sa.ForeignKeyConstraint(["series_pk"], ["series.pk"], name="fk_series_metadata_series_pk", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("series_metadata")
