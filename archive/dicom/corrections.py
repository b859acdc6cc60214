"""What the RIS or a person says, beside what a header says: which attributes leave changed (REQ-DCM-70). Pure.

All in the DICOM JSON Model, by keys of eight hexadecimal digits. `archive.dicom.coerce` does the same to bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import orjson

from archive.dicom import keys
from archive.dicom.attributes import BY_TAG, Level

SYSTEM: Final = "MINIPACS"  # Modifying System (0400,0563): how we know our own corrections again
ORIGINAL_ATTRIBUTES: Final = 0x04000561
MODIFIED_ATTRIBUTES: Final = 0x04000550
MODIFIED_AT: Final = 0x04000562
MODIFYING_SYSTEM: Final = 0x04000563
SOURCE_OF_VALUES: Final = 0x04000564
REASON: Final = 0x04000565
PATIENT_ID: Final = 0x00100020
ISSUER: Final = 0x00100021
MAC_PARAMETERS: Final = 0x4FFE0001
SIGNATURES: Final = 0xFFFAFFFA
_MAC_ID, _SIGNED = "04000005", "04000020"

Json = Mapping[str, Any]

# What a header may leave out without saying anything else: the issuer, its qualifiers, the type of the identifier.
_MAY_BE_ABSENT = frozenset({"00080051", f"{ISSUER:08X}", "00100022", "00100024"})
_LEVELS = (Level.PATIENT, Level.STUDY)
_COMPARED = frozenset(f"{tag:08X}" for tag, attribute in BY_TAG.items() if attribute.level in _LEVELS)


@dataclass(frozen=True, slots=True)
class Changes:
    """What leaves otherwise than it lies: elements by tag, when that was decided and why."""

    attributes: Mapping[int, Json]
    at: datetime
    reason: str  # COERCE or CORRECT, Reason for the Attribute Modification (0400,0565)

    @property
    def former(self) -> list[int]:
        """The tags whose former values are told, ascending: an identifier never without its issuer (REQ-DCM-71)."""
        told = set(self.attributes)
        return sorted(told | {ISSUER} if PATIENT_ID in told else told)

    @property
    def moment(self) -> str:
        """`at` as a DT (PS3.5 §6.2)."""
        return f"{self.at.astimezone(UTC):%Y%m%d%H%M%S.%f}+0000"


def identity(levels: Mapping[Any, Json]) -> str:
    """A digest of what a header (`archive.dicom.header`) says of patient and study: where it is the same, corrections
    change the same."""
    return blake2b(b"\0".join(orjson.dumps(levels[level]) for level in _LEVELS), digest_size=16).hexdigest()


def said(levels: Mapping[Any, Json]) -> dict[str, Any]:
    """What a header says of patient and study."""
    return {key: value for level in _LEVELS for key, value in levels[level].items()}


def changes(said: Json, *corrections: str) -> Changes | None:
    """What corrections (`archive.index.correct`, "" for none) change of what a header says; None: it says the same.

    Padding and trailing empty components do not count, nor do an issuer, its qualifiers and the type of an identifier
    where the header has none. What the index does not keep of patient and study is only set along with others.
    """
    changed: dict[int, Json] = {}
    at, reason, counts = None, "", False
    for text in corrections:
        for key, element in (_parsed(text)["attributes"] if text else {}).items():
            now, then = _plain(element), _plain(said.get(key) or {})
            if now == then:
                continue
            changed[int(key, 16)] = element
            counts = counts or (key in _COMPARED and (bool(then) or key not in _MAY_BE_ABSENT))
            when = datetime.fromisoformat(_parsed(text)["at"])
            if at is None or when >= at:
                at, reason = when, str(_parsed(text)["reason"])
    return Changes(changed, at, reason) if at is not None and counts else None


def coerces_identifier(said: Json, *corrections: str) -> bool:
    """Whether the Patient ID, or the issuer that a header names, will leave changed (REQ-DCM-18)."""
    found = changes(said, *corrections)
    if found is None:
        return False
    return PATIENT_ID in found.attributes or (
        ISSUER in found.attributes and bool(_plain(said.get(f"{ISSUER:08X}") or {}))
    )


@lru_cache(maxsize=1024)
def _parsed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(text)
    return found


def _plain(element: Json) -> Any:
    """The values of an element as they are compared; empty ones count as absent."""
    values = element.get("Value") or ()
    vr = element.get("vr")
    if vr == "SQ":
        items = ({key: _plain(inner) for key, inner in (item or {}).items()} for item in values)
        return [{key: inner for key, inner in item.items() if inner} for item in items]
    compared = [_name(value) if vr == "PN" else _text(value, vr) for value in values]
    while compared and not compared[-1]:
        compared.pop()
    return compared or element.get("InlineBinary")


def _name(value: Any) -> dict[str, str]:
    groups = value if isinstance(value, Mapping) else {"Alphabetic": value}
    trimmed = {
        name: "^".join(part.strip(" \0") for part in str(group or "").split("^")).rstrip("^")
        for name, group in groups.items()
    }
    return {name: group for name, group in trimmed.items() if group}


def _text(value: Any, vr: Any) -> Any:
    if not isinstance(value, str):
        return value
    return (keys.date(value) if vr == "DA" else None) or value.strip(" \0")


def original(found: Json, changes: Changes, *, source: str) -> dict[str, Any]:
    """The item of Original Attributes Sequence for a data set in JSON (PS3.3 C.12.1.1.9). What was absent is an empty
    element; `source` is whom the data set came from, "" when that is not known."""
    former = {f"{tag:08X}": _former(found, tag, changes) for tag in changes.former}
    texts = {
        MODIFIED_AT: ("DT", changes.moment),
        MODIFYING_SYSTEM: ("LO", SYSTEM),
        SOURCE_OF_VALUES: ("LO", source),
        REASON: ("CS", changes.reason),
    }
    told = {f"{tag:08X}": {"vr": vr, "Value": [text]} if text else {"vr": vr} for tag, (vr, text) in texts.items()}
    return {f"{MODIFIED_ATTRIBUTES:08X}": {"vr": "SQ", "Value": [former]}} | told


def vr_of(tag: int, changes: Changes) -> str:
    """The VR of an attribute whose former value was absent."""
    return str(changes.attributes[tag]["vr"]) if tag in changes.attributes else "LO"  # an issuer's


def _former(found: Json, tag: int, changes: Changes) -> Json:
    element = found.get(f"{tag:08X}")
    # a value of a mebibyte or more is in no metadata, and its address is no longer its own
    return element if element is not None and "BulkDataURI" not in element else {"vr": vr_of(tag, changes)}


def overlaid(found: Json, changes: Changes, *, source: str) -> dict[str, Any]:
    """A data set in JSON as it leaves: with what is changed, what it was, and without signatures over it."""
    key = f"{ORIGINAL_ATTRIBUTES:08X}"
    existing = found.get(key) or {}
    items = [*(existing.get("Value") or ()), original(found, changes, source=source)]
    result = {**found, **{f"{tag:08X}": element for tag, element in changes.attributes.items()}}
    result[key] = {"vr": "SQ", "Value": items}
    sequences = [f"{tag:08X}" for tag in (MAC_PARAMETERS, SIGNATURES)]
    present = [list((found.get(one) or {}).get("Value") or ()) for one in sequences]
    kept = unaffected(*present, changed={*changes.attributes, ORIGINAL_ATTRIBUTES})
    for one, all_items, numbers in zip(sequences, present, kept, strict=True):
        if len(numbers) == len(all_items):
            continue
        result[one] = {"vr": "SQ", "Value": [all_items[number] for number in numbers]}
        if not numbers:
            del result[one]
    return dict(sorted(result.items()))


def unaffected(
    parameters: Sequence[Json], signatures: Sequence[Json], *, changed: Collection[int]
) -> tuple[list[int], list[int]]:
    """Which items of MAC Parameters and of Digital Signatures Sequence may leave with changed elements (REQ-DCM-72).

    A signature may when the elements that it signs are known (PS3.3 C.12.1.1.3) and none is changed; parameters may
    unless only signatures needed them that may not.
    """
    signed = {_number(item): {str(tag) for tag in _values(item, _SIGNED)} for item in parameters}
    tags = {f"{tag:08X}" for tag in changed}
    kept = [
        place
        for place, item in enumerate(signatures)
        if (covers := signed.get(_number(item))) and _number(item) is not None and not covers & tags
    ]
    needed = {_number(signatures[place]) for place in kept}
    dropped = {_number(item) for place, item in enumerate(signatures) if place not in kept} - needed
    return [place for place, item in enumerate(parameters) if _number(item) not in dropped], kept


def _number(item: Json) -> Any:
    return next(iter(_values(item, _MAC_ID)), None)


def _values(item: Json, key: str) -> Sequence[Any]:
    return (item.get(key) or {}).get("Value") or ()
