"""`/api/v1/peers` and `/api/v1/jobs`, and the form of the desk: sending is asked for, seen, hastened and given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from archive import jobs
from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from tests.api.conftest import fill
from tests.builders import new_uid

STUDY = new_uid("st0")


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """With a peer that can be called, and one that only calls. No DICOM process runs: jobs stay."""
    values = settings.model_dump()
    values["dicom"] |= {"peers": {"VIEWER": {"host": "127.0.0.1", "port": 104}, "CT1": {}}}
    with open_archive(Settings.model_validate(values), process="test") as opened:
        yield opened


@pytest.fixture
def client(url: str, token: Callable[..., str]) -> Iterator[Callable[..., httpx.Client]]:
    made: list[httpx.Client] = []

    def make(*roles: str) -> httpx.Client:
        secret = token(*roles, name=f"robot{len(made)}")
        made.append(httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=30))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_study_is_asked_for_and_its_job_seen(
    archive: Archive, actor: Actor, client: Callable[..., httpx.Client]
) -> None:
    fill(archive, actor)
    technologist, admin, service = client("technologist"), client("it_admin"), client("service")
    answer = technologist.post("/api/v1/peers/VIEWER/send", json={"study": STUDY})
    assert answer.status_code == 202
    asked = answer.json()
    assert asked["instances"] == 12
    for somebody in (technologist, admin, service):
        (one,) = somebody.get("/api/v1/jobs?kind=dicom.send&state=due").json()["items"]
        assert one["id"] == asked["job"]
        assert (one["peer"], one["study"], one["waiting"], one["sent"], one["failed"]) == ("VIEWER", STUDY, 12, 0, 0)
    assert admin.get(f"/api/v1/jobs/{asked['job']}").json()["failures"] == []
    assert technologist.post(f"/api/v1/jobs/{asked['job']}/cancel").status_code == 403
    assert admin.post(f"/api/v1/jobs/{asked['job']}/cancel").json()["state"] == "dead"
    assert admin.post(f"/api/v1/jobs/{asked['job']}/cancel").status_code == 409
    (dead,) = admin.get("/api/v1/jobs?state=dead").json()["items"]
    assert dead["error"].startswith("cancelled by")
    assert admin.post(f"/api/v1/jobs/{asked['job']}/retry").json()["state"] == "due"
    assert admin.get("/api/v1/jobs/999").status_code == 404
    assert admin.post("/api/v1/jobs/999/retry").status_code == 404


def test_whoever_administers_sees_peers_and_sends_no_images(
    archive: Archive, actor: Actor, client: Callable[..., httpx.Client]
) -> None:
    fill(archive, actor)
    admin, radiologist, person = client("it_admin"), client("radiologist"), client("identity_officer")
    items: list[dict[str, Any]] = admin.get("/api/v1/peers").json()["items"]
    assert [(one["name"], one["ae_title"], one["port"]) for one in items] == [
        ("VIEWER", "VIEWER", 104),
        ("CT1", "CT1", None),
    ]
    assert admin.post("/api/v1/peers/VIEWER/send", json={"study": STUDY}).status_code == 403
    assert radiologist.post("/api/v1/peers/VIEWER/echo").status_code == 403
    assert person.get("/api/v1/peers").status_code == 403
    assert person.get("/api/v1/jobs").status_code == 403
    assert radiologist.post("/api/v1/peers/CT1/send", json={"study": STUDY}).status_code == 404  # no address
    assert radiologist.post("/api/v1/peers/VIEWER/send", json={"study": "1.2"}).status_code == 404
    assert radiologist.post("/api/v1/peers/VIEWER/send", json={}).status_code == 400
    assert radiologist.post("/api/v1/peers/VIEWER/send", json={"patient": "IPP1"}).status_code == 400


def test_jobs_of_the_ris_are_listed_without_what_they_carry(
    archive: Archive, client: Callable[..., httpx.Client]
) -> None:
    secret = {"message": "PID|1||P1||DUPONT^Anne"}
    for _ in range(3):
        archive.commit.run(lambda conn: jobs.put(conn, "hl7.out", secret, at=archive.real_clock()))
    admin = client("it_admin")
    first = admin.get("/api/v1/jobs?limit=2")
    assert "DUPONT" not in first.text
    rest = admin.get(f"/api/v1/jobs?limit=2&cursor={first.json()['next']}")
    assert [one["id"] for one in first.json()["items"] + rest.json()["items"]] == [3, 2, 1]
    assert rest.json()["next"] is None


def test_a_study_is_sent_from_its_page(archive: Archive, actor: Actor, log_in: Callable[[str], httpx.Client]) -> None:
    fill(archive, actor)
    desk = log_in("anne")
    page = desk.get(f"/etudes/{STUDY}").text
    assert "<option>VIEWER</option>" in page
    assert "CT1" not in page
    answer = desk.post(f"/etudes/{STUDY}/envoi", data={"vers": "VIEWER"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/etudes/{STUDY}#envoi")
    assert "en attente, 0 sur 12 images" in desk.get(f"/etudes/{STUDY}").text
