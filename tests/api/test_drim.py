"""The requests of a DRIMbox as the ANS describes them for DRIM-M (sheet 50 §4): one Accept of many ranges with q, a
trailing comma, `boundary=**`, the manifest in a header. Written from that description."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless

from archive.audit.read import list_rows
from archive.core import Archive
from archive.instance import Outcome
from tests.api.test_accept import LOSSLESS_WISH, LOSSY_WISH
from tests.api.test_wado import DATA, address, contents, keep, parts
from tests.builders import ct_slice, new_uid

__all__ = ["keep"]
DICOM = "application/dicom"
KOS = "1.2.250.1.213.4.5.2.9"
LOSSY_AT_SOURCE = DATA / "transfer-syntaxes" / "SC_rgb_small_odd_jpeg.dcm"


def ask(client: httpx.Client, path: str, accept: str, kos: str = KOS) -> httpx.Response:
    return client.get(path, headers={"Accept": accept, "KOS-SOPInstanceUID": kos})


def compressed(ds: Dataset) -> Dataset:
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    return ds


@pytest.mark.req("REQ-DRIM-04", "REQ-DCM-91", "REQ-DCM-98", "REQ-DRIM-30")
def test_a_drimbox_gets_study_series_and_instance_without_a_new_loss(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    native = ct_slice(rows=32, columns=32)
    jls = compressed(ct_slice(rows=32, columns=32, SeriesInstanceUID=new_uid("jls"), SeriesNumber=2))
    keep(native, jls)
    study = f"/dicom-web/studies/{native.StudyInstanceUID}"
    for wish in (LOSSLESS_WISH, LOSSY_WISH):
        for path, expected in (
            (study, [JPEGLosslessSV1, JPEGLSLossless]),
            (f"{study}/series/{native.SeriesInstanceUID}", [JPEGLosslessSV1]),
            (address(native), [JPEGLosslessSV1]),  # the highest q without loss
            (f"{study}/series/{jls.SeriesInstanceUID}", [JPEGLSLossless]),  # accepted as it is stored
            (address(jls), [JPEGLSLossless]),
        ):
            answer = ask(client, path, wish)
            assert (answer.status_code, answer.headers["transfer-encoding"]) == (200, "chunked")
            assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
            assert [kind for kind, _ in parts(answer)] == [f"{DICOM}; transfer-syntax={one}" for one in expected]
            if len(expected) == 1:
                assert answer.headers["content-type"].endswith(f"; transfer-syntax={expected[0]}")
            for file in contents(answer):
                back = pydicom.dcmread(io.BytesIO(file))
                stored = native if back.SOPInstanceUID == native.SOPInstanceUID else jls
                assert np.array_equal(back.pixel_array, stored.pixel_array)
    with archive.reading() as conn:
        rows = list_rows(conn, event="110104", action="R").items
    assert {row["detail"]["scope"] for row in rows} == {f"KOS {KOS}"}


@pytest.mark.req("REQ-DRIM-04")
@pytest.mark.skipif(not LOSSY_AT_SOURCE.exists(), reason="no shared data: set MINIPACS_TEST_DATA")
def test_what_was_lossy_at_its_source_comes_as_it_is(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = pydicom.dcmread(LOSSY_AT_SOURCE)
    keep(LOSSY_AT_SOURCE.read_bytes())
    for wish in (LOSSLESS_WISH, LOSSY_WISH):
        ((kind, _),) = parts(ask(client, address(ds), wish))
        assert kind == f"application/dicom; transfer-syntax={ds.file_meta.TransferSyntaxUID}"


@pytest.mark.req("REQ-DRIM-04")
def test_a_drimbox_gets_frames(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    native = ct_slice()
    keep(native)
    octets = 'multipart/related; type="application/octet-stream";transfer-syntax=1.2.840.10008.1.2.1;q=0.9;boundary=**,'
    (frame,) = contents(ask(client, address(native, "/frames/1"), octets))
    assert frame == native.PixelData
    assert ExplicitVRLittleEndian in parts(ask(client, address(native, "/frames/1"), octets))[0][0]


@pytest.mark.req("REQ-DRIM-04", "REQ-DRIM-30")
def test_a_drimbox_is_told_what_is_wrong(
    client: httpx.Client, stranger: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice()
    keep(ds)
    assert ask(stranger, address(ds), LOSSLESS_WISH).status_code == 401
    assert ask(client, address(ds), "multipart related").status_code == 400
    assert ask(client, address(ds), LOSSLESS_WISH, kos="no UID").status_code == 400
    assert ask(client, "/dicom-web/studies/1.2.3", LOSSLESS_WISH).status_code == 404
    assert ask(client, address(ds), "text/html").status_code == 406
