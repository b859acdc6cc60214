"""PDQm (ITI-78): the patients that PDQ finds over HL7, as FHIR R4 has them."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator

import httpx
import pytest

from archive.config import Settings
from archive.core import Archive, open_archive
from tests.api.conftest import on_both_databases
from tests.api.fhir import JSON, found, get, link, refusal, valid
from tests.api.test_auth import rows
from tests.archive.lifecycle.aging import receive
from tests.builders import ct_slice
from tests.hl7_listener.saying import ISSUER, cx, ins, pid, say, with_ris
from tests.hl7_listener.test_pdq import Console, one, patients
from tests.hl7_listener.test_serve import listening

INS = "285073599990118"
IPP = "urn:oid:2.25.171717001"
INS_NIR = "urn:oid:1.2.250.1.213.1.4.10"


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(with_ris(settings), process="test") as opened:
        names = "KERVÉADOU D'ARVOR^Anne-Marie^^^Mme^^D~LE GOFF^ANNE-MARIE^ANNE-MARIE LOUISE^^Mme^^L"
        fields = {"p3": f"{ins(INS)}~H77^^^2.25.7^PI~199^^^SECU&1.2.250.1.213.1.4.8&ISO^NH"}
        fields |= {"p7": "19850712", "p8": "F", "p11": "12 rue^^SAINT-MALO^^35400^FRA^H~^^RENNES^^^FRA^BDL^^35999"}
        fields |= {"p13": "^PRN^CP^^^^^^^^^0600000001", "p23": "Rennes", "p24": "Y", "p25": "2", "p32": "VALI"}
        say(opened, "A28", pid("R1", names, **fields))
        say(opened, "A28", pid("R2", "LEFÈVRE^Anaïs^^^^^L", p7="1985", p8="F"))
        say(opened, "A28", pid("R3", "LEFEBVRE^Jean^^^^^L", p7="198502", p8="M", p29="20200101", p30="Y"))
        yield opened


def names(client: httpx.Client, **params: object) -> list[str]:
    """The archive's own identifier of each patient that a search finds."""
    return [one["identifier"][0]["value"] for one in found(get(client, "Patient", **params))]


@pytest.mark.req("REQ-IHE-05")
def test_a_patient_is_given_as_r4_has_it(client: httpx.Client) -> None:
    bundle = get(client, "Patient", identifier=f"{IPP}|R1")
    assert bundle["total"] == 1
    [resource] = found(bundle)
    id = resource["id"]
    assert bundle["entry"][0]["fullUrl"].endswith(f"/fhir/Patient/{id}")
    assert link(bundle, "self") == f"{client.base_url}/fhir/Patient?identifier=urn%3Aoid%3A2.25.171717001%7CR1"
    v2 = "http://terminology.hl7.org/CodeSystem/v2-0203"
    fr = "https://hl7.fr/ig/fhir/core/CodeSystem/fr-core-cs-v2-0203"
    assert resource == {
        "resourceType": "Patient",
        "id": id,
        "meta": {"versionId": "1"},
        "extension": [
            {
                "url": "http://hl7.org/fhir/StructureDefinition/patient-birthPlace",
                "valueAddress": {"text": "Rennes", "city": "RENNES", "country": "FRA"},
            }
        ],
        "identifier": [
            {
                "use": "usual",
                "type": {"coding": [{"system": v2, "code": "PI"}]},
                "system": IPP,
                "value": "R1",
                "assigner": {"display": ISSUER},
            },
            {
                "use": "usual",
                "type": {"coding": [{"system": v2, "code": "PI"}]},
                "system": "urn:oid:2.25.7",
                "value": "H77",
            },
            {
                "use": "official",
                "type": {"coding": [{"system": fr, "code": "INS-NIR"}]},
                "system": INS_NIR,
                "value": INS,
            },
        ],
        "active": True,
        "name": [
            {"use": "usual", "family": "KERVÉADOU D'ARVOR", "given": ["Anne-Marie"], "prefix": ["Mme"]},
            {"use": "official", "family": "LE GOFF", "given": ["ANNE-MARIE", "LOUISE"], "prefix": ["Mme"]},
        ],
        "telecom": [{"system": "phone", "value": "0600000001", "use": "home"}],
        "gender": "female",
        "birthDate": "1985-07-12",
        "address": [{"use": "home", "line": ["12 rue"], "city": "SAINT-MALO", "postalCode": "35400", "country": "FRA"}],
        "multipleBirthInteger": 2,
    }
    assert get(client, f"Patient/{id}") == resource
    [dead] = found(get(client, "Patient", identifier="R3"))
    assert (dead["birthDate"], dead["deceasedDateTime"]) == ("1985-02", "2020-01-01")


