"""Identifiers that were merged away: they still find the patient who survived (REQ-DCM-37)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import Connection, bindparam, select

from archive.schema import patient

_ROWS = select(patient.c.pk, patient.c.issuer, patient.c.merged_into_pk).where(
    patient.c.patient_id.in_(bindparam("patient_ids", expanding=True))
)


def survivors(conn: Connection, patient_ids: Collection[str], *, issued: Callable[[str], bool]) -> list[int] | None:
    """The numbers of the patients whom these Patient IDs mean, when one of them was merged away; None: none was, and
    they are found by the IDs. Only those count whose issuer `issued` accepts."""
    rows = conn.execute(_ROWS, {"patient_ids": list(patient_ids)}).all()
    if all(row.merged_into_pk is None for row in rows):
        return None
    return sorted({int(row.merged_into_pk or row.pk) for row in rows if issued(row.issuer)})
