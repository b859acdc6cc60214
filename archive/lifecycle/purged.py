"""The purges that were begun or done, for those who may see them: they outlive the studies (sheet 60 §4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, select

from archive.errors import NotFound
from archive.schema import purge
from archive.schema.types import AnyRow


@dataclass(frozen=True, slots=True)
class Purge:
    """One purge. `number` orders them; `certificate` is what JSON can hold."""

    number: int
    id: str
    study_instance_uid: str
    patient: str
    state: str  # purging, done
    begun_at: datetime
    done_at: datetime | None
    certificate: Mapping[str, Any]
    note_uid: str
    note_digest: str

    def shape(self) -> dict[str, Any]:
        """As commands and `/api/v1` give it, without the certificate."""
        return {
            "id": self.id,
            "study": self.study_instance_uid,
            "patient": self.patient or None,
            "state": self.state,
            "begun_at": self.begun_at.isoformat(),
            "done_at": self.done_at.isoformat() if self.done_at else None,
            "rejection_note": self.note_uid,
            "rejection_note_digest": self.note_digest,
        }


def list_purges(conn: Connection, *, study: str | None = None, after: int = 0, limit: int = 100) -> list[Purge]:
    """Purges in their order, after the one numbered `after`."""
    statement = select(purge).where(purge.c.pk > after).order_by(purge.c.pk).limit(limit)
    if study is not None:
        statement = statement.where(purge.c.study_instance_uid == study)
    return [_purge(row) for row in conn.execute(statement)]


def latest_purges(conn: Connection, *, limit: int) -> list[Purge]:
    """The last ones, the newest first."""
    return [_purge(row) for row in conn.execute(select(purge).order_by(purge.c.pk.desc()).limit(limit))]


def find_purge(conn: Connection, id: str) -> Purge:
    """One purge, with its certificate. Raises NotFound."""
    row = conn.execute(select(purge).where(purge.c.id == id[:36])).one_or_none()
    if row is None:
        raise NotFound("no such purge")
    return _purge(row)


def _purge(row: AnyRow) -> Purge:
    return Purge(
        number=row.pk,
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        patient=row.patient,
        state=row.state,
        begun_at=row.begun_at,
        done_at=row.done_at,
        certificate=orjson.loads(row.certificate),
        note_uid=row.note_uid,
        note_digest=row.note_digest,
    )
