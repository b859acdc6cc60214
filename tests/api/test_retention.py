"""/api/v1/holds, /api/v1/retention/preview, and what a study says of its own end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from archive.core import Archive
from archive.lifecycle.compute import compute_due
from archive.schema import audit
from tests.api.conftest import on_both_databases
from tests.archive.lifecycle.studies import at, send, uid_of


@pytest.fixture
def ct(archive: Archive) -> str:
    """A study of 1 March 2021; it is 2 March."""
    at(archive, "2021-03-02")
    send(archive, "ct", "20210301")
    return uid_of("ct")


@pytest.fixture
def quality(url: str, token: Callable[..., str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token('quality', name='quality')}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as made:
        yield made


def get(client: httpx.Client, path: str, **parameters: Any) -> Any:
    answer = client.get(f"/api/v1/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


@on_both_databases
@pytest.mark.req("REQ-CDC-04")
def test_a_study_says_until_when_it_is_kept_and_why(client: httpx.Client, ct: str) -> None:
    said = get(client, f"studies/{ct}")
    assert said["keep_until"] == {
        "date": "2026-03-01",
        "reasons": [
            {
                "rule": "liberal_5_years", "since": "2021-03-01", "basis": "exam", "until": "2026-03-01",
                "source": "Annexe 5 §3.1",
                "text": "cabinet libéral : 5 ans (examen du 01/03/2021), jusqu’au 28/02/2026 inclus",
            }
        ],
    }  # fmt: skip
    assert said["holds"] == []


@on_both_databases
def test_a_hold_is_placed_shown_and_ended(client: httpx.Client, quality: httpx.Client, ct: str) -> None:
    answer = quality.post("/api/v1/holds", json={"study": ct, "reason": "expertise judiciaire"})
    assert answer.status_code == 201, answer.text
    placed = answer.json()
    assert (placed["study"], placed["reason"], placed["until"]) == (ct, "expertise judiciaire", None)
    assert placed["placed_by"] == "quality"
    said = get(client, f"studies/{ct}")
    assert said["holds"] == [placed]
    assert said["keep_until"]["date"] is None
    assert said["keep_until"]["reasons"][0]["rule"] == "hold"
    assert get(client, "holds") == get(client, "holds", study=ct) == {"items": [placed], "next": None}
    assert get(client, "holds", study="1.2.3") == {"items": [], "next": None}

    ended = quality.delete(f"/api/v1/holds/{placed['id']}")
    assert (ended.status_code, ended.content) == (204, b"")
    assert quality.delete(f"/api/v1/holds/{placed['id']}").status_code == 404
    said = get(client, f"studies/{ct}")
    assert (said["holds"], said["keep_until"]["date"]) == ([], "2026-03-01")
    (one,) = get(client, "holds", all=True)["items"]
    assert (one["id"], one["removed_by"]) == (placed["id"], "quality")


def test_holds_come_in_pages(client: httpx.Client, quality: httpx.Client, ct: str) -> None:
    ids = [
        quality.post("/api/v1/holds", json={"study": ct, "reason": str(n), "until": f"2030-01-0{n}"}).json()["id"]
        for n in range(1, 4)
    ]
    first = get(client, "holds", limit=2)
    second = get(client, "holds", limit=2, cursor=first["next"])
    assert [one["id"] for one in first["items"] + second["items"]] == ids
    assert [one["until"] for one in second["items"]] == ["2030-01-03"]
    assert second["next"] is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"study": "1.2.3", "reason": "x"}, 404),
        ({"reason": "x"}, 400),
        ({"study": "", "reason": "x"}, 400),
        ({"study": "ct", "reason": " "}, 400),
        ({"study": "ct", "reason": "x" * 501}, 400),
        ({"study": "ct", "reason": "x", "until": "2021-03-01"}, 400),
        ({"study": "ct", "reason": "x", "until": "tomorrow"}, 400),
        ({"study": "ct", "reason": "x", "for": "ever"}, 400),
    ],
)
def test_a_wrong_hold_is_refused(quality: httpx.Client, ct: str, body: dict[str, str], status: int) -> None:
    if body.get("study") == "ct":
        body = {**body, "study": ct}
    assert quality.post("/api/v1/holds", json=body).status_code == status
    assert get(quality, "holds", all=True)["items"] == []


@pytest.mark.req("REQ-SEC-23")
def test_reading_is_not_placing(client: httpx.Client, archive: Archive, ct: str) -> None:
    assert client.post("/api/v1/holds", json={"study": ct, "reason": "x"}).status_code == 403
    assert client.delete("/api/v1/holds/x").status_code == 403
    with archive.reading() as conn:
        refusals = conn.execute(select(audit.c.user).where(audit.c.outcome == 8)).scalars().all()
    assert refusals == ["robot", "robot"]


@on_both_databases
def test_the_preview_says_what_leaves_when(client: httpx.Client, quality: httpx.Client, ct: str) -> None:
    assert get(client, "retention/preview") == {"on": "2021-03-02", "items": [], "next": None}
    items = get(client, "retention/preview", on="2026-04-01")["items"]
    assert [(item["study"], item["action"], item["date"]) for item in items] == [
        (ct, "migrate", "2024-03-01"),
        (ct, "announce", "2026-03-01"),
        (ct, "purge", "2026-03-31"),
    ]
    assert items[1]["reasons"][0]["source"] == "Annexe 5 §3.1"
    quality.post("/api/v1/holds", json={"study": ct, "reason": "x"})
    items = get(client, "retention/preview", on="2026-04-01")["items"]
    assert [(item["action"], item["reasons"][0]["rule"]) for item in items] == [
        ("blocked", "hold"),
        ("blocked", "hold"),
    ]


def test_a_preview_of_many_studies_comes_in_pages(client: httpx.Client, archive: Archive, ct: str) -> None:
    for number in range(4):
        send(archive, f"s{number}", "20210301")
    compute_due(archive)
    seen, cursor = [], None
    while True:
        page = get(client, "retention/preview", on="2026-04-01", limit=2, **({"cursor": cursor} if cursor else {}))
        seen.append([item["study"] for item in page["items"]])
        cursor = page["next"]
        if cursor is None:
            break
    assert [len(set(page)) for page in seen] == [2, 2, 1]
    assert {uid for page in seen for uid in page} == {ct, *(uid_of(f"s{n}") for n in range(4))}


@pytest.mark.parametrize("query", ["on=soon", "limit=0", "limit=1001", "cursor=x", "on=2026-02-30"])
def test_a_wrong_parameter_of_a_preview_is_400(client: httpx.Client, query: str) -> None:
    assert client.get(f"/api/v1/retention/preview?{query}").status_code == 400


def test_a_preview_leaves_its_question_in_the_audit(client: httpx.Client, archive: Archive) -> None:
    get(client, "retention/preview", on=date(2026, 4, 1).isoformat())
    archive.commit.run(lambda conn: None)  # whatever was queued is committed with it
    with archive.reading() as conn:
        details = conn.execute(select(audit.c.detail).where(audit.c.event == "110112")).scalars().all()
    assert details == ['{"query":{"retention_preview":"2026-04-01"}}']
