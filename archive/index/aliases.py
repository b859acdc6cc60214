"""Identifiers that were merged away: they still find the patient who survived (REQ-DCM-37)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import Connection, bindparam, select

from archive.schema import patient
from archive.schema.prepared import Prepared

_ROWS = Prepared(
    select(patient.c.pk, patient.c.issuer, patient.c.merged_into_pk).where(
        patient.c.patient_id == bindparam("patient_id")
    )
)


def survivors(conn: Connection, patient_ids: Collection[str], *, issued: Callable[[str], bool]) -> list[int] | None:
    """The numbers of the patients whom these Patient IDs mean, when one of those who had them was merged away; None:
    none was, and they are found by the IDs. Only those count whose issuer `issued` accepts."""
    rows = [row for patient_id in patient_ids for row in _ROWS.all(conn, {"patient_id": patient_id})]
    if not any(merged_into_pk for _, _, merged_into_pk in rows):
        return None
    return sorted({int(merged_into_pk or pk) for pk, issuer, merged_into_pk in rows if issued(issuer)})
