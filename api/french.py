"""Words for people: the templates, and how dates, names and modalities are written in French."""

from __future__ import annotations

import hashlib
from datetime import date as Date
from datetime import datetime
from importlib.resources import files
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined

_PARIS = ZoneInfo("Europe/Paris")  # for showing times to people; no rule is computed here

MODALITIES = {
    "CR": "Radiographie numérisée",
    "CT": "Scanner",
    "DX": "Radiographie",
    "IO": "Radiographie intra-orale",
    "KO": "Sélection d’images clés",
    "MG": "Mammographie",
    "MR": "IRM",
    "NM": "Médecine nucléaire",
    "OT": "Autre",
    "PR": "État de présentation",
    "PT": "TEP",
    "PX": "Radiographie panoramique",
    "RF": "Radioscopie",
    "RTDOSE": "Dose de radiothérapie",
    "RTPLAN": "Plan de radiothérapie",
    "RTSTRUCT": "Contours de radiothérapie",
    "SC": "Capture secondaire",
    "SEG": "Segmentation",
    "SM": "Lame numérisée",
    "SR": "Compte rendu structuré",
    "US": "Échographie",
    "XA": "Angiographie",
    "XC": "Photographie",
    "DOC": "Document",
    "ECG": "Électrocardiogramme",
}
_SEXES = {"F": "femme", "M": "homme", "O": "autre"}


def person(name: str) -> str:
    """`DUPONT^Anne^Marie` as it is said: DUPONT Anne Marie."""
    words = [word.strip() for word in name.partition("=")[0].split("^")]
    return " ".join(word for word in words if word) or "Sans nom"


def date(text: str) -> str:
    """YYYYMMDD as 05/01/2026; what is no date as it is."""
    if len(text) == 8 and text.isdigit():
        return f"{text[6:]}/{text[4:6]}/{text[:4]}"
    return text or "—"


def time(text: str) -> str:
    """HHMMSS as 10:15; "" for what is no time."""
    return f"{text[:2]}:{text[2:4]}" if len(text) >= 4 and text[:4].isdigit() else ""


def moment(at: datetime) -> str:
    """An instant, on the clock of the practice."""
    return f"{at.astimezone(_PARIS):%d/%m/%Y à %H:%M}"


def instant(text: str) -> str:
    """An instant in ISO 8601, on the clock of the practice."""
    return moment(datetime.fromisoformat(text))


def day(at: Date) -> str:
    """A day as 05/01/2026."""
    return f"{at:%d/%m/%Y}"


def size(count: int) -> str:
    """Bytes as octets, ko, Mo, Go."""
    number = float(count)
    for unit in ("octets", "ko", "Mo", "Go"):
        if number < 1000 or unit == "Go":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "octets" else f"{number:.1f} {unit}".replace(".", ",")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("api"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "person": person,
        "date": date,
        "time": time,
        "moment": moment,
        "instant": instant,
        "day": day,
        "size": size,
        "modality": lambda code: MODALITIES.get(code, code),
        "sex": lambda code: _SEXES.get(code, code),
    }
    return environment


ENVIRONMENT = _environment()


def _version_of(name: str) -> str:
    return hashlib.sha256(files("api").joinpath("static", name).read_bytes()).hexdigest()[:12]


STYLE_VERSION = _version_of("desk.css")  # in addresses: a browser keeps a file until it changes
VIEWER_VERSION = _version_of("viewer-config.js")
