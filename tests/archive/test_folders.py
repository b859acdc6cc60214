"""Flushes of folders that several threads share (law 1)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from archive.folders import FolderFlushes


class _Disk:
    """Tells when a flush began, and holds it until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.fails = 0
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def flush(self, path: str) -> None:
        self.begun.append(path)
        self.entered.release()
        assert self.go.acquire(timeout=10)
        if self.fails:
            self.fails -= 1
            raise OSError(5, "Input/output error")


def _waiting(flushes: FolderFlushes, path: str) -> bool:
    return path in flushes._coming


def test_who_comes_during_a_flush_shares_the_next() -> None:
    disk = _Disk()
    flushes = FolderFlushes(disk.flush)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(flushes.flush, "/a")
        assert disk.entered.acquire(timeout=10)
        later = [pool.submit(flushes.flush, "/a") for _ in range(5)]
        while not _waiting(flushes, "/a"):
            pass
        assert not any(one.done() for one in later)
        disk.go.release()
        first.result(10)
        assert disk.entered.acquire(timeout=10)
        disk.go.release(5)  # were there more flushes, they could run
        for one in later:
            one.result(10)
    assert 2 <= len(disk.begun) <= 3  # one of the five may have come when the second had begun


def test_nobody_is_told_by_a_flush_that_had_begun_before_he_came() -> None:
    disk = _Disk()
    flushes = FolderFlushes(disk.flush)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flushes.flush, "/a")
        assert disk.entered.acquire(timeout=10)
        second = pool.submit(flushes.flush, "/a")
        disk.go.release()
        first.result(10)
        assert disk.entered.acquire(timeout=10)  # a flush of its own
        assert not second.done()
        disk.go.release()
        second.result(10)


def test_a_flush_that_fails_fails_for_him_alone_who_did_it_and_the_others_try() -> None:
    disk = _Disk()
    disk.fails = 1
    flushes = FolderFlushes(disk.flush)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flushes.flush, "/a")
        assert disk.entered.acquire(timeout=10)
        second = pool.submit(flushes.flush, "/a")
        disk.go.release(2)
        with pytest.raises(OSError, match="Input/output"):
            first.result(10)
        second.result(10)
    assert disk.begun == ["/a", "/a"]


def test_each_folder_is_flushed_for_itself() -> None:
    done: list[str] = []
    flushes = FolderFlushes(done.append)
    for path in ("/a", "/b", "/a"):
        flushes.flush(path)
    assert done == ["/a", "/b", "/a"]
