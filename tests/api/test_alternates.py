"""DICOMweb of studies that were replaced by lossy copies, or purged: 410, and where to look (REQ-DCM-84, 92)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset

from api import wado
from archive import retrieve
from archive.core import Archive
from archive.retrieve import Stored
from tests.api.conftest import on_both_databases
from tests.archive.lifecycle.aging import (
    SERIES,
    STUDY,
    copy_of,
    leave_tombstone,
    migrated,
    noise,
    old_study,
    path_of,
    received,
    slices,
    switched,
)
from tests.builders import data_set, new_uid

DOORS = ("", "/metadata", "/frames/1", "/rendered", "/frames/1/rendered", "/bulkdata/7FE00010")
AS_STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


def address(ds: Dataset, more: str = "") -> str:
    return f"/dicom-web/studies/{STUDY}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}{more}"


def known_copy(archive: Archive, client: httpx.Client, ds: Dataset) -> tuple[str, str]:
    """The UID of the lossy copy, and its address as QIDO-RS gives it."""
    uid = copy_of(archive, ds).sop_instance_uid
    (row,) = client.get(f"/dicom-web/studies/{STUDY}/instances", params={"SOPInstanceUID": uid}).json()
    return uid, httpx.URL(row["00081190"]["Value"][0]).path


@pytest.mark.req("REQ-DCM-84", "REQ-DCM-92")
@on_both_databases
def test_an_original_is_gone_at_every_door_and_its_copy_is_linked(archive: Archive, client: httpx.Client) -> None:
    first, *_ = old_study(archive)
    uid, place = known_copy(archive, client, first)
    for door in DOORS:
        answer = client.get(address(first, door))
        assert (answer.status_code, answer.json()["alternate"]) == (410, uid), door
        assert answer.headers["link"] == f'<{place}>; rel="alternate"'
    assert client.get(place, headers=AS_STORED).status_code == 200


@pytest.mark.req("REQ-DCM-84")
def test_the_series_of_the_originals_links_to_the_series_of_the_copies(archive: Archive, client: httpx.Client) -> None:
    first, *_ = old_study(archive)
    _, place = known_copy(archive, client, first)
    answer = client.get(f"/dicom-web/studies/{STUDY}/series/{SERIES}")
    assert (answer.status_code, answer.headers["link"]) == (410, f'<{place.split("/instances")[0]}>; rel="alternate"')


@pytest.mark.req("REQ-DCM-83", "REQ-CDC-06")
def test_a_study_gives_one_representation_of_each_image(archive: Archive, client: httpx.Client) -> None:
    good, bad = old_study(archive, slices(1)[0], noise())
    uid = copy_of(archive, good).sop_instance_uid
    answer = client.get(f"/dicom-web/studies/{STUDY}", headers=AS_STORED)
    assert answer.status_code == 200
    assert answer.content.count(b"Content-Type: application/dicom") == 2
    assert path_of(archive, uid).read_bytes() in answer.content
    assert data_set(bad) in answer.content
    (row,) = client.get("/dicom-web/studies", params={"StudyInstanceUID": STUDY}).json()
    assert (row["00201208"]["Value"], row["00080056"]["Value"]) == ([2], ["NEARLINE"])


@pytest.mark.req("REQ-DCM-83")
def test_qido_by_uid_says_both_ways_what_stands_for_what(archive: Archive, client: httpx.Client) -> None:
    first, bad = old_study(archive, slices(1)[0], noise())
    uid, _ = known_copy(archive, client, first)

    def row(sop_instance_uid: str) -> dict[str, Any]:
        answer = client.get("/dicom-web/instances", params={"SOPInstanceUID": sop_instance_uid})
        (found,) = answer.json()
        assert isinstance(found, dict)
        return found

    original, copied = row(first.SOPInstanceUID), row(uid)
    assert original["00080056"]["Value"] == ["UNAVAILABLE"]
    assert original["00083001"]["Value"][0]["00081155"]["Value"] == [uid]
    assert copied["00080056"]["Value"] == ["NEARLINE"]
    assert copied["00083001"]["Value"][0]["00081155"]["Value"] == [first.SOPInstanceUID]
    assert "00083001" not in row(bad.SOPInstanceUID)
    listed = client.get(f"/dicom-web/studies/{STUDY}/instances").json()
    assert {one["00080018"]["Value"][0] for one in listed} == {uid, bad.SOPInstanceUID}


@pytest.mark.req("REQ-DCM-83")
def test_in_grace_a_lossy_copy_is_not_found(archive: Archive, client: httpx.Client) -> None:
    (ds,) = received(archive, *slices(1))
    migrated(archive)
    pending = copy_of(archive, ds)
    assert client.get("/dicom-web/instances", params={"SOPInstanceUID": pending.sop_instance_uid}).status_code == 204
    ds.SOPInstanceUID = pending.sop_instance_uid
    for door in DOORS:
        assert client.get(address(ds, door)).status_code == 404


@pytest.mark.req("REQ-DCM-92")
def test_what_was_purged_is_gone_at_every_level_without_an_alternate(archive: Archive, client: httpx.Client) -> None:
    (ds,) = slices(1)
    leave_tombstone(archive, ds)
    study = f"/dicom-web/studies/{STUDY}"
    for place in (study, f"{study}/metadata", f"{study}/series/{SERIES}", *(address(ds, door) for door in DOORS)):
        answer = client.get(place)
        assert (answer.status_code, "link" in answer.headers, "alternate" in answer.json()) == (410, False, False)
    assert client.get(f"{study}/series/{new_uid()}").status_code == 404
    ds.SOPInstanceUID = new_uid()
    assert client.get(address(ds)).status_code == 404


@pytest.mark.req("REQ-DCM-83", "REQ-DCM-84")
def test_a_request_that_the_switch_overtakes_is_answered_as_if_it_came_after(
    archive: Archive, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = received(archive, slices(1)[0], noise())
    migrated(archive)
    overtaken: list[bool] = []

    def overtake(*words: Any, **named: Any) -> list[Stored]:
        """The request has read where the copies are, and looked at none of them."""
        found = retrieve.named(*words, **named)
        if not overtaken:
            overtaken.append(switched(archive).stays is None)
        return found

    monkeypatch.setattr(wado, "named", overtake)
    answer = client.get(address(good))
    assert (overtaken, answer.status_code) == ([True], 410)
    assert answer.json()["alternate"] == copy_of(archive, good).sop_instance_uid
    assert data_set(bad) in client.get(address(bad), headers=AS_STORED).content
