"""Requests that no client of ours would send: each gets a clear no, none is a bug."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest

from archive.core import Archive
from tests.api.conftest import on_both_databases
from tests.builders import ct_slice, part10


@on_both_databases
@pytest.mark.parametrize(
    "address",
    [
        "/api/v1/studies/%00",
        "/api/v1/audit?patient=%00",
        "/api/v1/audit?user=a%00b",
        "/api/v1/work-items?kind=%00",
        "/api/v1/studies?patient_id=%00",
        "/dicom-web/studies/%00",
        "/dicom-web/studies?PatientID=%00",
        "/etudes/%00",
        "/?nom=%00",
    ],
)
def test_a_nul_in_an_address_is_400(client: httpx.Client, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_upload_that_falls_silent_is_let_go(
    archive: Archive, url: str, token: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.app.BODY_SECONDS", 0.3)
    body = part10(ct_slice(rows=512, columns=512))
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
    head += f"Content-Type: application/dicom\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as sock:
        sock.sendall(head.encode() + body[:400_000])
        while not os.listdir(archive.hot.incoming_dir):
            time.sleep(0.01)
        sock.settimeout(10)
        assert sock.recv(12) == b"HTTP/1.1 400"
    assert os.listdir(archive.hot.incoming_dir) == []


@on_both_databases
@pytest.mark.parametrize(
    "query",
    [
        "outcome=99999999999999999999",
        "outcome=-1",
        "from=0001-01-01T00:00:00%2B23:59",
        "to=9999-12-31T23:59:59-23:59",
        "to=9999-12-31",
    ],
)
def test_a_number_or_time_beyond_all_bounds_is_400(client: httpx.Client, query: str) -> None:
    assert client.get(f"/api/v1/audit?{query}").status_code == 400


def test_a_warning_about_many_parameters_fits_into_a_header(client: httpx.Client) -> None:
    answer = client.get("/dicom-web/studies?" + "&".join(f"{'x' * 60}{number}=1" for number in range(500)))
    assert answer.status_code == 204
    assert "and 480 more" in answer.headers["warning"]
    assert len(answer.headers["warning"]) < 2000


def test_a_volume_that_is_gone_is_said_and_no_bug(archive: Archive, client: httpx.Client) -> None:
    archive.hot.root.rename(archive.hot.root.with_name("elsewhere"))
    assert client.get("/api/v1/system").status_code == 503
    figures = client.get("/metrics")
    assert figures.status_code == 200
    assert "minipacs_hot_free_bytes NaN" in figures.text
    body, headers = part10(ct_slice()), {"Content-Type": "application/dicom"}
    assert client.post("/dicom-web/studies", content=body, headers=headers).status_code == 503
