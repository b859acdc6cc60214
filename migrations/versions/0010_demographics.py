"""Finding patients by every name and identifier that is known of them (PDQ, PDQm); where such a query goes on.

Revision 0010, from 0009. Adds a column that may be empty and new tables, and fills them from the records.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from archive.dicom.person_name import fold  # what the index compares with today: a copy would be compared with it

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Copied, not imported: a migration says what it did on its day, whatever archive.schema becomes.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT_C = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
PRIVATE = frozenset({"INS", "INS-C", "INS-NIR", "INS-NIA", "NH", "SS", "NDP", "AN", "VN"})
STRUCTURE = str.maketrans(dict.fromkeys("^=\\*?", " "))
BATCH = 500


def upgrade() -> None:
    op.add_column("patient", sa.Column("other_names", TEXT_C))
    filled = sa.text("other_names IS NOT NULL")
    op.create_index("ix_patient_other_names", "patient", ["other_names"], sqlite_where=filled, postgresql_where=filled)
    op.create_table(
        "patient_identifier",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("patient_pk", KEY, nullable=False),
        sa.Column("value", TEXT_C, nullable=False),
        sa.Column("issuer", TEXT_C, nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_patient_identifier"),
        sa.ForeignKeyConstraint(["patient_pk"], ["patient.pk"], name="fk_patient_identifier_patient_pk"),
    )
    for column in ("patient_pk", "value"):
        op.create_index(f"ix_patient_identifier_{column}", "patient_identifier", [column])
    op.create_table(
        "query_pointer",
        sa.Column("pointer", sa.String(36), nullable=False),
        sa.Column("sender", TEXT_C, nullable=False),
        sa.Column("tag", TEXT_C, nullable=False),
        sa.Column("query", sa.String(64), nullable=False),
        sa.Column("after_pk", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("pointer", name="pk_query_pointer"),
    )
    op.create_index("ix_query_pointer_expires_at", "query_pointer", ["expires_at"])
    _fill()


def _fill() -> None:
    patient = sa.table("patient", sa.column("pk"), sa.column("record"), sa.column("other_names"))
    known = sa.table("patient_identifier", sa.column("patient_pk"), sa.column("value"), sa.column("issuer"))
    conn, last = op.get_bind(), 0
    wanted = sa.select(patient.c.pk, patient.c.record).where(patient.c.record.is_not(None)).order_by(patient.c.pk)
    while rows := conn.execute(wanted.where(patient.c.pk > last).limit(BATCH)).all():
        last = rows[-1].pk
        names, identifiers = [], []
        for pk, text in rows:
            record = json.loads(text)
            names.append({"of": pk, "names": _other_names(record.get("names", {}))})
            pairs = {(one["value"], one["issuer"]) for one in record.get("identifiers", ()) if _may_be_told(one)}
            identifiers += [{"patient_pk": pk, "value": value, "issuer": issuer} for value, issuer in sorted(pairs)]
        fill = sa.update(patient).where(patient.c.pk == sa.bindparam("of")).values(other_names=sa.bindparam("names"))
        conn.execute(fill, names)
        if identifiers:
            conn.execute(sa.insert(known), identifiers)


def _other_names(names: dict[str, dict[str, Any]]) -> str | None:
    birth: dict[str, Any] = next((names[kind] for kind in ("L", "S", "U") if _says(names.get(kind))), {})
    used = names.get("D")
    pairs = [(used.get("family"), used.get("given"))] if used and _says(used) else []
    further = (birth.get("given_list") or "").split()
    pairs += [(birth.get("family"), given) for given in further if given != birth.get("given")]
    folded = (fold("^".join((part or "").translate(STRUCTURE) for part in pair)) for pair in pairs)
    return "\\".join(dict.fromkeys(name for name in folded if name))[:300] or None


def _says(name: dict[str, Any] | None) -> bool:
    return bool(name and (name.get("family") or name.get("given")))


def _may_be_told(one: dict[str, str]) -> bool:
    national = one["issuer"].startswith(("1.2.250.1.213.1.4.", "ASIP-SANTE-INS"))
    return one.get("type", "") not in PRIVATE and not national


def downgrade() -> None:
    """Back to 0009. Records hold all that this was made from."""
    op.drop_table("query_pointer")
    op.drop_table("patient_identifier")
    op.drop_index("ix_patient_other_names", table_name="patient")
    op.drop_column("patient", "other_names")
