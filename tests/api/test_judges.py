"""What other people's clients send, rewritten from their documentation, each with its source."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from archive.core import Archive
from archive.instance import Outcome
from tests.api.test_purges import may
from tests.api.test_stow import items
from tests.api.test_wado import DATA, address, contents, keep, parts
from tests.builders import ct_slice
from tests.retention.life import put_clock

__all__ = ["keep", "may"]
TUTORIAL = DATA / "ms-tutorial"
WEASIS_FIELDS = (
    "00080020,00080030,00080050,00080061,00080090,00081030,00100010,00100020,00100021,00100030,00100040,0020000D,"
    "00200010"
)


@pytest.mark.skipif(not TUTORIAL.exists(), reason="no shared data: set MINIPACS_TEST_DATA")
@pytest.mark.req("REQ-DCM-90", "REQ-DCM-91", "REQ-DCM-92", "REQ-DCM-93", "REQ-DCM-94", "REQ-DCM-98")
def test_the_walk_through_of_microsofts_tutorial(
    archive: Archive, client: httpx.Client, may: Callable[..., httpx.Client]
) -> None:
    """The steps of «Use DICOMweb Standard APIs with Python» (microsoft/dicom-server 9.0.12, docs/tutorials), with its
    three files. What differs here: DELETE is refused while the law keeps a study, and then hides what it names."""
    files = {name: (TUTORIAL / f"{name}.dcm").read_bytes() for name in ("red-triangle", "green-square", "blue-circle")}
    red, green, blue = (pydicom.dcmread(io.BytesIO(file)) for file in files.values())
    study = f"/dicom-web/studies/{red.StudyInstanceUID}"
    series = f"{study}/series/{red.SeriesInstanceUID}"
    as_stored = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    json = {"Accept": "application/dicom+json"}
    put_clock(archive, "2026-01-05T09:00:00")

    # store: multipart, under a study, and one instance alone
    body = b"--ABCD1234\r\nContent-Type: application/dicom\r\n\r\n%b\r\n--ABCD1234--"
    headers = json | {"Content-Type": 'multipart/related; type="application/dicom"; boundary=ABCD1234'}
    stored = client.post("/dicom-web/studies", content=body % files["red-triangle"], headers=headers)
    assert (stored.status_code, len(items(stored, "00081199"))) == (200, 1)
    assert client.post(study, content=body % files["green-square"], headers=headers).status_code == 200
    alone = client.post(
        "/dicom-web/studies", content=files["blue-circle"], headers={"Content-Type": "application/dicom"}
    )
    assert alone.status_code == 200

    # retrieve: study, series, instance, their metadata, a frame
    assert len(contents(client.get(study, headers={"Accept": as_stored}))) == 3
    assert len(contents(client.get(series, headers={"Accept": as_stored}))) == 2
    single = client.get(address(red), headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert pydicom.dcmread(io.BytesIO(single.content)).SOPInstanceUID == red.SOPInstanceUID
    for path, count in ((study, 3), (series, 2), (address(red), 1)):
        assert len(client.get(f"{path}/metadata", headers=json).json()) == count
    octets = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'
    (frame,) = contents(client.get(address(red, "/frames/1"), headers={"Accept": octets}))
    assert frame + b"\0" == red.PixelData  # a frame is not padded

    # search: each resource by the UID below it
    for path, found in (
        (f"/dicom-web/studies?StudyInstanceUID={red.StudyInstanceUID}", 1),
        (f"/dicom-web/series?SeriesInstanceUID={red.SeriesInstanceUID}", 1),
        (f"{study}/series?SeriesInstanceUID={blue.SeriesInstanceUID}", 1),
        (f"/dicom-web/instances?SOPInstanceUID={green.SOPInstanceUID}", 1),
        (f"{study}/instances?SOPInstanceUID={blue.SOPInstanceUID}", 1),
        (f"{series}/instances?SOPInstanceUID={red.SOPInstanceUID}", 1),
    ):
        assert len(client.get(path, headers=json).json()) == found, path

    # delete: an instance, a series, a study
    anne = may("radiologist", "anne")
    assert anne.delete(address(red)).status_code == 409
    put_clock(archive, "2031-01-05T09:00:00")
    assert anne.delete(address(red)).status_code == 204
    assert client.get(address(red)).status_code == 410
    assert len(contents(client.get(series, headers={"Accept": as_stored}))) == 1


@pytest.mark.req("REQ-DCM-93", "REQ-DCM-90", "REQ-DCM-95")
def test_the_requests_of_weasis(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    """Its search is quoted in orthanc-dicomweb (changeset 4113e0465b4b, Plugin/QidoRs.cpp); it fetches objects by
    WADO-RS or, from a manifest, by WADO-URI (nroduit/weasis-pacs-connector, README)."""
    ds = ct_slice()
    keep(ds, ct_slice(number=2))
    found = client.get(f"/dicom-web/studies?&includefield={WEASIS_FIELDS}&limit=10&offset=0")
    (row,) = found.json()
    assert set(WEASIS_FIELDS.split(",")) - {"00100021"} <= set(row)
    assert "warning" not in found.headers
    base = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    (one,) = client.get(f"{base}/series?includefield=0008103E,00080060").json()
    uid = one["0020000E"]["Value"][0]
    listed = client.get(f"{base}/series/{uid}/instances?includefield=00200013,0020000D,0020000E").json()
    assert [row["00200013"]["Value"] for row in listed] == [[1], [2]]
    object_uid = listed[0]["00080018"]["Value"][0]
    wanted = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    assert len(parts(client.get(f"{base}/series/{uid}/instances/{object_uid}", headers=wanted))) == 1
    assert client.get(f"{base}/series/{uid}/thumbnail", headers={"Accept": "image/jpeg"}).status_code == 200
    uri = {
        "requestType": "WADO", "studyUID": ds.StudyInstanceUID, "seriesUID": uid, "objectUID": object_uid,
        "contentType": "application/dicom", "transferSyntax": "*",
    }  # fmt: skip
    assert pydicom.dcmread(io.BytesIO(client.get("/wado", params=uri).content)).SOPInstanceUID == object_uid


@pytest.mark.req("REQ-DCM-90", "REQ-DCM-93", "REQ-DCM-94", "REQ-DCM-97")
def test_dicomweb_client_does_all_it_can(url: str, client: httpx.Client) -> None:
    """dicomweb-client 0.61: store, search, retrieve in each form it knows."""
    web = DICOMwebClient(f"{url}/dicom-web", headers={"Authorization": client.headers["authorization"]})
    slices = [ct_slice(number=number, rows=24, columns=32) for number in (1, 2)]
    assert len(web.store_instances(slices).ReferencedSOPSequence) == 2
    ds = slices[0]
    uids = ds.StudyInstanceUID, ds.SeriesInstanceUID
    assert len(web.search_for_studies(search_filters={"PatientName": "dupont*"}, fields=["StudyDescription"])) == 1
    assert len(web.search_for_series(ds.StudyInstanceUID)) == 1
    assert len(web.search_for_instances(*uids, limit=1, offset=1)) == 1
    for found in (web.retrieve_study(uids[0]), web.retrieve_series(*uids)):
        assert [one.SOPInstanceUID for one in found] == [one.SOPInstanceUID for one in slices]
    jls = web.retrieve_instance(
        *uids, ds.SOPInstanceUID, media_types=(("application/dicom", "1.2.840.10008.1.2.4.80"),)
    )
    assert jls.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.80"
    assert (jls.pixel_array == ds.pixel_array).all()
    metadata = [pydicom.Dataset.from_json(one) for one in web.retrieve_series_metadata(*uids)]
    assert [one.InstanceNumber for one in metadata] == [1, 2]
    assert web.retrieve_instance_frames(*uids, ds.SOPInstanceUID, frame_numbers=[1]) == [ds.PixelData]
    bulk = web.retrieve_bulkdata(f"{url}{address(ds, '/bulkdata/7FE00010')}")
    assert bulk == [ds.PixelData]
    picture = web.retrieve_instance_rendered(
        *uids, ds.SOPInstanceUID, media_types=("image/png",), params={"quality": "90"}
    )
    assert picture.startswith(b"\x89PNG")