@pytest.mark.req("REQ-IHE-05", "REQ-IHE-04")
def test_the_same_four_queries_find_the_same_patients_over_hl7_and_fhir(archive: Archive, client: httpx.Client) -> None:
    say(archive, "A28", pid("OLD", "ANCIEN^Nom^^^^^L"))
    say(archive, "A40", pid("R3", "LEFEBVRE^Jean^^^^^L"), f"MRG|{cx('OLD')}")
    with listening(archive) as (port, _stop):
        console = Console(port)
        for parameters, params, expected in (
            (["@PID.5.1.1^LEFEVRE*"], {"family": "lefevre"}, ["R2"]),
            (["@PID.5.1.1^ZZZZ"], {"family": "ZZZZ"}, []),
            ([f"@PID.3.1^{INS}", "@PID.3.4.2^1.2.250.1.213.1.4.10"], {"identifier": f"{INS_NIR}|{INS}"}, ["R1"]),
            (["@PID.3.1^OLD", f"@PID.3.4.1^{ISSUER}"], {"identifier": f"{IPP}|OLD"}, ["R3"]),
            (["@PID.8^F", "@PID.7^1985"], {"gender": "female", "birthdate": "1985"}, ["R1", "R2"]),
        ):
            assert patients(console.ask(*parameters)) == names(client, **params) == expected
        answer = console.ask("@PID.8^F", domains="^^^NOBODY&2.25.404&ISO")
        assert one(answer, "ERR")[3].startswith("204^")
    answer = get(client, "Patient", 404, gender="female", identifier="urn:oid:2.25.404|")
    assert refusal(answer) == ("error", "not-found")
    assert answer["issue"][0]["diagnostics"] == "targetSystem not found"


MEANT = [
    ({"family": "le goff", "given": "louise"}, ["R1"]),
    ({"family": "KERVEADOU"}, ["R1"]),
    ({"family:exact": "lef"}, []),
    ({"family:contains": "ebv"}, ["R3"]),
    ({"given": ["anne", "lou"]}, ["R1"]),
    ({"birthdate": "1985-02"}, ["R3"]),
    ({"birthdate": "1985-07-12"}, ["R1"]),
    ({"birthdate": ["ge1985-02-01", "lt1985-03"]}, ["R3"]),
    ({"birthdate": "gt1985-12-31"}, []),
    ({"gender": "male,female"}, ["R1", "R2", "R3"]),
    ({"gender": "unknown"}, []),
    ({"address-city": "saint"}, ["R1"]),
    ({"address": "35400"}, ["R1"]),
    ({"telecom": "phone|06 00 00 00 01"}, ["R1"]),
    ({"identifier": "R1,R2"}, ["R1", "R2"]),
    ({"identifier": ["R1", "H77"]}, ["R1"]),
    ({"identifier": ["R1", "R2"]}, []),
    ({"identifier": f"{IPP}|NOBODY"}, []),
    ({"identifier": "199"}, []),
    ({"gender": "male", "active": "false"}, []),
    ({"_id": "999999"}, []),
    ({"_id": "x"}, []),
]


@pytest.mark.req("REQ-IHE-05")
def test_each_parameter_finds_whom_it_means(client: httpx.Client) -> None:
    for params, expected in MEANT:
        assert names(client, **params) == expected, params


@on_both_databases
def test_pages_lead_to_each_other_until_everybody_was_given(client: httpx.Client) -> None:
    seen, address = [], f"{client.base_url}/fhir/Patient?gender=male,female&_count=2"
    while address:
        bundle = valid(client.get(address).json())
        assert bundle["total"] == 3
        seen += [one["identifier"][0]["value"] for one in found(bundle)]
        address = link(bundle, "next") or ""
    assert seen == ["R1", "R2", "R3"]
    counted = get(client, "Patient", gender="female", _summary="count")
    assert (counted["total"], found(counted)) == (2, [])


def test_a_domain_limits_the_identifiers_and_the_patients(client: httpx.Client) -> None:
    [resource] = found(get(client, "Patient", gender="female", identifier="urn:oid:2.25.7|"))
    assert [one["value"] for one in resource["identifier"]] == ["H77"]


@pytest.mark.req("REQ-HL7-64")
def test_an_ins_that_was_withdrawn_is_neither_found_nor_told(archive: Archive, client: httpx.Client) -> None:
    say(archive, "A31", pid("R1", "LE GOFF^ANNE-MARIE^^^^^L", p32="PROV"))
    assert names(client, identifier=INS) == []
    [resource] = found(get(client, "Patient", identifier="R1"))
    assert INS not in [one["value"] for one in resource["identifier"]]


