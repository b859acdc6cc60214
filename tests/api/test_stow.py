"""STOW-RS: what comes in over the web is kept as what comes in over DICOM (REQ-DCM-94)."""

from __future__ import annotations

import io
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from api.multipart import Part, related
from archive.audit.read import list_rows
from archive.core import Archive
from archive.errors import StorageFull
from archive.retrieve import select
from archive.storage.filesystem import Tier
from tests.api.conftest import on_both_databases
from tests.builders import ct_slice, data_set, new_uid, part10

RELATED = 'multipart/related; type="application/dicom"; boundary=B'


def body_of(*files: bytes, kind: str = "application/dicom") -> bytes:
    return b"".join(related((Part(kind, iter([file])) for file in files), "B"))


def post(client: httpx.Client, *files: bytes, path: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
    return client.post(path, content=body_of(*files), headers={"Content-Type": RELATED, **headers})


def items(answer: httpx.Response, key: str) -> list[dict[str, Any]]:
    return answer.json().get(key, {}).get("Value", [])  # type: ignore[no-any-return]


def reasons(answer: httpx.Response) -> list[int]:
    return [item["00081197"]["Value"][0] for item in items(answer, "00081198")]


@pytest.fixture
def web(url: str, client: httpx.Client) -> DICOMwebClient:
    return DICOMwebClient(f"{url}/dicom-web", headers={"Authorization": client.headers["authorization"]})


@on_both_databases
@pytest.mark.req("REQ-DCM-94")
def test_a_study_sent_by_dicomweb_client_is_stored_byte_for_byte(archive: Archive, web: DICOMwebClient) -> None:
    slices = [ct_slice(number=number) for number in (1, 2, 3)]
    answer = web.store_instances(slices)
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
        ds.SOPInstanceUID for ds in slices
    ]
    assert "FailedSOPSequence" not in answer
    stored = select(archive, study_uids=[slices[0].StudyInstanceUID])
    for ds, one in zip(slices, stored, strict=True):
        kept = Path(one.path).read_bytes()[one.data_set_offset :]
        assert kept == data_set(ds)


