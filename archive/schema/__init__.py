"""The tables, as SQLAlchemy Core, a module per area, one `MetaData`. The migrations make them; nothing else does."""

from archive.schema.accounts import account, session, token
from archive.schema.audit import audit, audit_chain
from archive.schema.commitment import commitment, commitment_request
from archive.schema.documents import dose, reference, rejection
from archive.schema.identity import imaging_order, patient_revision
from archive.schema.index import instance, location, patient, series, series_metadata, study
from archive.schema.life import hold, last_tick, life_failure, purge, purge_approval, suspension, tombstone
from archive.schema.messages import hl7_answer, hl7_message
from archive.schema.operations import fact, lease, process, simulated_clock
from archive.schema.performed import performed_for, performed_step
from archive.schema.types import METADATA
from archive.schema.work import job, pulled_study, quarantined, sending, work_item

REVISION = "0008"  # what `migrations` brings the schema to

__all__ = [
    "METADATA",
    "REVISION",
    "account",
    "audit",
    "audit_chain",
    "commitment",
    "commitment_request",
    "dose",
    "fact",
    "hl7_answer",
    "hl7_message",
    "hold",
    "imaging_order",
    "instance",
    "job",
    "last_tick",
    "lease",
    "life_failure",
    "location",
    "patient",
    "patient_revision",
    "performed_for",
    "performed_step",
    "process",
    "pulled_study",
    "purge",
    "purge_approval",
    "quarantined",
    "reference",
    "rejection",
    "sending",
    "series",
    "series_metadata",
    "session",
    "simulated_clock",
    "study",
    "suspension",
    "token",
    "tombstone",
    "work_item",
]
