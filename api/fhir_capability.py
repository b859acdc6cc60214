"""`metadata` (CapabilityStatement, FHIR R4): what `/fhir` does, for clients that look first."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from archive.core import Archive

_CHANGED = "2026-11-30"  # when what is stated here changed last
_PDQM = "IHE PDQm Patient Demographics Supplier (ITI-78)"
# name and type of each search parameter, by resource
PARAMETERS: dict[str, dict[str, str]] = {
    "Patient": {
        "_id": "token",
        "active": "token",
        "identifier": "token",
        "family": "string",
        "given": "string",
        "birthdate": "date",
        "gender": "token",
        "telecom": "token",
        "address": "string",
        "address-city": "string",
        "address-state": "string",
        "address-postalcode": "string",
        "address-country": "string",
    },
    "ImagingStudy": {
        "_id": "token",
        "identifier": "token",
        "patient": "reference",
        "subject": "reference",
        "started": "date",
        "modality": "token",
        "status": "token",
    },
    "AuditEvent": {
        "_id": "token",
        "date": "date",
        "type": "token",
        "action": "token",
        "outcome": "token",
        "altid": "token",
        "patient": "reference",
    },
}
_SAID = {
    "Patient": "Patients by demographics (PDQm). Identifiers of another system than those of this site answer 404.",
    "ImagingStudy": "The id is the Study Instance UID; accession numbers are identifiers without system.",
    "AuditEvent": "For the auditor. Reading it is an entry of its own.",
}


def statement(archive: Archive, base: str) -> dict[str, Any]:
    """The CapabilityStatement of this server."""
    settings = archive.settings
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": _CHANGED,
        "kind": "instance",
        "software": {"name": "minipacs", "version": version("minipacs")},
        "implementation": {"description": settings.site.name or "minipacs", "url": base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [
            {
                "mode": "server",
                "documentation": f"Read-only. {_PDQM}.",
                "security": {"description": "Authorization: Bearer TOKEN, or the session of the desk."},
                "resource": [_resource(kind) for kind in PARAMETERS],
            }
        ],
    }


def _resource(kind: str) -> dict[str, Any]:
    return {
        "type": kind,
        "documentation": _SAID[kind],
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "versioning": "no-version",
        "readHistory": False,
        "searchParam": [{"name": name, "type": kind_of} for name, kind_of in PARAMETERS[kind].items()],
    }
