"""Stretches of stored files: read, or looked at where nobody may wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archive import waiting
from archive.errors import StorageFailed
from archive.stretch import PIECE_BYTES, Stretch

CONTENT = os.urandom(2 * PIECE_BYTES + 777)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def opened(path: Path, start: int = 0, end: int = len(CONTENT)) -> Stretch:
    return Stretch(os.open(path, os.O_RDONLY), start, end)


@pytest.mark.parametrize(
    ("start", "end"), [(0, len(CONTENT)), (5, PIECE_BYTES + 5), (len(CONTENT) - 1, len(CONTENT)), (7, 7)]
)
def test_what_is_read_is_what_lies_there(file: Path, start: int, end: int) -> None:
    stretch = opened(file, start, end)
    assert len(stretch) == end - start
    stretch.fetch()
    assert b"".join(stretch.pieces()) == CONTENT[start:end]
    assert len(stretch) == 0


def test_a_file_that_ends_before_is_no_copy(file: Path) -> None:
    with pytest.raises(StorageFailed, match="not as long"):
        opened(file, len(CONTENT), len(CONTENT) + 1)
    with pytest.raises(StorageFailed, match="not as long"):
        b"".join(opened(file, 10, len(CONTENT) + 1).pieces())


def test_what_cannot_be_read_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="cannot be read: Is a directory"):
        opened(tmp_path)


def test_where_nobody_may_wait_it_is_not_waited_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it is opened nor when it is fetched: the system is asked for what lies in memory alone."""
    waited: list[int] = []
    preadv = os.preadv

    def asked(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if not flags & os.RWF_NOWAIT:
            waited.append(offset)
        elif offset >= PIECE_BYTES:
            raise BlockingIOError  # as of what does not lie in memory
        return preadv(fd, buffers, offset, flags)

    def never(fd: int, length: int, offset: int) -> bytes:
        waited.append(offset)
        return b""

    monkeypatch.setattr(os, "preadv", asked)
    monkeypatch.setattr(os, "pread", never)
    with waiting.forbidden():
        opened(file, 0, PIECE_BYTES).fetch()
        with pytest.raises(waiting.WouldWait):
            opened(file, PIECE_BYTES, PIECE_BYTES + 1)
        with pytest.raises(waiting.WouldWait):
            opened(file, 0, PIECE_BYTES + 1).fetch()
    assert waited == []
