"""What was received, and where its copies are.

`attributes` is the DICOM JSON of the level's attributes (`archive.dicom.attributes`), as received, in Unicode: what
queries give back. The other DICOM columns are the normalised keys that SQL matches. Where the RIS or a person has
corrected a patient or a study, `attributes` and keys are the corrected ones, `received_attributes` what came with the
first image, and `corrections` what every way out applies (docs/identity.md).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from archive.schema.types import METADATA, Key, Text_C, UtcDateTime

_HELD = text("held_for IS NOT NULL")
_PURGING = text("state = 'purging'")  # few of many, looked for by every tick (archive.lifecycle.remove)
# Of columns that few rows fill: a row that leaves them empty costs their indexes nothing when it is stored.
SPARSE = {
    "patient": ("ins", "merged_into_pk", "other_names"),
    "study": ("online_until", "grace_until", "purge_on"),
    "instance": ("derived_from_pk",),
}
_NOTIFIED = text("notify_at IS NOT NULL")  # few of many, looked for all the time (archive.notification)

patient = Table(
    "patient",
    METADATA,
    Column("pk", Key, primary_key=True),
    # what makes two headers the same patient: issuer and Patient ID, or the study, for a patient without an ID
    Column("identity_key", Text_C, nullable=False, unique=True),
    Column("patient_id", Text_C, nullable=False, index=True),
    Column("issuer", Text_C, nullable=False),
    Column("patient_name", Text_C, nullable=False, index=True),
    Column("birth_date", String(8), index=True),
    Column("sex", Text_C),
    Column("provisional", Integer, nullable=False),  # 1: no Patient ID was received (REQ-DCM-17)
    Column("attributes", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("received_attributes", Text),  # NULL: never corrected
    Column("corrections", Text),  # JSON, archive.index.correct
    Column("record", Text),  # JSON, archive.identity.record; NULL: only images know this patient
    Column("version", Integer, nullable=False, server_default="0"),  # of the record
    Column("ins", Text_C),  # `value^OID` of the usable INS
    Column("other_names", Text_C),  # of the record, beside `patient_name` (archive.identity.searchable)
    Column("merged_into_pk", BigInteger),  # the survivor: never itself a tombstone (path compressed)
    Column("tombstone", String(8)),  # merged, alias
)

study = Table(
    "study",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("patient_pk", ForeignKey("patient.pk"), nullable=False, index=True),
    Column("study_instance_uid", Text_C, nullable=False, unique=True),
    Column("study_date", String(8)),
    Column("study_time", String(13)),
    Column("accession_number", Text_C, index=True),
    Column("study_id", Text_C, index=True),
    Column("referring_physician_name", Text_C, index=True),
    Column("study_description", Text_C),
    Column("attributes", Text, nullable=False),
    Column("first_received_at", UtcDateTime, nullable=False),
    Column("received_attributes", Text),  # NULL: never corrected
    Column("corrections", Text),  # JSON, archive.index.correct
    # Its life (archive.lifecycle). `policy_version` NULL: a fact changed, nothing goes until it is computed anew.
    Column("policy_version", String(16), index=True),
    Column("keep_until", String(8), index=True),  # YYYYMMDD, the first day it may go; NULL keeps
    Column("keep_reasons", Text),  # JSON list
    Column("online_until", String(8)),  # YYYYMMDD, the first day its images may leave the hot tier
    Column("grace_until", UtcDateTime),  # originals stay beside their derived copies until then
    Column("announced_at", UtcDateTime),
    Column("purge_on", String(8)),  # YYYYMMDD, announced: the first day of its purge
    # from when on peers are to be told what of it is available; real time; NULL: they know, or none wants to
    Column("notify_at", UtcDateTime),
    Index("ix_study_study_date_study_time", "study_date", "study_time"),
    Index("ix_study_notify_at", "notify_at", sqlite_where=_NOTIFIED, postgresql_where=_NOTIFIED),
)

series = Table(
    "series",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("study_pk", ForeignKey("study.pk"), nullable=False, index=True),
    Column("series_instance_uid", Text_C, nullable=False, unique=True),
    Column("modality", Text_C),
    Column("series_number", Integer),
    Column("series_description", Text_C),
    Column("body_part_examined", Text_C),
    Column("pps_start_date", String(8), index=True),
    Column("pps_start_time", String(13)),
    Column("attributes", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

instance = Table(
    "instance",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("series_pk", ForeignKey("series.pk"), nullable=False),
    Column("sop_instance_uid", Text_C, nullable=False, unique=True),
    Column("sop_class_uid", Text_C, nullable=False),
    Column("instance_number", Integer),
    Column("state", String(12), nullable=False),  # archive.instance.State
    Column("state_before", String(12)),  # of one that is rejected, or is evidence: what it was
    Column("digest", String(64), nullable=False),  # SHA-256 of the data set as received, group 0002 excluded (law 3)
    Column("source", Text, nullable=False),  # network, media or web, and who sent it
    Column("received_at", UtcDateTime, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("identity", String(32)),  # digest of what its header says of patient and request; NULL: not known
    Column("derived_from_pk", BigInteger),  # whose lossy copy, or companion, it is
    Column("held_for", Text_C),  # held back: the subject of its work item; NULL: nobody waits for it
    Column("derivation", Text),  # JSON: codec, settings, policy version, figures of the gate; of a companion `names`
    Index("ix_instance_series_pk_state", "series_pk", "state"),
    Index("ix_instance_held_for", "held_for", sqlite_where=_HELD, postgresql_where=_HELD),
    Index("ix_instance_purging", "pk", sqlite_where=_PURGING, postgresql_where=_PURGING),
)

location = Table(
    "location",
    METADATA,
    Column("pk", Key, primary_key=True),
    Column("instance_pk", ForeignKey("instance.pk"), nullable=False, index=True),
    Column("tier", String(8), nullable=False),  # hot or cold
    Column("path", Text_C, nullable=False),  # relative to the tier's folder; ours, never from the wire (law 8)
    Column("state", String(12), nullable=False),  # archive.instance.CopyState
    Column("transfer_syntax_uid", Text_C, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("file_bytes", BigInteger, nullable=False),
    Column("data_set_offset", Integer, nullable=False),  # where group 0002 ends and the data set begins
    Column("pixel_offset", BigInteger),  # of the Pixel Data element, from the start of the data set
    Column("verified_at", UtcDateTime),
    UniqueConstraint("tier", "path"),
    Index("ix_location_purging", "pk", sqlite_where=_PURGING, postgresql_where=_PURGING),
)

# The metadata of a series, ready to be told; made anew from the files whenever a line is missing
# (archive.series_metadata).
series_metadata = Table(
    "series_metadata",
    METADATA,
    Column("series_pk", ForeignKey("series.pk", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("form", String(32), nullable=False),  # which program wrote the lines
    Column("sources", LargeBinary, nullable=False),  # zlib, JSON: for each line the file that says so, and its sender
    Column("lines", LargeBinary, nullable=False),  # zlib, a line of DICOM JSON for each file
)

for _name, _columns in SPARSE.items():
    for _column in _columns:
        _filled = text(f"{_column} IS NOT NULL")
        Index(
            f"ix_{_name}_{_column}",
            METADATA.tables[_name].c[_column],
            sqlite_where=_filled,
            postgresql_where=_filled,
        )
