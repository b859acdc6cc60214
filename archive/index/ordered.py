"""Which patient images belong to when their header does not say who assigned the Patient ID: the one they were ordered
for (REQ-HL7-98). And images that say something else than their order (REQ-DRIM-02)."""

from __future__ import annotations

from sqlalchemy import Connection, and_, bindparam, or_, select

from archive.index.arrival import Claim
from archive.schema import imaging_order, patient
from archive.schema.prepared import Prepared
from archive.work_items import Kind, open_item

_OF_EXAM = or_(
    imaging_order.c.study_instance_uid == bindparam("study_instance_uid"),
    and_(imaging_order.c.accession_number == bindparam("accession_number"), imaging_order.c.accession_number != ""),
)

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
        _OF_EXAM,
    )
    .limit(2)
)
_ORDERS = Prepared(
    select(imaging_order.c.patient_pk, imaging_order.c.accession_number).where(_OF_EXAM).order_by(imaging_order.c.pk)
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


def ask_about_order(conn: Connection, claim: Claim, patient_pk: int) -> None:
    """Have a person look at a new study that has the Study Instance UID or accession number of an order, and another
    patient or accession number than it: who shares it by its report finds images of something else (REQ-DRIM-02)."""
    asked = {"accession_number": claim.accession_number, "study_instance_uid": claim.study_instance_uid}
    orders = _ORDERS.all(conn, asked)
    if not orders or any(of == patient_pk and number in ("", claim.accession_number) for of, number in orders):
        return
    whose, accession = next((one for one in orders if one[0] == patient_pk), orders[0])
    open_item(
        conn,
        Kind.ORDER_UNMATCHED,
        claim.study_instance_uid,
        at=claim.at,
        patient_pk=patient_pk,
        study_instance_uid=claim.study_instance_uid,
        evidence={
            "accession": accession,
            "ordered_for": whose,
            "received_accession": claim.accession_number,
            "source": claim.source,
        },
    )
