"""Visits, their movements, and links between patients (IHE PAM).

Revision 0009, from 0008. Adds new tables only.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def _key(table: str) -> tuple[sa.Column[Any], sa.PrimaryKeyConstraint]:
    return sa.Column("pk", KEY, nullable=False), sa.PrimaryKeyConstraint("pk", name=f"pk_{table}")


def _of(table: str, column: str, other: str) -> tuple[sa.Column[Any], sa.ForeignKeyConstraint]:
    reference = sa.ForeignKeyConstraint([column], [f"{other}.pk"], name=f"fk_{table}_{column}")
    return sa.Column(column, KEY, nullable=False), reference


def upgrade() -> None:
    op.create_table(
        "visit",
        *_key("visit"),
        sa.Column("number", TEXT_C, nullable=False),
        sa.Column("issuer", TEXT_C, nullable=False),
        *_of("visit", "patient_pk", "patient"),
        sa.Column("account_number", TEXT_C, nullable=False),
        sa.Column("account_issuer", TEXT_C, nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("patient_class", TEXT_C, nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.UniqueConstraint("number", "issuer", name="uq_visit_number_issuer"),
    )
    op.create_table(
        "movement",
        *_key("movement"),
        *_of("movement", "visit_pk", "visit"),
        sa.Column("movement_id", TEXT_C, nullable=False),
        sa.Column("event", sa.String(8), nullable=False),
        sa.Column("start", sa.String(14), nullable=False),
        sa.Column("historic", sa.Integer(), nullable=False),
        sa.Column("cancelled", sa.Integer(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
    )
    op.create_table(
        "patient_link",
        *_key("patient_link"),
        *_of("patient_link", "patient_pk", "patient"),
        *_of("patient_link", "other_pk", "patient"),
        sa.UniqueConstraint("patient_pk", "other_pk", name="uq_patient_link_patient_pk_other_pk"),
    )
    for table, column in INDEXED:
        op.create_index(f"ix_{table}_{column}", table, [column])


INDEXED = (
    ("visit", "patient_pk"),
    ("visit", "account_number"),
    ("movement", "visit_pk"),
    ("patient_link", "other_pk"),
)


def downgrade() -> None:
    """Back to 0007: visits and links are forgotten by the database, not by the journal."""
    for table in ("patient_link", "movement", "visit"):
        op.drop_table(table)
