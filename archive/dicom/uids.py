"""UIDs that the archive gives to what it makes."""

from __future__ import annotations

from uuid import uuid4


def new_uid() -> str:
    """A UID of no registered root: a random UUID (PS3.5 B.2)."""
    return f"2.25.{uuid4().int}"
