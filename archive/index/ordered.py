"""Which patient images belong to when their header does not say who assigned the Patient ID: the one they were ordered
for (REQ-HL7-98)."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, or_, select

from archive.schema import imaging_order, patient
from archive.schema.prepared import Prepared

# an identifier of the ordered patient: their own, or one that was merged into them
_PATIENTS = Prepared(
    select(imaging_order.c.patient_pk)
    .distinct()
    .join(
        patient,
        or_(patient.c.pk == imaging_order.c.patient_pk, patient.c.merged_into_pk == imaging_order.c.patient_pk),
    )
    .where(
        patient.c.patient_id == bindparam("patient_id"),
        or_(
            imaging_order.c.study_instance_uid == bindparam("study_instance_uid"),
            and_(
                imaging_order.c.accession_number == bindparam("accession_number"),
                imaging_order.c.accession_number != "",
            ),
        ),
    )
    .limit(2)
)


def patient_for_images(
    conn: Connection, *, patient_id: str, accession_number: str, study_instance_uid: str
) -> int | None:
    """The patient of the order with this accession number or Study Instance UID, when their Patient ID is the header's
    too; None when there is no such order, or when several patients have one."""
    if not patient_id:
        return None
    asked = {
        "patient_id": patient_id,
        "accession_number": accession_number,
        "study_instance_uid": study_instance_uid,
    }
    found = _PATIENTS.all(conn, asked)
    return int(found[0][0]) if len(found) == 1 else None
