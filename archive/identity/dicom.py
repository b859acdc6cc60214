"""A record as the attributes of a patient in DICOM (sheet 20 §5.1, REQ-DCM-73). Pure.

Only what is said becomes an attribute; what was deleted becomes one without value. The record keeps everything whole:
what DICOM cannot hold is replaced or cut here, in the outgoing copy alone (REQ-HL7-15).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from archive.dicom.charset import charset_of
from archive.dicom.performed import items, text
from archive.identity.ins import NAMESPACES, fault_of
from archive.identity.record import Ins, Name, Record

NAME, PATIENT_ID, ISSUER, ID_TYPE, QUALIFIERS = "00100010", "00100020", "00100021", "00100022", "00100024"
BIRTH_DATE, SEX, OTHER_IDS, OTHER_NAMES, BIRTH_NAME = "00100030", "00100040", "00101002", "00101001", "00101005"
_UNIVERSAL_ID, _UNIVERSAL_ID_TYPE = "00400032", "00400033"
GROUP_CHARACTERS = 64  # of a component group of PN (PS3.5 §6.2)

_ILLEGAL = re.compile(r"[\\^=\x00-\x1f\x7f]")
_SEXES = {"M": "M", "F": "F", "O": "O", "A": "O", "N": "O"}
_KEYWORDS = {
    NAME: "PatientName",
    PATIENT_ID: "PatientID",
    ISSUER: "IssuerOfPatientID",
    ID_TYPE: "TypeOfPatientID",
    QUALIFIERS: "IssuerOfPatientIDQualifiersSequence",
    BIRTH_DATE: "PatientBirthDate",
    SEX: "PatientSex",
    OTHER_IDS: "OtherPatientIDsSequence",
    OTHER_NAMES: "OtherPatientNames",
    BIRTH_NAME: "PatientBirthName",
    _UNIVERSAL_ID: "UniversalEntityID",
    _UNIVERSAL_ID_TYPE: "UniversalEntityIDType",
}
_MANY = frozenset({OTHER_NAMES})


def attributes_of(record: Record, *, patient_id: str, issuer: str, oid: str = "") -> dict[str, Any]:
    """DICOM JSON of what the record says; `oid` is the issuer's, "" when it has none."""
    found: dict[str, Any] = identifier(patient_id, issuer, oid)
    birth = record.birth_name or record.used_name
    if record.names:
        found[NAME] = _names([person_name(birth)])
        legal = record.names.get("L")
        if legal is not None:
            found[BIRTH_NAME] = _names([person_name(legal)])
        found[OTHER_NAMES] = _names(_others(record))
    if record.birth_date is not None:
        found[BIRTH_DATE] = _element("DA", record.birth_date if len(record.birth_date) == 8 else "")
    if record.sex is not None:
        found[SEX] = _element("CS", _SEXES.get(record.sex, ""))
    if record.ins is not None:
        item = identifier(record.ins.value, NAMESPACES[record.ins.oid], record.ins.oid)
        found[OTHER_IDS] = {"vr": "SQ", "Value": [item]}
    elif record.ins_history:  # a modality may have copied it into headers: withdrawn from every output (REQ-HL7-64)
        found[OTHER_IDS] = {"vr": "SQ"}
    return {key: found[key] for key in sorted(found)}


def identifier(patient_id: str, issuer: str, oid: str = "") -> dict[str, Any]:
    """The attributes that name a patient, or an item of Other Patient IDs Sequence."""
    found = {PATIENT_ID: _element("LO", patient_id), ISSUER: _element("LO", issuer), ID_TYPE: _element("CS", "TEXT")}
    if oid:
        qualifiers = {_UNIVERSAL_ID: _element("UT", oid), _UNIVERSAL_ID_TYPE: _element("CS", "ISO")}
        found[QUALIFIERS] = {"vr": "SQ", "Value": [qualifiers]}
    return found


def ins_of(said: Mapping[str, Any], accepted: Collection[str]) -> tuple[str, ...]:
    """The INS that a header's Patient ID may be, as `value^OID`: by the OID of its issuer, else by the issuer's name,
    which several OIDs share. None that is not `accepted`, or wrong by itself (REQ-HL7-60, 61, 66)."""
    value, issuer = text(said, PATIENT_ID), text(said, ISSUER)
    oid = next((text(one, _UNIVERSAL_ID) for one in items(said, QUALIFIERS)), "")
    named = [oid] if oid else [one for one, namespace in NAMESPACES.items() if namespace == issuer]
    return tuple(f"{value}^{one}" for one in named if fault_of(Ins(value, one), accepted=accepted) is None)


def completed(attributes: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a survivor: name, birth date and sex are said even where only images say them, so that no
    moved study leaves with those of somebody else."""
    empty = {NAME: {"vr": "PN"}, BIRTH_DATE: {"vr": "DA"}, SEX: {"vr": "CS"}, OTHER_NAMES: {"vr": "PN"}}
    of_images = {key: shown.get(key, nothing) for key, nothing in empty.items()}
    return dict(sorted({**of_images, **attributes}.items()))


def person_name(name: Name) -> str:
    """A name as PN: family and first given name, within a component group (REQ-HL7-15)."""
    return _group(name.family or "", name.given or "")


def by_keyword(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as people and scripts read them: by keyword, names as `FAMILY^Given`, "" without value."""
    shown = {_KEYWORDS[key]: _plain(key, value) for key, value in attributes.items() if key in _KEYWORDS}
    return {"SpecificCharacterSet": charset_of(attributes), **shown}


def _others(record: Record) -> list[str]:
    """Other Patient Names: the used name first, then the family name with all given names."""
    found = []
    if used := record.used_name:
        found.append(person_name(used))
    birth = record.birth_name
    if birth.given_list:
        found.append(_group(birth.family or "", birth.given_list))
    return found


def _group(family: str, given: str) -> str:
    """A component group of at most 64 characters, cut where a word ends: given names first, the family name last."""
    family, given = _component(family), _component(given)
    given = _cut(given, GROUP_CHARACTERS - 1 - min(len(family), GROUP_CHARACTERS // 2))
    family = _cut(family, GROUP_CHARACTERS - (len(given) + 1 if given else 0))
    return f"{family}^{given}" if given else family


def _component(text: str) -> str:
    return " ".join(_ILLEGAL.sub(" ", text).split())


def _cut(text: str, characters: int) -> str:
    """The first words that fit; of a single long word what fits."""
    if len(text) <= characters:
        return text
    head = text[: characters + 1]
    return head.rpartition(" ")[0] or head[:characters]


def _names(values: list[str]) -> dict[str, Any]:
    kept = [{"Alphabetic": value} for value in values if value]
    return {"vr": "PN", "Value": kept} if kept else {"vr": "PN"}


def _element(vr: str, value: str) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value else {"vr": vr}


def _plain(key: str, element: Mapping[str, Any]) -> Any:
    values = element.get("Value") or []
    if element.get("vr") == "SQ":
        return [{_KEYWORDS[one]: _plain(one, value) for one, value in item.items()} for item in values]
    texts = [str(value.get("Alphabetic", "")) if isinstance(value, Mapping) else value for value in values]
    if key in _MANY:
        return texts
    return texts[0] if texts else ""
