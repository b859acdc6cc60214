"""What every change of identities and orders carries: who says it, when, and by which rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text

from archive.access import Actor
from archive.authorities import Authorities, identity_key
from archive.dicom.patient_id import cx
from archive.index.correct import Reason

__all__ = ["Act", "Connection", "PatientKey", "Write", "lock_identities"]  # Connection: for those who may not know SQL

Write = Callable[[Connection], None]
"""Something to be done in a transaction of `archive.commit`."""

_LOCK = text("SELECT pg_advisory_xact_lock(1415071054)")  # any number that nobody else uses


@dataclass(frozen=True, slots=True)
class PatientKey:
    """An identifier and who assigned it, in the one spelling of `archive.authorities`."""

    patient_id: str
    issuer: str

    @property
    def identity_key(self) -> str:
        """`patient.identity_key`."""
        return identity_key(self.patient_id, self.issuer)

    @property
    def cx(self) -> str:
        """As audit rows and work items name it."""
        return cx(self.patient_id, self.issuer)


@dataclass(frozen=True, slots=True)
class Act:
    """One message of the RIS, or one act of a person."""

    at: datetime
    actor: Actor
    event: str  # A28, A31, A40, O01, a correction by hand…
    authorities: Authorities
    ins_oids: frozenset[str] = frozenset()  # that are accepted: `identity.ins_oids`
    reason: Reason = "COERCE"  # CORRECT when a person says it
    evidence: dict[str, object] = field(default_factory=dict)  # for work items: the message, its place in the journal

    @property
    def at_iso(self) -> str:
        return self.at.isoformat()


def lock_identities(conn: Connection) -> None:
    """Let nobody else change who is who until this transaction ends, whatever process or host they are in. SQLite has
    one writer anyway."""
    if conn.dialect.name == "postgresql":
        conn.execute(_LOCK)
