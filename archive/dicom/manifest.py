"""Manifests: Key Object Selections titled (113030, DCM, "Manifest") that list what a study has to share, and where each
series is retrieved (IHE XDS-I.b; the values of ANS's reference manifest, sheet 50 §3). Pure.

The patient is named by the national identity alone: Patient ID is the INS, and accession number and order stand in the
referenced request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from archive.dicom.charset import charset_of
from archive.dicom.derived import Json
from archive.dicom.equipment import Equipment
from archive.dicom.key_object import carried, described, document, encoded, named, reference, texts
from archive.policy import local_time

MANIFEST: Final = ("113030", "Manifest")
_OF_STUDY: Final = {
    "00080020": "DA", "00080030": "TM", "00080090": "PN", "00081030": "LO", "0020000D": "UI", "00200010": "SH",
}  # fmt: skip
_OF_REQUEST: Final = {  # of the order; those that are empty are there (PS3.3 C.17.6.2.1)
    "00080050": "SH", "00080051": "SQ", "00081110": "SQ", "0020000D": "UI", "00321060": "LO", "00321064": "SQ",
    "00400026": "SQ", "00400027": "SQ", "00401001": "SH", "00402016": "LO", "00402017": "LO",
}  # fmt: skip
_MAY_BE_ABSENT: Final = frozenset({"00080051", "00400026", "00400027"})


@dataclass(frozen=True, slots=True)
class Listed:
    """One instance; `number` and `frames` are Instance Number and Number of Frames, "" where there is none."""

    sop_instance_uid: str
    sop_class_uid: str
    number: str = ""
    frames: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One series, and what of it is listed. `retrieve_url` is its address at DICOMweb."""

    series_instance_uid: str
    retrieve_url: str
    number: str
    modality: str
    description: str
    instances: Sequence[Listed]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a manifest says, whenever it is made: DICOM JSON of the patient (by the INS), of the study and of its
    request, and the series."""

    patient: Mapping[str, Any]
    birth_place_code: str  # INSEE
    study: Mapping[str, Any]
    request: Mapping[str, Any]
    series: Sequence[Series]
    institution: str  # its name, or its name and FINESS as XON has them
    equipment: Equipment

    @property
    def listed(self) -> list[str]:
        """SOP Instance UIDs."""
        return [one.sop_instance_uid for part in self.series for one in part.instances]

    def fingerprint(self) -> str:
        """SHA-256 of all of it: a manifest that would say the same is the same."""
        said = [self.patient, self.birth_place_code, self.study, self.request, self.series, self.institution]
        return hashlib.sha256(orjson.dumps([*said, self.equipment], option=orjson.OPT_SORT_KEYS)).hexdigest()


def manifest(subject: Subject, *, uid: str, series_uid: str, number: int, at: datetime) -> bytes:
    """The manifest as a PS3.10 file: ISO_IR 100 where every letter exists there, else ISO_IR 192 (REQ-DRIM-23).

    `at` is aware. The same arguments make the same bytes.
    """
    members = [one for part in subject.series for one in part.instances]
    content: Json = {
        **document(
            uid=uid,
            series_uid=series_uid,
            number=number,
            title=MANIFEST,
            description="Manifest",
            equipment=subject.equipment,
            at=at,
        ),
        **carried(subject.study, _OF_STUDY, optional=frozenset({"00081030"})),
        **subject.patient,
        "00080050": {"vr": "SH"},  # in the request
        "00080201": {"vr": "SH", "Value": [f"{local_time(at):%z}"]},
        "00104000": {"vr": "LT", "Value": [subject.birth_place_code]},
        "0040A370": {"vr": "SQ", "Value": [carried(subject.request, _OF_REQUEST, optional=_MAY_BE_ABSENT)]},
        "0040A375": {"vr": "SQ", "Value": [_evidence(subject)]},
        "0040A730": {
            "vr": "SQ",
            "Value": [
                *(reference(one.sop_class_uid, one.sop_instance_uid) for one in members),
                described(_told(subject)),
            ],
        },
    }
    if subject.institution:
        content["00080080"] = {"vr": "LO", "Value": [subject.institution]}
    return encoded(content, charset_of(content))


def _evidence(subject: Subject) -> Json:
    series = []
    for part in subject.series:
        members = []
        for one in part.instances:
            member = named(one.sop_class_uid, one.sop_instance_uid)
            given = {"00200013": one.number, "00280008": one.frames}
            members.append({**member, **texts("IS", {key: value for key, value in given.items() if value})})
        series.append(
            {
                "00081190": {"vr": "UR", "Value": [part.retrieve_url]},
                "00081199": {"vr": "SQ", "Value": members},
                "0020000E": {"vr": "UI", "Value": [part.series_instance_uid]},
                **(texts("IS", {"00200011": part.number}) if part.number else {}),
            }
        )
    return {
        "0020000D": {"vr": "UI", "Value": subject.study["0020000D"]["Value"]},
        "00081115": {"vr": "SQ", "Value": series},
    }


def _told(subject: Subject) -> str:
    """The text for a person: the exam, the act, each series (the layout of ANS's reference)."""
    exam = _text(subject.study, "00081030")
    act = _text(subject.request, "00321060") or exam
    lines = [f"Examen : {exam}", f"Acte = {act}"]
    lines += [f"Série-{one.series_instance_uid} : {one.modality} @ : {one.description}" for one in subject.series]
    return "\r\n".join(lines)


def _text(attributes: Mapping[str, Any], key: str) -> str:
    return str((attributes.get(key, {}).get("Value") or [""])[0])
