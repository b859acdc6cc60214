"""DELETE over DICOMweb: retention refuses with its reasons, else the images are rejected."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from archive.core import Archive
from tests.api.test_auth import rows
from tests.api.test_purges import may
from tests.api.test_wado import address
from tests.builders import ct_slice, new_uid, part10
from tests.retention.life import put_clock

__all__ = ["may"]
STUDY = f"/dicom-web/studies/{new_uid('study')}"


def send(archive: Archive, client: httpx.Client) -> None:
    put_clock(archive, "2026-01-05T09:00:00")
    for number in (1, 2, 3):
        ds = ct_slice(number=number, SOPInstanceUID=new_uid(f"i{number}"), SeriesInstanceUID=new_uid(f"s{number % 2}"))
        body = part10(ds)
        sent = client.post("/dicom-web/studies", content=body, headers={"Content-Type": "application/dicom"})
        assert sent.status_code == 200


def test_what_is_kept_by_law_is_not_deleted_and_the_reasons_are_said(
    archive: Archive, client: httpx.Client, may: Callable[..., httpx.Client]
) -> None:
    send(archive, client)
    one = ct_slice(SOPInstanceUID=new_uid("i1"), SeriesInstanceUID=new_uid("s1"))
    for path in (STUDY, f"{STUDY}/series/{new_uid('s0')}", address(one)):
        answer = may("radiologist", f"anne{len(path)}").delete(path)
        assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
        assert answer.json()["keep_until"] == "2031-01-05"
        assert all(reason["text"] and reason["source"] for reason in answer.json()["reasons"])
        assert client.get(path).status_code == 200
    with archive.reading() as conn:
        refused = rows(conn, event="110103", action="D")
    assert [row["outcome"] for row in refused] == [8, 8, 8]


@pytest.mark.req("REQ-IHE-09")
def test_what_nothing_keeps_is_rejected_and_can_be_taken_back(
    archive: Archive, client: httpx.Client, may: Callable[..., httpx.Client]
) -> None:
    send(archive, client)
    anne = may("radiologist", "anne")
    put_clock(archive, "2031-01-05T09:00:00")
    one = ct_slice(SOPInstanceUID=new_uid("i1"), SeriesInstanceUID=new_uid("s1"))
    assert anne.delete(address(one), params={"code": "113037", "reason": "erreur"}).status_code == 204
    assert client.get(address(one)).status_code == 410
    assert anne.delete(address(one)).status_code == 410
    assert client.get(f"{STUDY}/series/{new_uid('s1')}").status_code == 200  # the other image of it
    (note,) = anne.get(f"/api/v1/studies/{new_uid('study')}/rejections").json()["items"]
    assert (note["code"], len(note["instances"])) == ("113037", 1)
    assert anne.delete(f"/api/v1/rejections/{note['note']}", params={"reason": "relu"}).status_code == 204
    assert client.get(address(one)).status_code == 200


def test_a_whole_study_goes_out_of_sight(
    archive: Archive, client: httpx.Client, may: Callable[..., httpx.Client]
) -> None:
    send(archive, client)
    put_clock(archive, "2031-01-05T09:00:00")
    anne = may("radiologist", "anne")
    assert anne.delete(f"{STUDY}/series/{new_uid('s0')}").status_code == 204
    assert client.get(f"{STUDY}/series/{new_uid('s0')}").status_code == 410


def test_who_may_not_reject_may_not_delete(
    archive: Archive, client: httpx.Client, stranger: httpx.Client, may: Callable[..., httpx.Client]
) -> None:
    send(archive, client)
    assert stranger.delete(STUDY).status_code == 401
    assert client.delete(STUDY).status_code == 403  # a machine
    anne = may("radiologist")
    assert anne.delete("/dicom-web/studies/1.2.3").status_code == 404
    assert anne.delete("/dicom-web/studies/no-uid").status_code == 400
