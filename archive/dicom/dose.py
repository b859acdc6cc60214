"""What a radiation dose report says in figures (PS3.16 TID 10001, 10011, 10021 and the enhanced 10040; IHE REM). Pure.

Values are given in the units of their field names; a value in a unit that is not known here is left out, never guessed.
A report that is not of one of these templates has no figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from archive.dicom.document import code_of, items_of, text_of, uid_of
from archive.dicom.elements import MAX_NESTING
from archive.policy import DOSE_REPORTS

__all__ = ["DOSE_REPORTS", "MAX_BYTES", "Dose", "doses"]

MAX_BYTES: Final = 4 << 20  # some thousand events; a longer report is kept, found and given, without figures
_TEXT: Final = 256  # characters that are kept of a label

Json = Mapping[str, Any]

# Concepts of DCM, CID 10000 and following.
_EVENT_UIDS: Final = frozenset({"113769", "113503"})  # irradiation event; administration of a radiopharmaceutical
_TOTALS: Final = frozenset({"113702", "113811"})  # accumulated X-ray dose data (one for each plane), CT accumulated
_STARTED: Final = frozenset({"111526", "123003"})
_LABELS: Final = ("125203", "113820", "113721", "123014")  # protocol, acquisition type, event type, target region
_DEVICE_UID, _DEVICE_NAME, _MAKER, _MODEL, _SERIAL = "121012", "121013", "121014", "121015", "121016"
_FIGURES: Final = {
    "113830": "ctdi_vol_mgy",  # Mean CTDIvol
    "113838": "dlp_mgycm",  # DLP
    "113813": "dlp_mgycm",  # CT Dose Length Product Total
    "122130": "dap_gym2",  # Dose Area Product
    "113722": "dap_gym2",  # Dose Area Product Total
    "111631": "agd_mgy",  # Average Glandular Dose
    "111637": "agd_mgy",  # Accumulated Average Glandular Dose
    "113507": "activity_mbq",  # Administered activity
}
_UNITS: Final = {  # UCUM, by the field that they are turned into
    "ctdi_vol_mgy": {"mGy": 1.0, "Gy": 1e3, "uGy": 1e-3, "cGy": 10.0, "dGy": 100.0},
    "dlp_mgycm": {"mGy.cm": 1.0, "mGycm": 1.0, "Gy.cm": 1e3, "uGy.cm": 1e-3, "cGy.cm": 10.0, "mGy.m": 100.0},
    "dap_gym2": {
        "Gy.m2": 1.0, "mGy.m2": 1e-3, "uGy.m2": 1e-6, "Gy.cm2": 1e-4, "dGy.cm2": 1e-5, "cGy.cm2": 1e-6,
        "mGy.cm2": 1e-7, "uGy.cm2": 1e-10,
    },
    "agd_mgy": {"mGy": 1.0, "Gy": 1e3, "uGy": 1e-3, "cGy": 10.0, "dGy": 100.0},
    "activity_mbq": {"MBq": 1.0, "kBq": 1e-3, "Bq": 1e-6, "GBq": 1e3},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dose:
    """The figures of one irradiation event, or the totals of a report (`number` 0). None: the report does not say."""

    number: int
    template: str
    event_uid: str = ""
    at: str = ""  # DT, as the report writes it
    label: str = ""
    ctdi_vol_mgy: float | None = None  # of totals: the highest of its events
    dlp_mgycm: float | None = None
    dap_gym2: float | None = None
    agd_mgy: float | None = None  # of totals: the higher of both breasts
    activity_mbq: float | None = None
    device_uid: str = ""
    device: str = ""


_SUMMED: Final = ("dlp_mgycm", "dap_gym2", "activity_mbq")
_HIGHEST: Final = ("ctdi_vol_mgy", "agd_mgy")


def doses(content: Json) -> list[Dose]:
    """Totals, then events in their order, from the DICOM JSON of a report's content (`read_content`); [] when it says
    nothing of dose."""
    root = items_of(content, "0040A730")
    template = next((text_of(one, "0040DB00")[:16] for one in items_of(content, "0040A504")), "")
    device_uid, device = _device(root)
    totals: list[dict[str, list[float]]] = []
    events: list[Dose] = []
    for container in _containers(root, 0):
        inside = items_of(container, "0040A730")
        uid = next((_uid(one) for one in inside if _concept(one) in _EVENT_UIDS), "")
        if uid:
            own_uid, own_device = _device(inside)
            found: Mapping[str, Any] = {name: max(values) for name, values in _figures(container, 0).items()}
            made = Dose(
                len(events) + 1, template, uid, _started(container), _label(inside),
                device_uid=own_uid or device_uid, device=own_device or device,
            )  # fmt: skip
            events.append(replace(made, **found))
        elif _concept(container) in _TOTALS:
            totals.append(_figures(container, 0))
    if not events and not totals:
        return []
    whole = Dose(0, template, at=_started_first(events), device_uid=device_uid, device=device)
    summed: Mapping[str, Any] = _whole(totals, events)
    return [replace(whole, **summed), *events]


def _whole(totals: Sequence[Mapping[str, Sequence[float]]], events: Sequence[Dose]) -> dict[str, float]:
    """Totals as the report says them, each plane's added up; what it does not total, from its events."""
    found: dict[str, float] = {}
    for name in (*_SUMMED, *_HIGHEST):
        join = sum if name in _SUMMED else max
        said = [max(one[name]) if name in _HIGHEST else one[name][0] for one in totals if one.get(name)]
        values = said or [value for one in events if (value := getattr(one, name)) is not None]
        if values:
            found[name] = float(join(values))
    return found


