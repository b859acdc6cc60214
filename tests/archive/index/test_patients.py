"""REQ-DCM-17, 19: whose an arriving image is, through authorities, orders and merges."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import Connection, func, select, update

from archive.access import Actor
from archive.authorities import identity_key
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.ingest import Outcome
from archive.schema import imaging_order, instance, patient, study, work_item
from tests.archive.index.filling import fill
from tests.archive.index.filling import study as study_of
from tests.archive.index.test_merged import merge
from tests.builders import new_uid

AT = datetime(2026, 3, 1, tzinfo=UTC)
TRUSTED: dict[str, Any] = {
    "namespace": "CABINET", "oid": "1.2.250.1.1", "trusted": True, "aliases": ["OLD-CABINET"]
}  # fmt: skip
HOSPITAL: dict[str, Any] = {"namespace": "HOPITAL", "oid": "1.2.250.1.2"}


@pytest.fixture
def authorities(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return [TRUSTED, HOSPITAL]


@pytest.fixture
def archive(settings: Settings, authorities: list[dict[str, Any]]) -> Iterator[Archive]:
    values = settings.model_dump()
    values["hl7"]["authorities"] = authorities
    with open_archive(Settings.model_validate(values), process="test") as opened:
        yield opened


def patients(archive: Archive) -> list[tuple[str, str, int]]:
    """Every patient: identifier, issuer, and how many studies."""
    with archive.reading() as conn:
        count = select(func.count()).where(study.c.patient_pk == patient.c.pk).scalar_subquery()
        rows = conn.execute(select(patient.c.patient_id, patient.c.issuer, count).order_by(patient.c.pk))
        return [(row[0], row[1], row[2]) for row in rows]


def items(archive: Archive) -> list[str]:
    with archive.reading() as conn:
        return list(conn.execute(select(work_item.c.kind).order_by(work_item.c.pk)).scalars())


def add_patient(archive: Archive, patient_id: str, issuer: str, **values: Any) -> int:
    """A patient whom no image has named."""

    def write(conn: Connection) -> int:
        row = {
            "identity_key": identity_key(patient_id, issuer), "patient_id": patient_id, "issuer": issuer,
            "patient_name": "", "provisional": 0, "attributes": "{}", "created_at": AT, "version": 1,
        }  # fmt: skip
        return int(conn.execute(patient.insert().returning(patient.c.pk), {**row, **values}).scalar_one())

    return archive.commit.run(write)


def order(archive: Archive, patient_pk: int, *, accession: str = "", study_uid: str = "") -> None:
    row = {
        "accession_number": accession, "step_id": "1", "patient_pk": patient_pk, "study_instance_uid": study_uid,
        "placer_number": "", "filler_number": "", "status": "scheduled", "record": "{}", "created_at": AT,
        "updated_at": AT,
    }  # fmt: skip
    archive.commit.run(lambda conn: conn.execute(imaging_order.insert(), row))


def qualified(ds: Dataset, oid: str) -> Dataset:
    item = Dataset()
    item.UniversalEntityID, item.UniversalEntityIDType = oid, "ISO"
    ds.IssuerOfPatientIDQualifiersSequence = [item]
    return ds


def test_every_spelling_of_an_authority_is_one_patient(archive: Archive, actor: Actor) -> None:
    fill(
        archive,
        actor,
        study_of("A", PatientID="1"),
        study_of("B", PatientID="1", IssuerOfPatientID="CABINET"),
        study_of("C", PatientID="1", IssuerOfPatientID="old-cabinet"),
        qualified(study_of("D", PatientID="1"), "1.2.250.1.1"),
        qualified(study_of("E", PatientID="1", IssuerOfPatientID="whatever"), "1.2.250.1.1"),
        qualified(study_of("F", PatientID="1", IssuerOfPatientID="HOPITAL"), "1.2.250.1.2"),
        qualified(study_of("G", PatientID="1", IssuerOfPatientID="CABINET"), "1.2.250.9.9"),  # of the same name
    )
    # two with the same name and other OIDs are spelled alike: the header that names one of ours is taken at its word
    assert patients(archive) == [("1", "CABINET", 6), ("1", "HOPITAL", 1)]


@pytest.mark.req("REQ-DCM-17")
def test_somebody_whom_the_ris_knows_waits_for_nobody(archive: Archive, actor: Actor) -> None:
    add_patient(archive, "1", "CABINET", record="{}")
    fill(archive, actor, study_of("A", PatientID="1"))
    assert patients(archive) == [("1", "CABINET", 1)]
    assert items(archive) == []
    fill(archive, actor, study_of("B", PatientID="2"), study_of("C", PatientID=None))
    assert patients(archive)[1:] == [("2", "CABINET", 1), ("", "", 1)]
    assert items(archive) == ["unknown_patient"] * 2


def test_who_was_known_before_an_authority_was_assumed_is_still_the_same(archive: Archive, actor: Actor) -> None:
    add_patient(archive, "1", "")
    fill(archive, actor, study_of("A", PatientID="1"))
    assert patients(archive) == [("1", "", 1)]
    assert items(archive) == []
    fill(archive, actor, study_of("B", PatientID="1", IssuerOfPatientID="CABINET"))
    fill(archive, actor, study_of("C", PatientID="1"))
    assert patients(archive) == [("1", "", 1), ("1", "CABINET", 2)]


@pytest.mark.parametrize("authorities", [[HOSPITAL]])
@pytest.mark.parametrize("by", ["accession", "study_uid"])
def test_where_no_authority_is_known_the_order_tells_whose_images_they_are(
    archive: Archive, actor: Actor, by: str
) -> None:
    pk = add_patient(archive, "1", "HOPITAL", record="{}")
    order(archive, pk, **({"accession": "A1001"} if by == "accession" else {"study_uid": new_uid("A")}))
    fill(archive, actor, study_of("A", PatientID="1"))
    fill(archive, actor, study_of("A", PatientID="1", SOPInstanceUID=new_uid("A", "2")))
    assert patients(archive) == [("1", "HOPITAL", 1)]
    fill(archive, actor, study_of("B", PatientID="2"))  # ordered for somebody else, where the number tells
    fill(archive, actor, study_of("C", PatientID="1", AccessionNumber="A3"))
    assert patients(archive) == [("1", "HOPITAL", 1), ("2", "", 1), ("1", "", 1)]
    doubted = ["order_unmatched"] if by == "accession" else []  # REQ-DRIM-02
    assert sorted(items(archive)) == sorted(["unknown_patient"] * 2 + doubted)


@pytest.mark.req("REQ-DCM-19", "REQ-DCM-37")
def test_a_late_slice_under_the_old_identifier_is_filed_with_the_survivor(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study_of("A"), study_of("B"))
    merge(archive, "A", "B")
    late = study_of("A", SOPInstanceUID=new_uid("A", "1", "2"))
    series = study_of("A", SOPInstanceUID=new_uid("A", "2", "1"), SeriesInstanceUID=new_uid("A", "2"))
    another = study_of("N", PatientID="A")
    corrected = study_of("A", PatientID="B", SOPInstanceUID=new_uid("A", "1", "3"))
    assert fill(archive, actor, late, series, another, corrected) == [*[Outcome.COERCED] * 3, Outcome.STORED]
    assert [row[2] for row in patients(archive)] == [0, 3]
    assert items(archive) == ["unknown_patient"] * 2  # of A and of B, before


@pytest.mark.req("REQ-DCM-19")
def test_another_patient_in_the_same_study_is_held(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study_of("A"), study_of("B"))

    def again(number: int, **changes: Any) -> Dataset:
        return study_of("A", SOPInstanceUID=new_uid("A", "1", str(number)), **changes)

    assert fill(archive, actor, again(2, PatientID="B")) == [Outcome.STORED_HELD]
    assert fill(archive, actor, again(3, IssuerOfPatientID="HOPITAL")) == [Outcome.STORED_HELD]
    assert fill(archive, actor, again(4, IssuerOfPatientID="OLD-CABINET")) == [Outcome.STORED]
    assert fill(archive, actor, again(5, PatientID=None)) == [Outcome.STORED]
    merge(archive, "B", "A")
    assert fill(archive, actor, again(6, PatientID="B")) == [Outcome.COERCED]


@pytest.mark.req("REQ-DCM-19")
def test_an_issuer_that_is_only_assumed_contradicts_nothing(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study_of("A", IssuerOfPatientID="HOPITAL"))
    assert fill(archive, actor, study_of("A", SOPInstanceUID=new_uid("A", "1", "2"))) == [Outcome.STORED]


def test_the_identity_of_a_header_is_kept_with_its_instance(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study_of("A"), study_of("A", SOPInstanceUID=new_uid("A", "1", "2")), study_of("B"))
    with archive.reading() as conn:
        found = list(conn.execute(select(instance.c.identity).order_by(instance.c.pk)).scalars())
    assert found[0] == found[1] != found[2]
    assert all(one and len(one) == 32 for one in found)


def test_a_new_study_is_a_fact_of_those_that_were_computed(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study_of("A", PatientID="1"), study_of("B", PatientID="2"))
    archive.commit.run(lambda conn: conn.execute(update(study).values(policy_version="1")))
    fill(archive, actor, study_of("C", PatientID="1"))
    with archive.reading() as conn:
        found = dict(conn.execute(select(study.c.study_instance_uid, study.c.policy_version)).all())
    assert found == {new_uid("A"): None, new_uid("B"): "1", new_uid("C"): None}
