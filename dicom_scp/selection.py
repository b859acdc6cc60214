"""What a C-GET or C-MOVE identifier asks for (PS3.4 C.4.2.1.4, C.6; REQ-DCM-40)."""

from __future__ import annotations

from archive.access import Action
from archive.core import Archive
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, decode, terms
from archive.dicom.elements import Kept, Scanner, encoding_of
from archive.dicom.source import Source
from archive.errors import InvalidQuery
from archive.retrieve import Stored, select
from dicom_scp.classes import COMPOSITE, PATIENT_ROOT
from dicom_scp.messages import RetrieveRequest

_LEVEL = 0x00080052
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_UIDS = {"STUDY": 0x0020000D, "SERIES": 0x0020000E, "IMAGE": 0x00080018}
_SCANNER = Scanner((SPECIFIC_CHARACTER_SET, _LEVEL, _PATIENT_ID, _ISSUER, *_UIDS.values()), max_bytes=1 << 24)


def selected(request: RetrieveRequest, archive: Archive) -> list[Stored]:
    """The instances that are asked for; an empty list when there is none. At level IMAGE, originals that were replaced
    too, before the others: each is a sub-operation that fails (REQ-DCM-84).

    Unique keys above the level may be missing, and narrow what is found when they are there: relational retrieve,
    for everybody. Study Root does not look at Patient ID.

    Raises:
        UnreadableInstance: the identifier is not a data set.
        InvalidQuery: no such level in this model, or its unique key is missing, or not single where it has to be.
        Unavailable: the index cannot be asked.
    """
    encoding = encoding_of(request.transfer_syntax_uid)
    found, _ = _SCANNER.scan(Source.of_bytes(request.identifier), encoding)
    charset = archive.settings.dicom.default_charset
    level = "".join(_values(found, _LEVEL, charset))
    patient_ids = _values(found, _PATIENT_ID, charset)
    issuers = _values(found, _ISSUER, charset)
    uids = {name: _values(found, tag, charset) for name, tag in _UIDS.items()}

    patient_root = request.sop_class_uid in PATIENT_ROOT
    composite = request.sop_class_uid in COMPOSITE
    if composite and level != "IMAGE":
        raise InvalidQuery("instances are given whole: the level is IMAGE", tag=_LEVEL)
    if level not in _UIDS and not (level == "PATIENT" and patient_root):
        raise InvalidQuery("no such Query/Retrieve Level in this information model", tag=_LEVEL)
    if level == "PATIENT":
        if len(patient_ids) != 1 or _is_wild(patient_ids[0]):
            raise InvalidQuery("one Patient ID is needed", tag=_PATIENT_ID)
    elif not uids[level] or any(_is_wild(uid) for uid in uids[level]):
        raise InvalidQuery(f"the unique key of level {level} is needed", tag=_UIDS[level])

    above = ("PATIENT", "STUDY", "SERIES", "IMAGE")
    used = above[: above.index(level) + 1]
    if composite:
        used = ("IMAGE",)  # nothing is above it in this model
    narrow = {name: [uid for uid in uids[name] if not _is_wild(uid)] if name in used else [] for name in _UIDS}
    by_patient = patient_root and len(patient_ids) == 1 and not _is_wild(patient_ids[0])
    chosen = select(
        archive,
        patient_id=patient_ids[0] if by_patient else None,
        issuer=issuers[0] if by_patient and issuers else None,
        study_uids=narrow["STUDY"],
        series_uids=narrow["SERIES"],
        instance_uids=narrow["IMAGE"],
        replaced=level == "IMAGE",
        quality=Action.QUALITY in request.actor.may,
    )
    return sorted(chosen, key=lambda one: not one.replaced)


def _values(found: Kept, tag: int, default_charset: str) -> list[str]:
    """The values of an element that are not empty."""
    if tag not in found:
        return []
    charsets = terms(found[SPECIFIC_CHARACTER_SET][1]) if SPECIFIC_CHARACTER_SET in found else ()
    text = decode(found[tag][1], charsets or (default_charset,), fallback=default_charset)
    return [value for value in (one.strip(" \0") for one in text.split("\\")) if value]


def _is_wild(value: str) -> bool:
    return "*" in value or "?" in value
