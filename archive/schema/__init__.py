"""The tables, as SQLAlchemy Core, a module per area, one `MetaData`. The migrations make them; nothing else does."""

from archive.schema.accounts import account, session, token
from archive.schema.audit import audit, audit_chain
from archive.schema.changes import change
from archive.schema.commitment import commitment, commitment_request
from archive.schema.documents import dose, reference, rejection
from archive.schema.identity import (
    imaging_order,
    movement,
    patient_identifier,
    patient_link,
    patient_revision,
    query_pointer,
    visit,
)
from archive.schema.index import instance, location, patient, series, series_metadata, study
from archive.schema.life import hold, last_tick, life_failure, purge, purge_approval, suspension, tombstone
from archive.schema.manifests import manifest, sharing_told
from archive.schema.messages import hl7_answer, hl7_message
from archive.schema.operations import (
    audit_sent,
    clock_check,
    fact,
    lease,
    probe,
    process,
    repository_state,
    simulated_clock,
)
from archive.schema.performed import performed_for, performed_step
from archive.schema.types import METADATA
from archive.schema.work import job, pulled_study, quarantined, sending, work_item

REVISION = "0015"  # what `migrations` brings the schema to

__all__ = [
    "METADATA",
    "REVISION",
    "account",
    "audit",
    "audit_chain",
    "audit_sent",
    "change",
    "clock_check",
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
    "manifest",
    "movement",
    "patient",
    "patient_identifier",
    "patient_link",
    "patient_revision",
    "performed_for",
    "performed_step",
    "probe",
    "process",
    "pulled_study",
    "purge",
    "purge_approval",
    "quarantined",
    "query_pointer",
    "reference",
    "rejection",
    "repository_state",
    "sending",
    "series",
    "series_metadata",
    "session",
    "sharing_told",
    "simulated_clock",
    "study",
    "suspension",
    "token",
    "tombstone",
    "visit",
    "work_item",
]
