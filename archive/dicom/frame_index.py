"""Where the frames of files lie, remembered: a viewer asks for one after the other."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from archive import waiting
from archive.dicom import elements
from archive.dicom.frames import Frames, Image, Ranges, image_of, ranges
from archive.errors import Unsupported

MOST_FRAMES = 50_000  # remembered in a process, of all files together; a file counts as some more
_OF_A_FILE = 10
_AT_A_GLANCE = 1000  # frames of a file that are told apart where nobody may wait


class _Key(NamedTuple):
    """A file, as long as nobody writes to it."""

    path: str
    data_set_offset: int
    transfer_syntax_uid: str
    inode: int
    size: int
    changed: int


class _Places:
    """What was found in the files that were asked for last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[_Key, tuple[Image, list[Ranges]]] = OrderedDict()
        self._frames = 0

    def get(self, key: _Key) -> tuple[Image, list[Ranges]] | None:
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def keep(self, key: _Key, image: Image, places: list[Ranges]) -> None:
        with self._lock:
            if key in self._found or len(places) > MOST_FRAMES // 2:
                return
            self._found[key] = image, places
            self._frames += len(places) + _OF_A_FILE
            while self._frames > MOST_FRAMES:
                _, (_, oldest) = self._found.popitem(last=False)
                self._frames -= len(oldest) + _OF_A_FILE


_places = _Places()


@contextmanager
def opened(path: str, *, data_set_offset: int, transfer_syntax_uid: str) -> Iterator[Frames]:
    """The frames of a stored file, which is open meanwhile.

    Raises:
        Unsupported: it has no pixels, or frames that cannot be told apart.
        UnreadableInstance: the pixels cannot be followed.
        OSError: the file cannot be read.
        WouldWait: nobody may wait here, and its header or its frames are many and not remembered.
    """
    where = data_set_offset
    with elements.opened(path, data_set_offset=where, transfer_syntax_uid=transfer_syntax_uid) as (source, encoding):
        stat = os.fstat(source.fd)
        key = _Key(path, where, transfer_syntax_uid, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        found = None if source.deflated else _places.get(key)
        if found is None:
            image = image_of(source, encoding)
            if image is None:
                raise Unsupported("this instance has no pixels")
            if image.frames > _AT_A_GLANCE:
                waiting.demand()
            found = image, ranges(source, image, transfer_syntax_uid)
            if not source.deflated:
                _places.keep(key, *found)
        image, places = found
        yield Frames(source, image, transfer_syntax_uid, places=places)


def frame_ranges(path: str, *, data_set_offset: int, transfer_syntax_uid: str) -> list[Ranges]:
    """Where each frame lies in a stored file: a list with the pieces of each, offsets from the start of the file.

    Raises:
        Unsupported, UnreadableInstance, OSError: as `opened` and `Frames.ranges`.
    """
    with opened(path, data_set_offset=data_set_offset, transfer_syntax_uid=transfer_syntax_uid) as frames:
        return [frames.ranges(number) for number in range(1, len(frames) + 1)]
