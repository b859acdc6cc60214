"""Patient information reconciliation (IHE PIR): the six cases of sheet 30 §3, with real clients.

Each time the exam is three slices of a real phantom, a key object note on two of them, a report (Basic Text SR) and a
performed procedure step. Whatever the RIS says later, they are found, moved and shown under the identity that it gave
last; the stored bytes stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import BasicTextSRStorage
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRoot

from tests.acceptance.clients import data_set_of, digests, find, receiver, tool
from tests.acceptance.modality import AUTHORITY, PID, begun, ended, images, ordered, perform, say, worklist
from tests.builders import key_object
from tests.conftest import need
from tests.server import Server

SLICES = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_database_url: str, move_port: int) -> Iterator[Server]:
    need("storescu", "movescu", "storescp")
    peers = {
        "CT1": {"modalities": ["CT"], "may": ["store", "query", "worklist", "mpps"]},
        "STORESCP": {"host": "127.0.0.1", "port": move_port},
        "PYNETDICOM": {},
    }
    running = Server(
        tmp_path_factory.mktemp("pir"),
        module_database_url,
        {"MINIPACS_DICOM__PEERS": json.dumps(peers), "MINIPACS_HL7__AUTHORITIES": AUTHORITY},
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@dataclass
class Exam:
    """What a modality made, and the digests of what it sent."""

    study: str
    step: str
    pid: str
    name: str
    images: list[str]
    files: list[Path] = field(default_factory=list)


def mrg(pid: str) -> str:
    return f"MRG|{pid}^^^CIM-RIVAGES&2.25.171717001&ISO^PI"


def unscheduled(study: str, pid: str, name: str) -> Dataset:
    """What a technologist types at the console, where the worklist has nothing."""
    item = Dataset()
    item.PatientName, item.PatientID, item.PatientBirthDate, item.PatientSex = name, pid, "", "O"
    item.AccessionNumber, item.StudyInstanceUID = "", study
    item.ScheduledProcedureStepSequence = Sequence([Dataset()])
    item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID = ""
    return item


def examined(server: Server, item: Dataset, folder: Path, *, root: str = "", wrong: bool = False) -> Exam:
    """The exam of an item, sent whole; `wrong`: the technologist finds that it was the wrong item (110514)."""
    study = str(item.StudyInstanceUID)
    root = root or study
    step, series = f"{root}.9", f"{root}.1"
    assert perform(server, "create", step, begun(item)) == 0x0000
    folder.mkdir()
    files = images(folder, item, series, step)
    slices = [pydicom.dcmread(path) for path in files]
    report = key_object(slices[0], SOPInstanceUID=f"{root}.3.1", SeriesInstanceUID=f"{root}.3", Modality="SR")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    note = key_object(*slices[:2], SOPInstanceUID=f"{root}.2.1", SeriesInstanceUID=f"{root}.2")
    for ds in (note, report):
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        files.append(folder / f"{ds.SOPInstanceUID}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    tool("storescu", "-R", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", server.dicom_port, *files)
    uids = [f"{series}.{number}" for number in range(1, SLICES + 1)]
    last = ended(series, uids, "DISCONTINUED" if wrong else "COMPLETED")
    if wrong:
        reason = Dataset()
        reason.CodeValue, reason.CodingSchemeDesignator = "110514", "DCM"
        reason.CodeMeaning = "Incorrect worklist entry selected"
        last.PerformedProcedureStepDiscontinuationReasonCodeSequence = Sequence([reason])
    assert perform(server, "set", step, last) == 0x0000
    return Exam(study, step, str(item.PatientID), str(item.PatientName), uids, files)


def moved(server: Server, study: str, port: int, folder: Path) -> list[Dataset]:
    """A study, moved to a workstation."""
    folder.mkdir()
    with receiver(folder, port):
        tool(
            "movescu", "-S", "-aet", "PYNETDICOM", "-aec", "MINIPACS", "-aem", "STORESCP", "127.0.0.1",
            server.dicom_port, "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}",
        )  # fmt: skip
    return [pydicom.dcmread(path) for path in folder.iterdir()]


@dataclass(frozen=True)
class Reconciled:
    """What has to be seen of an exam at every door."""

    accession: str
    pid: str
    name: str
    birth_date: str = "19600615"

    def check(self, server: Server, exam: Exam, port: int, folder: Path) -> None:
        self._is_found(server, exam)
        self._leaves(exam, moved(server, exam.study, port, folder / "received"))
        self._is_linked(server, exam)
        sent = set(digests(exam.files).values())
        held = {
            hashlib.sha256(data_set_of(path.read_bytes())).hexdigest()
            for path in (server.data_dir / "hot").rglob("*.dcm")
            if path.relative_to(server.data_dir / "hot").parts[0].isdigit()
        }
        assert sent <= held, "the stored bytes are what was received"

    def _is_found(self, server: Server, exam: Exam) -> None:
        asked = dict.fromkeys(("StudyInstanceUID", "PatientName", "PatientBirthDate"), "")
        asked |= {"QueryRetrieveLevel": "STUDY", "SpecificCharacterSet": "ISO_IR 192"}
        asked |= {"NumberOfStudyRelatedInstances": ""}
        for keys in (
            {"AccessionNumber": self.accession, "PatientID": ""},
            {"PatientID": self.pid, "AccessionNumber": ""},
            {"PatientID": exam.pid, "AccessionNumber": ""},  # the former identifier still finds it
        ):
            (study,) = find(server, StudyRoot, **{**asked, **keys})
            assert (study.StudyInstanceUID, study.PatientID, study.PatientName) == (exam.study, self.pid, self.name)
            assert (study.PatientBirthDate, study.AccessionNumber) == (self.birth_date, self.accession)
            assert study.NumberOfStudyRelatedInstances == SLICES + 2

    def _leaves(self, exam: Exam, received: list[Dataset]) -> None:
        """Images, key object and report."""
        assert {ds.Modality for ds in received} == {"CT", "KO", "SR"}
        assert len(received) == SLICES + 2
        for ds in received:
            assert (ds.PatientID, ds.PatientName, ds.PatientBirthDate) == (self.pid, self.name, self.birth_date)
            assert ds.AccessionNumber == self.accession
            former = ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
            assert former.get("PatientID", self.pid) == exam.pid
            assert former.get("PatientName", self.name) == exam.name
            assert len(former) > 0

    def _is_linked(self, server: Server, exam: Exam) -> None:
        """The performed step belongs to the order, the key images to the study; nothing waits for a person."""
        with server.client("service") as client:
            order = client.get("/api/v1/orders", params={"accession": self.accession}).json()
            keys = client.get(f"/api/v1/studies/{exam.study}/key-images").json()["items"]
            waiting = client.get("/api/v1/work-items", params={"state": "open"}).json()["items"]
        (performed,) = order["performed"]
        assert (order["status"], order["patient_id"], order["studies"]) == ("completed", self.pid, [exam.study])
        assert (performed["sop_instance_uid"], performed["patient_id"]) == (exam.step, self.pid)
        assert performed["instances_received"] == SLICES
        assert len(keys) == 2
        assert [one for one in waiting if one["study"] == exam.study] == []
        assert worklist(server, ScheduledProcedureStepID=f"S{self.accession[1:]}") == [], "it is done"


def scheduled(server: Server, number: str) -> Dataset:
    (item,) = worklist(server, ScheduledProcedureStepID=f"S{number}")
    return item


@pytest.mark.req("REQ-IHE-02", "REQ-HL7-40", "REQ-HL7-95", "REQ-HL7-96")
def test_1_an_unidentified_patient_is_merged_into_who_it_was(server: Server, move_port: int, tmp_path: Path) -> None:
    say(server, "ORM^O01", "P1A", *ordered("101", "TEMP101", "INCONNU^A", "2.25.101001"))
    exam = examined(server, scheduled(server, "101"), tmp_path / "exam")
    say(server, "ADT^A28", "P1B", PID.format(pid="R101", name="MARTIN^Zoé"))
    say(server, "ADT^A40", "P1C", PID.format(pid="R101", name="MARTIN^Zoé"), mrg("TEMP101"))
    Reconciled("A101", "R101", "MARTIN^Zoé").check(server, exam, move_port, tmp_path)


@pytest.mark.req("REQ-IHE-02", "REQ-HL7-41", "REQ-HL7-95", "REQ-HL7-96")
def test_2_an_unidentified_patient_gets_another_identifier(server: Server, move_port: int, tmp_path: Path) -> None:
    say(server, "ORM^O01", "P2A", *ordered("102", "TEMP102", "INCONNU^B", "2.25.102001"))
    exam = examined(server, scheduled(server, "102"), tmp_path / "exam")
    say(server, "ADT^A47", "P2B", PID.format(pid="R102", name="LEFÈVRE^Anaïs"), mrg("TEMP102"))
    Reconciled("A102", "R102", "LEFÈVRE^Anaïs").check(server, exam, move_port, tmp_path)
    with server.client("service") as client:
        found = client.get("/api/v1/patients", params={"identifier": "R102"}).json()
    assert found["alias_of"] == ["TEMP102"]


@pytest.mark.req("REQ-IHE-02", "REQ-HL7-95", "REQ-HL7-96")
def test_3_an_unscheduled_exam_gets_its_order_later(server: Server, move_port: int, tmp_path: Path) -> None:
    say(server, "ADT^A28", "P3A", PID.format(pid="R103", name="DUPONT^Jean"))
    exam = examined(server, unscheduled("2.25.103001", "R103", "DUPONT^Jean"), tmp_path / "exam")
    say(server, "ORM^O01", "P3B", *ordered("103", "R103", "DUPONT^Jean", "2.25.103001"))
    Reconciled("A103", "R103", "DUPONT^Jean").check(server, exam, move_port, tmp_path)


@pytest.mark.req("REQ-IHE-02", "REQ-HL7-40", "REQ-HL7-95", "REQ-HL7-96")
def test_4_an_unidentified_patient_with_an_unscheduled_exam(server: Server, move_port: int, tmp_path: Path) -> None:
    exam = examined(server, unscheduled("2.25.104001", "TEMP104", "INCONNU^D"), tmp_path / "exam")
    say(server, "ADT^A28", "P4A", PID.format(pid="R104", name="NGUYEN^Thi-Maï"))
    say(server, "ADT^A40", "P4B", PID.format(pid="R104", name="NGUYEN^Thi-Maï"), mrg("TEMP104"))
    say(server, "ORM^O01", "P4C", *ordered("104", "R104", "NGUYEN^Thi-Maï", "2.25.104001"))
    Reconciled("A104", "R104", "NGUYEN^Thi-Maï").check(server, exam, move_port, tmp_path)
    assert server.command("verify", "--study", exam.study).returncode == 0


@pytest.mark.req("REQ-IHE-02", "REQ-DCM-53")
def test_5_the_wrong_worklist_entry_was_chosen(server: Server, move_port: int, tmp_path: Path) -> None:
    """The step is discontinued (110514), the images are rejected (113038), corrected copies come under new UIDs."""
    say(server, "ORM^O01", "P5A", *ordered("105", "R105", "BERNARD^Luc", "2.25.105001"))
    say(server, "ORM^O01", "P5B", *ordered("205", "R205", "BERNARD^Luce", "2.25.205001"))
    exam = examined(server, scheduled(server, "205"), tmp_path / "wrong", wrong=True)
    with server.client("service") as client:
        items = client.get("/api/v1/work-items", params={"kind": "wrong_worklist_entry"}).json()["items"]
    assert [one["study"] for one in items] == [exam.study]
    assert scheduled(server, "205").PatientID == "R205", "it is still to be done"
    sent = [pydicom.dcmread(path) for path in exam.files]
    title = ("113038", "Incorrect Modality Worklist Entry")
    note = key_object(*sent, title=title, SOPInstanceUID="2.25.205001.8.1", SeriesInstanceUID="2.25.205001.8")
    note.SpecificCharacterSet = "ISO_IR 192"
    note.file_meta.MediaStorageSOPInstanceUID = note.SOPInstanceUID
    note.save_as(tmp_path / "note.dcm", enforce_file_format=True)
    tool("storescu", "-R", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", server.dicom_port, tmp_path / "note.dcm")
    right = examined(server, scheduled(server, "105"), tmp_path / "right")

    assert {ds.SOPClassUID for ds in moved(server, exam.study, move_port, tmp_path / "of the wrong one")} <= {
        note.SOPClassUID
    }, "no image, no report"
    received = moved(server, right.study, move_port, tmp_path / "of the right one")
    assert {(ds.PatientID, ds.AccessionNumber, ds.Modality) for ds in received} == {
        ("R105", "A105", modality) for modality in ("CT", "KO", "SR")
    }
    (study,) = find(
        server, StudyRoot, QueryRetrieveLevel="STUDY", PatientID="R105", StudyInstanceUID="",
        NumberOfStudyRelatedInstances="",
    )  # fmt: skip
    assert (study.StudyInstanceUID, study.NumberOfStudyRelatedInstances) == (right.study, SLICES + 2)
    with server.client("service") as client:
        orders = [client.get("/api/v1/orders", params={"accession": one}).json() for one in ("A105", "A205")]
    assert [one["status"] for one in orders] == ["completed", "scheduled"]
    assert [one["sop_instance_uid"] for one in orders[0]["performed"]] == [right.step]


@pytest.mark.req("REQ-IHE-02", "REQ-HL7-96", "REQ-DCM-70", "REQ-DCM-71")
def test_6_a_patient_is_corrected_after_the_report(server: Server, move_port: int, tmp_path: Path) -> None:
    say(server, "ORM^O01", "P6A", *ordered("106", "R106", "LEROY^Emma", "2.25.106001"))
    exam = examined(server, scheduled(server, "106"), tmp_path / "exam")
    corrected = PID.format(pid="R106", name="LE ROY^Émma").replace("19600615", "19600616")
    say(server, "ADT^A31", "P6B", corrected)
    Reconciled("A106", "R106", "LE ROY^Émma", birth_date="19600616").check(server, exam, move_port, tmp_path)
