"""WADO-RS: what was stored comes back, in a form that is accepted, without a new loss."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from archive.access import Actor
from archive.audit.read import list_rows
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom import lossless, xml
from archive.errors import Rejected
from archive.ingest import Outcome, ingest
from archive.retrieve import select
from archive.storage.part10 import Part10
from tests.api.conftest import on_both_databases
from tests.builders import ct_slice, data_set, new_uid, part10

DATA = Path(os.environ.get("MINIPACS_TEST_DATA", "/work/shared")) / "data"
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.fixture
def keep(archive: Archive, actor: Actor) -> Callable[..., Outcome]:
    """Stores files or data sets; the outcome of the last."""

    def store(*objects: Dataset | bytes) -> Outcome:
        for one in objects:
            file = Part10(archive.hot, at=archive.real_clock())
            file.feed(one if isinstance(one, bytes) else part10(one))
            outcome = ingest(archive, file.finish(), actor=actor)
        return outcome

    return store


@pytest.fixture
def web(url: str, client: httpx.Client) -> DICOMwebClient:
    return DICOMwebClient(f"{url}/dicom-web", headers={"Authorization": client.headers["authorization"]})


def address(ds: Dataset, more: str = "") -> str:
    return f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}{more}"


def parts(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """Content-Type and bytes of each part."""
    kind = answer.headers["content-type"]
    assert kind.startswith("multipart/related"), kind
    message = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + answer.content)
    return [(part["content-type"], part.get_payload(decode=True)) for part in message.get_payload()]  # type: ignore[union-attr,misc]


def split(body: bytes, boundary: str) -> list[bytes]:
    """The contents of the parts, by hand: a mail reader may touch line ends."""
    pieces = body.split(f"--{boundary}".encode())
    assert pieces[-1] == b"--\r\n"
    return [piece.split(b"\r\n\r\n", 1)[1][:-2] for piece in pieces[1:-1]]


def contents(answer: httpx.Response) -> list[bytes]:
    return split(answer.content, answer.headers["content-type"].split("boundary=")[1].split(";")[0])


def data_set_of(file: bytes) -> bytes:
    length = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return file[144 + length :]


def compressed(ds: Dataset, syntax: str) -> Dataset:
    ds.compress(syntax, generate_instance_uid=False)
    return ds


@on_both_databases
@pytest.mark.req("REQ-DCM-90")
def test_dicomweb_client_gets_study_series_and_instance_back(web: DICOMwebClient, keep: Callable[..., Outcome]) -> None:
    slices = [ct_slice(number=number) for number in (2, 1)]
    other = ct_slice(SeriesInstanceUID=new_uid("other"), SeriesNumber=2)
    keep(*slices, other)
    study, series = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
    expected = [slices[1], slices[0], other]
    assert [one.SOPInstanceUID for one in web.retrieve_study(study)] == [ds.SOPInstanceUID for ds in expected]
    assert [data_set(one) for one in web.retrieve_series(study, series)] == [data_set(ds) for ds in expected[:2]]
    assert data_set(web.retrieve_instance(study, series, slices[0].SOPInstanceUID)) == data_set(slices[0])


@pytest.mark.req("REQ-DCM-90")
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless],
)
def test_as_stored_is_what_was_stored(client: httpx.Client, keep: Callable[..., Outcome], syntax: str) -> None:
    ds = ct_slice(rows=32, columns=32)
    if syntax in (JPEGLSLossless, RLELossless):
        compressed(ds, syntax)
    else:
        ds.file_meta.TransferSyntaxUID = syntax
    keep(ds)
    answer = client.get(address(ds), headers={"Accept": AS_STORED})
    assert answer.status_code == 200
    assert f"transfer-syntax={syntax}" in answer.headers["content-type"]
    [file] = contents(answer)
    assert data_set_of(file) == data_set(ds)
    assert parts(answer)[0][0] == f"application/dicom; transfer-syntax={syntax}"


@pytest.mark.req("REQ-DCM-90", "REQ-DCM-91")
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("target", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_is_lossless_comes_in_little_endian(
    client: httpx.Client, keep: Callable[..., Outcome], syntax: str, target: str
) -> None:
    ds = ct_slice(rows=32, columns=32)
    pixels = ds.pixel_array.copy()
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = pixels.astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax == ImplicitVRLittleEndian:
        ds.file_meta.TransferSyntaxUID = syntax
    else:
        compressed(ds, syntax)
    keep(ds)
    accept = "*/*" if target == ExplicitVRLittleEndian else f"application/dicom; transfer-syntax={target}"
    answer = client.get(address(ds), headers={"Accept": accept})
    assert answer.status_code == 200
    file = contents(answer)[0] if target == ExplicitVRLittleEndian else answer.content
    back = pydicom.dcmread(io.BytesIO(file))
    assert back.file_meta.TransferSyntaxUID == target
    assert back.SOPInstanceUID == ds.SOPInstanceUID
    assert np.array_equal(back.pixel_array, pixels)
    assert str(back.PatientName) == str(ds.PatientName)


@pytest.mark.req("REQ-DCM-91")
def test_what_is_lossy_comes_as_it_is_stored_and_never_in_another_loss(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    file = (DATA / "transfer-syntaxes" / "SC_rgb_small_odd_jpeg.dcm").read_bytes()
    ds = pydicom.dcmread(io.BytesIO(file))
    keep(file)
    answer = client.get(address(ds), headers={"Accept": "*/*"})
    assert answer.status_code == 200
    assert f"transfer-syntax={ds.file_meta.TransferSyntaxUID}" in answer.headers["content-type"]
    assert data_set_of(contents(answer)[0]) == data_set_of(file)
    wished = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.91'
    refused = client.get(address(ds), headers={"Accept": wished})
    assert refused.status_code == 406
    assert "1.2.840.10008.1.2.4" in refused.json()["detail"]


@pytest.mark.req("REQ-DCM-41")
def test_a_lossy_wish_on_a_lossless_image_is_answered_without_loss(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice()
    keep(ds)
    only_lossy = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50'
    assert client.get(address(ds), headers={"Accept": only_lossy}).status_code == 406
    both = (
        f'{only_lossy};q=0.9, multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1;q=0.4,'
    )
    answer = client.get(address(ds), headers={"Accept": both})
    assert data_set_of(contents(answer)[0]) == data_set(ds)


@pytest.mark.req("REQ-DCM-91", "REQ-DCM-98")
def test_a_series_of_several_syntaxes_tells_each_in_its_part(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    keep(ct_slice(number=1), compressed(ct_slice(number=2, rows=32, columns=32), JPEGLSLossless))
    study = ct_slice().StudyInstanceUID
    answer = client.get(f"/dicom-web/studies/{study}", headers={"Accept": AS_STORED})
    assert "transfer-syntax" not in answer.headers["content-type"]
    assert [kind for kind, _ in parts(answer)] == [
        f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}",
        f"application/dicom; transfer-syntax={JPEGLSLossless}",
    ]
    lossy = ct_slice(number=3, transfer_syntax=JPEGBaseline8Bit, PixelData=encapsulate([b"\xff\xd8 of old"]))
    lossy["PixelData"].VR = "OB"
    keep(lossy)
    only = f'multipart/related; type="application/dicom"; transfer-syntax={JPEGBaseline8Bit}'
    partial = client.get(f"/dicom-web/studies/{study}", headers={"Accept": only})
    assert (partial.status_code, len(contents(partial))) == (206, 1)


@pytest.mark.req("REQ-DCM-92")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dicom-web/studies/1.2.3", 404),
        ("/dicom-web/studies/1.2.3/metadata", 404),
        ("/dicom-web/studies/1.2.3/series/1.2.4", 404),
        ("/dicom-web/studies/{study}/series/1.2.4", 404),
        ("/dicom-web/studies/{study}/series/{series}/instances/1.2.5", 404),
        ("/dicom-web/studies/{study}/series/{series}/instances/1.2.5/frames/1", 404),
        ("/dicom-web/studies/1.2.x", 400),
        ("/dicom-web/studies/" + "1" * 65, 400),
        ("/dicom-web/studies/1..2", 400),
        ("/dicom-web/studies/%D9%A1.2", 400),
        ("{instance}/frames/2", 404),
        ("{instance}/frames/1,7", 404),
        ("{instance}/frames/0", 404),
        ("{instance}/frames/x", 400),
        ("{instance}/frames/1,,2", 400),
        ("{instance}/frames/2/rendered", 404),
        ("{instance}/rendered?window=x", 400),
        ("{instance}/rendered?window=40,400,sigmoid", 400),
        ("{instance}/rendered?viewport=0,10", 400),
        ("{instance}/rendered?quality=101", 400),
        ("{instance}/bulkdata/00100010", 404),
        ("{instance}/bulkdata/nothing", 400),
        ("{instance}/bulkdata/0010", 400),
        ("{instance}/bulkdata/00081115/1/00081199", 404),
        ("{instance}?accept=text/plain", 200),
        ("{instance}?accept=application/dicom%3Btransfer-syntax=*", 200),
    ],
)
def test_what_is_not_there_is_said(client: httpx.Client, keep: Callable[..., Outcome], path: str, status: int) -> None:
    ds = ct_slice(PatientName=None)
    keep(ds)
    full = path.format(study=ds.StudyInstanceUID, series=ds.SeriesInstanceUID, instance=address(ds))
    assert client.get(full).status_code == status


@pytest.mark.req("REQ-DCM-91")
def test_none_acceptable_is_406_and_names_what_there_is(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = ct_slice()
    keep(ds)
    for more, accept, there in (
        ("", "image/jpeg", "application/dicom"),
        ("/metadata", "application/dicom+xml", "application/dicom+json"),
        ("/frames/1", "image/jphc", "application/octet-stream"),
        ("/rendered", "image/gif", "image/jpeg"),
        ("/bulkdata/7FE00010", "image/jls", "application/octet-stream"),
    ):
        answer = client.get(address(ds, more), headers={"Accept": accept})
        assert answer.status_code == 406, more
        assert there in answer.json()["detail"]
    assert client.get(address(ds), headers={"Accept": "dicom"}).status_code == 400


# -- metadata -----------------------------------------------------------------------------------------------------


@on_both_databases
@pytest.mark.req("REQ-DCM-90", "REQ-DCM-97")
def test_metadata_read_back_are_the_data_set_without_its_pixels(
    web: DICOMwebClient, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    slices = [ct_slice(number=number) for number in (1, 2)]
    keep(*slices)
    study, series = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
    found = [
        *web.retrieve_study_metadata(study),
        *web.retrieve_series_metadata(study, series),
        web.retrieve_instance_metadata(study, series, slices[0].SOPInstanceUID),
    ]
    for metadata, ds in zip(found, [*slices, *slices, slices[0]], strict=True):
        assert list(metadata) == sorted(metadata)
        address_of_pixels = metadata["7FE00010"]["BulkDataURI"]
        assert address_of_pixels == str(client.base_url.join(address(ds, "/bulkdata/7FE00010")))
        back = pydicom.Dataset.from_json(metadata, bulk_data_uri_handler=lambda _: None)
        for element in ds:
            if element.tag not in (0x7FE00010, 0x00080005):
                assert back[element.tag] == element
        assert back.SpecificCharacterSet == "ISO_IR 192"
        [content] = web.retrieve_bulkdata(address_of_pixels)
        assert content == ds.PixelData


@pytest.mark.req("REQ-DCM-90", "REQ-DCM-91")
def test_metadata_come_as_xml_a_part_for_each_instance(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    ds = ct_slice(WindowCenter="40", PatientComments='a < b & "c"\r\nd')
    ds.add_new(0x00091001, "LO", "of ours")
    ds.add_new(0x00090010, "LO", "ACME <1>")
    keep(ds, ct_slice(number=2))
    headers = {"Accept": 'multipart/related; type="application/dicom+xml"'}
    series = f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
    answer = client.get(f"{series}/metadata", headers=headers)
    assert {kind for kind, _ in parts(answer)} == {"application/dicom+xml"}
    first, second = (xml.read(document) for document in contents(answer))
    plain = client.get(f"{series}/metadata").json()
    assert Dataset.from_json(first) == Dataset.from_json(plain[0])
    assert second["00080018"] == plain[1]["00080018"]
    assert b'privateCreator="ACME &lt;1&gt;"' in contents(answer)[0]


def test_metadata_of_a_whole_series_are_one_array(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    slices = [ct_slice(number=number) for number in range(1, 31)]
    keep(*slices)
    answer = client.get(f"/dicom-web/studies/{slices[0].StudyInstanceUID}/metadata")
    assert answer.headers["content-type"] == "application/dicom+json"
    assert [one["00200013"]["Value"][0] for one in answer.json()] == list(range(1, 31))


# -- frames -------------------------------------------------------------------------------------------------------


def multi_frame(frames: int = 4, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    ds = ct_slice(rows=16, columns=24)
    ds.NumberOfFrames = frames
    ds.PixelData = np.random.default_rng(7).integers(0, 4096, (frames, 16, 24), dtype="<u2").tobytes()
    return compressed(ds, syntax) if syntax != ExplicitVRLittleEndian else ds


@pytest.mark.req("REQ-DCM-90")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless, RLELossless])
def test_frames_come_decoded_in_the_order_asked_for(
    web: DICOMwebClient, keep: Callable[..., Outcome], syntax: str
) -> None:
    native = multi_frame()
    size = len(native.PixelData) // 4
    expected = [native.PixelData[at : at + size] for at in range(0, 4 * size, size)]
    ds = multi_frame(syntax=syntax)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = native.SOPInstanceUID
    keep(ds)
    uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    octets = ("application/octet-stream",)
    assert web.retrieve_instance_frames(*uids, frame_numbers=[3, 1], media_types=octets) == [expected[2], expected[0]]
    assert web.retrieve_instance_frames(*uids, frame_numbers=[2], media_types=octets) == [expected[1]]


@pytest.mark.req("REQ-DCM-90", "REQ-DCM-91")
@pytest.mark.parametrize(("syntax", "kind"), [(JPEGLSLossless, "image/jls"), (RLELossless, "image/dicom-rle")])
def test_frames_come_as_stored_under_their_media_type(
    client: httpx.Client, keep: Callable[..., Outcome], syntax: str, kind: str
) -> None:
    ds = multi_frame(syntax=syntax)
    keep(ds)
    stored = list(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=4))
    path = address(ds, "/frames/2,4")
    for accept, given in (
        (f'multipart/related; type="{kind}"', kind),
        ('multipart/related; type="image/*"', kind),
        ("*/*; transfer-syntax=*", kind),
        ('multipart/related; type="application/octet-stream"; transfer-syntax=*', "application/octet-stream"),
    ):
        answer = client.get(path, headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith(f'multipart/related; type="{given}"; boundary=')
        assert [one for one, _ in parts(answer)] == [f"{given}; transfer-syntax={syntax}"] * 2
        assert contents(answer) == [stored[1], stored[3]]
    alone = client.get(address(ds, "/frames/3"), headers={"Accept": kind})
    assert alone.headers["content-type"] == f"{kind}; transfer-syntax={syntax}"
    assert alone.content == stored[2]


@pytest.mark.req("REQ-DCM-91", "REQ-DCM-41")
@pytest.mark.parametrize("stored", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize(
    ("syntax", "kind"),
    [
        (lossless.JPEG_LS, "image/jls"),
        (lossless.JPEG_2000, "image/jp2"),
        (lossless.JPEG_SV1, "image/jpeg"),
        (RLELossless, "image/dicom-rle"),
    ],
)
def test_frames_come_compressed_for_whoever_names_it_and_every_value_is_as_it_was(
    client: httpx.Client, keep: Callable[..., Outcome], stored: str, syntax: str, kind: str
) -> None:
    ds = ct_slice(rows=40, columns=48, NumberOfFrames=4, PixelRepresentation=1, transfer_syntax=stored)
    values = np.random.default_rng(7).integers(-2048, 2048, (4, 40, 48), dtype="<i2")
    if stored == RLELossless:
        ds = ct_slice(rows=40, columns=48, NumberOfFrames=4, PixelRepresentation=1, PixelData=values.tobytes())
        compressed(ds, stored)
    else:
        ds.PixelData = values.astype(">i2" if stored == ExplicitVRBigEndian else "<i2").tobytes()
    keep(ds)
    for accept in (f'multipart/related; type="{kind}"', f"multipart/related; type={kind}; transfer-syntax={syntax}"):
        answer = client.get(address(ds, "/frames/4,2"), headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith(f'multipart/related; type="{kind}"; boundary=')
        assert [one for one, _ in parts(answer)] == [f"{kind}; transfer-syntax={syntax}"] * 2
        made = ct_slice(rows=40, columns=48, NumberOfFrames=2, PixelRepresentation=1, transfer_syntax=syntax)
        made.PixelData = pydicom.encaps.encapsulate(contents(answer))
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        assert np.array_equal(pydicom.dcmread(io.BytesIO(part10(made))).pixel_array, values[[3, 1]])
    alone = client.get(address(ds, "/frames/2"), headers={"Accept": kind})
    assert alone.headers["content-type"] == f"{kind}; transfer-syntax={syntax}"
    assert (alone.content, int(alone.headers["content-length"])) == (contents(answer)[1], len(alone.content))
    tag = {"Accept": kind, "If-None-Match": alone.headers["etag"]}
    assert client.get(address(ds, "/frames/2"), headers=tag).status_code == 304
    assert client.get(address(ds, "/frames/5"), headers={"Accept": kind}).status_code == 404


@pytest.mark.req("REQ-DCM-91", "REQ-DCM-41", "REQ-DCM-80")
def test_frames_that_a_codec_does_not_take_come_in_the_next_form_that_is_accepted(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    """Overlays in unused bits: only run lengths hold them. And nothing is compressed with a loss."""
    ds = ct_slice(rows=16, columns=24)
    ds.PixelData = bytes(byte | 0x80 for byte in ds.PixelData)
    bits = ct_slice(number=2, rows=8, columns=8, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=bytes(8))
    keep(ds, bits)
    path = address(ds, "/frames/1")
    assert client.get(path, headers={"Accept": "image/jls"}).status_code == 406
    given = client.get(path, headers={"Accept": "image/jls, image/jp2; q=0.9, image/dicom-rle; q=0.8"})
    assert given.headers["content-type"] == f"image/dicom-rle; transfer-syntax={RLELossless}"
    again = {"Accept": "image/jls, image/dicom-rle; q=0.8", "If-None-Match": given.headers["etag"]}
    assert client.get(path, headers=again).status_code == 304
    octets = client.get(path, headers={"Accept": "image/jls, application/octet-stream; q=0.1"})
    assert octets.content == ds.PixelData
    for accept in ("image/jphc", f"image/jpeg; transfer-syntax={JPEGBaseline8Bit}"):
        answer = client.get(path, headers={"Accept": accept})
        assert answer.status_code == 406
        assert "image/jls; transfer-syntax=1.2.840.10008.1.2.4.80" in answer.json()["detail"]
    assert client.get(address(bits, "/frames/1"), headers={"Accept": "image/*"}).status_code == 406


@pytest.mark.req("REQ-DCM-90")
@pytest.mark.parametrize(("rows", "bits"), [(16, 16), (1500, 16), (3, 1)])
def test_one_frame_comes_with_its_length_however_large(
    client: httpx.Client, keep: Callable[..., Outcome], rows: int, bits: int
) -> None:
    """In memory, in pieces from the file, or shifted into place; alone and as a part, again and again."""
    ds = ct_slice(rows=rows, columns=1000 if bits == 16 else 7, NumberOfFrames=2)
    if bits == 1:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    size = (rows * ds.Columns * bits + 7) // 8
    whole = np.random.default_rng(1).integers(0, 256, (rows * ds.Columns * bits * 2 + 7) // 8, np.uint8).tobytes()
    ds.PixelData = whole + b"\0" * (len(whole) % 2)
    keep(ds)
    wanted = whole[size:]
    if bits == 1:
        value = int.from_bytes(whole, "little") >> (rows * ds.Columns)
        wanted = (value & ((1 << rows * ds.Columns) - 1)).to_bytes(size, "little")
    for _ in range(2):
        alone = client.get(address(ds, "/frames/2"), headers={"Accept": "application/octet-stream"})
        assert (alone.content, int(alone.headers["content-length"])) == (wanted, size)
        part = client.get(address(ds, "/frames/2"))
        assert (contents(part), int(part.headers["content-length"])) == ([wanted], len(part.content))
    assert client.get(address(ds, "/frames/3")).status_code == 404


@pytest.mark.req("REQ-DCM-90")
def test_what_leaves_as_it_lies_tells_its_length(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    keep(*(ct_slice(number=number, rows=8 * number) for number in (1, 2, 3)))
    study = f"/dicom-web/studies/{new_uid('study')}"
    whole = client.get(study, headers={"Accept": AS_STORED})
    assert (len(contents(whole)), int(whole.headers["content-length"])) == (3, len(whole.content))
    assert client.head(study, headers={"Accept": AS_STORED}).headers["content-length"] == str(len(whole.content))
    made = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2'
    assert "content-length" not in client.get(study, headers={"Accept": made}).headers


def test_an_object_without_pixels_has_no_frames_and_no_picture(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice(Rows=None, Columns=None, PixelData=None)
    keep(ds)
    assert client.get(address(ds, "/frames/1")).status_code == 404
    assert client.get(address(ds, "/rendered")).status_code == 406


@pytest.mark.req("REQ-DCM-90")
@pytest.mark.parametrize("query", ["", "?viewport=8,8", "?window=1000,500", "?quality=30", "?accept=image/png"])
def test_a_picture_for_people(client: httpx.Client, keep: Callable[..., Outcome], query: str) -> None:
    from PIL import Image

    ds = multi_frame()
    keep(ds)
    for path in ("/rendered", "/frames/4/rendered"):
        answer = client.get(address(ds, path) + query)
        assert answer.status_code == 200
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.format == ("PNG" if "png" in query else "JPEG")
        assert picture.size == ((8, 5) if "viewport" in query else (24, 16))
        assert answer.headers["cache-control"] == "private, no-cache"


# -- audit, damage, size ------------------------------------------------------------------------------------------


@on_both_databases
@pytest.mark.req("REQ-SEC-20")
def test_an_access_is_two_rows_whatever_is_read(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = multi_frame()
    keep(ds)
    for more in ("", "/metadata", "/frames/1", "/frames/2", "/frames/3,4", "/rendered"):
        assert client.get(address(ds, more)).status_code == 200
    with archive.engine.connect() as conn:
        opened = list_rows(conn, event="110104", action="R").items
    assert [row["detail"]["phase"] for row in opened] == ["open"]  # type: ignore[index]
    archive.accesses.close()
    with archive.engine.connect() as conn:
        closed = list_rows(conn, event="110104", action="R").items[0]
    assert (closed["user"], closed["door"], closed["study"]) == ("robot", "dicomweb", ds.StudyInstanceUID)
    assert closed["detail"]["phase"] == "close"  # type: ignore[index]
    assert closed["detail"]["bytes"] > 0  # type: ignore[index]


def test_a_missing_copy_is_said_and_the_others_come(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    slices = [ct_slice(number=number) for number in (1, 2)]
    keep(*slices)
    lost = select(archive, instance_uids=[slices[0].SOPInstanceUID])[0]
    os.unlink(lost.path)
    study = f"/dicom-web/studies/{slices[0].StudyInstanceUID}"
    answer = client.get(study)
    assert (answer.status_code, len(contents(answer))) == (206, 1)
    assert client.get(f"{study}/metadata").status_code == 206
    for more in ("", "/metadata", "/frames/1", "/rendered", "/bulkdata/7FE00010"):
        answer = client.get(address(slices[0], more))
        assert answer.status_code == 503, more
        assert answer.headers["retry-after"]


def test_a_copy_that_fails_on_the_way_cuts_the_connection(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    slices = [ct_slice(number=number, rows=1024, columns=1024) for number in range(1, 21)]
    keep(*slices)
    *_, last = select(archive, study_uids=[slices[0].StudyInstanceUID])
    with client.stream("GET", f"/dicom-web/studies/{slices[0].StudyInstanceUID}") as answer:
        pieces = answer.iter_raw(1 << 16)
        next(pieces)
        os.unlink(last.path)  # 38 MiB behind what was read: no buffer on the way holds as much
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


def test_head_tells_what_get_would_and_sends_nothing(
    archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice()
    keep(ds)
    for more in ("", "/metadata", "/frames/1", "/bulkdata/7FE00010"):
        answer = client.head(address(ds, more))
        assert (answer.status_code, answer.content) == (200, b"")
    with archive.engine.connect() as conn:
        assert list_rows(conn, event="110104", action="R").items == []


def test_a_cancelled_download_stops_work(archive: Archive, client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    slices = [ct_slice(number=number, rows=1024, columns=1024) for number in range(1, 21)]
    keep(*slices)
    with client.stream("GET", f"/dicom-web/studies/{slices[0].StudyInstanceUID}") as answer:
        next(answer.iter_raw(1 << 16))
    paths = {one.path for one in select(archive, study_uids=[slices[0].StudyInstanceUID])}

    def open_files() -> set[str]:
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            try:
                found.add(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                continue
        return found & paths

    given_up = monotonic()
    while open_files() and monotonic() - given_up < 1:
        threading.Event().wait(0.02)
    assert open_files() == set()


def test_a_cancelled_download_stops_compressing_within_a_second(
    client: httpx.Client, keep: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made on the way out is made for somebody who listens: 200 frames, of which a few are made."""
    ds = multi_frame(200)
    ds.Rows = ds.Columns = 256
    ds.PixelData = np.random.default_rng(1).integers(0, 4096, (200, 256, 256), "<u2").tobytes()
    keep(ds)
    made: list[float] = []
    encode = lossless.encode

    def counted(*arguments: Any, **more: Any) -> bytes:
        made.append(monotonic())
        return encode(*arguments, **more)

    monkeypatch.setattr(lossless, "encode", counted)
    wish = "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.80"
    with client.stream("GET", address(ds), headers={"Accept": wish}) as answer:
        next(answer.iter_raw(1 << 16))
    left = monotonic()
    while monotonic() - max(left, *made) < 1 and monotonic() - left < 30:  # until nothing more is made
        threading.Event().wait(0.05)
    assert 0 < len(made) < 200
    assert made[-1] - left < 5


