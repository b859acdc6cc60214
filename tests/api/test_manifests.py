"""Manifests for a sharing network (sheet 50 §3-4): made from real images and a real RIS, and retrieved as they say."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import select, update

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import NotAllowed, NotFound
from archive.journal import Kind
from archive.manifests import demand_listed, restore_manifest
from archive.schema import instance, manifest
from tests.api.conftest import on_both_databases, serving
from tests.api.test_auth import rows
from tests.api.test_stow import post
from tests.builders import ct_slice, key_object, new_uid, part10
from tests.conftest import need
from tests.hl7_listener.saying import AUTHORITY, ISSUER, ins, order, pid, say

INS, OID = "285073599990118", "1.2.250.1.213.1.4.10"
STUDY = new_uid("study")
HEADER = "KOS-SOPInstanceUID"
NAMES = "DURAND^Anne^^^^^D~DUPONT^ANNE^ANNE MARIE LOUISE^^^^L"
WHO = {
    "p3": ins(INS),
    "p7": "19850712",
    "p8": "F",
    "p11": "12 rue^^SAINT-MALO^^35400^FRA^H~^^RENNES^^^FRA^BDL^^35999",
    "p32": "VALI",
}


def configured(settings: Settings, **more: Any) -> Settings:
    told = {
        **settings.model_dump(),
        "test_mode": True,
        "hl7": {"authorities": [AUTHORITY]},
        "identity": {"ins_oids": [OID]},
        "site": {"name": "Cabinet Lefèvre", "finess": "350000001"},
    }
    return Settings.model_validate({**told, **more})


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(configured(settings), process="test") as opened:
        yield opened


@pytest.fixture
def images(archive: Archive, client: httpx.Client) -> list[Dataset]:
    """A study of two series of somebody with an INS, ordered by the RIS."""
    say(archive, "A28", pid("R1", NAMES, **WHO))
    obr = "OBR|1|PL1^RIS|FI1|ZBTHOR^Scanner thoracique^LOCAL" + "|" * 14 + "A1001|RP1"
    order(archive, pid("R1", NAMES), "ORC|NW|PL1^RIS|FI1||SC", obr, f"ZDS|{STUDY}^P^Application^DICOM")
    mine = {
        "PatientID": "R1",
        "IssuerOfPatientID": ISSUER,
        "PatientName": "DUPONT^ANNE",
        "PatientBirthDate": "19850712",
    }
    made = [
        ct_slice(number=number, SeriesInstanceUID=new_uid(f"series {number % 2}"), SeriesNumber=number % 2 + 1, **mine)
        for number in (1, 2, 3)
    ]
    assert post(client, *map(part10, made)).status_code == 200
    return made


def asked(client: httpx.Client, study: str = STUDY) -> httpx.Response:
    return client.get(f"/api/v1/studies/{study}/manifest")


def made(client: httpx.Client) -> Dataset:
    answer = asked(client)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    return pydicom.dcmread(io.BytesIO(answer.content))


def evidence(ds: Dataset) -> dict[str, list[Dataset]]:
    """What is listed, by the address of its series."""
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == STUDY
    return {series.RetrieveURL: list(series.ReferencedSOPSequence) for series in study.ReferencedSeriesSequence}


def listed(ds: Dataset) -> set[str]:
    return {one.ReferencedSOPInstanceUID for some in evidence(ds).values() for one in some}


def complaints(file: Path) -> list[str]:
    need("dciodvfy")
    said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, errors="replace", check=False).stderr
    assert "KeyObjectSelectionDocument" in said
    return [line for line in said.splitlines() if line.startswith("Error")]


@on_both_databases
@pytest.mark.req("REQ-IHE-10", "REQ-DRIM-20")
def test_every_series_is_retrieved_where_the_manifest_says(client: httpx.Client, images: list[Dataset]) -> None:
    """Each Retrieve URL answers 200 with the listed instances, and each instance below it by its own address."""
    ds = made(client)
    places = evidence(ds)
    assert len(places) == 2
    for address, members in places.items():
        answer = client.get(
            address, headers={"Accept": 'multipart/related; type="application/dicom"', HEADER: ds.SOPInstanceUID}
        )
        assert answer.status_code == 200, answer.text
        for one in members:
            alone = client.get(
                f"{address}/instances/{one.ReferencedSOPInstanceUID}", headers={"Accept": "application/dicom"}
            )
            assert alone.status_code == 200
            found = pydicom.dcmread(io.BytesIO(alone.content))
            assert (found.SOPInstanceUID, found.SOPClassUID) == (
                one.ReferencedSOPInstanceUID,
                one.ReferencedSOPClassUID,
            )
            assert str(one.ReferencedSOPInstanceUID).encode() in answer.content
            assert int(one.InstanceNumber) == found.InstanceNumber
    assert listed(ds) == {image.SOPInstanceUID for image in images}


@pytest.mark.req("REQ-DRIM-20")
def test_its_values_are_those_of_the_reference(archive: Archive, client: httpx.Client, images: list[Dataset]) -> None:
    ds = made(client)
    assert (ds.SOPClassUID, ds.Modality, ds.SpecificCharacterSet) == (
        "1.2.840.10008.5.1.4.1.1.88.59",
        "KO",
        "ISO_IR 100",
    )
    assert (ds.PatientID, ds.IssuerOfPatientID) == (INS, "ASIP-SANTE-INS-NIR")
    (qualifiers,) = ds.IssuerOfPatientIDQualifiersSequence
    assert (qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType) == (OID, "ISO")
    (other,) = ds.OtherPatientIDsSequence
    assert (other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID) == (INS, "ASIP-SANTE-INS-NIR", "TEXT")
    assert str(ds.PatientName) == "DUPONT^ANNE"
    assert [str(name) for name in ds.OtherPatientNames] == ["DURAND^Anne", "DUPONT^ANNE MARIE LOUISE"]
    assert (ds.PatientBirthDate, ds.PatientSex, ds.PatientComments) == ("19850712", "F", "35999")
    assert ds.InstitutionName == "Cabinet Lefèvre^^^^^^^^^350000001"
    assert (ds.StudyInstanceUID, ds.StudyDate, ds.StudyTime) == (STUDY, "20260105", "101500")
    assert ds.AccessionNumber == ""
    assert ds.TimezoneOffsetFromUTC in ("+0100", "+0200")
    (title,) = ds.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning) == ("113030", "DCM", "Manifest")
    (request,) = ds.ReferencedRequestSequence
    assert (request.StudyInstanceUID, request.AccessionNumber, request.RequestedProcedureID) == (STUDY, "A1001", "RP1")
    assert request.PlacerOrderNumberImagingServiceRequest == "PL1"
    assert request.OrderPlacerIdentifierSequence[0].LocalNamespaceEntityID == "RIS"
    assert "ReferencedPerformedProcedureStepSequence" in ds and not ds.ReferencedPerformedProcedureStepSequence
    *references, text = ds.ContentSequence
    assert {(item.RelationshipType, item.ValueType) for item in references} == {("CONTAINS", "IMAGE")}
    assert text.ConceptNameCodeSequence[0].CodeValue == "113012"
    first, second, *series = text.TextValue.split("\r\n")
    assert (first, second) == ("Examen : Scanner thoracique", "Acte = Scanner thoracique")
    assert len(series) == 2 and series[0].startswith("Série-") and series[0].endswith(" : CT @ : Axial")
    assert "R1" not in ds.to_json().replace("RP1", "")  # the archive's own identifier is not told
    [row, *_] = rows(archive, event="110106")
    assert (row["action"], row["study"], row["detail"]["manifest"], row["detail"]["instances"]) == (
        "R",
        STUDY,
        ds.SOPInstanceUID,
        3,
    )


@pytest.mark.req("REQ-DRIM-20")
def test_the_validator_finds_no_error(client: httpx.Client, images: list[Dataset], tmp_path: Path) -> None:
    (tmp_path / "manifest.dcm").write_bytes(asked(client).content)
    assert complaints(tmp_path / "manifest.dcm") == []


@on_both_databases
@pytest.mark.req("REQ-DRIM-20")
def test_an_unchanged_study_has_the_same_manifest_and_a_changed_one_the_next(
    client: httpx.Client, images: list[Dataset]
) -> None:
    first = asked(client).content
    assert asked(client).content == first
    before = pydicom.dcmread(io.BytesIO(first))
    more = ct_slice(number=9, **{key: images[0].get(key) for key in ("PatientID", "IssuerOfPatientID", "PatientName")})
    assert post(client, part10(more)).status_code == 200
    after = made(client)
    assert (after.SeriesInstanceUID, after.InstanceNumber) == (before.SeriesInstanceUID, before.InstanceNumber + 1)
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert listed(after) == listed(before) | {more.SOPInstanceUID}


@pytest.mark.req("REQ-DRIM-22")
def test_what_was_rejected_is_not_listed_and_neither_is_the_note(
    client: httpx.Client, images: list[Dataset], token: Callable[..., str]
) -> None:
    client.headers["Authorization"] = f"Bearer {token('radiologist', name='anne')}"
    note = key_object(images[0], title=("113001", "Rejected for Quality Reasons"))
    kept = key_object(images[1])
    assert post(client, part10(note), part10(kept)).status_code == 200
    expected = {images[1].SOPInstanceUID, images[2].SOPInstanceUID, kept.SOPInstanceUID}
    assert listed(made(client)) == expected
    everything = key_object(*images, kept, title=("113037", "Rejected for Patient Safety Reasons"))
    assert post(client, part10(everything)).status_code == 200
    assert asked(client).status_code == 404


@pytest.mark.req("REQ-DRIM-21")
def test_without_an_ins_that_may_be_used_there_is_none(
    archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    """Nobody of whom the RIS says nothing; nobody whose identity is not VALI any more."""
    elsewhere = new_uid("elsewhere")
    alone = ct_slice(PatientID="X9", StudyInstanceUID=elsewhere, SeriesInstanceUID=new_uid("x"))
    assert post(client, part10(alone)).status_code == 200
    say(archive, "A31", pid("R1", NAMES, **{**WHO, "p32": "PROV"}))
    for study in (elsewhere, STUDY):
        refused = asked(client, study)
        assert refused.status_code == 409
        assert refused.json()["type"] == "urn:minipacs:problem:ins-not-qualified"
        assert refused.json()["detail"].startswith("ins_not_qualified: ")
    assert [row["study"] for row in rows(archive, event="110106", outcome=4)] == [STUDY, elsewhere]


@pytest.mark.req("REQ-DRIM-10")
def test_of_a_patient_who_opposes_sharing_there_is_none(
    archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    say(archive, "A31", pid("R1", NAMES, **WHO), "ZFA|ACTIF||||||||IO")
    refused = asked(client)
    assert (refused.status_code, "opposes" in refused.json()["detail"]) == (409, True)


@pytest.mark.req("REQ-DRIM-23")
def test_letters_beyond_latin_1_change_the_character_set(client: httpx.Client, images: list[Dataset]) -> None:
    assert made(client).SpecificCharacterSet == "ISO_IR 100"
    same = {key: images[0].get(key) for key in ("PatientID", "IssuerOfPatientID", "PatientName")}
    greek = ct_slice(
        number=7,
        SpecificCharacterSet="ISO_IR 192",
        SeriesDescription="Épreuve Œ",
        SeriesInstanceUID=new_uid("g"),
        **same,
    )
    assert post(client, part10(greek)).status_code == 200
    ds = made(client)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert "Épreuve Œ" in ds.ContentSequence[-1].TextValue
    assert ds.InstitutionName.startswith("Cabinet Lefèvre")


@pytest.mark.req("REQ-DRIM-31", "REQ-DRIM-10")
def test_what_is_shared_is_given_to_whom_this_archive_knows_alone(
    archive: Archive, client: httpx.Client, stranger: httpx.Client, images: list[Dataset], token: Callable[..., str]
) -> None:
    """The manifest that a request names, a token of somebody else's, or a role without the right, open nothing."""
    uid = made(client).SOPInstanceUID
    series = f"/dicom-web/studies/{STUDY}/series/{images[0].SeriesInstanceUID}"
    foreign = {"Authorization": "Bearer of-the-network", HEADER: uid}
    without = {"Authorization": f"Bearer {token('secretary', name='desk')}", HEADER: uid}
    known = {"Authorization": client.headers["Authorization"], HEADER: uid}

    def accesses() -> int:
        return sum(row["outcome"] == 0 for row in rows(archive, event="110104"))

    before = accesses()
    for path in (f"/api/v1/studies/{STUDY}/manifest", f"/dicom-web/studies/{STUDY}", series):
        for headers, status in (({HEADER: uid}, 401), (foreign, 401), (without, 403)):
            answer = stranger.get(path, headers=headers)
            assert answer.status_code == status, (path, headers, answer.text)
            assert images[0].SOPInstanceUID not in answer.text
    assert accesses() == before
    assert stranger.get(series, headers=known).status_code == 200
    assert accesses() == before + 1


