"""Companions of key objects and presentation states: the same selection, the same view, of lossy copies (REQ-DCM-87).

When originals are replaced, a key object (KOS) or presentation state (GSPS) that names them still stands, and opens
nothing. Its companion is a new instance of the same study that names the copies. The one that came is never changed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from archive.dicom.derived import SUFFIX
from archive.dicom.document import NO_SELECTION
from archive.dicom.equipment import Equipment
from archive.dicom.uids import KEY_OBJECTS, WITH_COMPANIONS, new_uid
from archive.policy import local_time

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# What names where something came from, or what it was: history, not references to follow.
_HISTORY: Final = frozenset({0x00082112, 0x00209172, 0x0040A360, 0x00420013, 0x04000561})
_DROPPED: Final = (0x00080014, 0x4FFE0001, 0xFFFAFFFA)  # Instance Creator UID, signatures of other bytes
_CONTRIBUTION: Final = "Renamed references to lossy copies"
_SERIES: Final = 0x0020000E
_SOP_INSTANCE: Final = 0x00081155


@dataclass(frozen=True, slots=True)
class Copy:
    """The lossy copy of an original; of the same SOP class."""

    sop_instance_uid: str
    series_instance_uid: str


def companion(
    ds: Dataset, copies: Mapping[str, Copy], *, series_instance_uid: str, at: datetime, equipment: Equipment
) -> Dataset | None:
    """A new object that names the copies of the originals (`copies`, by their SOP Instance UIDs) where `ds` names them.

    What has no copy stays named as it is. None when `ds` names none of them, or is no selection or view of images. Its
    predecessor is named as source of its conversion (PS3.3 C.12.1), and in a key object as document before it. Pure:
    `ds` is not changed. `series_instance_uid` is of a series for companions alone.
    """
    if not _has_companions(ds):
        return None
    made = deepcopy(ds)
    for tag in _DROPPED:
        if tag in made:
            del made[tag]
    if not _renamed(made, copies):
        return None
    when = local_time(at)
    made.SOPInstanceUID = new_uid()
    made.SeriesInstanceUID = series_instance_uid
    made.SeriesDescription = _described(str(ds.get("SeriesDescription") or ""))
    made.InstanceCreationDate, made.InstanceCreationTime = f"{when:%Y%m%d}", f"{when:%H%M%S}"
    made.ConversionSourceAttributesSequence = [*made.get("ConversionSourceAttributesSequence", ()), _reference(ds)]
    if str(ds.SOPClassUID) == KEY_OBJECTS:
        made.PredecessorDocumentsSequence = [*made.get("PredecessorDocumentsSequence", ()), _document(ds)]
    made.ContributingEquipmentSequence = [
        *made.get("ContributingEquipmentSequence", ()),
        _contribution(equipment, when),
    ]
    return made


def references(ds: Dataset) -> frozenset[str]:
    """The SOP Instance UIDs that a companion of `ds` would name copies for, if it gets one at all."""
    return frozenset(_named(ds)) if _has_companions(ds) else frozenset()


def predecessor(ds: Dataset) -> str:
    """The SOP Instance UID of the object that `ds` is the companion of; "" when it is none."""
    described = (str(one.get("ContributionDescription", "")) for one in ds.get("ContributingEquipmentSequence") or ())
    sources = ds.get("ConversionSourceAttributesSequence") or ()
    return str(sources[-1].get("ReferencedSOPInstanceUID", "")) if _CONTRIBUTION in described and sources else ""


def encoded(ds: Dataset) -> bytes:
    """The data set of a companion in Explicit VR Little Endian, group 0002 excluded."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset

    buffer = io.BytesIO()
    plain = Dataset(ds)
    dcmwrite(buffer, plain, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def _has_companions(ds: Dataset) -> bool:
    if str(ds.get("SOPClassUID", "")) not in WITH_COMPANIONS or _stands_for_itself(ds):
        return False
    return ds.original_encoding[1] is not False  # words of big endian LUTs would need turning


def _named(ds: Dataset) -> Iterator[str]:
    for element in ds:
        if element.VR == "SQ" and element.tag not in _HISTORY:
            for item in element.value or ():
                if _SOP_INSTANCE in item:
                    yield str(item[_SOP_INSTANCE].value)
                yield from _named(item)


def _stands_for_itself(ds: Dataset) -> bool:
    if str(ds.SOPClassUID) != KEY_OBJECTS:
        return False
    # a copy of a rejection would reject, a copy of a manifest would publish
    titles = [str(one.get("CodeValue", "")) for one in ds.get("ConceptNameCodeSequence") or ()]
    return bool(NO_SELECTION.intersection(titles))


def _renamed(ds: Dataset, copies: Mapping[str, Copy]) -> int:
    """Name copies at every depth; how many names that were."""
    from pydicom.sequence import Sequence as Items

    count = 0
    for element in list(ds):
        if element.VR != "SQ" or element.tag in _HISTORY or not element.value:
            continue
        items: list[Dataset] = []
        for item in element.value:
            items += _by_series(item, copies) if _SERIES in item else [item]
        for item in items:
            count += _renamed(item, copies)
            found = copies.get(str(item.get(_SOP_INSTANCE).value)) if _SOP_INSTANCE in item else None
            if found is not None:
                item.ReferencedSOPInstanceUID = found.sop_instance_uid
                count += 1
        element.value = Items(items)
    return count


def _by_series(item: Dataset, copies: Mapping[str, Copy]) -> list[Dataset]:
    """A series and the instances named in it, parted where copies are in series of their own."""
    from pydicom.sequence import Sequence as Items

    named = [element for element in item if element.VR == "SQ" and any(_SOP_INSTANCE in one for one in element.value)]
    if len(named) != 1:
        return [item]
    (element,) = named
    parts: dict[str, list[Dataset]] = {}
    for one in element.value:
        copy = copies.get(str(one.get("ReferencedSOPInstanceUID", "")))
        parts.setdefault(copy.series_instance_uid if copy else str(item.SeriesInstanceUID), []).append(one)
    found = []
    for series_uid, members in parts.items():
        part = deepcopy(item)
        part.SeriesInstanceUID = series_uid
        part[element.tag].value = Items(deepcopy(members))
        found.append(part)
    return found


def _described(before: str) -> str:
    return (before[: 64 - len(SUFFIX)].rstrip() + SUFFIX) if before else SUFFIX.strip()


def _reference(ds: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return item


def _document(ds: Dataset) -> Dataset:
    """A document in its study and series (PS3.3 C.17.2.1)."""
    from pydicom.dataset import Dataset

    study, series = Dataset(), Dataset()
    series.SeriesInstanceUID = ds.SeriesInstanceUID
    series.ReferencedSOPSequence = [_reference(ds)]
    study.StudyInstanceUID = ds.StudyInstanceUID
    study.ReferencedSeriesSequence = [series]
    return study


def _contribution(equipment: Equipment, when: datetime) -> Dataset:
    from pydicom.dataset import Dataset

    item, purpose = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109102", "DCM", "Processing Equipment"
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer, item.ManufacturerModelName = equipment.manufacturer, equipment.model_name
    item.SoftwareVersions, item.StationName = equipment.software_version, equipment.station_name
    item.ContributionDateTime = f"{when:%Y%m%d%H%M%S%z}"
    item.ContributionDescription = _CONTRIBUTION
    return item