@pytest.mark.skipif(not DATA.exists(), reason="no shared data: set MINIPACS_TEST_DATA")
@pytest.mark.req("REQ-DCM-90", "REQ-DCM-91")
def test_real_files_of_each_syntax_come_back_in_every_form(client: httpx.Client, keep: Callable[..., Outcome]) -> None:
    """As stored to the byte, by default, metadata and what they point at, a frame, a picture."""
    came_back = set()
    for path in sorted((DATA / "transfer-syntaxes").glob("*.dcm")):
        file = path.read_bytes()
        if file[128:132] != b"DICM":
            continue
        try:
            outcome = keep(file)
        except Rejected:
            continue
        if outcome is not Outcome.STORED:  # some of these share their UIDs
            continue
        ds = pydicom.dcmread(io.BytesIO(file))
        answer = client.get(address(ds), headers={"Accept": AS_STORED})
        assert answer.status_code == 200, path.name
        if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:  # retired: never served
            back = pydicom.dcmread(io.BytesIO(contents(answer)[0]))
            assert back.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert np.array_equal(back.pixel_array, ds.pixel_array)
        else:
            assert data_set_of(contents(answer)[0]) == data_set_of(file), path.name
        default = client.get(address(ds))
        assert default.status_code == 200
        back = pydicom.dcmread(io.BytesIO(contents(default)[0]))
        assert back.file_meta.TransferSyntaxUID in (ExplicitVRLittleEndian, ds.file_meta.TransferSyntaxUID)
        assert back.SOPInstanceUID == ds.SOPInstanceUID
        [metadata] = client.get(address(ds, "/metadata")).json()
        assert metadata["00080018"]["Value"] == [ds.SOPInstanceUID]
        for value in metadata.values():
            if "BulkDataURI" in value:
                assert client.get(value["BulkDataURI"]).status_code == 200, path.name
        frame = client.get(address(ds, "/frames/1")).status_code
        picture = client.get(address(ds, "/rendered")).status_code
        twelve_bits = ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.51" and ds.BitsStored == 12
        assert frame == (200 if "PixelData" in ds else 404), path.name
        assert picture == (200 if "PixelData" in ds and not twelve_bits else 406), path.name
        came_back.add(ds.file_meta.TransferSyntaxUID)
    assert len(came_back) >= 8  # the folder has more: those under the same UIDs are other tests


