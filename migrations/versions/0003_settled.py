"""Which work item an instance is held back for, and which content was the instance once.

Revision 0003, from 0002. Adds columns only. What is held back already waits for any identity conflict of its study.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
HELD = sa.text("held_for IS NOT NULL")


def upgrade() -> None:
    op.add_column("instance", sa.Column("held_for", TEXT_C))
    op.add_column("quarantined", sa.Column("former", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE instance SET held_for = '' WHERE state = 'held'")
    op.create_index("ix_instance_held_for", "instance", ["held_for"], sqlite_where=HELD, postgresql_where=HELD)


def downgrade() -> None:
    op.drop_index("ix_instance_held_for", "instance")
    op.drop_column("quarantined", "former")
    op.drop_column("instance", "held_for")
