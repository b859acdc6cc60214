"""What a C-GET or C-MOVE identifier asks for (PS3.4 C.4.2.1.4, C.6; REQ-DCM-40)."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue

from archive.core import Archive
from archive.errors import InvalidQuery, UnreadableInstance
from archive.retrieve import Stored, select
from dicom_scp.classes import IMPLICIT_LE, PATIENT_ROOT
from dicom_scp.messages import RetrieveRequest

_LEVEL = 0x00080052
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_UIDS = {"STUDY": 0x0020000D, "SERIES": 0x0020000E, "IMAGE": 0x00080018}


def selected(request: RetrieveRequest, archive: Archive) -> list[Stored]:
    """The instances that are asked for; an empty list when there is none.

    Unique keys above the level may be missing, and narrow what is found when they are there: relational retrieve,
    for everybody. Study Root does not look at Patient ID.

    Raises:
        UnreadableInstance: the identifier is not a data set.
        InvalidQuery: no such level in this model, or its unique key is missing, or not single where it has to be.
        Unavailable: the index cannot be asked.
    """
    try:
        stream = BytesIO(request.identifier)
        ds = read_dataset(stream, request.transfer_syntax_uid == IMPLICIT_LE, True)
        level = "".join(_values(ds, _LEVEL))
        patient_ids = _values(ds, _PATIENT_ID)
        issuers = _values(ds, _ISSUER)
        uids = {name: _values(ds, tag) for name, tag in _UIDS.items()}
    except Exception as error:
        raise UnreadableInstance("the identifier cannot be read") from error

    patient_root = request.sop_class_uid in PATIENT_ROOT
    if level not in _UIDS and not (level == "PATIENT" and patient_root):
        raise InvalidQuery("no such Query/Retrieve Level in this information model", tag=_LEVEL)
    if level == "PATIENT":
        if len(patient_ids) != 1 or _is_wild(patient_ids[0]):
            raise InvalidQuery("one Patient ID is needed", tag=_PATIENT_ID)
    elif not uids[level] or any(_is_wild(uid) for uid in uids[level]):
        raise InvalidQuery(f"the unique key of level {level} is needed", tag=_UIDS[level])

    above = ("PATIENT", "STUDY", "SERIES", "IMAGE")
    used = above[: above.index(level) + 1]
    narrow = {name: [uid for uid in uids[name] if not _is_wild(uid)] if name in used else [] for name in _UIDS}
    by_patient = patient_root and len(patient_ids) == 1 and not _is_wild(patient_ids[0])
    return select(
        archive,
        patient_id=patient_ids[0] if by_patient else None,
        issuer=issuers[0] if by_patient and issuers else None,
        study_uids=narrow["STUDY"],
        series_uids=narrow["SERIES"],
        instance_uids=narrow["IMAGE"],
    )


def _values(ds: Dataset, tag: int) -> list[str]:
    """The values of an element that are not empty."""
    element = ds.get(tag)
    value = None if element is None else element.value
    if value is None:
        return []
    values = value if isinstance(value, MultiValue | list) else [value]
    return [text for text in (str(one).strip(" \0") for one in values) if text]


def _is_wild(value: str) -> bool:
    return "*" in value or "?" in value
