"""What every Key Object Selection that the archive writes has in common (PS3.3 A.35.4, PS3.16 TID 2010): a rejection
note, a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from archive.dicom import encode
from archive.dicom.charset import SPECIFIC_CHARACTER_SET
from archive.dicom.derived import Json, code
from archive.dicom.dictionary import name_of_uid
from archive.dicom.elements import EXPLICIT_LE
from archive.dicom.equipment import Equipment
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.syntaxes import EXPLICIT_LE as EXPLICIT_LE_UID
from archive.policy import local_time

SOP_CLASS_UID: Final = "1.2.840.10008.5.1.4.1.1.88.59"
_DESCRIPTION: Final = ("113012", "Key Object Description")
_WAVEFORMS: Final = "1.2.840.10008.5.1.4.1.1.9."


def document(
    *,
    uid: str,
    series_uid: str,
    number: int,
    title: tuple[str, str],
    description: str,
    equipment: Equipment,
    at: datetime,
) -> Json:
    """The elements that say which document it is, who made it and when; `description` is that of its series. `at` is
    aware. What it is about, and its content, are for the caller to add."""
    when = local_time(at)
    return {
        **{
            key: {"vr": vr, "Value": [value]}
            for key, (vr, value) in {
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
                "00080080": ("LO", equipment.institution_name),
                "00081010": ("SH", equipment.station_name),
                "0008103E": ("LO", description),
                "00081090": ("LO", equipment.model_name),
                "00181000": ("LO", equipment.serial_number),
                "00181020": ("LO", equipment.software_version),
                "0020000E": ("UI", series_uid),
                "00200011": ("IS", "1"),
                "00200013": ("IS", str(number)),
                "0040A040": ("CS", "CONTAINER"),
                "0040A050": ("CS", "SEPARATE"),
            }.items()
            if value
        },
        "00081111": {"vr": "SQ"},  # Referenced Performed Procedure Step: none
        "0040A043": {"vr": "SQ", "Value": [code(*title)]},
        "0040A504": {"vr": "SQ", "Value": [texts("CS", {"00080105": "DCMR", "0040DB00": "2010"})]},
    }


def encoded(content: Json, charset: str) -> bytes:
    """The document as a PS3.10 file, in Explicit VR Little Endian and this character set."""
    whole = {**content, f"{SPECIFIC_CHARACTER_SET:08X}": {"vr": "CS", "Value": [charset]}}
    head = file_head(FileMeta(SOP_CLASS_UID, str(content["00080018"]["Value"][0]), EXPLICIT_LE_UID))
    return b"".join((head, *(encode.of_json(key, whole[key], EXPLICIT_LE, charset) for key in sorted(whole))))


def carried(attributes: Mapping[str, Any], vrs: Mapping[str, str], *, optional: frozenset[str]) -> Json:
    """Those of `attributes` that are in `vrs`; without a value, those that may be absent are, and others are empty."""
    return {
        key: {"vr": vr, **({"Value": attributes[key]["Value"]} if attributes.get(key, {}).get("Value") else {})}
        for key, vr in vrs.items()
        if key not in optional or attributes.get(key, {}).get("Value")
    }


def texts(vr: str, values: Mapping[str, str]) -> Json:
    """Elements of one VR, with one value each."""
    return {key: {"vr": vr, "Value": [value]} for key, value in values.items()}


def named(sop_class_uid: str, sop_instance_uid: str) -> Json:
    """An item that refers to an instance."""
    return texts("UI", {"00081150": sop_class_uid, "00081155": sop_instance_uid})


def described(text: str) -> Json:
    """The content item of (113012, DCM, "Key Object Description")."""
    return {
        **texts("CS", {"0040A010": "CONTAINS", "0040A040": "TEXT"}),
        "0040A043": {"vr": "SQ", "Value": [code(*_DESCRIPTION)]},
        "0040A160": {"vr": "UT", "Value": [text]},
    }


def reference(sop_class_uid: str, sop_instance_uid: str) -> Json:
    """The content item that refers to an instance."""
    return {
        **texts("CS", {"0040A010": "CONTAINS", "0040A040": _value_type(sop_class_uid)}),
        "00081199": {"vr": "SQ", "Value": [named(sop_class_uid, sop_instance_uid)]},
    }


def _value_type(sop_class_uid: str) -> str:
    """How a content item refers to such an object (PS3.3 C.17.3.2.1)."""
    name = name_of_uid(sop_class_uid)
    if "Image" in name or "Segmentation Storage" in name or "Parametric Map" in name:
        return "IMAGE"
    return "WAVEFORM" if sop_class_uid.startswith(_WAVEFORMS) else "COMPOSITE"
