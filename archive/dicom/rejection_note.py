"""Rejection notes: Key Object Selections that say why instances are not to be used any more (PS3.3 A.35.4, PS3.16 TID
2010, IHE IOCM). The archive writes one for what it purges, titled (113039, DCM, "Data Retention Policy Expired")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from archive.dicom import encode
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, UTF8
from archive.dicom.derived import Json, code
from archive.dicom.dictionary import name_of_uid
from archive.dicom.elements import EXPLICIT_LE
from archive.dicom.equipment import Equipment
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.syntaxes import EXPLICIT_LE as EXPLICIT_LE_UID
from archive.dicom.uids import new_uid
from archive.policy import local_time

SOP_CLASS_UID: Final = "1.2.840.10008.5.1.4.1.1.88.59"
TITLES: Final = {  # CID 7011, those of IHE IOCM
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
RETENTION_EXPIRED: Final = ("113039", TITLES["113039"])
_DESCRIPTION: Final = ("113012", "Key Object Description")
_WAVEFORMS: Final = "1.2.840.10008.5.1.4.1.1.9."

# Patient and study, as the archive shows them; those that are empty have to be there (PS3.3 C.7.1.1, C.7.2.1).
_CARRIED: Final = {
    "00080020": "DA", "00080030": "TM", "00080050": "SH", "00080051": "SQ", "00080090": "PN", "00081030": "LO",
    "00100010": "PN", "00100020": "LO", "00100021": "LO", "00100024": "SQ", "00100030": "DA", "00100040": "CS",
    "00101002": "SQ", "0020000D": "UI", "00200010": "SH",
}  # fmt: skip
_OPTIONAL: Final = frozenset({"00080051", "00081030", "00100021", "00100024", "00101002"})


@dataclass(frozen=True, slots=True)
class Rejected:
    """One instance that a note names."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str


@dataclass(frozen=True, slots=True)
class Note:
    """A note, whole: a PS3.10 file."""

    sop_instance_uid: str
    series_instance_uid: str
    content: bytes


def rejection_note(
    attributes: Mapping[str, Any],
    rejected: Iterable[Rejected],
    *,
    equipment: Equipment,
    at: datetime,
    text: str = "Durée légale de conservation échue : images détruites",
    title: tuple[str, str] = RETENTION_EXPIRED,
) -> Note:
    """The note of one study.

    `attributes` is the DICOM JSON of its patient and of the study, Study Instance UID among them (`archive.studies`,
    `Study.attributes`). `at` is aware. About 450 bytes for each instance.
    """
    uid, series_uid = new_uid(), new_uid()
    named = sorted(rejected, key=lambda one: one.series_instance_uid)
    when = local_time(at)
    study_uid = str(attributes["0020000D"]["Value"][0])
    content: Json = {
        **{
            key: {"vr": vr, **_given(attributes.get(key, {}))}
            for key, vr in _CARRIED.items()
            if key not in _OPTIONAL or attributes.get(key, {}).get("Value")
        },
        **{
            key: {"vr": vr, "Value": [value]}
            for key, (vr, value) in {
                f"{SPECIFIC_CHARACTER_SET:08X}": ("CS", UTF8),
                "00080012": ("DA", f"{when:%Y%m%d}"),
                "00080013": ("TM", f"{when:%H%M%S}"),
                "00080016": ("UI", SOP_CLASS_UID),
                "00080018": ("UI", uid),
                "00080021": ("DA", f"{when:%Y%m%d}"),
                "00080023": ("DA", f"{when:%Y%m%d}"),
                "00080031": ("TM", f"{when:%H%M%S}"),
                "00080033": ("TM", f"{when:%H%M%S}"),
                "00080060": ("CS", "KO"),
                "00080070": ("LO", equipment.manufacturer),
                "00081010": ("SH", equipment.station_name),
                "0008103E": ("LO", "Rejection note"),
                "00081090": ("LO", equipment.model_name),
                "00181000": ("LO", equipment.serial_number),
                "00181020": ("LO", equipment.software_version),
                "0020000E": ("UI", series_uid),
                "00200011": ("IS", "1"),
                "00200013": ("IS", "1"),
                "0040A040": ("CS", "CONTAINER"),
                "0040A050": ("CS", "SEPARATE"),
            }.items()
            if value
        },
        "00081111": {"vr": "SQ"},  # Referenced Performed Procedure Step: none
        "0040A043": {"vr": "SQ", "Value": [code(*title)]},
        "0040A375": {"vr": "SQ", "Value": [_evidence(study_uid, named)]},
        "0040A504": {"vr": "SQ", "Value": [_text("CS", {"00080105": "DCMR", "0040DB00": "2010"})]},
        "0040A730": {"vr": "SQ", "Value": [_description(text), *(_reference(one) for one in named)]},
    }
    if equipment.institution_name:
        content["00080080"] = {"vr": "LO", "Value": [equipment.institution_name]}
    head = file_head(FileMeta(SOP_CLASS_UID, uid, EXPLICIT_LE_UID))
    pieces = (encode.of_json(key, content[key], EXPLICIT_LE, UTF8) for key in sorted(content))
    return Note(uid, series_uid, b"".join((head, *pieces)))


def _given(found: Mapping[str, Any]) -> Json:
    return {"Value": found["Value"]} if found.get("Value") else {}


def _text(vr: str, values: Mapping[str, str]) -> Json:
    return {key: {"vr": vr, "Value": [value]} for key, value in values.items()}


def _instance(one: Rejected) -> Json:
    return _text("UI", {"00081150": one.sop_class_uid, "00081155": one.sop_instance_uid})


def _evidence(study_uid: str, named: list[Rejected]) -> Json:
    """Current Requested Procedure Evidence (PS3.3 C.17.6.2): everything, by series."""
    series = [
        {
            "00081199": {"vr": "SQ", "Value": [_instance(one) for one in members]},
            "0020000E": {"vr": "UI", "Value": [series_uid]},
        }
        for series_uid, members in groupby(named, key=lambda one: one.series_instance_uid)
    ]
    return {"0020000D": {"vr": "UI", "Value": [study_uid]}, "00081115": {"vr": "SQ", "Value": series}}


def _description(text: str) -> Json:
    return {
        **_text("CS", {"0040A010": "CONTAINS", "0040A040": "TEXT"}),
        "0040A043": {"vr": "SQ", "Value": [code(*_DESCRIPTION)]},
        "0040A160": {"vr": "UT", "Value": [text]},
    }


def _reference(one: Rejected) -> Json:
    return {
        **_text("CS", {"0040A010": "CONTAINS", "0040A040": _value_type(one.sop_class_uid)}),
        "00081199": {"vr": "SQ", "Value": [_instance(one)]},
    }


def _value_type(sop_class_uid: str) -> str:
    """How a content item refers to such an object (PS3.3 C.17.3.2.1)."""
    name = name_of_uid(sop_class_uid)
    if "Image" in name or "Segmentation Storage" in name or "Parametric Map" in name:
        return "IMAGE"
    return "WAVEFORM" if sop_class_uid.startswith(_WAVEFORMS) else "COMPOSITE"