def test_whoever_was_merged_away_only_says_who_they_are_now(archive: Archive, client: httpx.Client) -> None:
    [before] = found(get(client, "Patient", identifier="R2"))
    say(archive, "A40", pid("R1", "LE GOFF^ANNE-MARIE^^^^^L"), f"MRG|{cx('R2')}")
    [survivor] = found(get(client, "Patient", identifier="R2"))
    assert survivor["identifier"][0]["value"] == "R1"
    assert get(client, f"Patient/{before['id']}") == {
        "resourceType": "Patient",
        "id": before["id"],
        "active": False,
        "link": [{"other": {"reference": f"Patient/{survivor['id']}"}, "type": "replaced-by"}],
    }


def test_somebody_whom_only_images_know_is_a_patient_too(archive: Archive, client: httpx.Client) -> None:
    receive(archive, ct_slice(PatientID="X1", PatientName="NOYER^Paul", PatientBirthDate="19600101", PatientSex="M"))
    [resource] = found(get(client, "Patient", family="noyer"))
    assert (resource["name"], resource["birthDate"], resource["gender"]) == (
        [{"use": "official", "family": "NOYER", "given": ["Paul"]}],
        "1960-01-01",
        "male",
    )


REFUSED = [
    ({}, 400, "invalid"),
    ({"nonsense": "x"}, 400, "invalid"),
    ({"gender": "femme"}, 400, "invalid"),
    ({"birthdate": "12/07/1985"}, 400, "invalid"),
    ({"birthdate": "1985-02-30"}, 400, "invalid"),
    ({"birthdate": "ne1985"}, 400, "invalid"),
    ({"birthdate": "1985-07-12T08:00:00Z"}, 400, "invalid"),
    ({"family": ["a", "b"]}, 400, "invalid"),
    ({"family": "x" * 400}, 400, "invalid"),
    ({"family": "x", "_count": "many"}, 400, "invalid"),
    ({"family": "x", "_format": "xml"}, 406, "not-supported"),
    ({"identifier": "http://elsewhere|R1"}, 404, "not-found"),
]


def test_a_search_that_cannot_be_answered_is_an_operation_outcome(client: httpx.Client) -> None:
    for params, status, code in REFUSED:
        assert refusal(get(client, "Patient", status, **params)) == ("error", code), params


def test_what_is_not_understood_is_said_or_refused_as_the_client_prefers(client: httpx.Client) -> None:
    bundle = get(client, "Patient", family="le goff", color="blue")
    assert link(bundle, "self") == f"{client.base_url}/fhir/Patient?family=le+goff"
    [outcome] = [one["resource"] for one in bundle["entry"] if one["search"]["mode"] == "outcome"]
    assert outcome["issue"][0]["diagnostics"] == "ignored: color"
    answer = client.get("/fhir/Patient?family=x&color=blue", headers={"Prefer": "handling=strict"})
    assert (answer.status_code, refusal(valid(answer.json()))) == (400, ("error", "invalid"))


def test_a_search_may_be_posted_and_a_read_of_nobody_is_not_found(client: httpx.Client) -> None:
    answer = client.post("/fhir/Patient/_search", data={"family": "le goff"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, JSON)
    assert len(found(valid(answer.json()))) == 1
    assert client.post("/fhir/Patient/_search", json={"family": "x"}).status_code == 400
    for id in ("999999", "x", "-1"):
        assert refusal(get(client, f"Patient/{id}", 404)) == ("error", "not-found")
    for method, path, status in (("POST", "Patient", 405), ("PUT", "Patient/1", 405), ("GET", "Observation", 404)):
        answer = client.request(method, f"/fhir/{path}")
        assert (answer.status_code, valid(answer.json())["resourceType"]) == (status, "OperationOutcome")


@pytest.mark.req("REQ-SEC-10", "REQ-SEC-23")
def test_a_search_is_in_the_audit_with_what_was_asked_and_a_refusal_too(
    archive: Archive, url: str, client: httpx.Client, token: Callable[..., str]
) -> None:
    get(client, "Patient", family="le goff")
    archive.commit.run(lambda conn: None)  # with it goes what was queued before
    [row] = rows(archive, event="110112")
    assert (row["action"], row["outcome"], row["door"], row["patient"]) == ("E", 0, "fhir", None)
    detail = row["detail"]
    assert isinstance(detail, dict)
    assert (detail["type"], b64decode(detail["query"])) == ("ITI-78", b"family=le goff")
    headers = {"Authorization": f"Bearer {token('it_admin', name='igor')}"}
    answer = httpx.get(f"{url}/fhir/Patient?family=x", headers=headers)
    assert (answer.status_code, refusal(valid(answer.json()))) == (403, ("error", "forbidden"))
    [refused] = rows(archive, user="igor")
    assert (refused["event"], refused["outcome"]) == ("110112", 8)
    answer = httpx.get(f"{url}/fhir/Patient?family=x")
    assert (answer.status_code, refusal(valid(answer.json()))) == (401, ("error", "login"))
    assert "Bearer" in answer.headers["www-authenticate"]
