"""`/fhir`: what it says it does, imaging studies, and the audit for its auditor."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from time import thread_time

import httpx
import pytest
from dicomweb_client.api import DICOMwebClient

from api import fhir_imaging
from api.fhir_capability import PARAMETERS
from api.fhir_search import Search
from archive.core import Archive
from archive.errors import InvalidRequest
from tests.api.conftest import on_both_databases
from tests.api.fhir import found, get, link, refusal, valid
from tests.api.test_auth import rows
from tests.archive.lifecycle.aging import receive
from tests.builders import ct_slice, new_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
DCM = "http://dicom.nema.org/resources/ontology/DCM"


def give(archive: Archive) -> list[str]:
    """Three studies of two patients; the first has two series, of two images and one."""
    studies = [new_uid(f"fhir study {number}") for number in range(3)]
    for number, series, image in ((0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 1, 1), (2, 1, 1)):
        receive(
            archive,
            ct_slice(
                number=image,
                PatientID="IPP1" if number < 2 else "IPP2",
                StudyInstanceUID=studies[number],
                SeriesInstanceUID=new_uid(f"fhir series {number}.{series}"),
                SOPInstanceUID=new_uid(f"fhir image {number}.{series}.{image}"),
                StudyDate=f"2026010{number + 5}",
                StudyTime="083000",
                AccessionNumber=f"A{number}",
                Modality="CT" if number < 2 else "MR",
                SeriesNumber=series,
                StudyDescription="Thorax",
                BodyPartExamined="CHEST",
                ReferringPhysicianName="DURAND^Luc",
            ),
        )
    return studies


def ids(client: httpx.Client, **params: object) -> list[str]:
    return [one["id"] for one in found(get(client, "ImagingStudy", **params))]


def test_the_capability_statement_is_valid_and_says_no_more_than_is_done(client: httpx.Client) -> None:
    said = get(client, "metadata")
    assert (said["fhirVersion"], said["kind"], said["status"]) == ("4.0.1", "instance", "active")
    resources = said["rest"][0]["resource"]
    assert [one["type"] for one in resources] == ["Patient", "ImagingStudy", "AuditEvent"]
    for one in resources:
        assert [act["code"] for act in one["interaction"]] == ["read", "search-type"]
        for parameter in one["searchParam"]:
            answer = client.get(f"/fhir/{one['type']}", params={parameter["name"]: "1970"})
            entries = answer.json().get("entry", ())
            assert answer.status_code in (200, 400), parameter
            assert not [entry for entry in entries if entry["search"]["mode"] == "outcome"], f"ignored: {parameter}"
    assert {one["type"]: {p["name"] for p in one["searchParam"]} for one in resources} == {
        kind: set(known) for kind, known in PARAMETERS.items()
    }


@on_both_databases
def test_a_study_is_given_with_its_series_its_instances_and_where_they_are(
    archive: Archive, client: httpx.Client, url: str
) -> None:
    study, _, _ = give(archive)
    resource = get(client, f"ImagingStudy/{study}")
    [patient] = found(get(client, "Patient", identifier="IPP1"))
    first, second = resource.pop("series")
    assert resource == {
        "resourceType": "ImagingStudy",
        "id": study,
        "contained": [
            {
                "resourceType": "Endpoint",
                "id": "dicomweb",
                "status": "active",
                "connectionType": {
                    "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
                    "code": "dicom-wado-rs",
                },
                "payloadType": [{"text": "DICOM"}],
                "payloadMimeType": ["application/dicom"],
                "address": f"{url}/dicom-web",
            }
        ],
        "identifier": [
            {"use": "official", "system": "urn:dicom:uid", "value": f"urn:oid:{study}"},
            {
                "use": "usual",
                "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]},
                "value": "A0",
            },
        ],
        "status": "available",
        "modality": [{"system": DCM, "code": "CT"}],
        "subject": {"reference": f"Patient/{patient['id']}"},
        "started": "2026-01-05T08:30:00+01:00",
        "referrer": {"display": "Luc DURAND"},
        "endpoint": [{"reference": "#dicomweb"}],
        "numberOfSeries": 2,
        "numberOfInstances": 3,
        "description": "Thorax",
    }
    assert (first["number"], first["numberOfInstances"], second["numberOfInstances"]) == (1, 2, 1)
    assert (first["modality"], first["bodySite"]) == ({"system": DCM, "code": "CT"}, {"display": "CHEST"})
    assert first["instance"][0] == {
        "uid": new_uid("fhir image 0.1.1"),
        "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{CT}"},
        "number": 1,
    }
    session = httpx.get(f"{url}/healthz")
    assert session.status_code == 200
    web = DICOMwebClient(resource["contained"][0]["address"], headers=dict(client.headers))
    image = web.retrieve_instance(study, first["uid"], first["instance"][0]["uid"])
    assert image.SOPInstanceUID == first["instance"][0]["uid"], "the endpoint gives what the study names"


def test_studies_are_found_by_each_parameter(archive: Archive, client: httpx.Client) -> None:
    one, two, three = give(archive)
    [patient] = found(get(client, "Patient", identifier="IPP1"))
    for params, expected in (
        ({}, [three, two, one]),
        ({"identifier": f"urn:dicom:uid|urn:oid:{one}"}, [one]),
        ({"identifier": f"urn:oid:{one},urn:oid:{three}"}, [three, one]),
        ({"identifier": "A1"}, [two]),
        ({"identifier": "A1,A2"}, [three, two]),
        ({"identifier": "A*"}, []),
        ({"identifier": "http://elsewhere|A1"}, []),
        ({"_id": two}, [two]),
        ({"_id": "nothing"}, []),
        ({"patient": f"Patient/{patient['id']}"}, [two, one]),
        ({"patient": patient["id"], "started": "2026-01-05"}, [one]),
        ({"subject": f"{client.base_url}/fhir/Patient/{patient['id']}"}, [two, one]),
        ({"patient": "Patient/999"}, []),
        ({"patient.identifier": "IPP2"}, [three]),
        ({"started": "ge2026-01-06"}, [three, two]),
        ({"started": ["gt2026-01-05", "lt2026-01-07"]}, [two]),
        ({"started": "2026-01"}, [three, two, one]),
        ({"modality": "MR"}, [three]),
        ({"modality": f"{DCM}|CT,{DCM}|US"}, [two, one]),
        ({"status": "available"}, [three, two, one]),
        ({"status": "cancelled"}, []),
    ):
        assert ids(client, **params) == expected, params
    for params, status in (
        ({"started": "yesterday"}, 400),
        ({"started": "2026-01-05T08:00:00Z"}, 400),
        ({"identifier": f"A1,urn:oid:{one}"}, 400),
        ({"patient.identifier": "urn:oid:2.25.404|X"}, 404),
    ):
        assert refusal(get(client, "ImagingStudy", status, **params))[0] == "error", params


def test_pages_summaries_and_what_is_not_there(archive: Archive, client: httpx.Client) -> None:
    give(archive)
    first = get(client, "ImagingStudy", _count="2")
    following = link(first, "next")
    assert (first["total"], len(found(first))) == (3, 2)
    assert following is not None
    rest = valid(client.get(following).json())
    assert (len(found(rest)), link(rest, "next")) == (1, None)
    [summary] = found(get(client, "ImagingStudy", identifier="A0", _summary="true"))
    assert summary["meta"]["tag"][0]["code"] == "SUBSETTED"
    assert all("instance" not in one for one in summary["series"])
    assert get(client, "ImagingStudy", _summary="count")["total"] == 3
    for id in ("1.2.3", "x", "1" * 64):
        assert refusal(get(client, f"ImagingStudy/{id}", 404)) == ("error", "not-found")
    archive.commit.run(lambda conn: None)
    [row] = rows(archive, event="110112", study="1.2.3")
    assert (row["outcome"], row["door"]) == (0, "fhir")


def test_a_page_ends_before_it_has_too_many_instances(
    archive: Archive, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = give(archive)  # of 3, 1 and 1 instances; the newest first
    monkeypatch.setattr(fhir_imaging, "MOST_INSTANCES", 2)
    first = get(client, "ImagingStudy")
    assert ([study["id"] for study in found(first)], first["total"]) == ([three, two], 3)
    following = link(first, "next")
    assert following is not None
    rest = valid(client.get(following).json())
    assert [study["id"] for study in found(rest)] == [one], "whole, however many it has"
    assert link(rest, "next") is None
    assert ids(client, _summary="true") == [three, two, one]


def test_too_many_parameters_are_refused_at_once(client: httpx.Client) -> None:
    many = [(f"p{number}", "1") for number in range(501)]
    query = str(httpx.QueryParams(many))
    assert client.get(f"/fhir/ImagingStudy?{query}").status_code == 400
    assert client.post("/fhir/ImagingStudy/_search", data=dict(many)).status_code == 400
    began = thread_time()
    with pytest.raises(InvalidRequest):
        Search((str(number), "1") for number in range(10_000))
    assert thread_time() - began < 1, "in the event loop"


@pytest.mark.req("REQ-SEC-20", "REQ-SEC-23", "REQ-SEC-05")
def test_the_auditor_reads_who_did_what_and_that_is_written_down(
    archive: Archive, url: str, client: httpx.Client, token: Callable[..., str]
) -> None:
    study, _, _ = give(archive)
    get(client, f"ImagingStudy/{study}")
    client.get("/dicom-web/studies", params={"PatientName": "DUPONT*"})
    archive.commit.run(lambda conn: None)
    headers = {"Authorization": f"Bearer {token('auditor', name='ada')}"}
    with httpx.Client(base_url=url, headers=headers) as ada:
        [asked] = found(get(ada, "AuditEvent", type=f"{DCM}|110112", **{"entity.identifier": f"urn:oid:{study}"}))
        assert (asked["action"], asked["outcome"], asked["type"]["code"]) == ("E", "0", "110112")
        assert asked["agent"][0]["altId"] == "robot"
        assert asked["agent"][0]["network"] == {"address": "127.0.0.1", "type": "2"}
        patient, of, query, detail = asked["entity"]
        assert patient["what"]["identifier"]["value"].startswith("IPP1")
        assert of["what"]["identifier"]["value"] == f"urn:oid:{study}"
        assert b64decode(query["query"]).decode() == f'{{"study":"{study}"}}'
        assert {"type": "door", "valueString": "fhir"} in detail["detail"]
        assert get(ada, f"AuditEvent/{asked['id']}") == asked
        everything = get(ada, "AuditEvent", _count="1000")
        assert len(found(everything)) == len(rows(archive, limit=1000)) - 1, "but for this reading itself"
        [searched] = [one for one in found(get(ada, "AuditEvent", altid="robot")) if "/dicom-web" in str(one)]
        assert b64decode(searched["entity"][0]["query"]) == b"PatientName=DUPONT%2A"
        bundle = get(ada, "AuditEvent", _count="1", type="110104")
        following = link(bundle, "next")
        assert following is not None
        assert found(valid(ada.get(following).json()))[0]["id"] < found(bundle)[0]["id"]
        assert found(get(ada, "AuditEvent", date="lt2000")) == []
        assert found(get(ada, "AuditEvent", date=["ge2000", "lt2100"], outcome="0", action="R"))
        assert found(get(ada, "AuditEvent", patient="Patient/999999")) == []
        [owner] = found(get(client, "Patient", identifier="IPP2"))
        theirs = found(get(ada, "AuditEvent", patient=f"Patient/{owner['id']}"))
        assert theirs == found(get(ada, "AuditEvent", **{"patient.identifier": "IPP2"}))
        assert {one["entity"][0]["what"]["identifier"]["value"] for one in theirs} == {
            theirs[0]["entity"][0]["what"]["identifier"]["value"]
        }
        for params in ({"outcome": "1"}, {"date": "soon"}, {"date": "2026-01-05T08:00:00"}, {"type": "1,2"}):
            assert refusal(get(ada, "AuditEvent", 400, **params)) == ("error", "invalid")
        assert refusal(get(ada, "AuditEvent/999999", 404)) == ("error", "not-found")
        read = rows(archive, user="ada", event="110101", limit=1000)
        assert {row["action"] for row in read} == {"R"}
        assert len(read) >= 10
        assert refusal(get(ada, "Patient", 403, family="x")) == ("error", "forbidden")
    headers = {"Authorization": f"Bearer {token('radiologist', name='anne')}"}
    answer = httpx.get(f"{url}/fhir/AuditEvent", headers=headers)
    assert (answer.status_code, refusal(valid(answer.json()))) == (403, ("error", "forbidden"))
    [refused] = rows(archive, user="anne")
    assert (refused["event"], refused["action"], refused["outcome"]) == ("110101", "R", 8)