def _containers(content: Sequence[Json], depth: int) -> Iterator[Json]:
    """Containers that say something of an event, or totals; not what is inside of these."""
    if depth > MAX_NESTING:
        return
    for item in content:
        inside = items_of(item, "0040A730")
        if _concept(item) in _TOTALS or any(_concept(one) in _EVENT_UIDS for one in inside):
            yield item
        elif inside:
            yield from _containers(inside, depth + 1)


def _figures(item: Json, depth: int) -> dict[str, list[float]]:
    """The figures anywhere in a container, in their order."""
    found: dict[str, list[float]] = {}
    if depth > MAX_NESTING:
        return found
    for one in items_of(item, "0040A730"):
        name = _FIGURES.get(_concept(one))
        if name is not None and (value := _number(one, name)) is not None:
            found.setdefault(name, []).append(value)
        for inner, values in _figures(one, depth + 1).items():
            found.setdefault(inner, []).extend(values)
    return found


def _number(item: Json, name: str) -> float | None:
    measured = next(iter(items_of(item, "0040A300")), {})
    factor = _UNITS[name].get(code_of(measured, "004008EA")[0])
    try:
        value = float(text_of(measured, "0040A30A"))
    except ValueError:
        return None
    return None if factor is None or not 0 <= value < 1e12 else round(value * factor, 12)


def _concept(item: Json) -> str:
    value, scheme, _ = code_of(item, "0040A043")
    return value if scheme == "DCM" else ""


def _uid(item: Json) -> str:
    return uid_of(item, "0040A124")


def _started(item: Json) -> str:
    inside = items_of(item, "0040A730")
    return next((text_of(one, "0040A120")[:26] for one in inside if _concept(one) in _STARTED), "")


def _started_first(events: Sequence[Dose]) -> str:
    return min((one.at for one in events if one.at), default="")


def _label(inside: Sequence[Json]) -> str:
    said = {_concept(one): text_of(one, "0040A160") or code_of(one, "0040A168")[2] for one in inside}
    return next((said[concept][:_TEXT] for concept in _LABELS if said.get(concept)), "")


def _device(inside: Sequence[Json]) -> tuple[str, str]:
    """The UID of the irradiating device, and its maker, model, name and serial number as far as they are said."""
    said: dict[str, str] = {}
    for item in (*inside, *(one for outer in inside for one in items_of(outer, "0040A730"))):
        concept = _concept(item)
        if concept in (_DEVICE_UID, _DEVICE_NAME, _MAKER, _MODEL, _SERIAL):
            said.setdefault(concept, _uid(item) or text_of(item, "0040A160"))
    words = [said[concept] for concept in (_MAKER, _MODEL, _DEVICE_NAME, _SERIAL) if said.get(concept)]
    return said.get(_DEVICE_UID, "")[:64], " ".join(words)[:_TEXT]


FIGURES: Final = tuple(one.name for one in fields(Dose) if one.name in (*_SUMMED, *_HIGHEST))
