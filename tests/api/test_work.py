"""The desk's page of what waits for a person."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from api.work import KINDS
from archive.core import Archive
from archive.work_items import Kind, list_items


def test_every_kind_is_said_in_french() -> None:
    assert set(KINDS) == set(Kind)


def test_what_waits_is_shown_and_settled_with_a_reason(
    archive: Archive,
    studies: None,
    log_in: Callable[[str], httpx.Client],
) -> None:
    anne = log_in("anne")
    page = anne.get("/travail").text
    assert page.count("le RIS n’a pas encore envoyé") == 3
    assert "DUPONT Anne" in page
    with archive.reading() as conn:
        first = list_items(conn, state="open")[0]["id"]
    answer = anne.post(f"/travail/{first}", data={"comment": "accepted", "raison": "patient de passage"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/travail")
    assert anne.get("/travail").text.count("le RIS n’a pas encore envoyé") == 2
    with archive.reading() as conn:
        assert [one["id"] for one in list_items(conn, state="closed")] == [first]


def test_a_secretary_sees_what_waits_and_settles_nothing(
    studies: None,
    log_in: Callable[[str], httpx.Client],
) -> None:
    sophie = log_in("sophie")
    page = sophie.get("/travail")
    assert page.status_code == 200
    assert '<button class="quiet" type="submit">Régler' not in page.text
    assert sophie.post("/travail/1", data={"comment": "done", "raison": "x"}).status_code == 403
