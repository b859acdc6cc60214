"""What modalities say they have done (MPPS, PS3.4 Annex F), and which scheduled steps they did it for."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Integer, String, Table, Text

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

performed_step = Table(
    "performed_step",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("sop_instance_uid", Text_C, nullable=False, unique=True),
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False, index=True),
    Column("status", String(16), nullable=False),  # archive.workflow.performed.Status
    Column("created", Text, nullable=False),  # JSON, DICOM JSON of the N-CREATE
    Column("modified", Text, nullable=False),  # JSON, DICOM JSON of the N-SETs, the last value of each attribute
    Column("version", Integer, nullable=False),  # 1 with the N-CREATE, one more with each N-SET
    Column("calling_ae", Text_C, nullable=False),
    Column("forwarded", Text, nullable=False),  # JSON, AE title: the version that this peer was told (REQ-DCM-54)
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

# An item of Scheduled Step Attributes Sequence. Which order it means is asked when it is needed: it may come later.
performed_for = Table(
    "performed_for",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("performed_pk", ForeignKey("performed_step.pk"), nullable=False, index=True),
    Column("study_instance_uid", Text_C, nullable=False, index=True),
    Column("accession_number", Text_C, nullable=False, index=True),
    Column("step_id", Text_C, nullable=False),
)
