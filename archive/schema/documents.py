"""What documents say of other instances: key objects, rejection notes, radiation dose reports."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table, Text, UniqueConstraint

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

# What the content of a key object names, in its order (IHE KIN). Rows go with the document's.
reference = Table(
    "reference",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("instance_pk", BigInteger, nullable=False, index=True),  # the document
    Column("study_instance_uid", Text_C, nullable=False, index=True),
    Column("series_instance_uid", Text_C, nullable=False),
    Column("sop_class_uid", Text_C, nullable=False),
    Column("sop_instance_uid", Text_C, nullable=False, index=True),
    Column("frames", Text),  # `1,3`: of a multi-frame image; NULL: all of it
    Column("with_uid", Text_C),  # of a presentation state: the image that it shows
)

# One instance named by one rejection note (IHE IOCM); it outlives both.
rejection = Table(
    "rejection",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("note_uid", Text_C, nullable=False),  # SOP Instance UID of the note
    Column("code", String(16), nullable=False),  # archive.instance.Rejection
    Column("note_study", Text_C, nullable=False),  # the study that the note is filed in
    Column("study_instance_uid", Text_C, nullable=False),  # of the instance, as the note says
    Column("sop_instance_uid", Text_C, nullable=False, index=True),
    Column("rejected_at", UtcDateTime, nullable=False),
    Column("rejected_by", Text_C, nullable=False),
    Column("applied_at", UtcDateTime),  # NULL: the instance has not come yet
    Column("revoked_at", UtcDateTime),
    Column("revoked_by", Text_C),
    Column("reason", Text),  # of the revocation
    UniqueConstraint("note_uid", "sop_instance_uid"),
    Index("ix_rejection_study_instance_uid", "study_instance_uid"),
)

# One irradiation event of a radiation dose report, or one exposure that it totals (IHE REM). Rows go with the report's.
dose = Table(
    "dose",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("instance_pk", BigInteger, nullable=False, index=True),  # the report
    Column("number", Integer, nullable=False),  # 0: the totals of the report; events from 1
    Column("template", String(16)),  # root template: 10001, 10011…
    Column("event_uid", Text_C, index=True),
    Column("at", String(26)),  # DT, as the report says
    Column("label", Text),  # acquisition type, protocol or target region
    Column("ctdi_vol_mgy", Float),
    Column("dlp_mgycm", Float),
    Column("dap_gym2", Float),
    Column("agd_mgy", Float),  # average, or accumulated average, glandular dose
    Column("activity_mbq", Float),  # administered activity of a radiopharmaceutical
    Column("device_uid", Text_C),
    Column("device", Text),
)
