"""The tables, as SQLAlchemy Core, a module per area, one `MetaData`. The migrations make them; nothing else does."""

from archive.schema.accounts import account, session, token
from archive.schema.audit import audit, audit_chain
from archive.schema.index import instance, location, patient, series, study
from archive.schema.operations import process, simulated_clock
from archive.schema.types import METADATA
from archive.schema.work import quarantined, work_item

REVISION = "0001"  # what `migrations` brings the schema to

__all__ = [
    "METADATA",
    "REVISION",
    "account",
    "audit",
    "audit_chain",
    "instance",
    "location",
    "patient",
    "process",
    "quarantined",
    "series",
    "session",
    "simulated_clock",
    "study",
    "token",
    "work_item",
]