def test_a_video_or_what_no_decoder_takes_is_given_as_stored(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    ds = ct_slice()
    ds.PixelData = encapsulate([b"\0\0\0\x18ftyp" + bytes(100)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.102")
    keep(ds)
    answer = client.get(address(ds))
    assert answer.headers["content-type"].endswith("transfer-syntax=1.2.840.10008.1.2.4.102")
    assert client.get(address(ds, "/rendered")).status_code == 406
    explicit = "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert client.get(address(ds), headers={"Accept": explicit}).status_code == 406


def test_what_claims_to_be_compressed_and_is_not_comes_as_stored(
    client: httpx.Client, keep: Callable[..., Outcome]
) -> None:
    """The default falls back to the stored form; who insists on another gets 406."""
    ds = ct_slice()
    ds.PixelData = encapsulate([b"\xff\xd8 no JPEG-LS at all"])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    keep(ds)
    answer = client.get(address(ds))
    assert (answer.status_code, contents(answer)[0][-4:]) == (200, data_set(ds)[-4:])
    assert parts(answer)[0][0] == f"application/dicom; transfer-syntax={JPEGLSLossless}"
    assert answer.headers["content-type"].endswith(f"; transfer-syntax={JPEGLSLossless}")
    explicit = "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert client.get(address(ds), headers={"Accept": explicit}).status_code == 406
    assert client.get(address(ds, "/frames/1"), headers={"Accept": "application/octet-stream"}).status_code == 406
    keep(compressed(ct_slice(number=2, rows=32, columns=32), JPEGLSLossless))
    both = client.get(f"/dicom-web/studies/{ds.StudyInstanceUID}")
    assert "transfer-syntax" not in both.headers["content-type"], "not known before the parts are made"
    assert [kind.rpartition("=")[2] for kind, _ in parts(both)] == [JPEGLSLossless, ExplicitVRLittleEndian]
    assert JPEGBaseline8Bit not in answer.headers["content-type"]
