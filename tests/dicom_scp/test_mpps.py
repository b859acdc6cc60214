"""Performed procedure steps: what modalities may say, what follows from it, and what the RIS is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from time import monotonic, sleep
from typing import Any

import orjson
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, evt
from sqlalchemy import delete, select

from archive import jobs, mpps
from archive.access import Actor
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.journal import Kind
from archive.schema import job, performed_for, performed_step, study
from archive.sections import Peer
from archive.settling import settle
from archive.workflow.orders import described
from archive.workflow.restore import restore_performed
from dicom_scp import dimse
from dicom_scp.associate import Proposed
from dicom_scp.classes import MODALITY_PERFORMED_PROCEDURE_STEP as MPPS
from dicom_scp.dimse import Field
from dicom_scp.messages import Answer, NormalizedRequest
from dicom_scp.mpps import change, create
from dicom_scp.normalized import decode
from dicom_scp.requestor import Requestor
from dicom_scp.status import Status
from tests.archive.test_ingest import receive
from tests.builders import ct_slice
from tests.conftest import KINDS, new_database
from tests.dicom_scp.conftest import running
from tests.dicom_scp.test_find_encoding import EXPLICIT, encoded
from tests.hl7_listener.saying import AUTHORITY, ISSUER, cx, items, order, pid, row, say
from tests.server import free_port

UID = "1.2.826.1"
STUDY = "2.25.1"


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Settings]:
    kind = getattr(request, "param", "sqlite")
    template = request.getfixturevalue(f"migrated_{kind}")
    with new_database(kind, tmp_path, request, template=template) as url:
        told = {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        yield Settings.model_validate({**told, "hl7": {"authorities": [AUTHORITY]}})


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(settings, process="test") as opened:
        yield opened


on_both_databases = pytest.mark.parametrize("settings", KINDS, indirect=True)


def place(archive: Archive, number: str = "1", *, patient: str = "R1", step: str | None = None, study: str = "",
          control: str = "NW", status: str = "SC", accession: str = "") -> None:  # fmt: skip
    orc = f"ORC|{control}|PL{number}^RIS|FI{number}^RIS||{status}||^^^20260110083000^^S"
    obr = f"OBR|1|PL{number}^RIS|FI{number}^RIS|ZBQH001^Scanner du thorax^CCAM{'|' * 14}{accession or f'A{number}'}"
    obr += f"|RP{number}|{f'S{number}' if step is None else step}||||CT"
    order(archive, pid(patient, p7="19600615", p8="M"), orc, obr, f"ZDS|{study or f'2.25.{number}'}^P^Application")


def begun(number: str = "1", *, study: str = STUDY, step: str | None = None, accession: str | None = None,
          **attributes: Any) -> Dataset:  # fmt: skip
    """The attributes of an N-CREATE; one that is None is left out."""
    scheduled = Dataset()
    scheduled.StudyInstanceUID = study
    scheduled.AccessionNumber = f"A{number}" if accession is None else accession
    scheduled.ScheduledProcedureStepID = f"S{number}" if step is None else step
    scheduled.RequestedProcedureID = f"RP{number}"
    said = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "DUPONT^Anne",
        "PatientID": "R1",
        "IssuerOfPatientID": ISSUER,
        "PatientBirthDate": "19600615",
        "PatientSex": "M",
        "Modality": "CT",
        "StudyID": "1",
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "CT1",
        "PerformedStationName": "",
        "PerformedProcedureStepStartDate": "20260110",
        "PerformedProcedureStepStartTime": "083500",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "PerformedProcedureStepDescription": "Thorax, première série",
        "PerformedSeriesSequence": Sequence([]),
        "ScheduledStepAttributesSequence": Sequence([scheduled]),
        **attributes,
    }
    ds = Dataset()
    for keyword, value in said.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def ended(*uids: str, status: str = "COMPLETED", reason: str = "", **attributes: Any) -> Dataset:
    """The attributes of the last N-SET, with one series of these instances."""
    series = Dataset()
    series.SeriesInstanceUID = "1.2.3.1"
    series.ProtocolName = "Thorax"
    references = []
    for uid in uids:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
        references.append(reference)
    series.ReferencedImageSequence = Sequence(references)
    said = {
        "PerformedProcedureStepStatus": status,
        "PerformedProcedureStepEndDate": "20260110",
        "PerformedProcedureStepEndTime": "084500",
        "PerformedSeriesSequence": Sequence([series]),
        **attributes,
    }
    ds = Dataset()
    for keyword, value in said.items():
        if value is not None:
            setattr(ds, keyword, value)
    if reason:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = reason, "DCM", "Why"
        ds.PerformedProcedureStepDiscontinuationReasonCodeSequence = Sequence([code])
    return ds


def request(ds: Dataset, uid: str, actor: Actor, calling_ae: str = "CT1") -> NormalizedRequest:
    attributes = decode(encoded(ds, EXPLICIT), EXPLICIT, default_charset="ISO_IR 100")
    return NormalizedRequest(MPPS, uid, None, attributes, actor, calling_ae, "scope")


class Modality:
    """Says what it does, as the association would pass it on."""

    def __init__(self, archive: Archive, actor: Actor) -> None:
        self.archive, self.actor = archive, actor

    def create(self, ds: Dataset | None = None, uid: str = UID, calling_ae: str = "CT1") -> Answer:
        return create(request(begun() if ds is None else ds, uid, self.actor, calling_ae), self.archive)

    def set(self, ds: Dataset, uid: str = UID) -> Answer:
        return change(request(ds, uid, self.actor), self.archive)

    def order(self, accession: str = "A1") -> dict[str, Any]:
        with self.archive.reading() as conn:
            (shown,) = described(conn, accession)
        return shown

    def status(self, accession: str = "A1") -> str:
        return str(self.order(accession)["status"])

    def store(self, *uids: str, **attributes: str) -> None:
        from archive.ingest import ingest

        for uid in uids:
            ds = ct_slice(
                **{
                    "SOPInstanceUID": uid, "SeriesInstanceUID": "1.2.3.1", "StudyInstanceUID": STUDY, "PatientID": "R1",
                    "IssuerOfPatientID": ISSUER, "AccessionNumber": "A1", **attributes,
                }
            )  # fmt: skip
            ingest(self.archive, receive(self.archive, ds), actor=self.actor)


@pytest.fixture
def modality(archive: Archive, actor: Actor) -> Modality:
    return Modality(archive, actor)


@on_both_databases
@pytest.mark.req("REQ-DCM-53")
def test_a_step_is_begun_and_completed_and_its_order_follows(archive: Archive, modality: Modality) -> None:
    place(archive)
    assert modality.create() == Answer(Status.SUCCESS, sop_instance_uid=UID)
    assert modality.status() == "in_progress"
    assert not modality.order()["in_worklist"]
    assert modality.set(ended(status="IN PROGRESS", PerformedProcedureStepEndDate=None)).status == Status.SUCCESS
    assert modality.status() == "in_progress"
    modality.store("1.2.3.1.1")
    assert modality.set(ended("1.2.3.1.1", "1.2.3.1.2")).status == Status.SUCCESS
    shown = modality.order()
    assert shown["status"] == "completed"
    assert shown["performed"] == [
        {
            "sop_instance_uid": UID, "status": "COMPLETED", "patient_id": "R1", "issuer": ISSUER, "step_id": "PPS1",
            "station_ae": "CT1", "modality": "CT", "start_date": "20260110", "start_time": "083500",
            "end_date": "20260110", "end_time": "084500", "discontinuation_code": "", "series": ["1.2.3.1"],
            "instances_listed": 2, "instances_received": 1,
        }
    ]  # fmt: skip
    with archive.reading() as conn:
        rows = list_rows(conn, event="110111", limit=10).items
        (held,) = conn.execute(select(performed_step)).all()
    assert [(one["action"], one["patient"], one["study"]) for one in reversed(rows)] == [
        ("C", f"R1^^^{ISSUER}", STUDY),
        ("U", f"R1^^^{ISSUER}", STUDY),
        ("U", f"R1^^^{ISSUER}", STUDY),
    ]
    assert orjson.loads(held.created)["00400254"]["Value"] == ["Thorax, première série"]
    assert items(archive) == {}, "the RIS knows the patient"


@pytest.mark.req("REQ-DCM-53")
@pytest.mark.parametrize(
    ("attributes", "status", "tag"),
    [
        ({"PerformedProcedureStepStatus": "COMPLETED"}, Status.INVALID_ATTRIBUTE, 0x00400252),
        ({"PerformedProcedureStepStatus": None}, Status.MISSING_ATTRIBUTE, 0x00400252),
        ({"PerformedProcedureStepStatus": ""}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400252),
        ({"PerformedProcedureStepID": None}, Status.MISSING_ATTRIBUTE, 0x00400253),
        ({"PerformedStationAETitle": ""}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400241),
        ({"Modality": None}, Status.MISSING_ATTRIBUTE, 0x00080060),
        ({"PerformedProcedureStepStartDate": "20261301"}, Status.INVALID_ATTRIBUTE, 0x00400244),
        ({"ScheduledStepAttributesSequence": None}, Status.MISSING_ATTRIBUTE, 0x00400270),
        ({"ScheduledStepAttributesSequence": Sequence([])}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400270),
        ({"study": ""}, Status.MISSING_ATTRIBUTE_VALUE, 0x0020000D),
        ({"study": "1.2.x"}, Status.INVALID_ATTRIBUTE, 0x0020000D),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_step_that_cannot_begin_so_is_refused_and_leaves_nothing(
    archive: Archive, modality: Modality, attributes: dict[str, Any], status: Status, tag: int
) -> None:
    place(archive)
    answer = modality.create(begun(**attributes))
    assert (answer.status, answer.offending) == (status, (tag,))
    assert modality.status() == "scheduled"
    assert modality.create().status == Status.SUCCESS, "put right, it begins"


@pytest.mark.req("REQ-DCM-53")
def test_instances_that_are_none_known_or_unknown_have_their_statuses(archive: Archive, modality: Modality) -> None:
    assert modality.set(ended()).status == Status.NO_SUCH_INSTANCE
    assert modality.create(uid="1..2x").status == Status.INVALID_INSTANCE
    made = modality.create(uid="")
    assert made.status == Status.SUCCESS
    assert made.sop_instance_uid.startswith("2.25.")
    assert modality.create().status == Status.SUCCESS
    assert modality.create(begun("2")).status == Status.DUPLICATE_INSTANCE


@pytest.mark.req("REQ-DCM-53")
@pytest.mark.parametrize("status", ["COMPLETED", "DISCONTINUED"])
def test_a_step_that_has_ended_is_not_changed_any_more(archive: Archive, modality: Modality, status: str) -> None:
    place(archive)
    modality.create()
    modality.set(ended("1.2.3.1.1", status=status))
    for again in (ended("1.2.3.1.1", status=status), ended(status="IN PROGRESS")):
        answer = modality.set(again)
        assert (answer.status, answer.error_id) == (Status.PROCESSING_FAILURE, 0xA710)
        assert answer.comment == "Performed Procedure Step Object may no longer be updated"
    assert modality.status() == status.lower()


@pytest.mark.req("REQ-DCM-53")
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_what_a_step_has_at_its_end_is_demanded_then(modality: Modality) -> None:
    modality.create()
    for attributes, status, tag in (
        ({"PerformedProcedureStepEndDate": None}, Status.MISSING_ATTRIBUTE, 0x00400250),
        ({"PerformedProcedureStepEndTime": ""}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400251),
        ({"PerformedSeriesSequence": Sequence([])}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400340),
        ({"PerformedSeriesSequence": Sequence([Dataset()])}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400340),
        ({"PerformedProcedureStepStatus": "DONE"}, Status.INVALID_ATTRIBUTE, 0x00400252),
        ({"PerformedProcedureStepStatus": ""}, Status.MISSING_ATTRIBUTE_VALUE, 0x00400252),
    ):
        answer = modality.set(ended(**attributes))
        assert (answer.status, answer.offending) == (status, (tag,)), attributes
    assert modality.set(ended(status="DISCONTINUED", PerformedSeriesSequence=Sequence([]))).status == Status.SUCCESS


@pytest.mark.req("REQ-DCM-53")
def test_what_a_step_began_with_is_not_changed_and_that_is_said(archive: Archive, modality: Modality) -> None:
    modality.create()
    same = modality.set(ended(status="IN PROGRESS", PatientID="R1", PerformedProcedureStepStartDate="20260110"))
    assert same.status == Status.SUCCESS
    other = modality.set(ended(status="IN PROGRESS", PatientID="R2", PerformedProcedureStepDescription="Abdomen"))
    assert other.status == Status.ATTRIBUTE_LIST_ERROR
    with archive.reading() as conn:
        modified = orjson.loads(conn.execute(select(performed_step.c.modified)).scalar_one())
    assert "00100020" not in modified
    assert modified["00400254"]["Value"] == ["Abdomen"]


@on_both_databases
@pytest.mark.req("REQ-DCM-53")
def test_the_wrong_worklist_entry_is_to_be_done_still_and_waits_for_a_person(
    archive: Archive, modality: Modality
) -> None:
    place(archive)
    modality.create()
    modality.set(ended("1.2.3.1.1", status="DISCONTINUED", reason="110514"))
    assert modality.status() == "scheduled", "it was another exam that was begun"
    item = items(archive)["wrong_worklist_entry"]
    assert (item["subject"], item["study"], item["patient"]) == (UID, STUDY, f"R1^^^{ISSUER}")
    assert item["evidence"]["listed"] == 1
    modality.create(uid="1.2.826.2")
    assert modality.status() == "in_progress"
    modality.set(ended("1.2.3.1.2"), uid="1.2.826.2")
    assert modality.status() == "completed"
    assert [one["discontinuation_code"] for one in modality.order()["performed"]] == ["110514", ""]


@pytest.mark.req("REQ-DCM-53")
def test_another_reason_discontinues_the_order_until_it_is_begun_again(archive: Archive, modality: Modality) -> None:
    place(archive)
    modality.create()
    modality.set(ended(status="DISCONTINUED", reason="110500"))
    assert modality.status() == "discontinued"
    assert items(archive) == {}
    place(archive, control="XO")
    assert modality.order()["in_worklist"], "the RIS has it done again"
    modality.create(uid="1.2.826.2")
    assert modality.status() == "in_progress"
    place(archive, control="XO")
    assert modality.status() == "in_progress", "whatever the RIS thinks"


@pytest.mark.req("REQ-DCM-53")
def test_each_step_of_a_study_is_moved_by_its_own_id(archive: Archive, modality: Modality) -> None:
    place(archive, "1", step="S1", study=STUDY)
    place(archive, "2", step="S2", study=STUDY, accession="A2")
    modality.create(begun("2"))
    assert (modality.status("A1"), modality.status("A2")) == ("scheduled", "in_progress")
    ds = begun("1")
    ds.ScheduledStepAttributesSequence.append(begun("2").ScheduledStepAttributesSequence[0])
    modality.create(ds, uid="1.2.826.2")
    modality.set(ended(), uid="1.2.826.2")
    assert (modality.status("A1"), modality.status("A2")) == ("completed", "in_progress")
    modality.set(ended())
    assert modality.status("A2") == "completed"


@pytest.mark.req("REQ-DCM-53")
def test_an_order_that_the_ris_has_cancelled_stays_so_and_a_person_is_told(
    archive: Archive, modality: Modality
) -> None:
    place(archive)
    place(archive, control="CA", status="CA")
    modality.create()
    assert modality.status() == "cancelled"
    assert "order_closed_with_images" in items(archive)


@pytest.mark.req("REQ-DCM-53")
def test_a_step_for_somebody_elses_order_waits_for_a_person(archive: Archive, modality: Modality) -> None:
    place(archive)
    say(archive, "A28", pid("R2"))
    modality.create(begun(PatientID="R2"))
    assert modality.status() == "scheduled"
    assert items(archive)["order_unmatched"]["subject"] == UID


@on_both_databases
@pytest.mark.req("REQ-DCM-53", "REQ-HL7-95")
def test_an_unscheduled_exam_is_linked_with_its_order_when_that_comes(archive: Archive, modality: Modality) -> None:
    """PIR: images and step without an order, later one with the Study Instance UID that was used."""
    modality.create(begun(step="", accession=""))
    modality.store("1.2.3.1.1")
    modality.set(ended("1.2.3.1.1"))
    assert items(archive)["unknown_patient"]["patient"] == f"R1^^^{ISSUER}"
    place(archive)
    shown = modality.order()
    assert (shown["status"], shown["in_worklist"], shown["studies"]) == ("completed", False, [STUDY])
    assert [(one["sop_instance_uid"], one["instances_received"]) for one in shown["performed"]] == [(UID, 1)]
    assert items(archive) == {}


@on_both_databases
@pytest.mark.req("REQ-HL7-95", "REQ-HL7-96", "REQ-HL7-40")
def test_a_step_follows_its_patient_through_merges(archive: Archive, modality: Modality) -> None:
    """PIR: an unidentified patient with an unscheduled exam, identified and ordered later."""
    modality.create(begun(PatientID="TEMP", PatientName="INCONNU^X", step="", accession=""))
    modality.store("1.2.3.1.1", PatientID="TEMP")
    modality.set(ended("1.2.3.1.1"))
    place(archive, study="")  # for R1: study and step are still those of TEMP
    assert modality.status() == "scheduled"
    say(archive, "A40", pid("R1"), f"MRG|{cx('TEMP')}")
    shown = modality.order()
    assert (shown["status"], shown["studies"]) == ("completed", [STUDY])
    assert shown["performed"][0]["patient_id"] == "R1"
    with archive.reading() as conn:
        (held,) = conn.execute(select(performed_step)).all()
    assert held.patient_pk == row(archive, "R1").pk
    assert orjson.loads(held.created)["00100020"]["Value"] == ["TEMP"], "what was said stays (REQ-HL7-96)"


@pytest.mark.req("REQ-DCM-53")
def test_a_step_under_a_merged_identifier_is_the_survivors(archive: Archive, modality: Modality) -> None:
    place(archive)
    say(archive, "A40", pid("R1"), f"MRG|{cx('OLD')}")
    modality.create(begun(PatientID="OLD"))
    assert modality.status() == "in_progress"


@pytest.mark.req("REQ-DCM-53")
def test_an_order_that_names_the_patient_better_takes_the_step_over(settings: Settings, actor: Actor) -> None:
    """REQ-HL7-98: the same Patient ID without an authority, and the accession number."""
    told = settings.model_dump()
    told["hl7"]["authorities"] = [{**AUTHORITY, "trusted": False}]
    with open_archive(Settings.model_validate(told), process="test") as archive:
        modality = Modality(archive, actor)
        modality.create(begun(IssuerOfPatientID=None))
        place(archive)
        assert modality.status() == "in_progress"
        assert modality.order()["performed"][0]["issuer"] == ISSUER


@pytest.mark.req("REQ-DCM-53")
def test_instances_that_do_not_come_wait_for_a_person_until_they_come(archive: Archive, modality: Modality) -> None:
    modality.create()
    modality.set(ended("1.2.3.1.1", "1.2.3.1.2"))
    first, *_ = mpps.LOOKS
    with archive.reading() as conn:
        (owed,) = conn.execute(select(job).where(job.c.kind == mpps.COUNT)).all()
    assert abs(owed.due_at - archive.real_clock() - first) < timedelta(minutes=1)
    modality.store("1.2.3.1.1")
    assert mpps.count(archive, UID, 0) == 1
    evidence = items(archive)["images_missing"]["evidence"]
    assert (evidence["listed"], evidence["missing"], evidence["first"]) == (2, 1, ["1.2.3.1.2"])
    modality.store("1.2.3.1.2")
    assert mpps.count(archive, UID, 1) == 0
    assert "images_missing" not in items(archive)
    with archive.reading() as conn:
        looks = [orjson.loads(one.payload)["look"] for one in conn.execute(select(job).where(job.c.kind == mpps.COUNT))]
    assert looks == [0, 1], "nothing is looked for any more"


@pytest.mark.req("REQ-DCM-53")
def test_a_person_who_accepts_that_instances_are_missing_is_not_asked_again(
    archive: Archive, modality: Modality
) -> None:
    modality.create()
    modality.set(ended("1.2.3.1.1"))
    assert mpps.count(archive, UID, 0) == 1
    number = items(archive)["images_missing"]["id"]
    settle(archive, number, how="accepted", reason="deleted at the CT", actor=modality.actor)
    assert mpps.count(archive, UID, 1) == 0
    assert "images_missing" not in items(archive)


@on_both_databases
@pytest.mark.req("REQ-DCM-53", "REQ-HL7-98")
def test_an_order_that_names_somebody_elses_step_waits_for_a_person_until_they_are_one(
    archive: Archive, modality: Modality
) -> None:
    modality.create(begun(PatientID="TEMP", step="", accession=""))
    place(archive)
    assert items(archive)["order_unmatched"]["subject"] == UID
    say(archive, "A40", pid("R1"), f"MRG|{cx('TEMP')}")
    assert modality.status() == "in_progress"
    assert items(archive) == {}


@pytest.mark.req("REQ-DCM-53")
def test_looking_for_missing_instances_ends(archive: Archive, modality: Modality) -> None:
    modality.create()
    modality.set(ended("1.2.3.1.1"))
    assert mpps.count(archive, UID, len(mpps.LOOKS) - 1) == 1
    with archive.reading() as conn:
        looks = [orjson.loads(one.payload)["look"] for one in conn.execute(select(job).where(job.c.kind == mpps.COUNT))]
    assert looks == [0]


@on_both_databases
def test_a_step_is_made_again_from_its_fact_alone(archive: Archive, modality: Modality) -> None:
    place(archive)
    modality.create()
    modality.set(ended("1.2.3.1.1"))
    before = modality.order()
    (fact, *_) = [one for one in reversed(archive.journal.read()) if one.kind == Kind.PERFORMED]
    forget = lambda conn: (conn.execute(delete(performed_for)), conn.execute(delete(performed_step)))  # noqa: E731
    archive.commit.run(forget)
    assert modality.order()["performed"] == []
    for _ in range(2):
        archive.commit.run(partial(restore_performed, subject=fact.subject, body=fact.body, at=fact.at))
    assert modality.order() == before
    assert modality.set(ended()).error_id == 0xA710


class Ris:
    """A peer that keeps what it is told; its answers can be set."""

    def __init__(self) -> None:
        self.port = free_port()
        self.heard: list[tuple[str, str, Dataset]] = []
        self.answers: list[int] = []

    def _answer(self) -> int:
        return self.answers.pop(0) if self.answers else 0x0000

    def _create(self, event: evt.Event) -> tuple[int, Dataset | None]:
        status = self._answer()
        if status == 0:
            self.heard.append(("create", event.request.AffectedSOPInstanceUID, event.attribute_list))
        return status, None

    def _set(self, event: evt.Event) -> tuple[int, Dataset | None]:
        status = self._answer()
        if status == 0:
            self.heard.append(("set", event.request.RequestedSOPInstanceUID, event.modification_list))
        return status, None

    @contextmanager
    def listening(self) -> Iterator[None]:
        ae = AE("RIS")
        ae.add_supported_context(MPPS)
        handlers = [(evt.EVT_N_CREATE, self._create), (evt.EVT_N_SET, self._set)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        yield
        server.shutdown()

    def wait(self, count: int) -> None:
        until = monotonic() + 15
        while len(self.heard) < count and monotonic() < until:
            sleep(0.05)
        assert len(self.heard) == count


def say_over_the_wire(port: int, calling: str, *steps: tuple[str, Dataset]) -> list[int]:
    ae = AE(calling)
    ae.add_requested_context(MPPS)
    assoc = ae.associate("127.0.0.1", port, ae_title="MINIPACS")
    assert assoc.is_established
    said = {"create": assoc.send_n_create, "set": assoc.send_n_set}
    answers = [said[kind](ds, MPPS, UID)[0].Status for kind, ds in steps]
    assoc.release()
    return answers


@pytest.mark.req("REQ-DCM-53", "REQ-DCM-54")
def test_what_a_modality_says_is_said_on_to_the_ris_in_order_and_with_the_known_identity(settings: Settings) -> None:
    ris = Ris()
    peers = {
        "CT1": {},
        "RIS": {"host": "127.0.0.1", "port": ris.port, "forward_mpps": True},
        "VIEWER": {"may": ["query"]},
    }
    with ris.listening(), running(settings, peers=peers) as server:
        place(server.archive)
        say(server.archive, "A31", pid("R1", "LEFÈVRE^Anaïs^^^^^L", p7="19600615", p8="M"))
        assert say_over_the_wire(server.port, "VIEWER", ("create", begun())) == [0x0124]
        other = Dataset()
        other.PatientID, other.IssuerOfPatientID = "160059932710027", "ASIP-SANTE-INS-NIR"
        begin = begun(OtherPatientIDsSequence=Sequence([other]))
        assert say_over_the_wire(server.port, "CT1", ("create", begin), ("set", ended("1.2.3"))) == [0, 0]
        ris.wait(2)
        assert say_over_the_wire(server.port, "CT1", ("set", ended("1.2.3"))) == [0x0110]
        (first, uid, created), (second, again, modified) = ris.heard
        assert (first, second, uid, again) == ("create", "set", UID, UID)
        assert (created.PatientName, created.PatientID, created.PatientBirthDate) == ("LEFÈVRE^Anaïs", "R1", "19600615")
        assert "OtherPatientIDsSequence" not in created, "an INS that the record does not have"
        assert (created.PerformedProcedureStepStatus, created.PerformedProcedureStepID) == ("IN PROGRESS", "PPS1")
        assert created.ScheduledStepAttributesSequence[0].AccessionNumber == "A1"
        assert modified.PerformedProcedureStepStatus == "COMPLETED"
        assert modified.PerformedSeriesSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.3"
        assert "PatientName" not in modified
        with server.archive.reading() as conn:
            (refusal,) = list_rows(conn, user="VIEWER", event="110111", limit=5).items
        assert refusal["outcome"] == 8


@pytest.mark.req("REQ-DCM-54")
def test_a_ris_that_cannot_now_is_told_later_and_hears_everything_once(settings: Settings, actor: Actor) -> None:
    from archive.errors import Busy, Conflict
    from dicom_scp.mpps import forward

    ris = Ris()
    peer = {"host": "127.0.0.1", "port": ris.port, "forward_mpps": True}
    told = settings.model_dump()
    told["dicom"]["peers"] = {"RIS": peer}
    with ris.listening(), open_archive(Settings.model_validate(told), process="test") as archive:
        modality = Modality(archive, actor)
        modality.create()
        modality.set(ended(status="IN PROGRESS"))
        modality.set(ended("1.2.3"))
        with archive.reading() as conn:
            owed = list(conn.execute(select(job.c.pk).where(job.c.kind == mpps.FORWARD)).scalars())
        assert len(owed) == 3
        one = jobs.claim(archive, (mpps.FORWARD,), holder="a worker")
        assert one is not None
        with pytest.raises(Busy, match="being said"):
            forward(archive, jobs.wait(archive, owed[1], seconds=0))
        ris.answers = [0x0213]
        with pytest.raises(Busy, match="0213 to N-CREATE"):
            forward(archive, one)
        ris.answers = [0x0111, 0x0110]  # it had heard it; then it cannot
        with pytest.raises(Busy, match="0110 to N-SET"):
            forward(archive, one)
        ris.answers = [0x0106]
        with pytest.raises(Conflict, match="0106 to N-SET"):
            forward(archive, one)
        assert forward(archive, one) == {"told": 1}, "the N-CREATE is not said again"
        assert [kind for kind, _, _ in ris.heard] == ["set"], "both N-SETs as one"
        assert forward(archive, one) == {"told": 0}


@pytest.mark.req("REQ-DCM-54")
def test_whoever_said_it_is_not_told_it(settings: Settings, actor: Actor) -> None:
    told = settings.model_dump()
    told["dicom"]["peers"] = {"RIS": {"host": "127.0.0.1", "port": 1, "forward_mpps": True}}
    with open_archive(Settings.model_validate(told), process="test") as archive:
        Modality(archive, actor).create(calling_ae="RIS")
        with archive.reading() as conn:
            assert conn.execute(select(job).where(job.c.kind == mpps.FORWARD)).all() == []


def test_a_step_that_is_not_committed_is_not_acknowledged(settings: Settings, actor: Actor) -> None:
    """Law 1, and law 4: row, fact, audit and what is owed in one transaction, or nothing."""
    with open_archive(settings, process="test") as archive:
        modality = Modality(archive, actor)
        archive.commit.close()
        assert modality.create().status == Status.RESOURCE_LIMITATION
        with archive.reading() as conn:
            assert conn.execute(select(performed_step)).all() == []


@pytest.mark.req("REQ-DCM-55")
def test_when_a_step_is_complete_peers_are_told_at_once_of_what_is_available(
    archive: Archive, modality: Modality
) -> None:
    modality.create()
    modality.store("1.2.3.1.1")
    modality.set(ended("1.2.3.1.1"))
    with archive.reading() as conn:
        (due,) = conn.execute(select(study.c.notify_at)).scalars()
    assert due is not None
    assert due <= archive.real_clock()


@pytest.mark.req("REQ-DCM-53")
@pytest.mark.parametrize(
    ("data", "answered"),
    [(b"\x08\x00\x05\x00CS\xff\xff", Status.PROCESSING_FAILURE), (bytes((1 << 24) + 2), Status.RESOURCE_LIMITATION)],
    ids=["cannot be read", "too long"],
)
def test_what_cannot_be_read_is_refused_as_an_n_create_is(settings: Settings, data: bytes, answered: int) -> None:
    with running(settings) as server:
        peer, proposed = Peer(host="127.0.0.1", port=server.port), (Proposed(1, MPPS, (EXPLICIT,)),)
        with Requestor.open(settings, settings.dicom.ae_title, peer, proposed) as requestor:
            command = dimse.normalized_request(Field.N_CREATE_RQ, 1, MPPS, UID)
            requestor.exchange.send(1, command, data)
            assert requestor.receive().command.status == answered
