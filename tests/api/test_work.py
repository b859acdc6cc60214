"""The desk's page of what waits for a person."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from api.work import KINDS, WAYS
from archive.core import Archive
from archive.work_items import How, Kind, list_items
from tests.archive.lifecycle.aging import receive
from tests.builders import ct_slice


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


def test_what_holds_images_back_offers_what_may_become_of_them(
    archive: Archive, log_in: Callable[[str], httpx.Client]
) -> None:
    for changes in ({}, {"PatientID": "IPP2", "SOPInstanceUID": "1.2.3"}):
        receive(archive, ct_slice(**changes))
    anne = log_in("anne")
    page = anne.get("/travail").text
    assert "accepter : visible dans cette étude" in page
    assert "remplacer par le dernier reçu" not in page
    with archive.reading() as conn:
        [item] = list_items(conn, kind="identity_conflict", state="open")
    answer = anne.post(f"/travail/{item['id']}", data={"comment": "reject", "raison": "mauvais patient"})
    assert answer.status_code == 303
    assert "contredit l’identité" not in anne.get("/travail").text


def test_every_way_is_said_in_french() -> None:
    assert set(WAYS) == set(How)


def test_a_secretary_sees_what_waits_and_settles_nothing(
    studies: None,
    log_in: Callable[[str], httpx.Client],
) -> None:
    sophie = log_in("sophie")
    page = sophie.get("/travail")
    assert page.status_code == 200
    assert '<button class="quiet" type="submit">Régler' not in page.text
    assert sophie.post("/travail/1", data={"comment": "done", "raison": "x"}).status_code == 403
