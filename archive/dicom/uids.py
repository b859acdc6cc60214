"""UIDs that the archive gives to what it makes, and the classes of what it makes anew besides images."""

from __future__ import annotations

from typing import Final
from uuid import uuid4

KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
WITH_COMPANIONS: Final = frozenset(  # Key Object Selection; Grayscale and Color Softcopy Presentation State
    {KEY_OBJECTS, "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.11.2"}
)


def new_uid() -> str:
    """A UID of no registered root: a random UUID (PS3.5 B.2)."""
    return f"2.25.{uuid4().int}"
