"""Making the names in folders durable (fsync(2) of a directory): one flush for all the threads that want it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def flush_directory(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Turn:
    """A flush of one folder that has not begun. Who comes later waits for the next."""

    __slots__ = ("done", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()  # the first who wanted it does it
        self.done = False


class FolderFlushes:
    """The flushes of a process, one at a time; those who want the same folder meanwhile share the next."""

    def __init__(self, flush: Callable[[str], None] = flush_directory) -> None:
        self._flush = flush
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._coming: dict[str, _Turn] = {}

    def flush(self, path: str) -> None:
        """Have every name durable that the folder has now. Raises OSError: others may still try."""
        with self._lock:
            turn = self._coming.setdefault(path, _Turn())
        with turn.lock:
            if turn.done:
                return
            with self._flushing:
                with self._lock:
                    if self._coming.get(path) is turn:
                        del self._coming[path]  # names that are made from here on may be too late for it
                self._flush(path)
            turn.done = True
