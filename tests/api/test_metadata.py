"""Metadata over HTTP: one array, compressed where that is accepted, with an entity tag (REQ-DCM-90, REQ-DCM-96)."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable

import httpx
import orjson
import pytest

from archive.audit.read import list_rows
from archive.core import Archive
from archive.ingest import Outcome
from archive.retrieve import named
from archive.series_metadata import told_of
from tests.api.conftest import on_both_databases
from tests.api.test_wado import address, keep
from tests.archive.dicom.correcting import correct, pn
from tests.builders import ct_slice, new_uid

__all__ = ["keep"]  # a fixture

Keep = Callable[..., Outcome]
STUDY = f"/dicom-web/studies/{new_uid('study')}/metadata"
SERIES = f"/dicom-web/studies/{new_uid('study')}/series/{new_uid('series')}/metadata"


def from_files(archive: Archive, url: str) -> list[object]:
    """The slow way."""
    found = named(archive, new_uid("study"))
    return [orjson.loads(told_of(archive, one, f"{url}/dicom-web")) for one in found]


@on_both_databases
@pytest.mark.req("REQ-DCM-90", "REQ-DCM-96")
def test_what_is_told_is_what_the_files_say_and_is_not_sent_twice(
    url: str, client: httpx.Client, archive: Archive, keep: Keep
) -> None:
    keep(*(ct_slice(number=number) for number in (2, 1)))
    first = client.get(SERIES)
    assert (first.status_code, first.json()) == (200, from_files(archive, url))
    archive.commit.run(lambda conn: None)
    again = client.get(SERIES)
    assert (again.json(), again.headers["etag"]) == (first.json(), first.headers["etag"])
    for have in (first.headers["etag"], f'"x", {first.headers["etag"]}', "*", first.headers["etag"][2:]):
        same = client.get(SERIES, headers={"If-None-Match": have})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    correct(archive, "IPP1", {"00100010": pn("MARTIN^Zoé")})
    for path in (SERIES, STUDY):
        changed = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (changed.status_code, changed.json()) == (200, from_files(archive, url))
        assert changed.headers["etag"] != first.headers["etag"]


@pytest.mark.req("REQ-DCM-96")
def test_it_is_compressed_where_that_is_accepted(client: httpx.Client, keep: Keep) -> None:
    ds = ct_slice()
    keep(ds)
    packed = ("gzip", "deflate, gzip;q=0.5", "x-gzip", "*", "GZIP; q=1.0")
    plain = ("gzip;q=0", "gzip; q=0.00, *", "identity", "", "br")
    for path in (STUDY, address(ds, "/metadata")):
        for accepted in (*plain, *packed):
            with client.stream("GET", path, headers={"Accept-Encoding": accepted}) as answer:
                raw = b"".join(answer.iter_raw())
            assert (answer.status_code, "content-encoding" in answer.headers) == (200, accepted in packed)
            (told,) = orjson.loads(gzip.decompress(raw) if accepted in packed else raw)
            assert told["00080018"]["Value"] == [ds.SOPInstanceUID]
            assert "accept-encoding" in answer.headers["vary"].lower()
            assert answer.headers["etag"] == client.head(path).headers["etag"]


def test_addresses_lead_to_where_was_asked(url: str, client: httpx.Client, keep: Keep) -> None:
    keep(ct_slice())
    here = client.get(SERIES)
    there = client.get(SERIES, headers={"Host": "pacs.example:8443"})
    assert there.headers["etag"] != here.headers["etag"]
    for answer, service in ((here, url), (there, "http://pacs.example:8443")):
        assert answer.json()[0]["7FE00010"]["BulkDataURI"].startswith(f"{service}/dicom-web/studies/")


@pytest.mark.req("REQ-SEC-20")
def test_whoever_has_it_already_is_in_the_audit_too(client: httpx.Client, archive: Archive, keep: Keep) -> None:
    keep(ct_slice())
    mark = client.head(SERIES).headers["etag"]
    with archive.reading() as conn:
        assert list_rows(conn, event="110104", action="R").items == []
    assert client.get(SERIES, headers={"If-None-Match": mark}).status_code == 304
    with archive.reading() as conn:
        assert len(list_rows(conn, event="110104", action="R").items) == 1


def test_what_is_not_whole_has_no_tag(client: httpx.Client, archive: Archive, keep: Keep) -> None:
    keep(*(ct_slice(number=number) for number in (1, 2)))
    whole = client.get(SERIES)
    os.unlink(named(archive, new_uid("study"))[0].path)
    answer = client.get(SERIES, headers={"If-None-Match": whole.headers["etag"]})
    assert (answer.status_code, "etag" in answer.headers) == (206, False)
    assert answer.json() == whole.json()[1:]
    assert client.head(SERIES).status_code == 206
    os.unlink(named(archive, new_uid("study"))[1].path)
    assert (client.get(SERIES).status_code, client.head(SERIES).status_code) == (503, 503)
