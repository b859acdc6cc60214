"""Immediate access, measured by the archive itself at the door of the web (REQ-CDC-09)."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api import opening
from api.app import create_app
from archive import probing
from archive.access import Actor
from archive.audit.read import list_rows
from archive.core import Archive
from tests.api.conftest import serving
from tests.api.test_stow import post
from tests.builders import ct_slice, key_object, new_uid, part10


@pytest.mark.req("REQ-CDC-09", "REQ-CDC-30")
def test_the_archive_opens_a_series_as_the_viewer_does_and_says_how_long_it_took(
    archive: Archive, actor: Actor, client: httpx.Client, studies: None
) -> None:
    assert client.get("/api/v1/system").json()["immediate_access"]["within"] is None
    prober = opening.prober(archive, create_app(archive))
    with ThreadPoolExecutor(1) as pool:  # as in a server: a thread of its own, where no event loop runs
        done = pool.submit(prober.look).result()
    prober.close()
    assert done is not None
    assert (done.error, done.images, done.within) == (None, 12, True)
    assert done.sent_bytes > 12 * 48 * 64 * 2
    said = client.get("/api/v1/system").json()["immediate_access"]
    assert said["limits"] == {"first_image_seconds": 5.0, "series_seconds": 60.0, "images": 600}
    assert said["within"] is True
    assert said["doors"]["dicomweb"]["probes"] == 1
    assert said["doors"]["dicomweb"]["first_image_seconds"]["worst"] == pytest.approx(done.first_seconds, abs=1e-3)
    (item,) = client.get("/api/v1/probes").json()["items"]
    assert (item["id"], item["door"], item["within"]) == (done.id, "dicomweb", True)
    text = client.get("/metrics").text
    first = re.search(r'^minipacs_first_image_seconds{door="dicomweb",quantile="0.95"} (\d+\.\d+)$', text, re.M)
    assert first is not None
    assert 0 < float(first[1]) < 5
    assert 'minipacs_access_limit_seconds{for="600_images"} 60.0' in text
    assert 'minipacs_probes_failed{door="dicomweb"} 0.0' in text
    with archive.engine.connect() as conn:
        rows = [row for row in list_rows(conn, study=new_uid("st0")).items if row["action"] != "C"]
    assert {(row["user"], row["door"]) for row in rows} == {("minipacs", "probe")}
    assert {row["event"] for row in rows} == {"110104"}


def test_what_has_no_pixels_is_not_opened_and_no_request_of_somebody_is_counted(
    archive: Archive, client: httpx.Client
) -> None:
    image = ct_slice(number=2)
    note = key_object(image, SeriesInstanceUID=image.SeriesInstanceUID, InstanceNumber=1)
    assert post(client, part10(note), part10(image)).status_code == 200
    app = create_app(archive)
    prober = opening.prober(archive, app)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(prober.look).result()
    prober.close()
    assert done is not None
    assert (done.error, done.images) == (None, 1)
    assert b"minipacs_http_requests_total{" not in app.state.metrics.text()
    assert 'method="POST",resource="store"' in client.get("/metrics").text


def test_a_server_measures_without_being_asked(
    archive: Archive, studies: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LOOK_SECONDS", 0.05)
    with serving(archive):
        for _ in range(1200):
            with archive.reading() as conn:
                found = probing.list_probes(conn, limit=10)
            if found:
                break
            time.sleep(0.05)
    assert [(one.door, one.error) for one in found] == [("dicomweb", None)]
