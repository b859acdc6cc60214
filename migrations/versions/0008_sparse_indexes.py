"""Indexes of columns that few rows fill leave out the others: storing an image writes fewer pages.

Revision 0008, from 0007. No data changes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SPARSE = (
    ("patient", "ins"),
    ("patient", "merged_into_pk"),
    ("study", "online_until"),
    ("study", "grace_until"),
    ("study", "purge_on"),
    ("instance", "derived_from_pk"),
)


def upgrade() -> None:
    for table, column in SPARSE:
        name = f"ix_{table}_{column}"
        filled = sa.text(f"{column} IS NOT NULL")
        op.drop_index(name, table_name=table)
        op.create_index(name, table, [column], sqlite_where=filled, postgresql_where=filled)


def downgrade() -> None:
    for table, column in SPARSE:
        name = f"ix_{table}_{column}"
        op.drop_index(name, table_name=table)
        op.create_index(name, table, [column])
