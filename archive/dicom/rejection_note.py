"""Rejection notes: Key Object Selections that say why instances are not to be used any more (PS3.3 A.35.4, PS3.16 TID
2010, IHE IOCM). The archive writes one for what it purges, titled (113039, DCM, "Data Retention Policy Expired")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from archive.dicom.charset import UTF8
from archive.dicom.derived import Json
from archive.dicom.equipment import Equipment
from archive.dicom.key_object import carried, described, document, encoded, named, reference
from archive.dicom.uids import new_uid

TITLES: Final = {  # CID 7011, those of IHE IOCM
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
RETENTION_EXPIRED: Final = ("113039", TITLES["113039"])

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
    members = sorted(rejected, key=lambda one: one.series_instance_uid)
    study_uid = str(attributes["0020000D"]["Value"][0])
    content: Json = {
        **document(
            uid=uid,
            series_uid=series_uid,
            number=1,
            title=title,
            description="Rejection note",
            equipment=equipment,
            at=at,
        ),
        **carried(attributes, _CARRIED, optional=_OPTIONAL),
        "0040A375": {"vr": "SQ", "Value": [_evidence(study_uid, members)]},
        "0040A730": {
            "vr": "SQ",
            "Value": [described(text), *(reference(one.sop_class_uid, one.sop_instance_uid) for one in members)],
        },
    }
    return Note(uid, series_uid, encoded(content, UTF8))


def _evidence(study_uid: str, members: list[Rejected]) -> Json:
    """Current Requested Procedure Evidence (PS3.3 C.17.6.2): everything, by series."""
    series = [
        {
            "00081199": {"vr": "SQ", "Value": [named(one.sop_class_uid, one.sop_instance_uid) for one in some]},
            "0020000E": {"vr": "UI", "Value": [series_uid]},
        }
        for series_uid, some in groupby(members, key=lambda one: one.series_instance_uid)
    ]
    return {"0020000D": {"vr": "UI", "Value": [study_uid]}, "00081115": {"vr": "SQ", "Value": series}}
