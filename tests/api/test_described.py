"""STOW-RS of metadata with bulk data beside them, in JSON and in XML (PS3.18 10.5.1.1.2, REQ-DCM-94)."""

from __future__ import annotations

import io
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from api import described, stow
from archive.core import Archive
from archive.dicom import xml
from archive.retrieve import select
from tests.api.test_stow import items, reasons
from tests.api.test_stow import post as post_files
from tests.api.test_wado import address, multi_frame
from tests.builders import ct_slice, new_uid, part10

pytestmark = pytest.mark.req("REQ-DCM-94")
JSON, XML = "application/dicom+json", "application/dicom+xml"
Part = tuple[str, str, bytes]  # Content-Type, Content-Location, content


def metadata(ds: Dataset, uri: str = "px") -> dict[str, Any]:
    """The DICOM JSON of a data set whose pixels are bulk data."""
    found: dict[str, Any] = ds.to_json_dict(bulk_data_threshold=1 << 30)
    found["7FE00010"] = {"vr": "OW", "BulkDataURI": uri}
    return found


def body_of(*parts: Part) -> bytes:
    pieces = [
        f"--B\r\nContent-Type: {kind}\r\nContent-Location: {where}\r\n\r\n".encode() + content + b"\r\n"
        for kind, where, content in parts
    ]
    return b"".join(pieces) + b"--B--\r\n"


def post(client: httpx.Client, root: str, *parts: Part, accept: str = JSON, study: str = "") -> httpx.Response:
    headers = {"Content-Type": f'multipart/related; type="{root}"; boundary=B', "Accept": accept}
    return client.post(f"/dicom-web/studies{study}", content=body_of(*parts), headers=headers)


def described_as(root: str, *found: dict[str, Any]) -> list[Part]:
    if root == JSON:
        return [(JSON, "", json.dumps(list(found)).encode())]
    return [(XML, "", xml.written(one)) for one in found]


