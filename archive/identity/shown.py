"""The state of an identifier as `/api/v1/patients` shows it (sheet 60 §4, `assertions` of the shared scenarios)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
from sqlalchemy import Connection

from archive.authorities import Authorities
from archive.identity import dicom, links, patients
from archive.identity.acts import PatientKey
from archive.identity.record import Record
from archive.schema.types import AnyRow


def key_of(authorities: Authorities, identifier: str, authority: str) -> PatientKey:
    """An identifier as it is asked for; `authority` is a namespace, an OID or another spelling of it, "" the assumed
    one."""
    known = authorities.find("", authority) or authorities.find(authority)
    if known is not None:
        return PatientKey(identifier, known.namespace)
    return PatientKey(identifier, authority or authorities.assumed)


def described(conn: Connection, key: PatientKey) -> dict[str, Any]:
    """What is known of an identifier; `{"exists": false}` when it was never heard of. One that was merged away shows
    what it was, and in `merged_into` who it is now."""
    row = patients.find(conn, key)
    if row is None:
        return {"exists": False}
    survivor = patients.survivor_of(conn, row)
    known = patients.record_of(row)
    shown = orjson.loads(row.corrections)["attributes"] if row.corrections else orjson.loads(row.attributes)
    return {
        "exists": True,
        "id": row.pk,
        "identifier": row.patient_id,
        "issuer": row.issuer,
        "merged_into": survivor.patient_id if survivor.pk != row.pk else None,
        "merged_from": patients.merged_into(conn, row.pk),
        "alias_of": patients.aliases(conn, row.pk),
        "linked_to": links.of_patient(conn, row.pk),
        **(_said(known) if known is not None else _seen(row)),
        "versions": row.version,
        "dicom": dicom.by_keyword(shown),
    }


def _said(known: Record) -> dict[str, Any]:
    """The record. An INS is shown of a qualified identity alone (REQ-HL7-68)."""
    birth, used, dmp = known.birth_name, known.used_name, known.dmp
    return {
        "family_birth": birth.family or "",
        "given_first": birth.given or "",
        "given_list": birth.given_list or "",
        "family_used": used.family or "",
        "given_used": used.given or "",
        "birth_date": known.birth_date or "",
        "sex": known.sex or "",
        "birth_place_code": known.birth_place_code,
        "identity_status": known.status,
        "identity_attributes": list(known.attributes),
        "identity_level": known.level,
        "ins": asdict(known.ins) if known.ins is not None and known.level == "qualifiée" else None,
        "phone": next((one.number for one in known.phones if one.number), ""),
        "address_city": known.home.city,
        "death_date": known.death_date,
        "multiple_birth": known.multiple_birth or "",
        "birth_order": known.birth_order or "",
        "dmp": {
            "status": dmp.status or "",
            "alimentation": dmp.alimentation or "",
            "consultation": dmp.consultation or "",
        },
    }


def _seen(row: AnyRow) -> dict[str, Any]:
    """Somebody of whom only images tell."""
    return {**_said(patients.seen_of(row)), "identity_status": "", "identity_level": ""}
