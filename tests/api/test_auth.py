"""Who gets in, what is refused, and that a refusal is written down before it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.app import create_app
from archive import accounts
from archive.access import Actor, Role
from archive.audit.read import list_rows
from archive.core import Archive
from tests.api.conftest import PASSWORD, on_both_databases

VIEWER = "/viewer/{release:str}/{name:path}"  # free software
OPEN = {"/healthz", "/readyz", "/metrics", "/connexion", "/static", "/dicom-web", "/dicom-web/", VIEWER}
SOME_UID = "1.2.3"


def rows(archive: Archive, **wanted: Any) -> list[dict[str, Any]]:
    with archive.engine.connect() as conn:
        return list_rows(conn, **wanted).items


def every_address(archive: Archive) -> list[tuple[str, str]]:
    """Each method and path of the application, UIDs filled in."""
    found = []

    def walk(routes: Any, prefix: str = "") -> None:
        for route in routes:
            if getattr(route, "methods", None):
                path = prefix + route.path
                for name in ("study", "series", "instance"):
                    path = path.replace(f"{{{name}}}", SOME_UID)
                path = path.replace("{frames}", "1").replace("{path:path}", "7FE00010")
                found.extend((method, path) for method in route.methods - {"HEAD"})
            else:
                inner = getattr(route, "original_router", None) or getattr(route, "app", None)
                walk(getattr(inner, "routes", ()), prefix + getattr(route, "prefix", getattr(route, "path", "")))

    walk(create_app(archive).routes)
    return sorted(set(found))


@pytest.mark.req("REQ-FACE-04")
def test_no_address_but_the_open_ones_answers_a_stranger(archive: Archive, stranger: httpx.Client) -> None:
    addresses = every_address(archive)
    assert ("GET", f"/dicom-web/studies/{SOME_UID}") in addresses
    assert ("GET", "/api/v1/audit") in addresses
    assert ("GET", "/") in addresses
    for method, path in addresses:
        if method == "OPTIONS":  # what there is, not what of it
            assert stranger.request(method, path).status_code == 200
            continue
        if path in OPEN or path in ("/deconnexion", "/api/v1/session"):
            continue
        answer = stranger.request(method, path)
        if path.startswith(("/dicom-web", "/wado", "/api")):
            assert answer.status_code == 401, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"
            assert "Bearer" in answer.headers["www-authenticate"]
        elif path.startswith("/fhir"):
            assert (answer.status_code, answer.json()["resourceType"]) == (401, "OperationOutcome"), (method, path)
        elif method == "GET":
            assert (answer.status_code, answer.headers["location"][:10]) == (303, "/connexion"), path
        else:
            assert (answer.status_code, answer.headers["content-type"][:9]) == (401, "text/html"), path


@on_both_databases
@pytest.mark.req("REQ-DCM-92")
def test_a_stranger_is_refused_and_the_refusal_is_in_the_audit(archive: Archive, stranger: httpx.Client) -> None:
    answer = stranger.get(f"/dicom-web/studies/{SOME_UID}")
    assert answer.status_code == 401
    [row] = rows(archive, event="110114")
    assert (row["outcome"], row["user"], row["source"], row["door"], row["study"]) == (
        8,
        "anonymous",
        "127.0.0.1",
        "dicomweb",
        SOME_UID,
    )
    assert row["detail"] == {  # type: ignore[comparison-overlap]
        "reason": "log in, or send «Authorization: Bearer TOKEN»",
        "method": "GET",
        "resource": "retrieve",
        "type": "110122",
    }


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic YTpi", "mp_abc", "Bearer \xe9"])
def test_wrong_credentials_are_refused(stranger: httpx.Client, header: str) -> None:
    answer = stranger.get("/api/v1/studies", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


# role → what it may do at each door (sheet 60 §5)
TABLE = {
    "/dicom-web/studies/1.2.3": {"radiologist", "technologist", "service"},
    "/dicom-web/studies/1.2.3/metadata": {"radiologist", "technologist", "service"},
    "/api/v1/studies": {"radiologist", "technologist", "secretary", "identity_officer", "quality", "service"},
    "/api/v1/work-items": {"radiologist", "technologist", "secretary", "identity_officer", "quality", "service"},
    "/api/v1/audit": {"auditor", "service"},
    "/api/v1/system": {"radiologist", "secretary", "it_admin", "auditor", "quality", "service"},
    "POST /dicom-web/studies": {"radiologist", "technologist", "secretary", "service"},
}


@pytest.mark.req("REQ-SEC-23")
@pytest.mark.parametrize("role", list(Role))
def test_roles_open_the_doors_that_are_theirs(
    archive: Archive, url: str, token: Callable[..., str], role: Role
) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token(role, name=role)}"}) as client:
        refused = 0
        for address, roles in TABLE.items():
            method, _, path = address.rpartition(" ")
            status = client.request(method or "GET", path).status_code
            assert (status != 403) == (role in roles), (address, status)
            refused += status == 403
    written = [row for row in rows(archive, user=str(role)) if row["outcome"] == 8]
    assert len(written) == refused


def test_a_refusal_tells_who_wanted_what(archive: Archive, url: str, token: Callable[..., str]) -> None:
    headers = {"Authorization": f"Bearer {token('secretary', name='Secrétariat')}"}
    assert httpx.get(f"{url}/dicom-web/studies/1.2.3", headers=headers).status_code == 403
    assert (
        httpx.post(f"{url}/dicom-web/studies", headers={"Authorization": f"Bearer {token('it_admin')}"}).status_code
        == 403
    )
    stored, seen = [row for row in rows(archive) if row["outcome"] == 8]
    assert (seen["event"], seen["action"], seen["user"], seen["study"]) == ("110104", "R", "Secrétariat", "1.2.3")
    assert (stored["event"], stored["action"], stored["user"]) == ("110104", "C", "robot")


@pytest.mark.req("REQ-SEC-20")
def test_a_refusal_is_written_down_as_the_success_would_be(
    archive: Archive, url: str, token: Callable[..., str]
) -> None:
    expected = {
        "GET /api/v1/studies/1.2.3/manifest": ("110106", "R"),
        "GET /api/v1/studies/1.2.3/dose": ("110112", "E"),
        "GET /api/v1/studies/1.2.3/rejections": ("110112", "E"),
        "POST /api/v1/studies/1.2.3/reject": ("110103", "D"),
        "GET /api/v1/rejections/1.2.3": ("110104", "R"),
        "DELETE /api/v1/rejections/1.2.3": ("110103", "D"),
        "GET /api/v1/changes": ("110112", "E"),
        "GET /api/v1/dose": ("110112", "E"),
        "GET /api/v1/visits": ("110112", "E"),
        "GET /api/v1/probes": ("110112", "E"),
        "GET /api/v1/audit": ("110101", "R"),
        "GET /api/v1/work-items": ("110112", "E"),
        "POST /api/v1/work-items/1/settle": ("110110", "U"),
        "GET /api/v1/system": ("110113", "E"),
    }
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token('am_delegue', name='luc')}"}) as luc:
        for address, attempt in expected.items():
            assert luc.request(*address.split()).status_code == 403, address
            row = rows(archive, user="luc")[0]
            assert (row["event"], row["action"], row["outcome"]) == (*attempt, 8), address


def test_a_revoked_token_is_refused_within_five_seconds(archive: Archive, url: str, actor: Actor) -> None:
    made = accounts.create_token(archive, "robot", ["service"], actor=actor)
    headers = {"Authorization": f"Bearer {made.secret}"}
    assert httpx.get(f"{url}/api/v1/system", headers=headers).status_code == 200
    accounts.revoke_token(archive, made.id, actor=actor)
    assert httpx.get(f"{url}/api/v1/system", headers=headers).status_code == 401


@pytest.fixture
def anne(archive: Archive, actor: Actor) -> str:
    return accounts.add_account(archive, "anne", ["radiologist"], PASSWORD, actor=actor).account.name


@pytest.mark.req("REQ-SEC-24")
def test_a_person_logs_in_works_at_every_door_and_logs_out(archive: Archive, stranger: httpx.Client, anne: str) -> None:
    answer = stranger.post("/api/v1/session", json={"name": anne, "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.json() == {"user": "anne", "roles": ["radiologist"]}
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie.replace("samesite", "")  # plain HTTP here
    assert stranger.get("/api/v1/session").json()["user"] == "anne"
    assert stranger.get("/api/v1/studies").status_code == 200
    assert stranger.get("/").status_code == 200
    assert stranger.delete("/api/v1/session").status_code == 204
    assert stranger.get("/api/v1/studies").status_code == 401
    kinds = [row["detail"]["type"] for row in rows(archive, user="anne", event="110114")]  # type: ignore[index]
    assert kinds == ["110123", "110122"]


def test_behind_https_the_cookie_travels_encrypted_only(stranger: httpx.Client, anne: str) -> None:
    answer = stranger.post(
        "/api/v1/session",
        json={"name": anne, "password": PASSWORD},
        headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.1.2.3"},
    )
    assert "; Secure" in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"]


def test_a_wrong_password_is_refused_and_written_once(archive: Archive, stranger: httpx.Client, anne: str) -> None:
    answer = stranger.post("/api/v1/session", json={"name": anne, "password": "wrong horse battery"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert [row["outcome"] for row in rows(archive, event="110114")] == [8]


def test_guessing_is_made_slow(stranger: httpx.Client, anne: str) -> None:
    for _ in range(6):
        stranger.post("/api/v1/session", json={"name": anne, "password": "wrong horse battery"})
    answer = stranger.post("/api/v1/session", json={"name": anne, "password": PASSWORD})
    assert answer.status_code == 401
    assert "too many" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 400),
        ({}, 400),  # no browser
    ],
)
def test_a_page_of_another_site_changes_nothing(stranger: httpx.Client, anne: str, headers: Any, status: int) -> None:
    stranger.post("/api/v1/session", json={"name": anne, "password": PASSWORD})
    answer = stranger.post("/dicom-web/studies", headers={"Content-Type": "multipart/related", **headers})
    assert answer.status_code == status


def test_a_page_of_another_site_logs_nobody_in(stranger: httpx.Client, anne: str) -> None:
    form = {"name": anne, "password": PASSWORD}
    assert stranger.post("/connexion", data=form, headers={"Origin": "https://evil.example"}).status_code == 403
    assert stranger.post("/connexion", data=form, headers={"Origin": str(stranger.base_url)}).status_code == 303


@pytest.mark.parametrize("path", ["/healthz", "/connexion", "/static/desk.css", "/api/v1/studies", "/nowhere"])
def test_every_answer_has_the_headers_that_protect_a_browser(stranger: httpx.Client, path: str) -> None:
    headers = stranger.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == ("public, max-age=3600" if "static" in path else "no-store")
    assert "server" not in headers
