"""The desk, in a real browser and without one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from api.french import date, moment, person, size, time
from api.studies import name_pattern
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from tests.api.conftest import PASSWORD, serving
from tests.builders import new_uid

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOTS = os.environ.get("MINIPACS_TEST_SHOTS")  # a folder: screenshots are kept there to be looked at


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture
def page(chromium: object) -> Iterator[Page]:
    """A page of a browser that speaks French; what it complains of fails the test."""
    context = chromium.new_context(locale="fr-FR", viewport={"width": 1280, "height": 900})  # type: ignore[attr-defined]
    made: Page = context.new_page()
    complaints: list[str] = []
    made.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    made.on("pageerror", lambda error: complaints.append(str(error)))
    yield made
    context.close()
    assert [one for one in complaints if "401" not in one] == []


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def widths(page: Page, selector: str) -> list[int]:
    """The natural widths of images once they are loaded. (Nothing that the page's policy forbids is evaluated.)"""
    for _ in range(100):
        found = page.eval_on_selector_all(selector, "all => all.map(one => one.complete ? one.naturalWidth : -1)")
        if -1 not in found:
            break
        page.wait_for_timeout(50)
    return list(found)


def enter(page: Page, url: str, name: str, password: str = PASSWORD) -> None:
    page.goto(url)
    page.get_by_label("Identifiant").fill(name)
    page.get_by_label("Mot de passe").fill(password)
    page.get_by_role("button", name="Se connecter").click()
    page.wait_for_load_state()


def test_a_radiologist_logs_in_searches_opens_a_study_and_sees_an_image(
    url: str, page: Page, anne: None, studies: None
) -> None:
    enter(page, url, "anne", "not the password")
    assert page.get_by_role("alert").inner_text() == "Identifiant ou mot de passe incorrect."
    enter(page, url, "anne")
    assert page.get_by_role("heading", name="Études").is_visible()
    assert page.locator("tbody tr").count() == 3
    shoot(page, "studies")
    page.get_by_label("Nom du patient").fill("dupont")
    page.get_by_role("button", name="Rechercher").click()
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("link", name="DUPONT Anne").click()
    assert page.get_by_role("heading", name="DUPONT Anne").is_visible()
    assert page.locator(".previews img").count() == 6
    assert widths(page, ".previews img") == [64] * 6
    shoot(page, "study")
    page.get_by_role("link", name="Voir les 12 images").click()
    assert page.locator(".previews img").count() == 12
    shoot(page, "series")
    page.locator(".previews a").nth(1).click()
    assert widths(page, "figure img") == [64]
    assert "image 2 sur 12" in page.locator("figcaption").inner_text()
    shoot(page, "image")
    page.get_by_role("link", name="Suivante").click()
    assert "image 3 sur 12" in page.locator("figcaption").inner_text()
    page.get_by_role("button", name="Se déconnecter").click()
    assert page.url.endswith("/connexion")
    page.goto(f"{url}/etudes/{new_uid('st0')}")
    assert "/connexion" in page.url


def test_the_page_one_was_going_to_follows_the_log_in(url: str, page: Page, anne: None, studies: None) -> None:
    enter(page, f"{url}/etudes/{new_uid('st1')}", "anne")
    assert page.get_by_role("heading", name="LEFÈVRE Anaïs").is_visible()


def test_a_narrow_screen_scrolls_one_way_only(url: str, page: Page, anne: None, studies: None) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    enter(page, url, "anne")
    for address in ("/", f"/etudes/{new_uid('st0')}", f"/etudes/{new_uid('st0')}/images/{new_uid('i0.3')}"):
        page.goto(url + address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
        shoot(page, f"narrow-{address.count('/')}")


def test_without_a_study_the_page_says_how_to_send_one(url: str, page: Page, anne: None) -> None:
    enter(page, url, "anne")
    text = page.locator("main").inner_text()
    assert "Aucune étude n’est encore archivée" in text
    assert "storescu -aec MINIPACS +sd +r 127.0.0.1 11112 DOSSIER" in text
    shoot(page, "empty")


# -- without ------------------------------------------------------------------------------------------------------


def test_who_administers_is_told_that_images_are_not_for_him(
    archive: Archive, log_in: Callable[[str], httpx.Client], studies: None
) -> None:
    client = log_in("igor")
    text = client.get("/").text
    assert "Pas d’accès aux examens" in text
    assert "C’est voulu" in text
    assert "DUPONT" not in text
    refused = client.get(f"/etudes/{new_uid('st0')}")
    assert refused.status_code == 403
    assert "Accès refusé" in refused.text
    with archive.engine.connect() as conn:
        rows = list_rows(conn, user="igor", event="110112").items
    assert [(row["outcome"], row["door"], row["study"]) for row in rows] == [(8, "desk", new_uid("st0"))]


def test_a_secretary_sees_the_list_and_no_image(log_in: Callable[[str], httpx.Client], studies: None) -> None:
    client = log_in("sophie")
    assert "DUPONT Anne" in client.get("/").text
    text = client.get(f"/etudes/{new_uid('st0')}").text
    assert "Votre rôle ne permet pas d’afficher les images" in text
    assert "<img loading" not in text
    assert client.get(f"/etudes/{new_uid('st0')}/series/{new_uid('se0')}").status_code == 403
    assert client.get(f"/etudes/{new_uid('st0')}/images/{new_uid('i0.1')}").status_code == 403


def test_who_has_no_access_is_told_so(log_in: Callable[[str], httpx.Client]) -> None:
    assert "compléter vos rôles" in log_in("luc").get("/").text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("nom=lefevre", ["LEFÈVRE"]),
        ("nom=LEF%C3%88VRE+ana%C3%AFs", ["LEFÈVRE"]),
        ("id=IPP0", ["DUPONT"]),
        ("modalite=US", ["MARTIN"]),
        ("du=2026-01-06&au=2026-01-06", ["LEFÈVRE"]),
        ("demande=A1001", ["MARTIN", "LEFÈVRE", "DUPONT"]),
        ("nom=zzz", []),
        ("page=2", []),
    ],
)
def test_the_list_is_searched(
    log_in: Callable[[str], httpx.Client], studies: None, query: str, names: list[str]
) -> None:
    text = log_in("anne").get(f"/?{query}").text
    body = text.partition("<tbody>")[2]
    assert [name for name in ("MARTIN", "LEFÈVRE", "DUPONT") if name in body] == names
    assert ("Aucune étude ne correspond" in text) == (query == "nom=zzz")