def back(client: httpx.Client, ds: Dataset) -> Dataset:
    answer = client.get(address(ds), headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert answer.status_code == 200
    return pydicom.dcmread(io.BytesIO(answer.content))


@pytest.mark.parametrize("root", [JSON, XML])
def test_what_is_described_comes_back_as_it_was_meant(archive: Archive, client: httpx.Client, root: str) -> None:
    one, two = ct_slice(), ct_slice(number=2)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "œuvre"
    one.ProcedureCodeSequence = [code]
    one.WindowCenter, one.SliceThickness, one.PixelSpacing = 40, "0.6250001", [0.1 + 0.2, 1]
    one.add_new(0x00090010, "LO", "ACME")
    one.add_new(0x00091001, "OB", b"\1\2\3\4")
    answer = post(
        client,
        root,
        *described_as(root, metadata(one, "http://x/1"), metadata(two, "urn:2")),
        ("application/octet-stream", "http://x/1", one.PixelData),
        (f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}", "urn:2", two.PixelData),
        study=f"/{one.StudyInstanceUID}",
    )
    assert (answer.status_code, len(items(answer, "00081199"))) == (200, 2), answer.text
    for sent in (one, two):
        kept = back(client, sent)
        assert kept.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert kept.SpecificCharacterSet == "ISO_IR 192"
        sent.SpecificCharacterSet = kept.SpecificCharacterSet
        if sent is one:
            assert [float(value) for value in kept.PixelSpacing] == pytest.approx([0.3, 1])
            del kept.PixelSpacing, sent.PixelSpacing
        assert kept.PixelData == sent.PixelData
        assert [str(one) for one in kept][:-1] == [str(one) for one in sent][:-1]
    assert os.listdir(archive.hot.incoming_dir) == []


def test_frames_that_came_compressed_stay_so(client: httpx.Client) -> None:
    ds = multi_frame(3)
    pixels = ds.pixel_array
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    frames = list(generate_frames(ds.PixelData, number_of_frames=3))
    parts = [("image/jls", "px", frame) for frame in frames]
    assert post(client, JSON, *described_as(JSON, metadata(ds)), *parts).status_code == 200
    kept = back(client, ds)
    assert kept.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert np.array_equal(kept.pixel_array, pixels)
    ds.SOPInstanceUID = new_uid("two of three")
    refused = post(client, JSON, *described_as(JSON, metadata(ds)), *parts[:2])
    assert (refused.status_code, reasons(refused)) == (409, [0xC001])


def test_bulk_data_of_an_item_are_put_in_their_place(client: httpx.Client) -> None:
    ds = ct_slice()
    found = metadata(ds)
    found["00880200"] = {"vr": "SQ", "Value": [{"7FE00010": {"vr": "OB", "BulkDataURI": "icon"}}]}
    parts: list[Part] = [("application/octet-stream", "px", ds.PixelData), ("application/octet-stream", "icon", b"abc")]
    assert post(client, JSON, *described_as(JSON, found), *parts).status_code == 200
    assert back(client, ds).IconImageSequence[0].PixelData == b"abc\0"


def test_what_cannot_be_stored_is_said_for_each_and_the_others_are(client: httpx.Client) -> None:
    good, lonely, wrong = (ct_slice(number=number) for number in (1, 2, 3))
    no_number = metadata(wrong)
    no_number["00280010"]["Value"] = ["many"]
    answer = post(
        client,
        JSON,
        *described_as(JSON, metadata(lonely, "elsewhere"), metadata(good), no_number),
        ("application/octet-stream", "px", good.PixelData),
    )
    assert (answer.status_code, reasons(answer)) == (202, [0xC001, 0xC001])
    (stored,) = items(answer, "00081199")
    assert stored["00081155"]["Value"] == [good.SOPInstanceUID]
    elsewhere = ct_slice(StudyInstanceUID=new_uid("other"))
    pixels = ("application/octet-stream", "px", elsewhere.PixelData)
    refused = post(client, JSON, *described_as(JSON, metadata(elsewhere)), pixels, study="/1.2.3")
    assert (refused.status_code, reasons(refused)) == (409, [0xA901])


def test_a_body_that_is_none_is_said_in_a_word(
    archive: Archive, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = ct_slice()
    octets: Part = ("application/octet-stream", "px", ds.PixelData)
    described_json = described_as(JSON, metadata(ds))
    for root, parts, status in (
        (JSON, [(JSON, "", b"{")], 400),
        (JSON, [(JSON, "", b"[1]")], 400),
        (JSON, [(JSON, "", b"[]")], 400),
        (JSON, [octets, *described_json], 400),
        (JSON, described_as(XML, metadata(ds)), 400),
        (XML, [(XML, "", b"<a/>")], 400),
        (XML, [(XML, "", b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel/>')], 400),
        (JSON, [(JSON, "", b'[{"0008": {}}]')], 409),
        (JSON, [(JSON, "", b'[{"00080016": 5}]')], 409),
        (JSON, [(JSON, "", b'[{"00081140": {"vr": "SQ", "Value": [7]}}]')], 409),
    ):
        answer = post(client, root, *parts)
        assert answer.status_code == status, (parts[0], answer.text)
    monkeypatch.setattr(described, "METADATA_BYTES", 1000)
    assert post(client, JSON, *described_json, octets).status_code == 413
    assert os.listdir(archive.hot.incoming_dir) == []


def test_what_would_fill_the_memory_or_the_disk_is_refused(
    archive: Archive, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small data sets; one bulk part for many instances; many instances."""
    answer = post(client, JSON, (JSON, "", b"[" + b"{}," * 1_000_000 + b"{}]"))
    assert (answer.status_code, "values" in answer.json()["detail"]) == (413, True)
    document = b"<NativeDicomModel>" + b"<a/>" * 2_000_000 + b"</NativeDicomModel>"
    assert post(client, XML, (XML, "", document)).status_code == 413

    slices = [ct_slice(number=number) for number in range(1, 5)]
    octets: Part = ("application/octet-stream", "px", slices[0].PixelData)
    monkeypatch.setattr(described, "SHARED_BYTES", len(slices[0].PixelData))
    shared = post(client, JSON, *described_as(JSON, *map(metadata, slices)), octets)
    assert (shared.status_code, reasons(shared)) == (202, [0xC001, 0xC001])
    assert len(items(shared, "00081199")) == 2

    monkeypatch.setattr(stow, "MOST_INSTANCES", 3)
    assert post(client, JSON, *described_as(JSON, *map(metadata, slices)), octets).status_code == 413
    files = [part10(ct_slice(number=number)) for number in range(5, 9)]
    assert post_files(client, *files).status_code == 413
    assert post_files(client, *files[:3]).status_code == 200, "known already: those before it were stored"
    assert os.listdir(archive.hot.incoming_dir) == []


def test_one_request_at_a_time_is_assembled(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assemble = described.Described.assemble
    alone = threading.Lock()
    met: list[bool] = []

    def watched(self: described.Described) -> None:
        met.append(not alone.acquire(blocking=False))
        time.sleep(0.1)
        assemble(self)
        alone.release()

    monkeypatch.setattr(described.Described, "assemble", watched)
    slices = [ct_slice(number=number) for number in range(1, 4)]
    bodies = [(*described_as(JSON, metadata(one)), ("application/octet-stream", "px", one.PixelData)) for one in slices]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda parts: post(client, JSON, *parts), bodies))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert met == [False] * 3


def test_the_answer_comes_as_xml_too(client: httpx.Client) -> None:
    ds = ct_slice()
    octets: Part = ("application/octet-stream", "px", ds.PixelData)
    answer = post(client, XML, *described_as(XML, metadata(ds)), octets, accept=XML)
    assert (answer.status_code, answer.headers["content-type"]) == (200, XML)
    (referenced,) = xml.read(answer.content)["00081199"]["Value"]
    assert referenced["00081155"]["Value"] == [ds.SOPInstanceUID]


def test_bulk_data_of_any_size_wait_on_the_disk(archive: Archive, client: httpx.Client) -> None:
    ds = ct_slice()
    size = 100 << 20
    piece = bytes(1 << 20)

    def body() -> Iterator[bytes]:
        yield f"--B\r\nContent-Type: {JSON}\r\n\r\n{json.dumps([metadata(ds)])}\r\n".encode()
        yield b"--B\r\nContent-Type: application/octet-stream\r\nContent-Location: px\r\n\r\n"
        for _ in range(size >> 20):
            yield piece
        yield b"\r\n--B--\r\n"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = client.post(
        "/dicom-web/studies", content=body(), headers={"Content-Type": f'multipart/related; type="{JSON}"; boundary=B'}
    )
    assert answer.status_code in (200, 202), answer.text  # 202: longer than Rows and Columns say
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < 60, f"{grown} MiB"
    [one] = select(archive, instance_uids=[ds.SOPInstanceUID])
    assert one.file_bytes > size
