"""Who made a derived object: the archive, as the DICOM objects that it makes name it (PS3.3 C.7.5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from archive.config import Settings


@dataclass(frozen=True, slots=True)
class Equipment:
    """The archive as a piece of equipment."""

    manufacturer: str = "minipacs"
    model_name: str = "minipacs"
    software_version: str = ""
    serial_number: str = ""  # Device Serial Number, required of some objects
    station_name: str = ""
    institution_name: str = ""


def equipment_of(settings: Settings) -> Equipment:
    """This archive, with the version that runs."""
    return Equipment(
        software_version=version("minipacs"),
        serial_number=settings.dicom.ae_title,
        station_name=settings.dicom.ae_title,
        institution_name=settings.site.name[:64],
    )