@pytest.mark.req("REQ-DCM-94")
def test_the_answer_says_where_each_instance_is(client: httpx.Client) -> None:
    ds = ct_slice()
    answer = post(client, part10(ds), path=f"/dicom-web/studies/{ds.StudyInstanceUID}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    study = f"{client.base_url}/dicom-web/studies/{ds.StudyInstanceUID}".replace("//dicom", "/dicom")
    assert answer.json()["00081190"] == {"vr": "UR", "Value": [study]}
    [item] = items(answer, "00081199")
    assert item == {
        "00081150": {"vr": "UI", "Value": [ds.SOPClassUID]},
        "00081155": {"vr": "UI", "Value": [ds.SOPInstanceUID]},
        "00081190": {
            "vr": "UR",
            "Value": [f"{study}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"],
        },
    }


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_syntaxes_are_kept_as_they_come(archive: Archive, client: httpx.Client, syntax: str) -> None:
    ds = ct_slice(transfer_syntax=syntax)
    assert post(client, part10(ds)).status_code == 200
    [one] = select(archive, instance_uids=[ds.SOPInstanceUID])
    assert one.transfer_syntax_uid == syntax
    assert Path(one.path).read_bytes()[one.data_set_offset :] == data_set(ds)


def test_one_instance_may_come_as_the_body_itself(archive: Archive, client: httpx.Client) -> None:
    ds = ct_slice()
    answer = client.post("/dicom-web/studies", content=part10(ds), headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 200
    assert len(select(archive, instance_uids=[ds.SOPInstanceUID])) == 1


@pytest.mark.req("REQ-DCM-94")
def test_sending_the_same_again_succeeds_and_stores_nothing(archive: Archive, client: httpx.Client) -> None:
    file = part10(ct_slice())
    assert post(client, file).status_code == 200
    assert post(client, file, file).status_code == 200
    assert len(list(Path(archive.hot.root).rglob("*.dcm"))) == 1


@pytest.mark.req("REQ-DCM-94")
def test_what_is_stored_in_part_is_202_with_the_reasons(archive: Archive, client: httpx.Client) -> None:
    good = ct_slice()
    cut = part10(ct_slice(number=2))[:400]  # ends within a UID
    no_uid = ct_slice(number=3, StudyInstanceUID=None)
    answer = post(client, part10(good), cut, part10(no_uid), b"this is no DICOM")
    assert answer.status_code == 202
    assert [item["00081155"]["Value"] for item in items(answer, "00081199")] == [[good.SOPInstanceUID]]
    assert reasons(answer) == [0xC001, 0xA900]
    assert items(answer, "0008119A") == [{"00081197": {"vr": "US", "Value": [0xC001]}}]
    assert len(select(archive, study_uids=[good.StudyInstanceUID])) == 1
    assert os.listdir(archive.hot.incoming_dir) == []


@pytest.mark.req("REQ-DCM-94")
def test_what_is_stored_with_a_warning_is_202_with_its_reason(archive: Archive, client: httpx.Client) -> None:
    good, odd = ct_slice(number=1), ct_slice(number=2, Modality=None)
    answer = post(client, part10(good), part10(odd))
    assert answer.status_code == 202
    assert [item.get("00081196") for item in items(answer, "00081199")] == [None, {"vr": "US", "Value": [0xB007]}]
    assert len(select(archive, study_uids=[good.StudyInstanceUID])) == 2


@pytest.mark.req("REQ-DCM-94")
def test_another_study_than_the_one_of_the_address_is_409(archive: Archive, client: httpx.Client) -> None:
    ds = ct_slice()
    answer = post(client, part10(ds), path="/dicom-web/studies/1.2.3.4")
    assert answer.status_code == 409
    assert reasons(answer) == [0xA901]
    assert select(archive, study_uids=[ds.StudyInstanceUID]) == []


@pytest.mark.req("REQ-DCM-94")
def test_other_content_under_a_known_uid_is_kept_aside_and_said(archive: Archive, client: httpx.Client) -> None:
    ds = ct_slice()
    assert post(client, part10(ds)).status_code == 200
    ds.PixelData = bytes(len(ds.PixelData))
    answer = post(client, part10(ds))
    assert answer.status_code == 409
    assert reasons(answer) == [0xC0D1]
    [one] = select(archive, instance_uids=[ds.SOPInstanceUID])
    assert Path(one.path).read_bytes()[one.data_set_offset :] != data_set(ds)


@pytest.mark.req("REQ-DCM-94")
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": RELATED}, b"", 400),
        ({"Content-Type": RELATED}, b"--B--\r\n", 400),
        ({"Content-Type": RELATED}, b"--B\r\nContent-Type: application/dicom\r\n\r\nabc", 400),
        ({"Content-Type": RELATED}, b"preamble\r\n--B\r\n\r\nabc\r\n--B--\r\n", 400),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, body_of(b"x"), 400),
        ({"Content-Type": RELATED}, body_of(b"x", kind="image/jpeg"), 409),
        ({"Content-Type": 'multipart/related; type="application/pdf"; boundary=B'}, body_of(b"x"), 415),
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": ""}, b"{}", 415),
        ({"Content-Type": RELATED, "Accept": "text/html"}, body_of(b"x"), 406),
    ],
)
def test_a_request_that_is_none_is_said_in_a_word(
    archive: Archive, client: httpx.Client, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert client.post("/dicom-web/studies", content=body, headers=headers).status_code == status
    assert os.listdir(archive.hot.incoming_dir) == []


def test_an_illegal_uid_in_the_address_is_400(client: httpx.Client) -> None:
    assert post(client, part10(ct_slice()), path="/dicom-web/studies/../x").status_code in (400, 404)
    assert post(client, part10(ct_slice()), path="/dicom-web/studies/1.2.x").status_code == 400


@pytest.mark.req("REQ-DCM-94")
def test_a_full_volume_is_507_and_nothing_is_left(archive: Archive, client: httpx.Client, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageFull("the free space of the hot volume is below storage.reserve_bytes")

    monkeypatch.setattr(Tier, "receive", full)
    answer = post(client, part10(ct_slice()))
    assert answer.status_code == 507
    assert answer.headers["retry-after"]


@on_both_databases
def test_storing_is_in_the_audit(archive: Archive, client: httpx.Client) -> None:
    slices = [ct_slice(number=number) for number in (1, 2, 3)]
    assert post(client, *(part10(ds) for ds in slices)).status_code == 200
    archive.accesses.close()
    with archive.engine.connect() as conn:
        rows = list_rows(conn, event="110104", action="C").items
    assert [(row["detail"]["phase"], row["detail"].get("instances")) for row in rows] == [("close", 3), ("open", None)]  # type: ignore[attr-defined,index]
    assert {(row["user"], row["door"], row["study"]) for row in rows} == {
        ("robot", "dicomweb", slices[0].StudyInstanceUID)
    }
    assert {str(row["patient"]).partition("^")[0] for row in rows} == {"IPP1"}


def test_a_connection_that_breaks_off_keeps_what_was_complete(archive: Archive, url: str, client: httpx.Client) -> None:
    whole, broken = ct_slice(), ct_slice(number=2, rows=1024, columns=1024)
    body = body_of(part10(whole), part10(broken))
    begun = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield body[: len(body) - 1_000_000]
        begun.set()
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        client.post("/dicom-web/studies", content=pieces(), headers={"Content-Type": RELATED})
    for _ in range(100):
        if not os.listdir(archive.hot.incoming_dir) and select(archive, instance_uids=[whole.SOPInstanceUID]):
            break
        threading.Event().wait(0.05)
    assert os.listdir(archive.hot.incoming_dir) == []
    assert len(select(archive, instance_uids=[whole.SOPInstanceUID])) == 1
    assert select(archive, instance_uids=[broken.SOPInstanceUID]) == []


def test_many_senders_at_once_lose_nothing(archive: Archive, url: str, client: httpx.Client) -> None:
    studies = [
        [
            ct_slice(number=n, StudyInstanceUID=new_uid(f"study{s}"), SeriesInstanceUID=new_uid(f"s{s}"))
            for n in range(5)
        ]
        for s in range(6)
    ]
    failed: list[int] = []

    def send(slices: list[Dataset]) -> None:
        status = httpx.post(
            f"{url}/dicom-web/studies",
            content=body_of(*(part10(ds) for ds in slices)),
            headers={"Content-Type": RELATED, "Authorization": client.headers["authorization"]},
            timeout=60,
        ).status_code
        if status != 200:
            failed.append(status)

    threads = [threading.Thread(target=send, args=(slices,)) for slices in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(select(archive, study_uids=[slices[0].StudyInstanceUID for slices in studies])) == 30


def test_memory_stays_flat_for_a_big_object(archive: Archive, client: httpx.Client) -> None:
    """100 MiB sent in pieces: the process, which serves and sends here, grows by a few of them."""
    small = ct_slice()
    del small.PixelData
    head = part10(small)
    size = 100 << 20
    piece = bytes(1 << 20)

    def body() -> Iterator[bytes]:
        yield b"--B\r\nContent-Type: application/dicom\r\n\r\n" + head
        yield b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
        for _ in range(size >> 20):
            yield piece
        yield b"\r\n--B--\r\n"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = client.post("/dicom-web/studies", content=body(), headers={"Content-Type": RELATED})
    assert answer.status_code == 200
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < 60, f"{grown} MiB"
    [one] = select(archive, instance_uids=[small.SOPInstanceUID])
    assert one.file_bytes > size
    assert pydicom.dcmread(io.BytesIO(head)).SOPInstanceUID == one.sop_instance_uid
