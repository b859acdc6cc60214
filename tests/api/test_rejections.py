"""Rejections over the web: notes by STOW-RS, 410 for what they hide, and the Change Requester (IHE IOCM)."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest
from pydicom.dataset import Dataset

from archive.core import Archive
from tests.api.conftest import on_both_databases
from tests.api.test_stow import items, post, reasons
from tests.builders import ct_slice, key_object, new_uid, part10

STUDY = new_uid("study")
DOORS = ("", "/metadata", "/frames/1", "/rendered", "/bulkdata/7FE00010")
SAFETY = ("113037", "Rejected for Patient Safety Reasons")
COUNT = "00201208"


@pytest.fixture
def slices(client: httpx.Client) -> list[Dataset]:
    made = [ct_slice(number=number) for number in (1, 2, 3)]
    assert post(client, *map(part10, made)).status_code == 200
    return made


@pytest.fixture
def radiologist(url: str, token: Callable[..., str]) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token('radiologist', name='anne')}"}
    return httpx.Client(base_url=url, headers=headers, timeout=30)


def address(ds: Dataset, more: str = "") -> str:
    return f"/dicom-web/studies/{STUDY}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}{more}"


def counted(client: httpx.Client) -> int:
    (row,) = client.get("/dicom-web/studies", params={"StudyInstanceUID": STUDY}).json()
    count: int = row[COUNT]["Value"][0]
    return count


@pytest.mark.req("REQ-IHE-09", "REQ-DCM-92", "REQ-DCM-94")
def test_a_note_by_stow_hides_one_image_of_three_and_can_itself_be_had(
    client: httpx.Client, radiologist: httpx.Client, slices: list[Dataset]
) -> None:
    bad, *good = slices
    note = key_object(bad, title=SAFETY)
    answer = post(radiologist, part10(note))
    assert (answer.status_code, len(items(answer, "00081199"))) == (200, 1)
    assert counted(client) == 2 + 1
    for door in DOORS:
        assert client.get(address(bad, door)).status_code == 410, door
    assert client.get(address(note)).status_code == 200
    whole = client.get(f"/dicom-web/studies/{STUDY}")
    assert whole.status_code == 200
    assert all(ds.SOPInstanceUID.encode() in whole.content for ds in good)
    again = post(client, part10(bad))
    assert (again.status_code, reasons(again)) == (409, [0xC0F3])


@pytest.mark.req("REQ-IHE-09", "REQ-SEC-23")
def test_whoever_may_store_but_not_reject_is_refused_in_the_words_of_stow(
    client: httpx.Client, slices: list[Dataset]
) -> None:
    answer = post(client, part10(key_object(slices[0], title=SAFETY)))
    assert (answer.status_code, reasons(answer)) == (409, [0x0124])
    assert counted(client) == 3


@pytest.mark.req("REQ-IHE-09")
@on_both_databases
def test_somebody_rejects_what_is_seen_and_takes_it_back(
    archive: Archive, client: httpx.Client, radiologist: httpx.Client, slices: list[Dataset]
) -> None:
    wish = {"code": "113001", "reason": "bougé", "instances": [slices[0].SOPInstanceUID]}
    answer = radiologist.post(f"/api/v1/studies/{STUDY}/reject", json=wish)
    assert answer.status_code == 201
    made = answer.json()
    assert (made["code"], made["meaning"]) == ("113001", "Rejected for Quality Reasons")
    assert made["instances"] == [{"sop_instance_uid": slices[0].SOPInstanceUID, "applied": True}]
    assert counted(client) == 3  # two images, and the note
    (listed,) = radiologist.get(f"/api/v1/studies/{STUDY}/rejections").json()["items"]
    assert listed == made
    taken = radiologist.get(f"/api/v1/rejections/{made['note']}")
    assert (taken.headers["content-type"], taken.content[128:132]) == ("application/dicom", b"DICM")
    assert radiologist.delete(f"/api/v1/rejections/{made['note']}").status_code == 400  # without a reason
    params = {"reason": "relu"}
    assert radiologist.delete(f"/api/v1/rejections/{made['note']}", params=params).status_code == 204
    assert radiologist.delete(f"/api/v1/rejections/{made['note']}", params=params).status_code == 404
    assert counted(client) == 3
    assert client.get(address(slices[0])).status_code == 200
    (listed,) = radiologist.get(f"/api/v1/studies/{STUDY}/rejections").json()["items"]
    assert (listed["revoked_by"], listed["reason"]) == ("anne", "relu")
    for wrong, status in (
        ({"code": "113039", "reason": "x"}, 400),
        ({"code": "113001", "reason": ""}, 400),
        ({"code": "113001", "reason": "x", "series": ["1.2.3"]}, 404),
    ):
        assert radiologist.post(f"/api/v1/studies/{STUDY}/reject", json=wrong).status_code == status
    assert radiologist.post("/api/v1/studies/1.2.3/reject", json=wish).status_code == 404


@pytest.mark.req("REQ-IHE-09")
def test_the_quality_role_finds_what_was_rejected_for_quality(
    url: str, token: Callable[..., str], radiologist: httpx.Client, slices: list[Dataset]
) -> None:
    wish = {"code": "113001", "reason": "bougé", "instances": [slices[0].SOPInstanceUID]}
    assert radiologist.post(f"/api/v1/studies/{STUDY}/reject", json=wish).status_code == 201
    found = {}
    for role in ("quality", "secretary"):
        headers = {"Authorization": f"Bearer {token(role, name=role)}"}
        answer = httpx.get(f"{url}/dicom-web/studies/{STUDY}/instances", headers=headers)
        found[role] = {row["00080018"]["Value"][0] for row in answer.json()}
    assert found["quality"] - found["secretary"] == {slices[0].SOPInstanceUID}


@pytest.mark.req("REQ-IHE-09")
def test_the_desk_rejects_a_series_and_takes_it_back(
    log_in: Callable[[str], httpx.Client], slices: list[Dataset]
) -> None:
    desk = log_in("anne")
    page = desk.get(f"/etudes/{STUDY}").text
    assert "Rien n’a été rejeté" in page and "qualité insuffisante" in page
    form = {"motif": "113038", "raison": "mauvais patient", "serie": slices[0].SeriesInstanceUID}
    done = desk.post(f"/etudes/{STUDY}/rejet", data=form)
    assert (done.status_code, done.headers["location"]) == (303, f"/etudes/{STUDY}#rejets")
    page = desk.get(f"/etudes/{STUDY}").text
    assert "3 objets : mauvais patient ou mauvaise demande" in page
    assert not re.search(rf"/etudes/{STUDY}/images/{slices[0].SOPInstanceUID}", page)
    (end,) = re.findall(r'action="(/etudes/[0-9.]+/rejets/[0-9.]+/fin)"', page)
    assert desk.post(end, data={"raison": "erreur"}).status_code == 303
    assert "annulé par anne" in desk.get(f"/etudes/{STUDY}").text


def test_who_may_not_reject_sees_no_form(log_in: Callable[[str], httpx.Client], slices: list[Dataset]) -> None:
    assert "Rejeter" not in log_in("sophie").get(f"/etudes/{STUDY}").text
