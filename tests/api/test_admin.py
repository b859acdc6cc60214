"""/api/v1, the probes, and what each reading leaves in the audit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import structlog

from api.multipart import Part, related
from archive.audit.read import list_rows
from archive.config import EDGES, Settings
from archive.core import Archive, open_archive
from archive.heartbeat import Heartbeat
from tests.api.conftest import on_both_databases, serving
from tests.builders import ct_slice, new_uid, part10


def send(client: httpx.Client, *slices: Any) -> None:
    body = b"".join(related((Part("application/dicom", iter([part10(ds)])) for ds in slices), "B"))
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B'}
    assert client.post("/dicom-web/studies", content=body, headers=headers).status_code == 200


def studies(client: httpx.Client, **parameters: Any) -> list[str]:
    answer = client.get("/api/v1/studies", params=parameters)
    assert answer.status_code == 200, answer.text
    return [item["accession"] for item in answer.json()["items"]]


@pytest.fixture
def three(client: httpx.Client) -> None:
    for number, (name, modality, date) in enumerate(
        [("DUPONT^Anne", "CT", "20260105"), ("LEFÈVRE^Anaïs", "MR", "20260106"), ("DUPOND^Jean", "CT", "20260107")]
    ):
        uids = {"StudyInstanceUID": new_uid(f"st{number}"), "SeriesInstanceUID": new_uid(f"se{number}")}
        send(
            client,
            ct_slice(
                PatientName=name, PatientID=f"IPP{number}", Modality=modality, StudyDate=date,
                AccessionNumber=f"A{number}", **uids,
            ),
        )  # fmt: skip


@on_both_databases
def test_studies_are_listed_searched_and_paged(client: httpx.Client, three: None) -> None:
    assert studies(client) == ["A2", "A1", "A0"]
    assert studies(client, patient_name="lefevre") == ["A1"]
    assert studies(client, patient_name="dup") == ["A2", "A0"]
    assert studies(client, patient_name="dupont anne") == ["A0"]
    assert studies(client, patient_name="DUPON?^*") == ["A2", "A0"]
    assert studies(client, patient_id="IPP1") == ["A1"]
    assert studies(client, accession="A2") == ["A2"]
    assert studies(client, modality="CT") == ["A2", "A0"]
    assert studies(client, study_date_from="2026-01-06") == ["A2", "A1"]
    assert studies(client, study_date_to="2026-01-06") == ["A1", "A0"]
    assert studies(client, study_date_from="2026-01-06", study_date_to="2026-01-06") == ["A1"]
    first = client.get("/api/v1/studies", params={"limit": 2}).json()
    second = client.get("/api/v1/studies", params={"limit": 2, "cursor": first["next"]}).json()
    assert [item["accession"] for item in first["items"] + second["items"]] == ["A2", "A1", "A0"]
    assert second["next"] is None
    assert first["items"][1] == {
        "study": new_uid("st1"), "patient_id": "IPP1", "issuer": "", "patient_name": "LEFÈVRE^Anaïs",
        "birth_date": "19700101", "sex": "F", "study_date": "20260106", "study_time": "101500", "accession": "A1",
        "description": "Scanner thoracique", "referring_physician": "LEFÈVRE^Anaïs", "modalities": ["MR"], "series": 1,
        "instances": 1, "availability": "ONLINE",
    }  # fmt: skip


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=-1", "study_date_from=yesterday", "limit=1e3"]
)
def test_a_wrong_parameter_is_400_and_named(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/api/v1/studies?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 400


@on_both_databases
def test_one_study_tells_its_copies_with_digests(archive: Archive, client: httpx.Client) -> None:
    slices = [ct_slice(number=2), ct_slice(number=1)]
    send(client, *slices)
    uid = slices[0].StudyInstanceUID
    found = client.get(f"/api/v1/studies/{uid}").json()
    assert found["exists"] is True
    assert (found["tier"], found["availability"], found["instances"], found["modalities"]) == (
        "hot",
        "ONLINE",
        2,
        ["CT"],
    )
    assert [copy["sop_instance_uid"] for copy in found["copies"]] == [ds.SOPInstanceUID for ds in reversed(slices)]
    for copy in found["copies"]:
        assert (copy["tier"], copy["state"], copy["verified_at"]) == ("hot", "ok", None)
        assert len(copy["digest"]) == 64
    assert client.get("/api/v1/studies/1.2.3").json() == {"exists": False}
    archive.commit.close()  # what nobody waits for is written
    with archive.engine.connect() as conn:
        rows = list_rows(conn, event="110112", study=uid).items
    assert [(row["user"], row["action"]) for row in rows] == [("robot", "E")]


@on_both_databases
def test_a_conflict_waits_for_a_person(client: httpx.Client) -> None:
    ds = ct_slice()
    send(client, ds)
    ds.PixelData = bytes(len(ds.PixelData))
    body = part10(ds)
    assert (
        client.post("/dicom-web/studies", content=body, headers={"Content-Type": "application/dicom"}).status_code
        == 409
    )
    answer = client.get("/api/v1/work-items", params={"kind": "uid_conflict", "state": "open"}).json()
    [item] = answer["items"]
    assert set(item) >= {"id", "kind", "state", "patient", "study", "opened_at", "evidence"}
    assert (item["kind"], item["state"], item["study"]) == ("uid_conflict", "open", ds.StudyInstanceUID)
    assert client.get("/api/v1/work-items", params={"state": "closed"}).json() == {"items": [], "next": None}
    assert client.get("/api/v1/work-items", params={"state": "lost"}).status_code == 400


@on_both_databases
@pytest.mark.req("REQ-SEC-20")
def test_the_audit_is_read_filtered_and_its_reading_is_in_it(archive: Archive, client: httpx.Client) -> None:
    ds = ct_slice()
    send(client, ds)
    parameters = {"patient": "IPP1", "event": "110104", "action": "C", "from": "2020-01-01", "to": "2099-12-31"}
    [row] = client.get("/api/v1/audit", params=parameters).json()["items"]
    assert (row["user"], row["action"], row["outcome"], row["study"]) == ("robot", "C", 0, ds.StudyInstanceUID)
    assert set(row) >= {"time", "event", "action", "outcome", "user", "source", "patient", "study"}
    [used] = client.get("/api/v1/audit", params={"event": "110101"}).json()["items"]
    assert (used["action"], used["patient"]) == ("R", "IPP1")
    assert used["detail"]["query"]["event"] == "110104"
    first = client.get("/api/v1/audit", params={"limit": 1}).json()
    assert client.get("/api/v1/audit", params={"limit": 1, "cursor": first["next"]}).json()["items"] != first["items"]
    assert client.get("/api/v1/audit", params={"to": "2020-01-01"}).json()["items"] == []
    assert client.get("/api/v1/audit", params={"from": "soon"}).status_code == 400


def test_system_tells_version_clock_and_processes(archive: Archive, client: httpx.Client) -> None:
    with Heartbeat(archive, "api") as heart:
        heart.listening()
        found = client.get("/api/v1/system").json()
    assert found["product"] == "minipacs"
    assert found["test_mode"] is False
    assert found["clock"]["simulated"] is False
    assert [one["edge"] for one in found["processes"]] == ["api"]
    assert found["storage"]["hot"]["free_bytes"] > 0


def test_the_api_describes_itself(client: httpx.Client) -> None:
    described = client.get("/api/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert {"/api/v1/studies", "/api/v1/audit", "/api/v1/session", "/readyz"} <= set(described["paths"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/v1/nothing", 404), ("POST", "/api/v1/studies", 405), ("GET", "/dicom-web/nothing", 404)],
)
def test_unknown_addresses_and_methods_are_problems(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_is_too_long_is_413(client: httpx.Client) -> None:
    answer = client.put("/api/v1/testbed/clock", content=b" " * (2 << 20), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_bug_is_500_and_tells_nothing(client: httpx.Client, monkeypatch: Any) -> None:
    import api.admin

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("DUPONT^Anne")

    monkeypatch.setattr(api.admin, "find_studies", broken)
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[plain])  # as `minipacs.logs`: local variables take half a minute to print
    try:
        answer = client.get("/api/v1/studies")
    finally:
        structlog.reset_defaults()
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "DUPONT" not in answer.text


# -- probes -------------------------------------------------------------------------------------------------------


def test_it_is_alive(stranger: httpx.Client) -> None:
    assert stranger.get("/healthz").text == "ok\n"


def test_it_is_ready_when_every_edge_listens(archive: Archive, stranger: httpx.Client) -> None:
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert any("dicom" in reason for reason in answer.json()["reasons"])
    with ExitStack() as parts:
        for edge in EDGES:
            parts.enter_context(Heartbeat(archive, edge)).listening()
        for _ in range(100):
            answer = stranger.get("/readyz")
            if answer.status_code == 200:
                break
            threading.Event().wait(0.05)
    assert (answer.status_code, answer.json()["reasons"]) == (200, [])


def test_figures_are_for_this_host_or_for_those_who_may(
    stranger: httpx.Client, client: httpx.Client, token: Callable[..., str]
) -> None:
    client.get("/api/v1/studies", params={"patient_name": "DUPONT"})
    text = stranger.get("/metrics").text
    assert 'minipacs_http_requests_total{method="GET",resource="studies",status="200"} 1.0' in text
    assert "minipacs_hot_free_bytes" in text
    assert "DUPONT" not in text
    elsewhere = {"X-Forwarded-For": "192.0.2.7"}  # as a reverse proxy on this host says
    assert stranger.get("/metrics", headers=elsewhere).status_code == 401
    assert client.get("/metrics", headers=elsewhere).status_code == 200
    headers = {**elsewhere, "Authorization": f"Bearer {token('technologist')}"}
    assert stranger.get("/metrics", headers=headers).status_code == 403


# -- test bed -----------------------------------------------------------------------------------------------------


@pytest.fixture
def testbed(settings: Settings, actor: Any) -> Iterator[httpx.Client]:
    """A client of an archive in test_mode, with a token of role service."""
    from archive.accounts import create_token

    with open_archive(settings.model_copy(update={"test_mode": True}), process="test") as archive:
        secret = create_token(archive, "robot", ["service"], actor=actor).secret
        headers = {"Authorization": f"Bearer {secret}"}
        with serving(archive) as url, httpx.Client(base_url=url, headers=headers) as client:
            yield client


def test_the_clock_of_the_test_bed_is_put_moved_and_let_go(testbed: httpx.Client) -> None:
    address = "/api/v1/testbed/clock"
    assert testbed.get(address).json()["simulated"] is False
    put = testbed.put(address, json={"now": "2026-01-05T10:00:00+01:00"}).json()
    assert (put["simulated"], put["now"][:16]) == (True, "2026-01-05T09:00")
    assert testbed.put(address, json={"advance": "3y1d"}).json()["now"][:10] == "2029-01-06"
    assert testbed.get("/api/v1/system").json()["clock"]["now"][:10] == "2029-01-06"
    assert testbed.get(address).json()["now"][:10] == "2029-01-06"
    assert testbed.put(address, json={"release": True}).json()["simulated"] is False
    for wrong in ({}, {"now": "2026-01-05"}, {"advance": "soon"}, {"release": True, "advance": "1d"}, {"x": 1}):
        assert testbed.put(address, json=wrong).status_code == 400, wrong


def test_there_is_no_test_bed_outside_test_mode(client: httpx.Client, url: str, token: Callable[..., str]) -> None:
    assert client.get("/api/v1/testbed/clock").status_code == 404
    assert client.put("/api/v1/testbed/clock", json={"advance": "1d"}).status_code == 404
    headers = {"Authorization": f"Bearer {token('radiologist')}"}
    assert httpx.put(f"{url}/api/v1/testbed/clock", json={"advance": "1d"}, headers=headers).status_code == 404
