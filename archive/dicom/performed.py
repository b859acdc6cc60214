"""The attributes of a Modality Performed Procedure Step (PS3.4 Table F.7.2-1): what has to be there, what may change,
and what is to be read out of them. Pure; data sets are DICOM JSON.

Only what the standard makes type 1 is demanded, but for the Protocol Name of a series: many modalities leave out type 2
attributes, and a step is worth more than its description.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from archive.dicom.header import is_legal_uid
from archive.dicom.keys import date, time
from archive.errors import AttributeRefused

DataSet = Mapping[str, Any]

STATUS, SCHEDULED_STEPS, SERIES = "00400252", "00400270", "00400340"
STEP_ID, STATION, STATION_NAME = "00400253", "00400241", "00400242"
START_DATE, START_TIME, END_DATE, END_TIME = "00400244", "00400245", "00400250", "00400251"
MODALITY, REASON = "00080060", "00400281"
STUDY_UID, SERIES_UID = "0020000D", "0020000E"
ACCESSION_NUMBER, SCHEDULED_STEP_ID, PROCEDURE_ID = "00080050", "00400009", "00401001"
_REFERENCED = ("00081140", "00400220")  # images, other composite instances
_INSTANCE_UID, _CODE, _SCHEME = "00081155", "00080100", "00080102"
WRONG_ENTRY = "110514"  # DCM, Incorrect worklist entry selected (CID 9300)

_TYPE_1 = (SCHEDULED_STEPS, STEP_ID, STATION, START_DATE, START_TIME, STATUS, MODALITY)
# Not to be changed by N-SET: whose it is, what it was scheduled as, where and when it began.
_FIXED = frozenset(
    {
        *("00100010", "00100020", "00100021", "00100024", "00100030", "00100040", "00101002"),
        *(SCHEDULED_STEPS, STEP_ID, STATION, STATION_NAME, "00400243", START_DATE, START_TIME, MODALITY, "00200010"),
    }
)
_SEQUENCES = frozenset({SCHEDULED_STEPS, SERIES})
_NOT_KEPT = frozenset({"00080005"})  # it is all Unicode here


class Status(StrEnum):
    """Performed Procedure Step Status."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


def created(attributes: DataSet) -> dict[str, Any]:
    """The attributes of an N-CREATE, checked.

    Raises:
        AttributeRefused: one that has to be there is missing, empty or wrong; the status is not IN PROGRESS.
    """
    for key in _TYPE_1:
        _demand(attributes, key)
    if text(attributes, STATUS) != Status.IN_PROGRESS:
        raise _refused("a step begins with the status IN PROGRESS", STATUS, "wrong")
    for item in items(attributes, SCHEDULED_STEPS):
        _demand(item, STUDY_UID)
        _legal(item, STUDY_UID)
    _check(attributes)
    return _kept(attributes)


def changed(attributes: DataSet, known: DataSet) -> tuple[dict[str, Any], bool]:
    """The attributes of an N-SET that may be changed, checked; and whether that is all of them.

    Raises:
        AttributeRefused: one is wrong; or, where the step ends with it, one that a step has at its end is missing from
            it and from what is `known`.
    """
    if STATUS in attributes:
        _demand(attributes, STATUS)
        if text(attributes, STATUS) not in list(Status):
            raise _refused(f"a status is one of {', '.join(Status)}", STATUS, "wrong")
    _check(attributes)
    taken = {key: value for key, value in _kept(attributes).items() if key not in _FIXED}
    others = (key for key in attributes if key in _FIXED)
    whole = all(attributes[key].get("Value") == (known.get(key) or {}).get("Value") for key in others)
    after = {**known, **taken}
    if text(after, STATUS) != Status.IN_PROGRESS:
        for key in (END_DATE, END_TIME, *((SERIES,) if text(after, STATUS) == Status.COMPLETED else ())):
            _demand(after, key)
    return taken, whole


def _check(attributes: DataSet) -> None:
    """Values that have to be what their VR says, for they are worked with."""
    for key, read in ((START_DATE, date), (START_TIME, time), (END_DATE, date), (END_TIME, time)):
        if (value := text(attributes, key)) and read(value) is None:
            raise _refused("this is no date or time", key, "wrong")
    for item in items(attributes, SERIES):
        _demand(item, SERIES_UID)
        _legal(item, SERIES_UID)


def _demand(attributes: DataSet, key: str) -> None:
    if key not in attributes:
        raise _refused("a mandatory attribute is missing", key, "missing")
    if not (items if key in _SEQUENCES else text)(attributes, key):
        raise _refused("a mandatory attribute is empty", key, "empty")


def _legal(attributes: DataSet, key: str) -> None:
    if not is_legal_uid(text(attributes, key)):
        raise _refused("this is no UID", key, "wrong")


def _refused(detail: str, key: str, fault: Any) -> AttributeRefused:
    return AttributeRefused(detail, tag=int(key, 16), fault=fault)


def _kept(attributes: DataSet) -> dict[str, Any]:
    return {key: attributes[key] for key in sorted(attributes) if key not in _NOT_KEPT and key[4:] != "0000"}


def text(attributes: DataSet, key: str) -> str:
    """The first value of a text attribute, "" for none."""
    values = (attributes.get(key) or {}).get("Value") or ()
    value = next(iter(values), None)
    if isinstance(value, Mapping):
        return str(value.get("Alphabetic") or "")
    return "" if value is None else str(value).strip(" \0")


def items(attributes: DataSet, key: str) -> list[DataSet]:
    """The items of a sequence, those without content left out."""
    element = attributes.get(key) or {}
    if element.get("vr") != "SQ":
        return []
    return [item for item in element.get("Value") or () if item]


def listed(series: DataSet) -> Iterator[str]:
    """The SOP Instance UIDs that an item of Performed Series Sequence lists."""
    for key in _REFERENCED:
        for item in items(series, key):
            if uid := text(item, _INSTANCE_UID):
                yield uid


def reason(attributes: DataSet) -> str:
    """The code of why a step was discontinued, "" when it is not said."""
    return next((text(item, _CODE) for item in items(attributes, REASON)), "")


def is_wrong_entry(attributes: DataSet) -> bool:
    """Whether the modality had chosen the wrong item of its worklist (110514, DCM)."""
    codes = items(attributes, REASON)
    return any((text(item, _CODE), text(item, _SCHEME)) == (WRONG_ENTRY, "DCM") for item in codes)
