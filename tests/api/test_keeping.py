"""The desk's pages on keeping, without a browser and in one."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from archive.access import Actor
from archive.core import Archive
from archive.lifecycle.holds import add_hold
from archive.lifecycle.suspension import Kind, suspend
from tests.builders import new_uid

STUDY = new_uid("st0")


def test_a_study_says_until_when_it_is_kept_and_why(studies: None, log_in: Callable[[str], httpx.Client]) -> None:
    page = log_in("anne").get(f"/etudes/{STUDY}").text
    assert "Conservée au moins jusqu’au <strong>05/01/2031</strong>" in page
    assert "cabinet libéral : 5 ans" in page


def test_a_day_ahead_shows_what_leaves_and_for_whom(studies: None, log_in: Callable[[str], httpx.Client]) -> None:
    anne = log_in("anne")
    page = anne.get("/conservation?le=2031-02-01")
    assert page.status_code == 200
    assert "DUPONT Anne" in page.text
    assert "destruction annoncée" in page.text
    assert "passe en archive froide" in page.text
    assert "&lt;b&gt;MARTIN" in page.text
    assert anne.get("/conservation?le=2031-02-31").status_code == 400


def test_a_hold_is_placed_shown_and_lifted_by_form(
    archive: Archive, studies: None, log_in: Callable[[str], httpx.Client]
) -> None:
    anne = log_in("anne")
    answer = anne.post(f"/etudes/{STUDY}/conservation", data={"raison": "expertise", "jusque": "2040-01-31"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/etudes/{STUDY}#conservation")
    assert "Mise sous conservation jusqu’au 31/01/2040 : expertise" in anne.get(f"/etudes/{STUDY}").text
    listed = anne.get("/conservation").text
    assert "expertise" in listed
    form = anne.get(f"/etudes/{STUDY}").text
    action = form.split('action="/conservation/mises/')[1].split('"')[0]
    assert anne.post(f"/conservation/mises/{action}").status_code == 303
    assert "31/01/2040" not in anne.get(f"/etudes/{STUDY}").text


def test_a_suspension_is_said_and_lifted_with_a_reason(
    archive: Archive, studies: None, log_in: Callable[[str], httpx.Client]
) -> None:
    archive.commit.run(lambda conn: suspend(conn, Kind.CLOCK, "a jump", at=archive.clock()))
    anne = log_in("anne")
    assert "Toute destruction est suspendue" in anne.get("/conservation").text
    assert anne.post("/conservation/reprise", data={"raison": "horloge contrôlée"}).status_code == 303
    assert "suspendue" not in anne.get("/conservation").text


def test_those_who_may_not_see_it_are_refused(
    archive: Archive, actor: Actor, studies: None, log_in: Callable[[str], httpx.Client]
) -> None:
    add_hold(archive, STUDY, reason="litige", until=None, actor=actor)
    sophie = log_in("sophie")  # secretary
    assert sophie.get("/conservation").status_code == 403
    assert 'href="/conservation"' not in sophie.get("/").text
    page = sophie.get(f"/etudes/{STUDY}").text
    assert "Mise sous conservation : litige" in page
    assert "Lever<" not in page
    assert sophie.post(f"/etudes/{STUDY}/conservation", data={"raison": "x"}).status_code == 403
