"""The sign that a tier's volume is there: a file that is made with the tier, and that an empty mount point lacks.

A volume that is not mounted looks like an empty folder. Nothing is to be built in it, and nothing that should be there
is to be called lost (law 7).
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import orjson

from archive.errors import StorageFailed
from archive.folders import flush_directory

NAME = ".minipacs-tier"


def is_there(root: Path) -> bool:
    """The folder is the tier, not the place where it is mounted."""
    return os.path.exists(root / NAME)


def need(root: Path) -> None:
    """Raises StorageFailed when the tier is not there."""
    if not is_there(root):
        raise StorageFailed(f"{root / NAME} is not there: is the volume mounted?")


def settle(root: Path, *, name: str, used: bool) -> None:
    """Make the folder and its marker; `used`: the index names files in it.

    Raises:
        StorageFailed: files are expected and the folder holds none: its volume is away. Or it cannot be made.
    """
    try:
        if is_there(root):
            return
        if used and not has_files(root):
            raise StorageFailed(
                f"the index names files of the {name} tier, and {root} holds none of them: is the volume mounted?"
            )
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            _make(root / NAME, name)
        flush_directory(str(root))
        flush_directory(str(root.parent))
    except OSError as error:
        raise StorageFailed(f"the folder of the {name} tier cannot be made: {error.strerror}") from error


def has_files(root: Path) -> bool:
    """There is a folder of a year in it: files that were given their place."""
    try:
        return any(entry.name.isdigit() and entry.is_dir() for entry in os.scandir(root))
    except FileNotFoundError:
        return False


def _make(path: Path, tier: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, orjson.dumps({"tier": tier, "id": str(uuid.uuid4())}, option=orjson.OPT_APPEND_NEWLINE))
        os.fsync(fd)
    finally:
        os.close(fd)
