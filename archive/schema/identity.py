"""What the RIS, or a person, says of patients and orders; images only say what they were told once."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

# Every state of a patient's record, in order; the last one is `patient.record`.
patient_revision = Table(
    "patient_revision",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("user", Text_C, nullable=False),
    Column("event", Text, nullable=False),  # A28, A31, A40, a correction by hand…
    Column("record", Text, nullable=False),
    UniqueConstraint("patient_pk", "version"),
)

# The identifiers that a record says somebody has, whoever assigned them: to be found by (archive.identity.searchable).
patient_identifier = Table(
    "patient_identifier",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False, index=True),
    Column("value", Text_C, nullable=False, index=True),
    Column("issuer", Text_C, nullable=False),
)

# Where the answer to a query of patients goes on (HL7 2.5 5.6.3), for a few minutes. Nothing of what was asked.
query_pointer = Table(
    "query_pointer",
    METADATA,
    Column("pointer", String(36), primary_key=True),
    Column("sender", Text_C, nullable=False),  # MSH-3|MSH-4
    Column("tag", Text_C, nullable=False),  # QPD-2
    Column("query", String(64), nullable=False),  # SHA-256 of its QPD
    Column("after_pk", BigInteger, nullable=False),  # patient.pk, the last one given
    Column("expires_at", UtcDateTime, nullable=False, index=True),  # real time
)

# One scheduled step of one order: an ORC/OBR group.
imaging_order = Table(
    "imaging_order",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("accession_number", Text_C, nullable=False),
    Column("step_id", Text_C, nullable=False),  # Scheduled Procedure Step ID; "" when the RIS gives none
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False, index=True),
    Column("study_instance_uid", Text_C, nullable=False, index=True),
    Column("placer_number", Text_C, nullable=False, index=True),
    Column("filler_number", Text_C, nullable=False),
    Column("status", String(16), nullable=False),  # archive.workflow.orders.Status
    Column("record", Text, nullable=False),  # JSON: DICOM attributes of the worklist item, and what has no attribute
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # of its worklist item: what modalities ask for
    Column("start_date", String(8)),
    Column("start_time", String(13)),
    Column("modality", Text_C),
    Column("station_ae", Text_C),  # Scheduled Station AE Title; several are joined by a backslash; "" for none
    UniqueConstraint("accession_number", "step_id"),
    Index("ix_imaging_order_worklist", "status", "start_date", "start_time", "modality", "station_ae"),
)

# A visit of a patient (PV1-19), or where the RIS numbers none, an account (PID-18): what ITI-31 tells of.
visit = Table(
    "visit",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("number", Text_C, nullable=False),
    Column("issuer", Text_C, nullable=False),  # in the one spelling of archive.authorities; "" when nobody says it
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False, index=True),
    Column("account_number", Text_C, nullable=False, index=True),  # PID-18; "" for none
    Column("account_issuer", Text_C, nullable=False),
    Column("status", String(10), nullable=False),  # archive.identity.visits.Status
    Column("patient_class", Text_C, nullable=False),  # PV1-2 (table 0004)
    Column("location", Text, nullable=False),  # PV1-3, components joined by ^
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("number", "issuer"),
)

# Each movement of a visit (ZBE), in the order in which they were sent; status, class, location follow from them.
movement = Table(
    "movement",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("visit_pk", ForeignKey("visit.pk"), nullable=False, index=True),
    Column("movement_id", Text_C, nullable=False),  # ZBE-1, the first as `ID^ISSUER`; "" for none
    Column("event", String(8), nullable=False),  # that began it: A01, A02…
    Column("start", String(14), nullable=False),  # ZBE-2, digits of local time
    Column("historic", Integer, nullable=False),  # ZBE-5: 1, it was sent after it was over
    Column("cancelled", Integer, nullable=False),
    Column("record", Text, nullable=False),  # JSON: class, location, wards, nature, account, further IDs
)

# Two patients who may be one (A24): nothing of theirs moves. The lower number first.
patient_link = Table(
    "patient_link",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False),
    Column("other_pk", ForeignKey("patient.pk"), nullable=False, index=True),
    UniqueConstraint("patient_pk", "other_pk"),
)
