"""/api/v1/patients, /orders and settling: what the shared scenarios read, and who may."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from archive.config import Settings
from archive.core import Archive, open_archive
from tests.api.conftest import on_both_databases
from tests.api.test_auth import rows
from tests.builders import ct_slice, part10
from tests.hl7_listener.saying import ISSUER, cx, ins, order, pid, say, with_ris

INS = "285073599990118"
OID = "2.25.171717001"


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """One with a RIS, whose INS are for tests."""
    with open_archive(with_ris(settings), process="test") as opened:
        yield opened


def patient(client: httpx.Client, identifier: str, authority: str = OID) -> dict[str, object]:
    answer = client.get("/api/v1/patients", params={"identifier": identifier, "authority": authority})
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


@on_both_databases
def test_a_patient_is_shown_as_the_scenarios_read_it(archive: Archive, client: httpx.Client) -> None:
    names = "KERVÉADOU D'ARVOR^Anne-Marie^^^Mme^^D~LE GOFF^ANNE-MARIE^ANNE-MARIE LOUISE ELEONORE^^Mme^^L"
    fields = {
        "p3": ins(INS),
        "p7": "19850712",
        "p8": "F",
        "p11": "12 rue^^SAINT-MALO^^35400^FRA^H~^^RENNES^^^FRA^BDL^^35999",
        "p13": "^PRN^CP^^^^^^^^^0600000001",
        "p32": "VALI",
    }
    say(archive, "A28", pid("R1001", names, **fields), "ZFA|ACTIF||||||||INO||IC")
    found = patient(client, "R1001")
    dicom = found.pop("dicom")
    assert isinstance(found.pop("id"), int)
    assert found == {
        "exists": True,
        "identifier": "R1001",
        "issuer": ISSUER,
        "merged_into": None,
        "merged_from": [],
        "alias_of": [],
        "linked_to": [],
        "family_birth": "LE GOFF",
        "given_first": "ANNE-MARIE",
        "given_list": "ANNE-MARIE LOUISE ELEONORE",
        "family_used": "KERVÉADOU D'ARVOR",
        "given_used": "Anne-Marie",
        "birth_date": "19850712",
        "sex": "F",
        "birth_place_code": "35999",
        "identity_status": "VALI",
        "identity_attributes": [],
        "identity_level": "qualifiée",
        "ins": {"value": INS, "oid": "1.2.250.1.213.1.4.10"},
        "phone": "0600000001",
        "address_city": "SAINT-MALO",
        "death_date": "",
        "multiple_birth": "",
        "birth_order": "",
        "dmp": {"status": "ACTIF", "alimentation": "INO", "consultation": "IC"},
        "versions": 1,
    }
    assert isinstance(dicom, dict)
    assert dicom["PatientName"] == "LE GOFF^ANNE-MARIE"
    assert dicom["OtherPatientNames"] == ["KERVÉADOU D'ARVOR^Anne-Marie", "LE GOFF^ANNE-MARIE LOUISE ELEONORE"]
    assert patient(client, "R1001", ISSUER) == patient(client, "R1001", "") == patient(client, "R1001")
    archive.commit.run(lambda conn: None)  # with it goes what was queued before
    [audited, *_] = rows(archive, event="110112")
    assert (audited["patient"], audited["detail"]["query"]["identifier"]) == (f"R1001^^^{ISSUER}", "R1001")


def test_one_that_was_merged_away_says_who_it_is_now(archive: Archive, client: httpx.Client) -> None:
    say(archive, "A40", pid("R1"), f"MRG|{cx('OLD')}")
    assert patient(client, "OLD")["merged_into"] == "R1"
    assert patient(client, "R1")["merged_from"] == [f"OLD^^^{ISSUER}"]
    assert patient(client, "NOBODY") == {"exists": False}
    assert patient(client, "R1", "2.25.404") == {"exists": False}


def test_of_somebody_that_only_images_know_the_header_is_shown(archive: Archive, client: httpx.Client) -> None:
    body = part10(ct_slice(PatientID="X1", IssuerOfPatientID=ISSUER))
    client.post("/dicom-web/studies", content=body, headers={"Content-Type": "application/dicom"})
    found = patient(client, "X1")
    assert (found["family_birth"], found["given_first"], found["versions"]) == ("DUPONT", "Anne", 0)
    assert (found["identity_status"], found["ins"]) == ("", None)


def test_the_history_is_every_revision_without_the_ins(archive: Archive, client: httpx.Client) -> None:
    say(archive, "A28", pid("R1", "UN^A^^^^^L"))
    say(archive, "A31", pid("R1", "DEUX^A^^^^^L"))
    number = patient(client, "R1")["id"]
    items = client.get(f"/api/v1/patients/{number}/history").json()["items"]
    assert [(one["version"], one["event"], one["record"]["names"]["L"]["family"]) for one in items] == [
        (1, "A28", "UN"),
        (2, "A31", "DEUX"),
    ]
    assert client.get("/api/v1/patients/999/history").json() == {"items": [], "next": None}


@on_both_databases
def test_an_order_is_shown_with_each_of_its_steps(archive: Archive, client: httpx.Client) -> None:
    for step in ("S1", "S2"):
        obr = f"OBR|1|PL1|FI1|C^D^CCAM{'|' * 14}A1|RP1|{step}||||CT"
        order(archive, pid("R1"), f"ORC|NW|PL1|FI1||SC||^^^20260110083000^^R{'|' * 4}", obr, "ZDS|2.25.5^P^Application")
    found = client.get("/api/v1/orders", params={"accession": "A1"}).json()
    assert (found["exists"], found["status"], found["patient_id"], found["in_worklist"]) == (
        *(True, "scheduled"),
        *("R1", True),
    )
    assert (found["study_uid"], found["study_uid_generated"]) == ("2.25.5", False)
    assert (found["dicom"]["Modality"], found["dicom"]["RequestedProcedurePriority"]) == ("CT", "ROUTINE")
    assert [one["step_id"] for one in found["steps"]] == ["S1", "S2"]
    assert client.get("/api/v1/orders", params={"accession": "A2"}).json() == {"exists": False}


@pytest.mark.req("REQ-IHE-03")
@on_both_databases
def test_a_visit_is_shown_with_each_of_its_movements(archive: Archive, client: httpx.Client) -> None:
    zbe = f"ZBE|M1^{ISSUER}|20260105083000||INSERT|N||||HMS"
    for number, issuer in (("V1", ISSUER), ("V1", "HOPITAL")):
        pv1 = f"PV1||I|UF101^12{'|' * 16}{number}^^^{issuer}^VN"
        say(archive, "A01", pid("R1" if issuer == ISSUER else "R2", p18=f"D1^^^{issuer}^AN"), pv1, zbe)
    found = client.get("/api/v1/visits", params={"number": "V1"}).json()
    assert (found["exists"], found["status"], found["class"], found["patient_id"]) == (True, "open", "I", "R1")
    assert (found["account"], found["location"]) == ("D1", "UF101^12")
    assert [(one["id"], one["event"], one["cancelled"]) for one in found["movements"]] == [
        (f"M1^{ISSUER}", "A01", False)
    ]
    other = client.get("/api/v1/visits", params={"number": "V1", "authority": "HOPITAL"}).json()
    assert other["patient_id"] == "R2"
    by_oid = client.get("/api/v1/visits", params={"number": "V1", "authority": "2.25.171717001"}).json()
    assert by_oid == found
    assert client.get("/api/v1/visits", params={"number": "V2"}).json() == {"exists": False}
    archive.commit.run(lambda conn: None)  # with it goes what was queued before
    [audited, *_] = rows(archive, event="110112")
    assert audited["detail"]["query"] == {"visit": "V2", "authority": ""}


@on_both_databases
def test_a_person_settles_a_work_item_once_with_a_reason(
    archive: Archive, url: str, client: httpx.Client, token: Callable[..., str]
) -> None:
    say(archive, "A28", pid("R1", p3=ins("285073599990119"), p32="VALI"))
    [item] = client.get("/api/v1/work-items", params={"state": "open"}).json()["items"]
    address = f"/api/v1/work-items/{item['id']}/settle"
    body = {"as": "done", "reason": "corrected at the desk"}
    assert client.post(address, json=body).status_code == 403
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token('identity_officer', name='ida')}"}
    ) as ida:
        assert ida.post(address, json={"as": "nothing", "reason": "x"}).status_code == 400
        assert ida.post(address, json={"as": "done", "reason": " "}).status_code == 400
        assert ida.post(address, json=body).status_code == 200
        assert ida.post(address, json=body).status_code == 409
        assert ida.post("/api/v1/work-items/999/settle", json=body).status_code == 404
    [closed] = client.get("/api/v1/work-items", params={"state": "closed"}).json()["items"]
    assert (closed["closed_by"], closed["resolution"]) == ("ida", "done: corrected at the desk")
    assert closed["closed_at"]
    [row] = rows(archive, user="ida", event="110110", outcome=0)
    assert (row["action"], row["patient"], row["detail"]["kind"]) == ("U", f"R1^^^{ISSUER}", "ins_refused")
    say(archive, "A31", pid("R1", p3=ins("285073599990119"), p32="VALI"))
    assert len(client.get("/api/v1/work-items", params={"state": "open"}).json()["items"]) == 1, "it came up again"


@pytest.mark.req("REQ-DCM-15", "REQ-DCM-19")
def test_an_item_that_holds_bytes_back_is_settled_by_what_becomes_of_them(
    archive: Archive, url: str, client: httpx.Client, token: Callable[..., str]
) -> None:
    for changes in ({}, {"PatientID": "IPP2", "SOPInstanceUID": "1.2.3"}, {"SOPInstanceUID": "1.2.3"}):
        body = part10(ct_slice(**changes))
        client.post("/dicom-web/studies", content=body, headers={"Content-Type": "application/dicom"})
    held = client.get("/api/v1/work-items", params={"kind": "identity_conflict"}).json()["items"][0]["id"]
    aside = client.get("/api/v1/work-items", params={"kind": "uid_conflict"}).json()["items"][0]["id"]
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token('identity_officer', name='ida')}"}
    ) as ida:
        answer = ida.post(f"/api/v1/work-items/{held}/settle", json={"as": "done", "reason": "no"})
        assert (answer.status_code, "accept, reject" in answer.text) == (400, True)
        for item, how, status in ((aside, "replace", 409), (aside, "keep", 200), (held, "accept", 200)):
            answer = ida.post(f"/api/v1/work-items/{item}/settle", json={"as": how, "reason": "verified"})
            assert (answer.status_code, how) == (status, how)
    [found] = client.get("/dicom-web/studies").json()
    assert found["00201208"]["Value"] == [2]
    told = {row["detail"]["as"]: row for row in rows(archive, user="ida", event="110103", outcome=0)}
    assert set(told) == {"keep", "accept"}
    assert (told["accept"]["action"], told["accept"]["detail"]["instances"]) == ("U", 1)


@pytest.mark.req("REQ-DRIM-07", "REQ-DCM-73")
def test_a_usable_ins_is_in_what_is_found_and_given_over_dicomweb(archive: Archive, client: httpx.Client) -> None:
    ds = ct_slice(PatientID="R1001", IssuerOfPatientID=ISSUER)
    sent = client.post("/dicom-web/studies", content=part10(ds), headers={"Content-Type": "application/dicom"})
    assert sent.status_code in (200, 202)
    fields = {"p3": ins(INS), "p7": "19700101", "p8": "F", "p11": "^^^^^FRA^BDL^^35999", "p32": "VALI"}
    say(archive, "A28", pid("R1001", "DUPONT^ANNE^ANNE^^^^L", **fields), "ZFA|ACTIF||||||||INO||IC")

    def told(answer: httpx.Response) -> list[str]:
        (row,) = answer.json()
        return [item["00100020"]["Value"][0] for item in row["00101002"]["Value"]]

    search = {"includefield": "OtherPatientIDsSequence"}
    assert INS in told(client.get("/dicom-web/studies", params=search))
    assert len(client.get("/dicom-web/studies", params={"OtherPatientIDsSequence.PatientID": INS}).json()) == 1
    address = f"/dicom-web/studies/{ds.StudyInstanceUID}"
    assert INS in told(client.get(f"{address}/metadata"))
    object_address = f"{address}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    assert INS.encode() in client.get(object_address, headers={"Accept": "application/dicom"}).content
