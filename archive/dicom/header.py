"""Reading a header: from the first element to Pixel Data, no further."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Header:
    """What reception needs to know of an instance.

    `levels[Level]` is the DICOM JSON (PS3.18 Annex F) of that level's attributes (`archive.dicom.attributes`), in
    Unicode; `keys[Level]` the values of their columns, normalised. Offsets count from the start of the data set.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    levels: dict[Any, dict[str, Any]] = field(default_factory=dict)
    keys: dict[Any, dict[str, str | int | None]] = field(default_factory=dict)
    pixel_offset: int | None = None  # of the Pixel Data element (any of 7FE0,0008 0009 0010)
    charset_assumed: bool = False  # (0008,0005) absent although bytes are not ASCII
