"""A patient's identifier as one text, for audit rows, work items and people."""

from __future__ import annotations


def cx(patient_id: str, issuer: str = "") -> str:
    """`ID^^^issuer` as HL7 writes it (HL7 2.5 2.A.14), without issuer the ID alone; "" without a Patient ID.

    To be read, not compared: an ID that holds `^` looks like one with an issuer.
    """
    if not patient_id:
        return ""
    return f"{patient_id}^^^{issuer}" if issuer else patient_id
