"""A file being received: its bytes are on their way to the disk before they are flushed."""

from __future__ import annotations

import pytest

from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.storage import incoming, writeback

META = FileMeta("1.2.840.10008.5.1.4.1.1.2", "2.25.1", "1.2.840.10008.1.2.1", "CT1")


def test_a_large_object_is_written_out_while_it_arrives(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(writeback, "begin", lambda fd, offset, length: begun.append((offset, length)))
    file = archive.hot.receive(META, at=archive.clock())
    for _ in range(22):
        file.write(bytes(100_000))
    assert len(begun) == 2, "every eleventh piece passes AHEAD_BYTES"
    assert incoming.AHEAD_BYTES == 1 << 20
    ends = [offset + length for offset, length in begun]
    assert [offset for offset, _ in begun] == [0, *ends[:-1]], "each byte once, in order"
    assert ends[-1] == file.file_bytes
    file.discard()


def test_a_kernel_that_cannot_begin_early_still_flushes(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", None)
    file = archive.hot.receive(META, at=archive.clock())
    file.write(bytes(1 << 20))
    file.settle()
    file.close()
    assert archive.hot.length(file.final) == file.file_bytes


def test_beginning_on_a_file_that_is_closed_is_the_flushs_to_tell() -> None:
    writeback.begin(-1, 0, 4096)
