"""Where nobody may wait: an answer that needs no more than memory is given in the event loop's thread (`api.at_once`).

What would have to wait there, for a disk, a database or a commit, raises WouldWait instead: then a worker thread does
the same again, with the same functions. Nothing is done before it is raised that could not be done twice.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WouldWait(Exception):
    """This thread may not wait, and something is not at hand."""


class _Here(threading.local):
    forbidden = False


_here = _Here()


@contextmanager
def forbidden() -> Iterator[None]:
    """Whatever this thread does within raises WouldWait rather than wait."""
    _here.forbidden = True
    try:
        yield
    finally:
        _here.forbidden = False


def is_forbidden() -> bool:
    """Whether this thread may not wait."""
    return _here.forbidden


def demand() -> None:
    """What follows may have to wait. Raises WouldWait where that is forbidden."""
    if _here.forbidden:
        raise WouldWait


def read(fd: int, length: int, offset: int) -> bytes:
    """The same as `read_into`, as bytes."""
    if not _here.forbidden:
        return os.pread(fd, length, offset)
    room = bytearray(length)
    read_into(fd, room, offset)
    return bytes(room)


def read_into(fd: int, buffer: bytearray | memoryview, offset: int) -> int:
    """Bytes of a file into a buffer: how many, fewer at its end, or if the system was interrupted.

    Raises:
        OSError: it cannot be read.
        WouldWait: not all of it lies in memory, and waiting is forbidden.
    """
    if not _here.forbidden:
        return os.preadv(fd, [buffer], offset)
    try:
        got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:  # not in memory, or a file system that cannot tell
        raise WouldWait from error
    if got < len(buffer):
        raise WouldWait
    return got
