"""`/api/v1/retention`: a tick now, approvals, the end of a suspension; purges and their certificates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import pytest

from archive.core import Archive
from archive.heartbeat import Heartbeat
from archive.lifecycle.suspension import Kind, suspend
from retention.serve import serve
from tests.api.conftest import on_both_databases
from tests.api.test_auth import rows
from tests.builders import new_uid
from tests.retention.life import move_clock, put_clock, receive_exam

UID = new_uid("study")


@pytest.fixture
def may(url: str, token: Callable[..., str]) -> Iterator[Callable[..., httpx.Client]]:
    """Makes clients of a role."""
    opened: list[httpx.Client] = []

    def client(role: str, name: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token(role, name=name or role)}"}
        opened.append(httpx.Client(base_url=url, headers=headers, timeout=120))
        return opened[-1]

    yield client
    for one in opened:
        one.close()


@contextmanager
def retention_process(archive: Archive) -> Iterator[None]:
    """What `minipacs serve --only retention` runs, in a thread."""
    stopping = threading.Event()
    with Heartbeat(archive, "retention"):
        thread = threading.Thread(target=serve, args=(archive, None, stopping))
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join(30)
            assert not thread.is_alive()


def the_exam_is_purged(archive: Archive, quality: httpx.Client) -> None:
    put_clock(archive, "2026-01-05T09:00:00")
    receive_exam(archive)
    put_clock(archive, "2031-01-05T09:00:00")
    with retention_process(archive):
        first = quality.post("/api/v1/retention/run")
        assert first.status_code == 200, first.text
        move_clock(archive, 30)
        counts = quality.post("/api/v1/retention/run").json()
    assert counts["purged"] == 1


@on_both_databases
def test_a_tick_that_is_asked_for_is_waited_for(archive: Archive, may: Callable[..., httpx.Client]) -> None:
    put_clock(archive, "2026-01-05T09:00:00")
    receive_exam(archive)
    quality = may("quality")
    with retention_process(archive):
        assert quality.post("/api/v1/retention/run").json()["blocked"] == 0  # after the one that it starts with
        put_clock(archive, "2031-01-05T09:00:00")
        answer = quality.post("/api/v1/retention/run")
        assert answer.status_code == 200
        counts = answer.json()
        assert (counts["announced"], counts["kept_lossless"], counts["purged"], counts["blocked"]) == (1, 2, 0, 0)
        move_clock(archive, 31)
        archive.commit.run(lambda conn: suspend(conn, Kind.REBUILT, "no journal", at=archive.clock()))
        counts = quality.post("/api/v1/retention/run").json()
    assert (counts["purged"], counts["blocked"], counts["reasons"]) == (0, 1, {"removal is suspended": 1})
    assert [row["event"] for row in rows(archive, user="quality")] == ["110100"] * 3


def test_without_a_retention_process_it_is_503_at_once(may: Callable[..., httpx.Client]) -> None:
    answer = may("quality").post("/api/v1/retention/run")
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


def test_approvals_count_persons(archive: Archive, may: Callable[..., httpx.Client]) -> None:
    first, second = may("radiologist", "anne"), may("quality", "paul")
    body = {"study": UID, "reason": "vu"}
    assert first.post("/api/v1/retention/approve", json=body).status_code == 404
    put_clock(archive, "2026-01-05T09:00:00")
    receive_exam(archive)
    assert first.post("/api/v1/retention/approve", json=body).status_code == 409
    put_clock(archive, "2031-01-05T09:00:00")
    with retention_process(archive):
        first.post("/api/v1/retention/run")
    assert first.post("/api/v1/retention/approve", json=body).json() == {"study": UID, "approvals": 1, "needed": 2}
    assert first.post("/api/v1/retention/approve", json=body).json()["approvals"] == 1
    assert second.post("/api/v1/retention/approve", json=body).json()["approvals"] == 2
    assert second.post("/api/v1/retention/approve", json={"study": UID, "reason": ""}).status_code == 400
    assert may("it_admin").post("/api/v1/retention/approve", json=body).status_code == 403


def test_resume_says_what_it_lifted(archive: Archive, may: Callable[..., httpx.Client]) -> None:
    at = datetime(2026, 1, 5, 9, tzinfo=UTC)
    archive.commit.run(lambda conn: suspend(conn, Kind.REBUILT, "no journal", at=at))
    answer = may("radiologist").post("/api/v1/retention/resume", json={"reason": "vérifié"})
    assert answer.json() == {"lifted": [{"kind": "rebuilt", "detail": "no journal", "since": "2026-01-05T09:00:00Z"}]}
    assert may("service").post("/api/v1/retention/resume", json={"reason": "vérifié"}).status_code == 403


@pytest.mark.req("REQ-SEC-20")
def test_a_purge_its_certificate_and_who_looked_at_them(archive: Archive, may: Callable[..., httpx.Client]) -> None:
    quality, auditor = may("quality"), may("auditor")
    assert auditor.get("/api/v1/retention/purges").json() == {"items": [], "next": None}
    the_exam_is_purged(archive, quality)
    listed = auditor.get("/api/v1/retention/purges", params={"study": UID}).json()
    (item,) = listed["items"]
    assert (item["study"], item["patient"], item["state"]) == (UID, "IPP1", "done")
    (told,) = quality.get("/api/v1/changes").json()["changes"][-1:]
    assert (told["kind"], told["study"]) == ("purged", UID)
    address = f"/api/v1/retention/purges/{item['id']}"
    whole = auditor.get(address).json()
    assert whole["certificate"] == auditor.get(f"{address}/certificate").json()
    assert whole["certificate"]["id"] == item["id"]
    assert len(whole["certificate"]["instances"]) == 2
    printed = auditor.get(f"{address}/certificate", params={"format": "pdf"})
    assert (printed.headers["content-type"], printed.content[:5]) == ("application/pdf", b"%PDF-")
    assert auditor.get(f"{address}/certificate", params={"format": "docx"}).status_code == 400
    assert auditor.get("/api/v1/retention/purges/none").status_code == 404
    assert may("secretary").get(address).status_code == 403
    archive.commit.run(lambda _conn: None)  # after what was queued before it
    seen = [row for row in rows(archive, user="auditor", study=UID) if row["patient"] == "IPP1"]
    assert len(seen) == 3


def test_purges_come_in_pages(archive: Archive, may: Callable[..., httpx.Client]) -> None:
    put_clock(archive, "2026-01-05T09:00:00")
    for number in range(3):
        receive_exam(archive, study=f"study {number}", images=1)
    put_clock(archive, "2031-01-05T09:00:00")
    quality = may("quality")
    with retention_process(archive):
        quality.post("/api/v1/retention/run")
        move_clock(archive, 30)
        assert quality.post("/api/v1/retention/run").json()["purged"] == 3
    page = quality.get("/api/v1/retention/purges", params={"limit": 2}).json()
    rest = quality.get("/api/v1/retention/purges", params={"limit": 2, "cursor": page["next"]}).json()
    assert [one["study"] for one in page["items"] + rest["items"]] == [
        new_uid(f"study {number}") for number in range(3)
    ]
    assert rest["next"] is None
    assert quality.get("/api/v1/retention/purges", params={"cursor": "x"}).status_code == 400
