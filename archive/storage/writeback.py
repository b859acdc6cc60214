"""Having the kernel write what was written, without waiting: a later flush finds little left to do.

Nothing is promised by it (sync_file_range(2) makes no name, length or disk cache durable): `os.fdatasync` still comes
before anybody is told. Where the kernel has no such call, nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_WRITE = 2  # SYNC_FILE_RANGE_WRITE, <linux/fs.h>


def _call() -> Callable[[int, int, int, int], int] | None:
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found


_sync_file_range = _call()


def begin(fd: int, offset: int, length: int) -> None:
    """Have these bytes of a file on their way to the disk. An error is the flush's to tell."""
    if _sync_file_range is not None and length > 0:
        _sync_file_range(fd, offset, length, _WRITE)
