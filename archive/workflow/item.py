"""A scheduled step as an item of the modality worklist (PS3.4 Table K.6-1): which attributes it has, and where each
comes from. Pure.

Who the patient is comes from the record (`patient.attributes`, with a usable INS among the other identifiers,
REQ-DCM-73), the rest from the order (sheet 20 §7). A step that names no station is that of the peer whose AE title is
its Scheduled Station Name, else of the peers that perform its modality.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from archive.dicom.dictionary import public_vr, tag_of
from archive.schema.types import AnyRow
from archive.workflow.steps import Status, step_id_of

Row = dict[str, Any]  # DICOM JSON


def _tags(*keywords: str) -> dict[int, str]:
    found = {}
    for keyword in keywords:
        tag = tag_of(keyword)
        assert tag is not None, keyword
        found[int(tag)] = public_vr(tag)
    return found


OF_PATIENT = _tags(
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate", "PatientSex", "OtherPatientIDsSequence", "OtherPatientNames", "PatientBirthName",
    "PatientComments",
)  # fmt: skip
OF_REQUEST = _tags(
    "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ReferencedStudySequence",
    "ReferencedPatientSequence", "PatientSize", "PatientWeight", "MedicalAlerts", "Allergies", "PregnancyStatus",
    "PatientState", "SpecialNeeds", "StudyInstanceUID", "RequestingPhysician", "RequestingService",
    "RequestedProcedureDescription", "RequestedProcedureCodeSequence", "AdmissionID", "IssuerOfAdmissionIDSequence",
    "CurrentPatientLocation", "RequestedProcedureID", "ReasonForTheRequestedProcedure",
    "ReasonForRequestedProcedureCodeSequence", "RequestedProcedurePriority", "PatientTransportArrangements",
    "RequestedProcedureComments", "ConfidentialityCode", "ConfidentialityConstraintOnPatientDataDescription",
    "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest",
    "OrderPlacerIdentifierSequence", "OrderFillerIdentifierSequence",
)  # fmt: skip
OF_STEP = _tags(
    "Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime",
    "ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription", "ScheduledProtocolCodeSequence",
    "ScheduledProcedureStepID", "ScheduledStationName", "ScheduledProcedureStepLocation",
    "ScheduledProcedureStepStatus",
)  # fmt: skip
_SHARED = _tags(  # of items inside: codes, and who assigned a number
    "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning",
    "LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType",
)  # fmt: skip

_ILLEGAL = re.compile(r"[\\\x00-\x1f\x7f]")  # in a value of one line (PS3.5 §6.1.2.3)

STEP = 0x00400100  # Scheduled Procedure Step Sequence
RETURNABLE: dict[int, str] = {**OF_PATIENT, **OF_REQUEST, STEP: "SQ"}

PATIENT_NAME, PATIENT_ID, ISSUER, BIRTH_DATE, SEX = 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040
ACCESSION_NUMBER, STUDY_UID, PROCEDURE_ID = 0x00080050, 0x0020000D, 0x00401001
PROCEDURE_DESCRIPTION, PRIORITY = 0x00321060, 0x00401003
STATION_AE, START_DATE, START_TIME, MODALITY = 0x00400001, 0x00400002, 0x00400003, 0x00080060
STEP_ID, STATION_NAME, STEP_STATUS = 0x00400009, 0x00400010, 0x00400020
_PLACER, _FILLER = 0x00402016, 0x00402017
_ISSUERS = {_PLACER: 0x00400026, _FILLER: 0x00400027}

TERMS = {  # Scheduled Procedure Step Status (PS3.3 C.4.10)
    Status.SCHEDULED: "SCHEDULED",
    Status.IN_PROGRESS: "STARTED",
    Status.COMPLETED: "COMPLETED",
    Status.CANCELLED: "CANCELLED",
    Status.DISCONTINUED: "DISCONTINUED",
}


def item_of(row: AnyRow, stations: Mapping[str, frozenset[str]]) -> Row:
    """The item of an order. `row` has its columns, and `attributes` of its patient; `stations` are AE titles and the
    modalities that each performs."""
    held: dict[str, Any] = orjson.loads(row.record)["dicom"]
    said = {int(tag): value for keyword, value in held.items() if (tag := tag_of(keyword)) is not None}
    said[ACCESSION_NUMBER], said[STUDY_UID] = row.accession_number, row.study_instance_uid
    said.setdefault(PROCEDURE_ID, row.accession_number)
    said[STEP_ID] = step_id_of(row)
    said[STEP_STATUS] = TERMS[Status(row.status)]
    if not said.get(STATION_AE):
        said[STATION_AE] = "\\".join(_stations(said, stations))
    for number, issuer in _ISSUERS.items():
        value, _, namespace = str(said.get(number, "")).partition("^")
        said[number] = value
        if namespace and not said.get(issuer):
            said[issuer] = [_assigned_by(namespace)]
    patient: dict[str, Any] = orjson.loads(row.attributes)
    item = {key: element for key, element in patient.items() if int(key, 16) in OF_PATIENT}
    item |= {f"{tag:08X}": _element(vr, said[tag]) for tag, vr in OF_REQUEST.items() if said.get(tag)}
    step = {f"{tag:08X}": _element(vr, said[tag]) for tag, vr in OF_STEP.items() if said.get(tag)}
    item[f"{STEP:08X}"] = {"vr": "SQ", "Value": [step]}
    return item


def _stations(said: Mapping[int, Any], stations: Mapping[str, frozenset[str]]) -> list[str]:
    name, modality = str(said.get(STATION_NAME, "")), str(said.get(MODALITY, ""))
    if name in stations:
        return [name]
    return sorted(title for title, modalities in stations.items() if modality in modalities)


def _assigned_by(namespace: str) -> dict[str, str]:
    """An item of the HL7v2 Hierarchic Designator Macro (PS3.3 Table 10-17)."""
    if namespace.replace(".", "").isdecimal() and "." in namespace:
        return {"UniversalEntityID": namespace, "UniversalEntityIDType": "ISO"}
    return {"LocalNamespaceEntityID": namespace}


def _element(vr: str, value: Any) -> dict[str, Any]:
    if vr == "SQ":
        return {"vr": vr, "Value": [_nested(item) for item in value]}
    if vr == "PN":
        return {"vr": vr, "Value": [{"Alphabetic": str(value)}]}
    if vr == "US":
        return {"vr": vr, "Value": [int(value)]}
    if vr in ("LT", "ST", "UT"):
        return {"vr": vr, "Value": [str(value)]}
    if vr == "AE":
        return {"vr": vr, "Value": str(value).split("\\")}
    return {"vr": vr, "Value": [_ILLEGAL.sub(" ", str(value))]}


def _nested(item: Mapping[str, Any]) -> Row:
    found = {tag_of(keyword): value for keyword, value in item.items() if value}
    return {f"{tag:08X}": _element(_SHARED[tag], found[tag]) for tag in sorted(_SHARED) if tag in found}
