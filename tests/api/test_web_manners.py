"""What HTTP itself offers: ETag and conditional requests, ranges, gzip, other origins, capabilities (REQ-DCM-96)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from xml.etree import ElementTree as ET

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEGLSLossless
from starlette.routing import Route

from api import conditional
from api.app import create_app
from api.capabilities import RESOURCES, WADL
from archive.access import Actor
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom import lossless
from archive.instance import Outcome
from archive.retrieve import named
from tests.api.conftest import serving
from tests.api.test_wado import address, contents, data_set_of, keep, multi_frame, parts
from tests.builders import ct_slice, new_uid, part10

pytestmark = pytest.mark.req("REQ-DCM-96")
__all__ = ["keep"]
ELSEWHERE = "https://viewer.example"


@pytest.mark.parametrize(
    ("more", "accept"),
    [
        ("", "application/dicom"),
        ("", "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.80"),
        ("", 'multipart/related; type="application/dicom"'),
        ("/frames/1,2", "*/*"),
        ("/frames/1", "application/octet-stream"),
        ("/rendered?viewport=8,8", "image/png"),
        ("/thumbnail", "image/jpeg"),
        ("/bulkdata/7FE00010", "application/octet-stream"),
    ],
)
def test_who_holds_it_already_is_told_so_and_it_is_audited(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome], more: str, accept: str
) -> None:
    ds = multi_frame()
    keep(ds)
    first = client.get(address(ds, more), headers={"Accept": accept})
    assert first.status_code == 200
    assert first.headers["cache-control"] == "private, no-cache"  # never in a shared cache, asked for again each time
    tag = first.headers["etag"]
    for held in (tag, f'"other", {tag}', "*"):
        again = client.get(address(ds, more), headers={"Accept": accept, "If-None-Match": held})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = client.get(address(ds, more), headers={"Accept": accept, "If-None-Match": '"another"'})
    assert (other.status_code, len(other.content)) == (200, len(first.content))
    with archive.reading() as conn:  # one access, which lasts
        assert len(list_rows(conn, event="110104", action="R").items) == 1


def test_a_tag_of_one_form_is_not_that_of_another(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    one, two = ct_slice(), ct_slice(number=2)
    keep(one, two)
    forms = [
        (one, "", "application/dicom"),
        (two, "", "application/dicom"),
        (one, "", "application/dicom; transfer-syntax=1.2.840.10008.1.2"),
        (one, "/rendered", "image/png"),
        (one, "/rendered", "image/jpeg"),
        (one, "/rendered?viewport=8,8", "image/jpeg"),
        (one, "/rendered?window=40,400", "image/jpeg"),
        (one, "/frames/1", "application/octet-stream"),
    ]
    tags = [client.get(address(ds, more), headers={"Accept": accept}).headers["etag"] for ds, more, accept in forms]
    assert len(set(tags)) == len(tags)


def pixels_of(ds: Dataset) -> tuple[str, bytes]:
    return address(ds, "/bulkdata/7FE00010"), ds.PixelData


def file_of(ds: Dataset) -> tuple[str, bytes]:
    return address(ds), part10(ds)


@pytest.mark.parametrize("thing", [pixels_of, file_of])
@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=7-", 7, None), ("bytes=-5", -5, None), ("bytes=3-99999999", 3, None)],
)
def test_a_range_of_bytes_comes_alone(
    client: httpx.Client,
    keep: Callable[..., Outcome],
    thing: Callable[[Dataset], tuple[str, bytes]],
    asked: str,
    start: int,
    end: int | None,
) -> None:
    ds = ct_slice()
    where, whole = thing(ds)
    keep(ds)
    accept = "application/octet-stream, application/dicom"
    complete = client.get(where, headers={"Accept": accept}).content
    assert complete[-512:] == whole[-512:]
    whole = complete
    answer = client.get(where, headers={"Accept": accept, "Range": asked})
    assert (answer.status_code, answer.content) == (206, whole[start:end])
    at = start % len(whole)
    assert answer.headers["content-range"] == f"bytes {at}-{at + len(answer.content) - 1}/{len(whole)}"
    headers = {"Accept": accept, "Range": asked, "If-Range": answer.headers["etag"]}
    assert client.get(where, headers=headers).status_code == 206
    assert client.get(where, headers=headers | {"If-Range": '"of yesterday"'}).content == whole
    assert client.head(where, headers={"Accept": accept}).headers["content-length"] == str(len(whole))


def test_a_range_of_big_endian_numbers_is_that_of_the_little_endian_ones(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice(transfer_syntax=ExplicitVRBigEndian)
    little = np.frombuffer(ds.PixelData, "<u2")
    ds.PixelData = little.astype(">u2").tobytes()
    keep(ds)
    where = address(ds, "/bulkdata/7FE00010")
    whole = client.get(where, headers={"Accept": "application/octet-stream"}).content
    assert whole == little.tobytes()
    for start, end in ((0, 1), (1, 4), (5, 300), (511, 512)):
        headers = {"Accept": "application/octet-stream", "Range": f"bytes={start}-{end - 1}"}
        assert client.get(where, headers=headers).content == whole[start:end]


def test_a_range_that_is_not_there_is_416_and_what_is_none_is_all_of_it(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice()
    keep(ds)
    for asked, status in (
        ("bytes=600-", 416), ("bytes=-0", 416), ("bytes=5-2", 200), ("bytes=0-1,3-4", 200), ("lines=1-2", 200),
        ("x", 200),
    ):  # fmt: skip
        headers = {"Accept": "application/octet-stream", "Range": asked}
        answer = client.get(address(ds, "/bulkdata/7FE00010"), headers=headers)
        assert answer.status_code == status, asked
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{len(ds.PixelData)}"
        else:
            assert answer.content == ds.PixelData


@pytest.mark.parametrize("thing", [pixels_of, file_of])
def test_who_holds_it_already_hears_so_before_a_range_is_looked_at_and_head_has_no_ranges(
    client: httpx.Client, keep: Callable[..., Outcome], thing: Callable[[Dataset], tuple[str, bytes]]
) -> None:
    ds = ct_slice()
    where, _ = thing(ds)
    keep(ds)
    headers = {"Accept": "application/octet-stream, application/dicom"}
    whole = client.get(where, headers=headers)
    outside = headers | {"Range": "bytes=99999999-"}
    assert client.get(where, headers=outside).status_code == 416
    for ask in (client.get, client.head):
        assert ask(where, headers=outside | {"If-None-Match": whole.headers["etag"]}).status_code == 304
        assert ask(where, headers=headers | {"If-None-Match": whole.headers["etag"]}).status_code == 304
    for ranged in ("bytes=99999999-", "bytes=0-1"):
        answer = client.head(where, headers=headers | {"Range": ranged})
        assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(whole.content)))


def test_nothing_is_compressed_for_head_nor_for_who_holds_it_already(
    client: httpx.Client, keep: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = ct_slice(rows=32, columns=32)
    keep(ds)
    made: list[int] = []
    encode = lossless.encode

    def counted(*arguments: Any, **more: Any) -> bytes:
        made.append(1)
        return encode(*arguments, **more)

    monkeypatch.setattr(lossless, "encode", counted)
    headers = {"Accept": f"application/dicom; transfer-syntax={JPEGLSLossless}"}
    whole = client.get(address(ds), headers=headers)
    assert (whole.status_code, len(made)) == (200, 1)
    said = client.head(address(ds), headers=headers)
    assert (said.status_code, "content-length" in said.headers) == (200, False)
    assert {name: said.headers[name] for name in ("content-type", "etag")} == {
        name: whole.headers[name] for name in ("content-type", "etag")
    }
    assert client.get(address(ds), headers=headers | {"If-None-Match": whole.headers["etag"]}).status_code == 304
    assert len(made) == 1


@pytest.mark.parametrize("more", ["", "/frames/1", "/rendered", "/bulkdata/7FE00010"])
def test_another_version_or_charset_is_another_tag(
    settings: Settings, client: httpx.Client, keep: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """What was fixed in a version, and what an unnamed charset means now, is seen by whoever kept the answer before."""
    ds = ct_slice()
    keep(ds)
    tags = {client.get(address(ds, more)).headers["etag"]}
    western = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"default_charset": "ISO_IR 101"})})
    with open_archive(western, process="western") as other, serving(other) as url:
        tags.add(httpx.get(f"{url}{address(ds, more)}", headers=dict(client.headers), timeout=30).headers["etag"])
    monkeypatch.setattr(conditional, "FORM", "of the next version")
    tags.add(client.get(address(ds, more)).headers["etag"])
    assert len(tags) == 3


def test_json_is_gzipped_and_pixels_are_not(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = ct_slice()
    keep(ds, *(ct_slice(number=number) for number in range(2, 9)))
    series = f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
    for path in (f"{series}/metadata", f"{series}/instances", "/api/openapi.json"):
        answer = client.get(path, headers={"Accept-Encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip", path
        assert "accept-encoding" in answer.headers["vary"].lower()
        plain = client.get(path, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.json() == answer.json()
        refused = client.get(path, headers={"Accept-Encoding": "gzip;q=0, identity"})
        assert "content-encoding" not in refused.headers
    for path in (address(ds), address(ds, "/frames/1"), address(ds, "/rendered"), series):
        assert "content-encoding" not in client.get(path, headers={"Accept-Encoding": "gzip"}).headers


@pytest.fixture
def open_to(settings: Settings) -> Settings:
    return settings.model_copy(update={"api": settings.api.model_copy(update={"cors_origins": (ELSEWHERE,)})})


def test_scripts_of_allowed_origins_may_ask_and_others_may_not(open_to: Settings) -> None:
    with open_archive(open_to, process="test") as archive, serving(archive) as url, httpx.Client(base_url=url) as web:
        asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        preflight = web.options("/dicom-web/studies", headers={"Origin": ELSEWHERE, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ELSEWHERE
        assert "access-control-allow-credentials" not in preflight.headers  # never with the cookie of the desk
        assert web.options("/dicom-web/studies", headers={"Origin": "https://evil.example", **asks}).status_code == 400
        for origin, allowed in ((ELSEWHERE, ELSEWHERE), ("https://evil.example", None)):
            answer = web.get("/dicom-web/studies", headers={"Origin": origin})
            assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (401, allowed)


def test_without_a_list_no_other_origin_is_let_in(stranger: httpx.Client) -> None:
    answer = stranger.get("/dicom-web/", headers={"Origin": ELSEWHERE})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["*", "viewer.example", "https://viewer.example/path", "ftp://viewer.example"])
def test_an_origin_that_is_none_stops_the_start(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings.model_validate({"api": {"cors_origins": [origin]}})


@pytest.mark.req("REQ-DRIM-04")
@pytest.mark.parametrize("path", ["/dicom-web", "/dicom-web/", "/dicom-web/studies", "/dicom-web/studies/1.2/metadata"])
def test_options_tell_what_there_is_to_whoever_asks(stranger: httpx.Client, path: str) -> None:
    answer = stranger.options(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/vnd.sun.wadl+xml")
    resources = ET.fromstring(answer.content).findall(f".//{{{WADL}}}resource")
    assert {f"/{one.get('path')}" for one in resources} == set(RESOURCES)
    as_json = stranger.options(path, headers={"Accept": "application/json"})
    assert as_json.headers["content-type"] == "application/json"
    assert {one["path"] for one in as_json.json()["resources"]} == set(RESOURCES)
    assert stranger.options(path, headers={"Accept": "text/html"}).status_code == 406


@pytest.mark.req("REQ-DRIM-04")
def test_the_service_itself_answers_a_gateway_that_looks_whether_it_lives(stranger: httpx.Client) -> None:
    answer = stranger.get("/dicom-web", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_the_capabilities_are_those_of_the_application(archive: Archive) -> None:
    served: dict[str, set[str]] = {}
    for route in create_app(archive).router.routes:
        if isinstance(route, Route) and route.path.startswith("/dicom-web/") and route.name != "describe":
            path = route.path.removeprefix("/dicom-web").replace(":path", "")
            served.setdefault(path, set()).update((route.methods or set()) - {"HEAD"})
    assert served == {path: {one.name for one in methods} for path, methods in RESOURCES.items()}


@pytest.mark.req("REQ-DCM-99", "REQ-DCM-90")
def test_a_thumbnail_is_there_at_each_level_and_shows_pixels_alone(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    from PIL import Image

    ds = multi_frame()
    white = np.full((5, 400, 300), 4095, "<u2")
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.PixelData = 400, 300, 5, white.tobytes()
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    keep(ds)
    study = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    for path in (study, f"{study}/series/{ds.SeriesInstanceUID}", address(ds), address(ds, "/frames/2")):
        answer = client.get(f"{path}/thumbnail")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.size == (150, 200)
        assert picture.getextrema() == (255, 255)  # white all over: nothing is written into it
        small = client.get(f"{path}/thumbnail?viewport=40,40", headers={"Accept": "image/png"})
        assert Image.open(io.BytesIO(small.content)).size == (30, 40)
    assert client.get(address(ds, "/frames/9/thumbnail")).status_code == 404


@pytest.mark.req("REQ-DCM-90")
def test_a_study_and_a_series_are_rendered_a_part_for_each_picture(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    report = ct_slice(Rows=None, Columns=None, PixelData=None, SeriesNumber=0, SeriesInstanceUID=new_uid("report"))
    ds = ct_slice()
    keep(report, ds, ct_slice(number=2))
    study = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    for path in (study, f"{study}/series/{ds.SeriesInstanceUID}"):
        answer = client.get(f"{path}/rendered?viewport=8,8", headers={"Accept": 'multipart/related; type="image/png"'})
        assert answer.headers["content-type"].startswith('multipart/related; type="image/png"')
        found = parts(answer)
        assert [kind for kind, _ in found] == ["image/png"] * 2
        assert contents(answer)[0] == client.get(address(ds, "/rendered?viewport=8,8&accept=image/png")).content
    assert client.get(f"{study}/series/{report.SeriesInstanceUID}/rendered").status_code == 406
    assert client.get(f"{study}/rendered", headers={"Accept": "image/jpeg"}).status_code == 406  # several


@pytest.mark.req("REQ-DCM-90")
def test_copies_that_are_missing_are_said_beside_the_pictures_and_the_metadata(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    keep(ct_slice(), ct_slice(number=2))
    study = f"/dicom-web/studies/{new_uid('study')}"
    Path(named(archive, new_uid("study"))[0].path).unlink()
    assert client.head(f"{study}/rendered").status_code == 206
    answer = client.get(f"{study}/rendered")
    assert (answer.status_code, len(parts(answer))) == (206, 1)
    assert client.get(f"{study}/metadata").status_code == 206
    assert closed(archive) == {"instances": 2, "bytes": ANY, "failed": 2}


@pytest.mark.req("REQ-SEC-20")
@pytest.mark.parametrize(
    ("more", "accept", "asked", "instances"),
    [
        ("", "application/dicom", "bytes=0-99", 1),
        ("/bulkdata/7FE00010", "application/octet-stream", "bytes=10-19", 1),
        ("/bulkdata/7FE00010", "application/octet-stream", "", 1),
        ("/metadata", "application/dicom+json", "", 1),
        ("/../../metadata", "application/dicom+json", "", 2),
    ],
)
def test_what_left_is_counted(
    archive: Archive,
    client: httpx.Client,
    keep: Callable[..., Outcome],
    more: str,
    accept: str,
    asked: str,
    instances: int,
) -> None:
    ds = ct_slice()
    keep(ds, ct_slice(number=2))
    headers = {"Accept": accept, "Accept-Encoding": "identity", **({"Range": asked} if asked else {})}
    answer = client.get(address(ds, more), headers=headers)
    assert answer.is_success
    assert closed(archive) == {"instances": instances, "bytes": len(answer.content)}


@pytest.mark.req("REQ-SEC-20")
def test_all_frames_of_a_list_are_counted_and_all_of_an_encapsulated_value(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = multi_frame(syntax=JPEGLSLossless)
    keep(ds)
    given = contents(client.get(address(ds, "/frames/1,2,4"))) + contents(client.get(address(ds, "/bulkdata/7FE00010")))
    assert len(given) == 7
    assert closed(archive) == {"instances": 2, "bytes": sum(map(len, given))}


@pytest.mark.req("REQ-SEC-20")
def test_head_hands_over_nothing_and_says_the_same(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice()
    keep(ds)
    paths = [
        address(ds, more) for more in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulkdata/7FE00010")
    ]
    said = [client.head(path) for path in paths]
    with archive.reading() as conn:
        assert list_rows(conn, event="110104", action="R").items == []
    for path, head in zip(paths, said, strict=True):
        answer = client.get(path)
        kinds = [one.headers["content-type"].partition("; boundary")[0] for one in (head, answer)]
        assert (head.status_code, kinds[0], head.headers["etag"]) == (200, kinds[1], answer.headers["etag"]), path
        if "content-length" in head.headers:
            assert head.headers["content-length"] == str(len(answer.content)), path


def closed(archive: Archive) -> dict[str, object]:
    """What the closing row of the one access tells, once it is closed."""
    archive.accesses.close()
    archive.commit.run(lambda conn: None)
    with archive.reading() as conn:
        rows = [row["detail"] for row in list_rows(conn, event="110104", action="R").items]
    (row,) = [detail for detail in rows if detail.get("phase") == "close"]
    return {name: row[name] for name in ("instances", "bytes", "failed") if name in row}


@pytest.mark.req("REQ-DCM-90")
def test_what_cannot_be_made_a_picture_is_not_acceptable(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    wide, torn = ct_slice(rows=1, columns=65501), ct_slice(number=2)
    keep(wide, torn)
    assert client.get(address(wide, "/rendered")).status_code == 406
    assert client.get(address(wide, "/rendered"), headers={"Accept": "image/png"}).status_code == 200
    copy = Path(named(archive, torn.StudyInstanceUID)[1].path)
    copy.chmod(0o600)
    with copy.open("r+b") as file:
        file.write(b"\0" * 200)  # as long as it was, and no DICOM file any more
    for more in ("/rendered", "/thumbnail", "/frames/7/rendered"):
        assert client.get(address(torn, more)).status_code == 406, more
    assert client.get(f"/dicom-web/studies/{wide.StudyInstanceUID}/rendered").status_code == 406


@pytest.mark.req("REQ-DCM-99")
def test_the_thumbnail_of_a_study_passes_over_what_has_no_picture(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    report = ct_slice(Rows=None, Columns=None, PixelData=None, SeriesNumber=0, SeriesInstanceUID=new_uid("report"))
    keep(report)
    study = f"/dicom-web/studies/{report.StudyInstanceUID}"
    assert client.get(f"{study}/thumbnail").status_code == 406
    keep(ct_slice())
    assert client.get(f"{study}/thumbnail").status_code == 200


# -- WADO-URI -----------------------------------------------------------------------------------------------------


def wado(ds: Dataset, **more: str) -> str:
    return str(
        httpx.URL(
            "/wado",
            params={
                "requestType": "WADO", "studyUID": ds.StudyInstanceUID, "seriesUID": ds.SeriesInstanceUID,
                "objectUID": ds.SOPInstanceUID, **more,
            },
        )
    )  # fmt: skip


@pytest.mark.req("REQ-DCM-95")
@pytest.mark.parametrize(
    ("asked", "syntax"),
    [
        ({}, "1.2.840.10008.1.2.1"),
        ({"transferSyntax": "1.2.840.10008.1.2.4.80"}, "1.2.840.10008.1.2.4.80"),
        ({"transferSyntax": "1.2.840.10008.1.2"}, "1.2.840.10008.1.2"),
        ({"transferSyntax": "*"}, "1.2.840.10008.1.2.1"),
    ],
)
def test_wado_uri_gives_the_object(
    client: httpx.Client, keep: Callable[..., Outcome], asked: dict[str, str], syntax: str
) -> None:
    ds = ct_slice(rows=32, columns=32)
    keep(ds)
    answer = client.get(wado(ds, contentType="application/dicom", **asked))
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={syntax}"
    back = pydicom.dcmread(io.BytesIO(answer.content))
    assert (back.file_meta.TransferSyntaxUID, back.SOPInstanceUID) == (syntax, ds.SOPInstanceUID)
    assert np.array_equal(back.pixel_array, ds.pixel_array)
    if not asked:
        assert data_set_of(answer.content) == data_set_of(part10(ds))


@pytest.mark.req("REQ-DCM-95")
def test_wado_uri_gives_a_picture_in_the_window_and_size_that_are_asked_for(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    from PIL import Image

    ds = multi_frame()
    keep(ds)
    single = ct_slice(rows=40, columns=20, SeriesInstanceUID=new_uid("single"))
    keep(single)
    answer = client.get(wado(single))  # an image of one frame: a picture unless something else is said
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (20, 40)
    assert client.get(wado(ds)).headers["content-type"].startswith("application/dicom")
    one = client.get(wado(ds, contentType="image/jpeg", frameNumber="3", columns="12", imageQuality="50"))
    rendered = client.get(address(ds, "/frames/3/rendered?viewport=12,9999&quality=50"))
    assert one.content == rendered.content
    windowed = client.get(wado(ds, contentType="image/png,image/jpeg;q=0.5", windowCenter="1000", windowWidth="500"))
    assert windowed.content == client.get(address(ds, "/rendered?window=1000,500&accept=image/png")).content


@pytest.mark.req("REQ-DCM-95")
def test_what_wado_uri_does_not_do_is_said(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = ct_slice()
    keep(ds)
    table: list[tuple[dict[str, str], int]] = [
        ({"requestType": "OTHER"}, 400),
        ({"objectUID": "not a UID"}, 400),
        ({"objectUID": "1.2.3"}, 404),
        ({"contentType": "text/html"}, 406),
        ({"contentType": "application/dicom", "transferSyntax": "1.2.840.10008.1.2.4.50"}, 406),
        ({"contentType": "application/dicom", "frameNumber": "1"}, 400),
        ({"contentType": "image/jpeg", "frameNumber": "2"}, 404),
        ({"contentType": "image/jpeg", "transferSyntax": "1.2.840.10008.1.2"}, 400),
        ({"windowCenter": "40"}, 400),
        ({"rows": "0"}, 400),
        ({"anonymize": "yes"}, 400),  # nobody is to take what came for anonymous
    ]
    for changed, status in table:
        answer = client.get(wado(ds, **changed))
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), changed


@pytest.mark.req("REQ-DCM-95")
def test_wado_uri_asks_who_it_is(archive: Archive, stranger: httpx.Client, actor: Actor) -> None:
    assert stranger.get(wado(ct_slice())).status_code == 401
    with archive.reading() as conn:
        (row,) = list_rows(conn, event="110114").items
    assert (row["outcome"], row["door"]) == (8, "dicomweb")