@pytest.mark.req("REQ-DRIM-30")
def test_the_manifest_of_a_retrieval_is_in_the_audit(
    archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    address = f"/dicom-web/studies/{STUDY}/series/{images[0].SeriesInstanceUID}"
    assert client.get(address, headers={HEADER: "1.2.3.4"}).status_code == 200  # not ours: noted alone
    [row, *_] = rows(archive, event="110104", action="R")
    assert row["detail"]["scope"] == "KOS 1.2.3.4"
    assert client.get(address).status_code == 200
    assert "scope" not in rows(archive, event="110104", action="R")[0]["detail"]
    assert client.get(address, headers={HEADER: "1.2; DROP"}).status_code == 400


@pytest.mark.req("REQ-DRIM-30")
def test_only_what_the_manifest_lists_is_given_when_that_is_asked(
    settings: Settings, archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    ds = made(client)
    more = ct_slice(number=9, **{key: images[0].get(key) for key in ("PatientID", "IssuerOfPatientID", "PatientName")})
    assert post(client, part10(more)).status_code == 200
    strict = configured(settings, sharing={"check_manifest": True})
    with open_archive(strict, process="strict") as other, serving(other) as url:
        headers = {"Authorization": client.headers["Authorization"]}
        for image, uid, status in (
            (images[0], ds.SOPInstanceUID, 200),
            (more, ds.SOPInstanceUID, 404),
            (images[0], "1.2.3.4", 404),
            (more, "", 200),
        ):
            place = f"{url}/dicom-web/studies/{STUDY}/series/{image.SeriesInstanceUID}/instances/{image.SOPInstanceUID}"
            named = headers | ({HEADER: uid} if uid else {})
            for door in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulkdata/7FE00010"):
                for method in ("GET", "HEAD"):
                    answer = httpx.request(method, f"{place}{door}", headers=named, timeout=30)
                    assert answer.status_code == status, (method, door, answer.text)
        study = f"{url}/dicom-web/studies/{STUDY}"
        for door in ("", "/metadata", "/rendered", "/thumbnail"):
            assert httpx.head(f"{study}{door}", headers=headers).status_code == 200, door
            unlisted = httpx.head(f"{study}{door}", headers=headers | {HEADER: ds.SOPInstanceUID})
            assert unlisted.status_code == 404, door


@on_both_databases
@pytest.mark.req("REQ-DRIM-10", "REQ-DRIM-30")
def test_a_manifest_stands_for_lossy_copies_of_what_it_lists_and_for_nothing_after_an_opposition(
    archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    uid = made(client).SOPInstanceUID
    copy = ct_slice(number=9, **{key: images[0].get(key) for key in ("PatientID", "IssuerOfPatientID", "PatientName")})
    assert post(client, part10(copy)).status_code == 200
    with pytest.raises(NotFound):
        demand_listed(archive, uid, [copy.SOPInstanceUID])
    of_original = select(instance.c.pk).where(instance.c.sop_instance_uid == images[0].SOPInstanceUID)
    its = update(instance).where(instance.c.sop_instance_uid == copy.SOPInstanceUID)
    archive.commit.run(lambda conn: conn.execute(its.values(derived_from_pk=of_original.scalar_subquery())))
    demand_listed(archive, uid, [copy.SOPInstanceUID, images[1].SOPInstanceUID])
    with pytest.raises(NotFound):
        demand_listed(archive, uid, [copy.SOPInstanceUID, "1.2.3"])
    say(archive, "A31", pid("R1", NAMES, **WHO), "ZFA|ACTIF||||||||IO")
    with pytest.raises(NotAllowed):
        demand_listed(archive, uid, [images[0].SOPInstanceUID])


def test_the_address_of_the_network_stands_in_the_manifest(
    settings: Settings, archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    outside = configured(settings, sharing={"retrieve_url": "https://pacs.example/dicom-web"})
    with open_archive(outside, process="outside") as other, serving(other) as url:
        answer = httpx.get(f"{url}/api/v1/studies/{STUDY}/manifest", headers=dict(client.headers), timeout=30)
    places = evidence(pydicom.dcmread(io.BytesIO(answer.content)))
    assert all(place.startswith(f"https://pacs.example/dicom-web/studies/{STUDY}/series/") for place in places)


@on_both_databases
def test_manifests_are_in_the_journal_and_come_back_from_it(
    archive: Archive, client: httpx.Client, images: list[Dataset]
) -> None:
    content = asked(client).content
    facts = [one for one in archive.journal.read() if one.kind == Kind.MANIFEST]
    assert len(facts) == 1
    archive.commit.run(lambda conn: conn.execute(manifest.delete()))
    for _ in range(2):
        archive.commit.run(lambda conn: restore_manifest(conn, facts[0].subject, facts[0].body, facts[0].at))
    assert asked(client).content == content


def test_an_unknown_study_has_none_and_whoever_may_not_see_gets_none(
    client: httpx.Client, images: list[Dataset], url: str, token: Callable[..., str]
) -> None:
    assert asked(client, "1.2.3").status_code == 404
    denied = httpx.get(
        f"{url}/api/v1/studies/{STUDY}/manifest", headers={"Authorization": f"Bearer {token('it_admin', name='it')}"}
    )
    assert denied.status_code == 403


@on_both_databases
@pytest.mark.req("REQ-DRIM-02")
def test_images_of_another_patient_or_number_than_their_order_wait_for_a_person(
    archive: Archive, client: httpx.Client
) -> None:
    """What a DRIMbox would refuse to share is listed; what agrees with its order, or has none, is not."""
    obr = "OBR|1|PL1^RIS|FI1|ZBTHOR^Scanner thoracique^LOCAL" + "|" * 14 + "A1001|RP1"
    placed = ("ORC|NW|PL1^RIS|FI1||SC", obr, f"ZDS|{STUDY}^P^Application^DICOM")
    for ipp in ("R1", "R2"):
        say(archive, "A28", pid(ipp, NAMES))
    order(archive, pid("R1", NAMES), *placed)

    def send(study: str, ipp: str, accession: str) -> None:
        mine = {"StudyInstanceUID": study, "SeriesInstanceUID": new_uid(f"{study} 1"), "SOPInstanceUID": new_uid()}
        who = {"PatientID": ipp, "IssuerOfPatientID": ISSUER, "AccessionNumber": accession}
        assert post(client, part10(ct_slice(**mine, **who))).status_code == 200

    def waiting() -> dict[str, Any]:
        answer = client.get("/api/v1/work-items?kind=order_unmatched&state=open").json()
        return {one["study"]: one["evidence"] for one in answer["items"]}

    send(new_uid("agrees"), "R1", "A1001")
    send(new_uid("never ordered"), "R2", "A7")
    assert waiting() == {}
    send(STUDY, "R1", "A9999")
    send(new_uid("another patient"), "R2", "A1001")
    found = waiting()
    assert found.keys() == {STUDY, new_uid("another patient")}
    assert (found[STUDY]["accession"], found[STUDY]["received_accession"]) == ("A1001", "A9999")
    order(archive, pid("R1", NAMES), *placed)  # the RIS insists: leaves with the number of the order
    assert waiting().keys() == {new_uid("another patient")}
    [told] = client.get(f"/dicom-web/studies?StudyInstanceUID={STUDY}").json()
    assert told["00080050"]["Value"] == ["A1001"]
