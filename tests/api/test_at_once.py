"""Frames that are answered in the event loop: only what needs no waiting, and not otherwise than elsewhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, JPEGBaseline8Bit

from archive import accounts, waiting
from archive.access import Actor
from archive.audit.read import list_rows
from archive.core import Archive
from archive.ingest import ingest
from archive.retrieve import named, select
from archive.storage.part10 import Part10
from tests.builders import ct_slice, part10

WISHES = (
    "*/*",
    "application/octet-stream",
    'multipart/related; type="application/octet-stream"; transfer-syntax=*',
    "image/jpeg",
)


@pytest.fixture
def keep(archive: Archive, actor: Actor) -> Callable[..., None]:
    """Stores data sets."""

    def store(*objects: Dataset) -> None:
        for one in objects:
            file = Part10(archive.hot, at=archive.real_clock())
            file.feed(part10(one))
            ingest(archive, file.finish(), actor=actor)

    return store


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Of each image file that the process opened from now on: in which thread, and whether that might wait."""
    found: list[tuple[str, bool]] = []
    real = os.open

    def spied(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith(".dcm"):
            found.append((threading.current_thread().name, waiting.is_forbidden()))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", spied)
    return found


def address(ds: Dataset, frames: object = 1) -> str:
    study, series, instance = ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID
    return f"/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{frames}"


def said(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """An answer without what is another each time: the hour and the boundary."""
    boundary = answer.headers.get("content-type", "").rpartition("boundary=")[2].encode()
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "content-type")}
    return answer.status_code, headers, answer.content.replace(boundary, b"boundary") if boundary else answer.content


def closing(archive: Archive) -> list[dict[str, Any]]:
    """What the closing rows of all accesses tell."""
    archive.accesses.close()
    with archive.engine.connect() as conn:
        rows = list_rows(conn, event="110104", action="R").items
    return [row["detail"] for row in rows if row["detail"].get("phase") == "close"]  # type: ignore[misc,index,attr-defined]


def test_who_has_a_study_open_is_answered_without_another_thread(
    client: httpx.Client, keep: Callable[..., None], archive: Archive, opened_files: list[tuple[str, bool]]
) -> None:
    slices = [ct_slice(number=number) for number in (1, 2, 3)]
    keep(*slices)
    opened_files.clear()
    answers = [client.get(address(ds)) for ds in slices]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [forbidden for _, forbidden in opened_files] == [False, True, True]
    assert opened_files[0][0] != opened_files[1][0] == opened_files[2][0]
    (told,) = closing(archive)
    assert (told["instances"], told["bytes"]) == (3, 3 * len(slices[0].PixelData))


@pytest.mark.parametrize("wish", WISHES)
def test_it_is_the_same_answer(
    client: httpx.Client, keep: Callable[..., None], monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    """Native, big endian, compressed, of many frames, large, missing: as it is when nothing is tried."""
    native = ct_slice(number=1)
    large = ct_slice(number=2, rows=1000, columns=1000, NumberOfFrames=2)
    large.PixelData = os.urandom(4_000_000)
    turned = ct_slice(number=3, transfer_syntax=ExplicitVRBigEndian)
    fragments = ct_slice(number=4, transfer_syntax=JPEGBaseline8Bit, NumberOfFrames=2)
    fragments.PixelData = encapsulate([b"\xff\xd8" + b"1" * 3000, b"\xff\xd8" + b"2" * 70_001])
    fragments["PixelData"].VR = "OB"
    fragments["PixelData"].is_undefined_length = True
    keep(native, large, turned, fragments)
    addresses = [address(ds, n) for ds in (native, large, turned, fragments) for n in (1, 2, "1,2", 0, "x")]
    known = client.get(address(native), headers={"Accept": "application/octet-stream"}).headers["etag"]
    for headers in ({"Accept": wish}, {"Accept": wish, "If-None-Match": known}, {"Accept": wish, "Range": "bytes=2-5"}):
        with monkeypatch.context() as nothing_tried:
            nothing_tried.setattr("api.at_once.AtOnce._tried", lambda self, scope: None)
            elsewhere = [said(client.get(path, headers=headers)) for path in addresses]
        for _ in range(2):  # where frames lie is found out, then remembered
            assert [said(client.get(path, headers=headers)) for path in addresses] == elsewhere


def test_what_the_system_does_not_hold_in_memory_is_read_elsewhere_and_counted_once(
    client: httpx.Client, keep: Callable[..., None], archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = ct_slice(number=1)
    keep(ds)
    real, tried = os.preadv, []

    def on_disk(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            tried.append(offset)
            raise BlockingIOError
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", on_disk)
    answers = [client.get(address(ds), headers={"Accept": "application/octet-stream"}) for _ in range(3)]
    assert [answer.content for answer in answers] == [ds.PixelData] * 3
    assert len(tried) == 2
    (told,) = closing(archive)
    assert (told["instances"], told["bytes"]) == (3, 3 * len(ds.PixelData))


def test_what_was_revoked_or_removed_is_refused_at_once_and_told_once(
    url: str, keep: Callable[..., None], archive: Archive, actor: Actor
) -> None:
    ds = ct_slice(number=1)
    keep(ds, ct_slice(number=2))
    made = accounts.create_token(archive, "robot", ["service"], actor=actor)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {made.secret}"}, timeout=30) as client:
        assert [client.get(address(ds)).status_code for _ in range(3)] == [200] * 3
        (one,) = select(archive, instance_uids=[ds.SOPInstanceUID])
        Path(one.path).rename(f"{one.path}.away")
        assert client.get(address(ds)).status_code == 503
        Path(f"{one.path}.away").rename(one.path)
        assert client.get(address(ds)).status_code == 200
        accounts.revoke_token(archive, made.id, actor=actor)
        assert client.get(address(ds)).status_code == 401
    with archive.engine.connect() as conn:
        assert len(list_rows(conn, event="110114").items) == 1


def test_nobody_waits_where_it_is_forbidden(archive: Archive, keep: Callable[..., None]) -> None:
    """The other tier, another statement than by keys, a commit: each says so, and nothing of it was done."""
    ds = ct_slice(number=1)
    keep(ds)
    uids = ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID
    (one,) = named(archive, *uids)
    with waiting.forbidden():
        if archive.reads_at_once:
            assert named(archive, *uids) == [one]
            assert one.stands()
        for attempt in (
            lambda: named(archive, *uids[:2]),
            lambda: select(archive, study_uids=uids[:1]),
            replace(one, tier="cold").stands,
        ):
            with pytest.raises(waiting.WouldWait):
                attempt()
    assert not waiting.is_forbidden()
