"""What modalities ask of orders, in columns; what they say they have done.

Revision 0006, from 0005. Adds columns that may be empty, which it fills from the records, and two tables.
"""

from __future__ import annotations

import json
import re

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    for column in (
        sa.Column("start_date", sa.String(8)),
        sa.Column("start_time", sa.String(13)),
        sa.Column("modality", TEXT_C),
        sa.Column("station_ae", TEXT_C),
    ):
        op.add_column("imaging_order", column)
    _fill()
    op.drop_index("ix_imaging_order_status", table_name="imaging_order")
    op.create_index(
        "ix_imaging_order_worklist",
        "imaging_order",
        ["status", "start_date", "start_time", "modality", "station_ae"],
    )
    op.create_table(
        "performed_step",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("sop_instance_uid", TEXT_C, nullable=False),
        sa.Column("patient_pk", KEY, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created", sa.Text(), nullable=False),
        sa.Column("modified", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("calling_ae", TEXT_C, nullable=False),
        sa.Column("forwarded", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_performed_step"),
        sa.ForeignKeyConstraint(["patient_pk"], ["patient.pk"], name="fk_performed_step_patient_pk"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_performed_step_sop_instance_uid"),
    )
    op.create_index("ix_performed_step_patient_pk", "performed_step", ["patient_pk"])
    op.create_table(
        "performed_for",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("performed_pk", KEY, nullable=False),
        sa.Column("study_instance_uid", TEXT_C, nullable=False),
        sa.Column("accession_number", TEXT_C, nullable=False),
        sa.Column("step_id", TEXT_C, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_performed_for"),
        sa.ForeignKeyConstraint(["performed_pk"], ["performed_step.pk"], name="fk_performed_for_performed_pk"),
    )
    for name in ("performed_pk", "study_instance_uid", "accession_number"):
        op.create_index(f"ix_performed_for_{name}", "performed_for", [name])


def _fill() -> None:
    """Orders of before: some thousands in a practice."""
    order = sa.table(
        "imaging_order",
        *(sa.column(name) for name in ("pk", "record", "start_date", "start_time", "modality", "station_ae")),
    )
    conn = op.get_bind()
    for pk, record in conn.execute(sa.select(order.c.pk, order.c.record)).all():
        item = json.loads(record)["dicom"]
        time = re.sub(r"[^0-9]", "", item.get("ScheduledProcedureStepStartTime", ""))[:6]
        values = {
            "start_date": item.get("ScheduledProcedureStepStartDate") or None,
            "start_time": f"{time:0<6}.000000" if time else None,
            "modality": item.get("Modality", ""),
            "station_ae": item.get("ScheduledStationAETitle", ""),
        }
        conn.execute(sa.update(order).where(order.c.pk == pk).values(values))


def downgrade() -> None:
    """Back to 0005: what modalities said is forgotten by the database, not by the journal."""
    op.drop_table("performed_for")
    op.drop_table("performed_step")
    op.drop_index("ix_imaging_order_worklist", table_name="imaging_order")
    op.create_index("ix_imaging_order_status", "imaging_order", ["status"])
    for name in ("start_date", "start_time", "modality", "station_ae"):
        op.drop_column("imaging_order", name)
