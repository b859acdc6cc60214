"""Key images and dose over `/api/v1`, and on the desk's page of a study (IHE KIN, REM)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import httpx
import pytest
from pydicom.dataset import Dataset

from tests.api.conftest import on_both_databases
from tests.api.test_stow import post
from tests.builders import ct_slice, dose_report, key_object, new_uid, part10

STUDY = new_uid("study")


@pytest.fixture
def slices(client: httpx.Client) -> list[Dataset]:
    made = [ct_slice(number=number) for number in range(1, 11)]
    assert post(client, *map(part10, made)).status_code == 200
    return made


@pytest.mark.req("REQ-IHE-06")
@on_both_databases
def test_two_of_ten_images_are_key_images_with_a_title(client: httpx.Client, slices: list[Dataset]) -> None:
    note = key_object(slices[1], slices[4], title=("113002", "For Referring Provider"))
    assert post(client, part10(note)).status_code == 200
    found = client.get(f"/api/v1/studies/{STUDY}/key-images").json()
    assert found["next"] is None
    assert [one["sop_instance_uid"] for one in found["items"]] == [slices[1].SOPInstanceUID, slices[4].SOPInstanceUID]
    (said,) = found["items"][0]["notes"]
    assert said["title"] == {"code": "113002", "scheme": "DCM", "meaning": "For Referring Provider"}
    assert (said["sop_instance_uid"], said["frames"], said["presentation_state"]) == (note.SOPInstanceUID, [], None)
    asked = {"instance": slices[4].SOPInstanceUID}
    (one,) = client.get(f"/api/v1/studies/{STUDY}/key-images", params=asked).json()["items"]
    assert one["current"]["sop_instance_uid"] == slices[4].SOPInstanceUID
    asked = {"instance": slices[0].SOPInstanceUID}
    assert client.get(f"/api/v1/studies/{STUDY}/key-images", params=asked).json()["items"] == []
    assert client.get("/api/v1/studies/1.2.3/key-images").json()["items"] == []


@pytest.mark.req("REQ-IHE-06", "REQ-DCM-30")
def test_a_note_is_found_by_its_title_and_date(client: httpx.Client, slices: list[Dataset]) -> None:
    request = Dataset()
    request.AccessionNumber, request.RequestedProcedureID = "A1001", "RP1"
    request.StudyInstanceUID = STUDY
    note = key_object(slices[1], title=("113002", "For Referring Provider"), ReferencedRequestSequence=[request])
    post(client, part10(note), part10(key_object(slices[1], ContentDate="20260201")))
    for asked, count in (
        ({"ConceptNameCodeSequence.CodeValue": "113002"}, 1),
        ({"ContentDate": "20260105"}, 1),
        ({"ContentDate": "20260101-20260301"}, 2),
        ({"ContentTime": "113000"}, 2),
        ({"ReferencedRequestSequence.RequestedProcedureID": "RP1"}, 1),
        ({"ConceptNameCodeSequence.CodeValue": "113004"}, 0),
    ):
        fields = {"includefield": "ConceptNameCodeSequence,ContentDate,ContentTime,ReferencedRequestSequence"}
        answer = client.get(f"/dicom-web/studies/{STUDY}/instances", params={**asked, **fields})
        found = answer.json() if answer.status_code == 200 else []
        assert len(found) == count, asked
    assert answer.status_code == 204


@pytest.mark.req("REQ-IHE-06")
def test_the_desk_shows_the_pictures_that_a_note_selects(
    log_in: Callable[[str], httpx.Client], client: httpx.Client, slices: list[Dataset]
) -> None:
    post(client, part10(key_object(slices[1], slices[4], title=("113002", "For Referring Provider"))))
    page = log_in("anne").get(f"/etudes/{STUDY}").text
    assert "Pour le médecin demandeur" in page and "2 images" in page
    assert page.count('alt="Image clé') == 2


@pytest.mark.req("REQ-IHE-07")
@on_both_databases
def test_the_dose_of_a_study_and_of_a_month_as_json_and_csv(client: httpx.Client, slices: list[Dataset]) -> None:
    report = dose_report((5.5, 120.0), (12.0, 30.0), total=150.0)
    assert post(client, part10(report)).status_code == 200
    (one,) = client.get(f"/api/v1/studies/{STUDY}/dose").json()["items"]
    assert one["totals"] == {
        "ctdi_vol_mgy": 12.0, "dlp_mgycm": 150.0, "dap_gym2": None, "agd_mgy": None, "activity_mbq": None,
    }  # fmt: skip
    assert (one["template"], one["event_count"], one["device"]["uid"]) == ("10011", 2, "1.2.3.99")
    assert [event["event_uid"] for event in one["events"]] == ["1.2.3.99.1", "1.2.3.99.2"]
    month = {"from": "2026-01-01", "to": "2026-01-31", "modality": "CT"}
    listed = client.get("/api/v1/dose", params=month).json()
    assert [item["sop_instance_uid"] for item in listed["items"]] == [report.SOPInstanceUID]
    assert listed["next"] is None and "events" not in listed["items"][0]
    answer = client.get("/api/v1/dose", params={**month, "format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["study_date"], row["accession"], row["dlp_mgycm"], row["events"]) == ("20260105", "A1001", "150.0", "2")
    assert client.get("/api/v1/dose", params={"from": "2026-02-01"}).json()["items"] == []
    assert client.get("/api/v1/dose", params={"from": "yesterday"}).status_code == 400
    assert client.get("/api/v1/studies/1.2.3/dose").json()["items"] == []


@pytest.mark.req("REQ-IHE-07")
def test_a_table_of_doses_holds_no_formula(client: httpx.Client) -> None:
    ds = ct_slice(StudyDescription="=HYPERLINK(1)")
    post(client, part10(ds), part10(dose_report((1.0, 10.0), StudyDescription="=HYPERLINK(1)")))
    answer = client.get("/api/v1/dose", params={"format": "csv"})
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert row["description"] == "'=HYPERLINK(1)"
