"""How far a sharing network was told of changes.

Revision 0015, from 0014. Adds a new table only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sharing_told",
        sa.Column("pk", sa.Integer(), nullable=False),
        sa.Column("feed", sa.String(32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_sharing_told"),
    )


def downgrade() -> None:
    op.drop_table("sharing_told")
