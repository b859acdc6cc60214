"""QIDO-RS: six resources, their parameters, their warnings, what each result has; and dicomweb-client as a judge."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from sqlalchemy import select, update

from archive.access import Actor
from archive.audit.record import Event
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom import xml
from archive.instance import State
from archive.schema import audit, instance
from tests.api.test_wado import contents
from tests.archive.index.filling import fill, study
from tests.builders import new_uid

on_sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
A, B = new_uid("A"), new_uid("B")
A1, A2 = new_uid("A", "1"), new_uid("A", "2")


@pytest.fixture
def filled(archive: Archive, actor: Actor) -> Archive:
    """Study A: a CT series of three with a request, an MR series of one; study B."""
    step = Dataset()
    step.ScheduledProcedureStepID, step.RequestedProcedureID = "SPS1", "RP1"
    a = {"PatientName": "LEFÈVRE^Anaïs", "StudyDate": "20260105", "AccessionNumber": "ACC1", "StationName": "IRM1"}
    for number in (1, 2, 3):
        ds = study("A", **a, SOPInstanceUID=new_uid("A", "1", str(number)), InstanceNumber=number, NumberOfFrames=1)
        ds.RequestAttributesSequence = Sequence([step])
        fill(archive, actor, ds)
    mr = {"SeriesInstanceUID": A2, "SOPInstanceUID": new_uid("A", "2", "1"), "Modality": "MR", "SeriesNumber": 2}
    fill(archive, actor, study("A", **a, **mr), study("B", StudyDate="20260107", TimezoneOffsetFromUTC="+0200"))
    return archive


def rows(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom+json"
    return list(answer.json())


def first(row: dict[str, Any], key: str) -> Any:
    return row[key]["Value"][0]


def uids(answer: httpx.Response, key: str = "0020000D") -> list[str]:
    return [] if answer.status_code == 204 else [first(row, key) for row in rows(answer)]


STUDY_KEYS = [
    "00080005", "00080020", "00080030", "00080050", "00080056", "00080061", "00080090", "00081030", "00081190",
    "00100010", "00100020", "00100030", "00100040", "0020000D", "00200010", "00201206", "00201208",
]  # fmt: skip


@pytest.mark.req("REQ-DCM-93")
def test_a_study_has_all_that_the_standard_wants_returned(filled: Archive, client: httpx.Client) -> None:
    newer, older = rows(client.get("/dicom-web/studies"))
    assert list(older) == STUDY_KEYS
    assert list(newer) == sorted([*STUDY_KEYS, "00080201"])  # its time zone is known
    assert first(older, "00080005") == "ISO_IR 192"
    assert first(older, "00080056") == "ONLINE"
    assert older["00080061"]["Value"] == ["CT", "MR"]
    assert first(older, "00100010") == {"Alphabetic": "LEFÈVRE^Anaïs"}
    assert (first(older, "00201206"), first(older, "00201208")) == (2, 4)
    assert first(older, "00081190") == f"{client.base_url}/dicom-web/studies/{A}"
    assert first(newer, "00080201") == "+0200"


@pytest.mark.req("REQ-DCM-93")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("StudyDate=20260105", [A]),
        ("StudyDate=20260105-20260107", [B, A]),
        ("StudyTime=1015", [B, A]),
        ("00080050=ACC1", [A]),
        ("AccessionNumber=acc1", []),
        ("ModalitiesInStudy=MR", [A]),
        ("ModalitiesInStudy=MR,US", [A]),
        ("ModalitiesInStudy=MR%5CCT", [B, A]),
        ("ReferringPhysicianName=lefevre*", [B, A]),
        ("PatientName=lefevre^anais", [A]),
        ("PatientName=LEF%C3%88VRE*", [A]),
        ("PatientName=*&PatientID=A", [A]),
        ("00100020=B", [B]),
        (f"StudyInstanceUID={A},{B}", [B, A]),
        (f"0020000d={A}", [A]),
        ("StudyID=S1", [B, A]),
        ("PatientID=", [B, A]),
        ("PatientID=nobody", []),
    ],
)
@on_sqlite
def test_studies_are_found_by_every_required_key(
    filled: Archive, client: httpx.Client, query: str, expected: list[str]
) -> None:
    answer = client.get(f"/dicom-web/studies?{query}")
    assert uids(answer) == expected
    assert "warning" not in answer.headers
    assert answer.status_code == (200 if expected else 204)
    assert answer.content or not expected


@pytest.mark.req("REQ-DCM-93")
def test_series_and_instances_are_found_in_a_study_in_a_series_and_everywhere(
    filled: Archive, client: httpx.Client
) -> None:
    ct, mr = rows(client.get(f"/dicom-web/studies/{A}/series"))
    assert (first(ct, "0020000E"), first(ct, "00080060"), first(ct, "00201209")) == (A1, "CT", 3)
    assert first(first(ct, "00400275"), "00400009") == "SPS1"
    assert first(first(ct, "00400275"), "00401001") == "RP1"
    assert first(ct, "00081190") == f"{client.base_url}/dicom-web/studies/{A}/series/{A1}"
    assert "00400275" not in mr
    assert "00100010" not in ct  # the address names the study
    for query, expected in (
        ("Modality=MR", [A2]),
        ("SeriesNumber=2", [A2]),
        ("RequestAttributesSequence.ScheduledProcedureStepID=SPS1", [A1]),
        ("00400275.00401001=RP*&RequestAttributesSequence.00400009=SPS1", [A1]),
        ("RequestAttributesSequence.RequestedProcedureID=RP2", []),
        (f"SeriesInstanceUID={A2}", [A2]),
    ):
        assert uids(client.get(f"/dicom-web/studies/{A}/series?{query}"), "0020000E") == expected, query
    everywhere = rows(client.get("/dicom-web/series?Modality=CT"))
    assert {first(row, "0020000D") for row in everywhere} == {A, B}
    assert all(first(row, "00100020") in ("A", "B") for row in everywhere)

    images = rows(client.get(f"/dicom-web/studies/{A}/series/{A1}/instances"))
    assert [first(image, "00200013") for image in images] == [1, 2, 3]
    image = images[0]
    assert [first(image, key) for key in ("00280010", "00280011", "00280100", "00280008")] == [16, 16, 16, 1]
    sop = new_uid("A", "1", "1")
    assert first(image, "00081190") == f"{client.base_url}/dicom-web/studies/{A}/series/{A1}/instances/{sop}"
    assert "00080060" not in image
    of_study = rows(client.get(f"/dicom-web/studies/{A}/instances"))
    assert [first(row, "00080060") for row in of_study] == ["CT", "CT", "CT", "MR"]
    assert "00280008" not in of_study[3]  # NumberOfFrames only when known
    assert len(rows(client.get("/dicom-web/instances"))) == 5
    assert uids(client.get(f"/dicom-web/instances?SOPInstanceUID={sop}"), "00080018") == [sop]
    assert client.get("/dicom-web/studies/1.2.3/series").status_code == 204


@pytest.mark.req("REQ-DCM-93")
@on_sqlite
def test_includefield_adds_what_is_there_and_warns_of_what_is_unknown(filled: Archive, client: httpx.Client) -> None:
    (row,) = rows(
        client.get("/dicom-web/studies?PatientID=A&includefield=PatientWeight,00201200&includefield=00080062")
    )
    assert row["00101030"] == {"vr": "DS"}  # asked for, without a value
    assert first(row, "00201200") == 1
    assert len(row["00080062"]["Value"]) == 1
    (row, _) = rows(client.get(f"/dicom-web/studies/{A}/series?includefield=all"))
    assert first(row, "00081010") == "IRM1"
    assert "00101030" not in row
    image = rows(client.get(f"/dicom-web/studies/{A}/series/{A1}/instances?includefield=PatientName,Modality"))[0]
    assert (first(image, "00100010"), first(image, "00080060")) == ({"Alphabetic": "LEFÈVRE^Anaïs"}, "CT")
    answer = client.get("/dicom-web/studies?includefield=00081030,00080060,nonsense")
    assert len(rows(answer)) == 2
    assert "includefield=00080060, includefield=nonsense" in answer.headers["warning"]


@pytest.mark.req("REQ-DCM-93")
@on_sqlite
def test_pages_tell_how_many_more_there_are(archive: Archive, actor: Actor, client: httpx.Client) -> None:
    fill(archive, actor, *(study(f"S{n}", StudyDate=f"2026010{n}") for n in range(1, 8)))
    everything = uids(client.get("/dicom-web/studies"))
    assert everything == [new_uid(f"S{n}") for n in range(7, 0, -1)]
    answer = client.get("/dicom-web/studies?limit=3")
    assert uids(answer) == everything[:3]
    expected = f'299 {client.base_url}/dicom-web: "There are 4 additional results that can be requested"'
    assert answer.headers["warning"] == expected
    answer = client.get("/dicom-web/studies?limit=3&offset=3")
    assert uids(answer) == everything[3:6]
    assert "There are 1 additional results" in answer.headers["warning"]
    answer = client.get("/dicom-web/studies?limit=3&offset=6")
    assert (uids(answer), "warning" in answer.headers) == (everything[6:], False)
    assert client.get("/dicom-web/studies?limit=3&offset=7").status_code == 204


@pytest.mark.req("REQ-DCM-93")
@on_sqlite
def test_what_is_not_done_is_warned_about_and_with_strict_refused(filled: Archive, client: httpx.Client) -> None:
    for query in ("colour=blue", "Modality=CT", "NumberOfStudyRelatedInstances=4"):
        answer = client.get(f"/dicom-web/studies?{query}")
        assert len(uids(answer)) == 2
        assert answer.headers["warning"].startswith("299 ")
        assert query.split("=", maxsplit=1)[0] in answer.headers["warning"]
        refused = client.get(f"/dicom-web/studies?{query}&strict=true")
        assert refused.status_code == 400, query
    answer = client.get("/dicom-web/studies?a%22%0d%0aX-Evil:1=2")
    assert "x-evil" not in answer.headers
    assert "a???X-Evil?1" in answer.headers["warning"]


@pytest.mark.req("REQ-DCM-93")
@pytest.mark.parametrize(
    "path",
    [
        "studies?StudyDate=hier", "studies?StudyTime=25", "studies?limit=many", "studies?limit=0", "studies?offset=-1",
        "studies?fuzzymatching=perhaps", "studies?PatientID=A&00100020=B", "series?SeriesNumber=x",
        f"studies/{A}/series?StudyInstanceUID={B}", "studies/abc/series",
        "series?RequestAttributesSequence.00400009.00400009=1",
    ],
)  # fmt: skip
@on_sqlite
def test_a_wrong_query_is_a_400_that_says_why(filled: Archive, client: httpx.Client, path: str) -> None:
    answer = client.get(f"/dicom-web/{path}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.req("REQ-DCM-42")
@on_sqlite
def test_instances_that_are_not_current_are_not_seen(filled: Archive, client: httpx.Client) -> None:
    hide = update(instance).where(instance.c.sop_instance_uid == new_uid("A", "2", "1")).values(state=State.HELD)
    filled.commit.run(lambda conn: conn.execute(hide))
    (row,) = rows(client.get("/dicom-web/studies?PatientID=A"))
    assert (first(row, "00201206"), first(row, "00201208"), row["00080061"]["Value"]) == (1, 3, ["CT"])
    assert len(rows(client.get(f"/dicom-web/studies/{A}/series"))) == 1
    assert client.get(f"/dicom-web/studies/{A}/series/{A2}/instances").status_code == 204


@pytest.mark.req("REQ-DCM-93", "REQ-DCM-91")
@on_sqlite
def test_only_json_and_xml_can_be_had(filled: Archive, client: httpx.Client) -> None:
    for accepted in ("application/dicom+json", "application/json", "*/*", "application/*", "text/html, */*;q=0.1", ""):
        assert client.get("/dicom-web/studies", headers={"accept": accepted}).status_code == 200, accepted
    assert client.get("/dicom-web/studies?accept=application/dicom+json").status_code == 200
    for accepted in ("text/html", "application/dicom+xml", 'multipart/related; type="application/dicom"'):
        assert client.get("/dicom-web/studies", headers={"accept": accepted}).status_code == 406, accepted


def queries(archive: Archive, *, least: int = 1) -> list[Any]:
    """The audit rows of queries; waits for those that nobody awaits."""
    until = monotonic() + 5
    while True:
        with archive.engine.connect() as conn:
            found = conn.execute(select(audit).where(audit.c.event == Event.QUERY).order_by(audit.c.seq)).all()
        if len(found) >= least or monotonic() > until:
            return list(found)


@on_sqlite
def test_a_query_is_audited_and_so_is_one_that_is_refused(
    filled: Archive, client: httpx.Client, stranger: httpx.Client, token: Callable[..., str]
) -> None:
    client.get("/dicom-web/studies?PatientName=lefevre*")
    client.get("/dicom-web/studies?StudyDate=x")
    good, bad = queries(filled, least=2)
    assert (good.user, good.door, good.action, good.outcome) == ("robot", "dicomweb", "E", 0)
    detail = json.loads(good.detail)
    assert detail["resource"] == "/dicom-web/studies"
    assert base64.b64decode(detail["query"]) == b"PatientName=lefevre*"
    assert bad.outcome == 4
    assert stranger.get("/dicom-web/studies").status_code == 401
    admin = {"Authorization": f"Bearer {token('it_admin', name='admin')}"}
    assert stranger.get("/dicom-web/studies", headers=admin).status_code == 403
    assert [(row.user, row.outcome) for row in queries(filled, least=3)][2:] == [("admin", 8)]


@pytest.mark.req("REQ-DCM-93")
@on_sqlite
def test_dicomweb_client_searches(filled: Archive, url: str, token: Callable[..., str]) -> None:
    web = DICOMwebClient(f"{url}/dicom-web", headers={"Authorization": f"Bearer {token()}"})
    found = web.search_for_studies(
        fuzzymatching=True, search_filters={"PatientName": "LEFEVRE*"}, fields=["PatientSize"]
    )
    (ds,) = [Dataset.from_json(one) for one in found]
    assert (ds.PatientName, ds.StudyInstanceUID, ds.ModalitiesInStudy) == ("LEFÈVRE^Anaïs", A, ["CT", "MR"])
    assert len(web.search_for_series(A)) == 2
    assert len(web.search_for_instances(A, A1)) == 3
    assert len(web.search_for_instances()) == 5
    assert len(web.search_for_instances(A, limit=2, offset=1)) == 2
    assert web.search_for_studies(search_filters={"PatientID": "nobody"}) == []


@pytest.mark.req("REQ-DCM-93")
@on_sqlite
def test_names_empty_values_and_several_values_are_matched_as_the_parameters_say(
    filled: Archive, client: httpx.Client
) -> None:
    """PS3.18 8.3.4.2, 8.3.4.5, 8.3.4.6."""
    for query, expected in (
        ("PatientName=lefe", []),
        ("PatientName=lefe&fuzzymatching=true", [A]),  # folded always; with fuzzymatching what begins so too
        ("PatientName=Lef%C3%A8vre%5Ean&fuzzymatching=true", [A]),
        ("PatientName=anais&fuzzymatching=true", []),
        ("fuzzymatching=false&PatientName=LEFEVRE^ANAIS", [A]),
        ("ModalitiesInStudy=CT,MR", [B, A]),  # any of them
        ("ModalitiesInStudy=CT,MR&multiplevaluematching=true", [A]),  # all of them
        ("multiplevaluematching=true&ModalitiesInStudy=CT%5CMR", [A]),
        ("multiplevaluematching=true&ModalitiesInStudy=CT", [B, A]),
        ("multiplevaluematching=true&ModalitiesInStudy=CT,US", []),
        ("multiplevaluematching=true&AccessionNumber=ACC1", [A]),
        ("multiplevaluematching=true&ModalitiesInStudy=,", [B, A]),
        ("multiplevaluematching=true&fuzzymatching=true&OtherPatientNames=lefe,martin", []),
        ("emptyvaluematching=true&StudyID=%22%22", []),
        ("emptyvaluematching=true&PatientComments=%22%22", [B, A]),
        ("emptyvaluematching=true&PatientName=LEFEVRE*", [A]),
    ):
        answer = client.get(f"/dicom-web/studies?{query}")
        assert uids(answer) == expected, query
        assert "warning" not in answer.headers, query
    for wrong in ("fuzzymatching=yes", "emptyvaluematching=1"):
        assert client.get(f"/dicom-web/studies?{wrong}").status_code == 400


@pytest.mark.req("REQ-DCM-93", "REQ-DCM-91")
@on_sqlite
def test_results_come_as_xml_too(filled: Archive, client: httpx.Client) -> None:
    as_json = rows(client.get("/dicom-web/studies"))
    answer = client.get("/dicom-web/studies", headers={"Accept": 'multipart/related; type="application/dicom+xml"'})
    assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom+xml"; boundary=')
    found = [xml.read(part) for part in contents(answer)]
    assert [names(one) for one in found] == [names(one) for one in as_json]


def names(row: dict[str, Any]) -> dict[str, Any]:
    """What text the values are: XML does not tell a number of IS from its text."""
    return {key: [element["vr"], *(str(one) for one in element.get("Value", ()))] for key, element in row.items()}
