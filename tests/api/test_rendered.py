"""Pictures as the query asks for them: parts of an image, and words in it (PS3.18 8.3.5.1, REQ-DCM-90, REQ-DCM-95)."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from archive.core import Archive
from archive.dicom.lettering import Words, burnt
from archive.ingest import Outcome
from tests.api.test_wado import address, contents, keep
from tests.archive.dicom.correcting import correct, element, pn
from tests.builders import ct_slice

__all__ = ["keep"]  # a fixture
PNG = {"Accept": "image/png"}
MARTIN = {"00100010": pn("MARTIN^Zoé"), "00100020": element("LO", "IPP1"), "00100030": element("DA", "19700102")}


def ramp(**changes: object) -> Dataset:
    """Values that are what is shown."""
    ds = ct_slice(rows=120, columns=200, WindowCenter="128", WindowWidth="256", **changes)
    ds.RescaleIntercept = "0"
    ds.PixelData = (np.arange(120 * 200) % 256).astype("<u2").tobytes()
    return ds


def picture(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def values(answer: httpx.Response) -> np.ndarray:
    return np.asarray(picture(answer))


@pytest.mark.req("REQ-DCM-90")
def test_a_viewport_shows_the_region_that_is_asked_for(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = ramp()
    keep(ds)
    whole = values(client.get(address(ds, "/rendered"), headers=PNG))
    assert whole.shape == (120, 200)
    for viewport, expected in (
        ("200,120", whole),
        ("50,40,30,20,50,40", whole[20:60, 30:80]),
        ("50,500,30,20,50,40", whole[20:60, 30:80]),
        ("50,40,30,20,-50,40", whole[20:60, 30:80][:, ::-1]),
        ("50,40,30,20,50,-40", whole[20:60, 30:80][::-1]),
        ("50,40,-30,-20,50,40", whole[20:60, 30:80]),  # absolute values
        ("200,120,,,-200", whole[:, ::-1]),  # what is left out: from the corner, to the edge
        ("170,100,30,20", whole[20:, 30:]),
        ("50.0,40", None),
    ):
        answer = client.get(address(ds, "/rendered"), headers=PNG, params={"viewport": viewport})
        if expected is None:
            assert answer.status_code == 400, viewport
        else:
            assert np.array_equal(values(answer), expected), viewport
    enlarged = client.get(address(ds, "/frames/1/rendered?viewport=600,600,0,0,100,50"), headers=PNG)
    assert picture(enlarged).size == (600, 300)
    assert picture(client.get(address(ds, "/rendered?viewport=400,400"), headers=PNG)).size == (400, 240)


@pytest.mark.req("REQ-DCM-90")
@pytest.mark.parametrize(
    "viewport",
    [
        "50", "50,", "50,40,x", "50,40,0,0,0,10", "50,40,0,0,10,0", "50,40,200", "50,40,0,120", "50,40,1,2,3,4,5",
        "50,40,nan", "50,40,1e3", "0,40", "99999,40", "16384,16384",
    ],
)  # fmt: skip
def test_a_viewport_that_makes_no_sense_is_400(
    client: httpx.Client, keep: Callable[..., Outcome], viewport: str
) -> None:
    ds = ramp()
    keep(ds)
    assert client.get(address(ds, "/rendered"), params={"viewport": viewport}).status_code == 400


@pytest.mark.req("REQ-DCM-90", "REQ-DCM-70")
def test_annotations_are_burnt_in_as_the_patient_is_known_now(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ramp(PatientName="DUPONT^Anne", StudyDescription="Thorax", SeriesDescription="Os")
    keep(ds)
    plain = picture(client.get(address(ds, "/rendered"), headers=PNG))
    url = address(ds, "/rendered?annotation=patient")
    before = client.get(url, headers=PNG)
    patient = ("DUPONT Anne", "N° IPP1", "Née le 01/01/1970 F")
    assert np.array_equal(values(before), np.asarray(burnt(plain, Words(top=patient))))
    assert client.get(url, headers=PNG | {"If-None-Match": before.headers["etag"]}).status_code == 304
    correct(archive, "IPP1", MARTIN)
    after = client.get(url, headers=PNG | {"If-None-Match": before.headers["etag"]})
    patient = ("MARTIN Zoé", "N° IPP1", "Née le 02/01/1970 F")
    assert np.array_equal(values(after), np.asarray(burnt(plain, Words(top=patient))))
    technique = values(client.get(address(ds, "/rendered?annotation=technique"), headers=PNG))
    both = values(client.get(address(ds, "/rendered?annotation=patient,technique"), headers=PNG))
    assert np.array_equal(both[:60], values(after)[:60])
    assert np.array_equal(both[60:], technique[60:])
    assert np.array_equal(technique[:60], np.asarray(plain)[:60])
    assert not np.array_equal(technique, np.asarray(plain))
    # words are upright whichever way round the image is, and of the picture, not of the image
    turned = values(client.get(f"{url}&viewport=200,120,,,-200,-120", headers=PNG))
    flipped = plain.transpose(Image.Transpose.ROTATE_180)
    assert np.array_equal(turned, np.asarray(burnt(flipped, Words(top=patient))))
    assert "warning" not in after.headers


@pytest.mark.req("REQ-DCM-90")
def test_annotations_that_are_not_done_are_told_in_a_warning(
    url: str, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ramp()
    keep(ds)
    for path in (address(ds, "/rendered"), address(ds).split("/instances")[0] + "/rendered"):
        answer = client.get(path, params={"annotation": 'institution,patient,a"\r\nb'})
        assert answer.status_code == 200
        assert answer.headers["warning"] == (
            f'299 {url}/dicom-web: "The following annotation values are not supported: institution, a???b"'
        )


@pytest.mark.req("REQ-DCM-90")
def test_the_pictures_of_a_series_show_the_region_of_those_that_have_it(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    small = ct_slice(number=2, rows=16, columns=16)
    ds = ramp(number=1)
    keep(ds, small)
    series = address(ds).split("/instances")[0]
    accept = {"Accept": 'multipart/related; type="image/png"'}
    answer = client.get(f"{series}/rendered?viewport=50,40,100,60,50,40&annotation=technique", headers=accept)
    assert [Image.open(io.BytesIO(one)).size for one in contents(answer)] == [(50, 40)]
    assert client.get(f"{series}/rendered?viewport=50,40,500", headers=accept).status_code == 406
    assert client.get(f"{series}/rendered?viewport=50,40,x", headers=accept).status_code == 400


@pytest.mark.req("REQ-DCM-99")
def test_nothing_is_ever_written_into_a_thumbnail(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = ramp()
    keep(ds)
    plain = client.get(address(ds, "/thumbnail"), headers=PNG)
    assert client.get(address(ds, "/thumbnail?annotation=patient"), headers=PNG).content == plain.content
    assert picture(client.get(address(ds, "/thumbnail?viewport=500,500"), headers=PNG)).size == (200, 120)
    assert client.get(address(ds, "/thumbnail?viewport=50,50,1,1,5,5")).status_code == 400


@pytest.mark.req("REQ-DCM-95")
def test_wado_uri_gives_a_region_and_annotations_too(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ramp(PatientName="DUPONT^Anne")
    keep(ds)
    uids = {"studyUID": ds.StudyInstanceUID, "seriesUID": ds.SeriesInstanceUID, "objectUID": ds.SOPInstanceUID}
    base = {"requestType": "WADO", **uids, "contentType": "image/png"}
    whole = picture(client.get("/wado", params=base))
    region = values(client.get("/wado", params={**base, "region": "0.25,0.5,0.75,1.0"}))
    assert np.array_equal(region, np.asarray(whole)[60:, 50:150])
    sized = client.get("/wado", params={**base, "region": "0.25,0.5,0.75,1.0", "columns": "400"})
    assert picture(sized).size == (400, 240)
    assert picture(client.get("/wado", params={**base, "columns": "400"})).size == (200, 120)
    named = values(client.get("/wado", params={**base, "annotation": "patient"}))
    assert np.array_equal(named, np.asarray(burnt(whole, Words(top=("DUPONT Anne", "N° IPP1", "Née le 01/01/1970 F")))))
    for wrong in (
        {"region": "0,0,1"},
        {"region": "0.5,0,0.5,1"},
        {"region": "0,0,1.1,1"},
        {"region": "-0.1,0,1,1"},
        {"annotation": "institution"},
        {"contentType": "application/dicom", "annotation": "patient"},
        {"contentType": "application/dicom", "region": "0,0,1,1"},
        {"anonymize": "yes"},
    ):
        assert client.get("/wado", params={**base, **wrong}).status_code == 400, wrong