def test_a_date_that_is_none_is_said(log_in: Callable[[str], httpx.Client], studies: None) -> None:
    answer = log_in("anne").get("/?du=demain")
    assert answer.status_code == 400
    assert "vérifiez les dates" in answer.text


def test_what_a_name_holds_is_text(log_in: Callable[[str], httpx.Client], studies: None) -> None:
    client = log_in("anne")
    for path in ("/", f"/etudes/{new_uid('st2')}"):
        text = client.get(path).text
        assert "<b>MARTIN" not in text
        assert "&lt;b&gt;MARTIN" in text
    assert 'value="&#34;&gt;&lt;script&gt;"' in client.get("/?nom=%22%3E%3Cscript%3E").text


def test_unknown_pages_are_pages(log_in: Callable[[str], httpx.Client], studies: None) -> None:
    client = log_in("anne")
    series = f"/etudes/{new_uid('st0')}/series/{new_uid('se0')}"
    for path in (
        "/nulle-part", "/etudes/1.2.3", f"{series}?page=2", f"{series}9", f"/etudes/{new_uid('st0')}/images/1.2",
        f"/etudes/{new_uid('st0')}/images/{new_uid('i0.1')}?coupe=2",
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "Page introuvable" in answer.text
    assert client.post("/").status_code == 405


def test_the_page_after_the_log_in_is_one_of_ours(stranger: httpx.Client, anne: None) -> None:
    for suite in ("https://evil.example/", "//evil.example", "/\\evil.example", "/etudes/1.2?x=https://evil.example"):
        answer = stranger.post("/connexion", data={"name": "anne", "password": PASSWORD, "suite": suite})
        assert answer.headers["location"] == "/", suite


def test_many_guesses_are_told_to_wait(stranger: httpx.Client, anne: None) -> None:
    for _ in range(7):
        answer = stranger.post("/connexion", data={"name": "anne", "password": "wrong horse battery"})
    assert answer.status_code == 401
    assert "Trop d’essais infructueux : attendez" in answer.text


def test_the_pages_hold_no_script_and_no_style_of_their_own(
    log_in: Callable[[str], httpx.Client], studies: None
) -> None:
    client = log_in("anne")
    for path in ("/", "/connexion", f"/etudes/{new_uid('st0')}", f"/etudes/{new_uid('st0')}/images/{new_uid('i0.1')}"):
        text = client.get(path).text
        assert '<html lang="fr">' in text
        for never in ("<script", "style=", "onclick", "http://", "https://"):
            assert never not in text, (path, never)


def test_the_test_mode_is_written_on_every_page(settings: Settings) -> None:
    with (
        open_archive(settings.model_copy(update={"test_mode": True}), process="test") as archive,
        serving(archive) as url,
    ):
        text = httpx.get(f"{url}/connexion").text
    assert "Mode test." in text
    assert "Ne pas utiliser pour des soins" in text


# -- words --------------------------------------------------------------------------------------------------------


def test_names_dates_and_sizes_are_written_in_french(archive: Archive) -> None:
    assert person("DUPONT^Anne^Marie=山田") == "DUPONT Anne Marie"
    assert person("") == "Sans nom"
    assert (date("20260105"), date(""), date("2026")) == ("05/01/2026", "—", "2026")
    assert (time("101500.000000"), time(""), time("9")) == ("10:15", "", "")
    assert (size(999), size(1500), size(2_340_000_000)) == ("999 octets", "1,5 ko", "2,3 Go")
    assert len(moment(archive.clock())) == len("05/01/2026 à 10:15")


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [
        ("dupont", "dupont*"),
        ("  Dupont  Anne ", "Dupont*Anne*"),
        ("LE GALL", "LE*GALL*"),
        ("dupont, anne", "dupont*anne*"),
        ("DUP*^A*", "DUP*^A*"),
        ("", ""),
        ("   ", ""),
        ("a\\b", "a*b*"),
    ],
)
def test_what_somebody_types_becomes_a_key(typed: str, pattern: str) -> None:
    assert name_pattern(typed) == pattern
