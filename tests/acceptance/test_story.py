"""The whole journey of two exams: corrected by the RIS, lossy after three years, purged after five or twenty.

Real processes, MLLP, DCMTK, DICOMweb, the command line; SQLite and PostgreSQL; a liberal practice and a hospital. The
exams are re-dated to 2026-01-05; every date that is expected stands here as it is, none is computed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind as PatientRoot
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRoot
from sqlalchemy import create_engine, text

from tests.acceptance.clients import CT, DCMTK, MR, data_set_of, digests, find, parts_digests, tool
from tests.acceptance.hl7_scenarios import Ack, environment, exchange
from tests.builders import ct_slice, new_uid
from tests.conftest import need
from tests.server import Server

AUTHORITY = {"namespace": "CIM-RIVAGES", "oid": "2.25.171717001", "trusted": True}
CONFIG = {
    "test_mode": True,
    "accept_ins_oids": ["1.2.250.1.213.1.4.10"],
    "processing_ids": ["P", "T"],
    "authorities": [AUTHORITY],
}
EXAM = "20260105"
CT_STUDY, MR_STUDY, LATE_STUDY = new_uid("story ct"), new_uid("story mr"), new_uid("story late")


@dataclass(frozen=True)
class Calendar:
    """What is to be seen on which day, by profile of the site."""

    profile: str
    ct_until: str  # the first day the CT may be purged
    mr_until: str
    held_from: str  # the clock, when the MR is put on hold
    late_exam: str
    due: str  # the clock, after both are due
    day_before: str  # the clock, on the last day of the notice
    purge_on: str  # announced: the first day after the notice
    notice_over: str
    lifted: str  # the clock, when the MR is due although the hold stopped the clocks of CSP R.1112-7
    after_resume: str


LIBERAL = Calendar(
    profile="liberal",
    ct_until="2031-01-05",
    mr_until="2032-01-01",  # MRI: the five years that follow the exam's year
    held_from="2031-12-01T09:00:00+01:00",
    late_exam="20320202",
    due="2032-01-02T09:00:00+01:00",
    day_before="2032-01-31T09:00:00+01:00",
    purge_on="2032-02-01",
    notice_over="2032-02-02T09:00:00+01:00",
    lifted="2032-02-03T09:00:00+01:00",
    after_resume="2032-03-10T09:00:00+01:00",
)
HOSPITAL = Calendar(
    profile="hospital",
    ct_until="2046-01-05",
    mr_until="2046-01-05",
    held_from="2045-12-01T09:00:00+01:00",
    late_exam="20460206",
    due="2046-01-06T09:00:00+01:00",
    day_before="2046-02-04T09:00:00+01:00",
    purge_on="2046-02-05",
    notice_over="2046-02-06T09:00:00+01:00",
    lifted="2046-04-15T09:00:00+02:00",
    after_resume="2046-05-20T09:00:00+02:00",
)


def re_dated(paths: list[Path], folder: Path, study: str, **patient: str) -> list[Path]:
    """Copies of a real series with new UIDs, the exam's day and somebody's name."""
    folder.mkdir(parents=True)
    series = new_uid("series", study)
    written = []
    for number, path in enumerate(paths, 1):
        ds = pydicom.dcmread(path)
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate"):
            setattr(ds, keyword, EXAM)
        ds.pop("AcquisitionDateTime", None)
        if "PerformedProcedureStepStartDate" in ds:
            ds.PerformedProcedureStepStartDate = EXAM
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = new_uid(study, str(number))
        for keyword, value in patient.items():
            setattr(ds, keyword, value)
        ds.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)
        written.append(folder / f"{number:03}.dcm")
    return written


def hl7(kind: str, structure: str, number: int, *segments: str) -> bytes:
    head = f"MSH|^~\\&|RIS|RIVAGES|PACS|RIVAGES|20260105083000||{kind}^{structure}|STORY-{number}|P|2.5^FRA^2.11"
    return "\r".join([f"{head}|||||FRA|UNICODE UTF-8", *segments, ""]).encode()


def pid(ipp: str, name: str, birth: str, sex: str = "F") -> str:
    return f"PID|1||{ipp}^^^CIM-RIVAGES&2.25.171717001&ISO^PI||{name}^^^^^L||{birth}|{sex}" + "|" * 24 + "PROV"


EVN = "EVN||20260105083000||||20260105083000"


@dataclass
class Story:
    """What the chapters share."""

    server: Server
    calendar: Calendar
    folder: Path
    ct: list[Path] = field(default_factory=list)
    mr: list[Path] = field(default_factory=list)
    client: httpx.Client = field(init=False)
    tokens: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        roles = ("it_admin", "radiologist", "quality", "auditor", "service")
        self.tokens = {role: self.server.token(role, name=role) for role in roles}
        self.client = httpx.Client(base_url=self.server.web, timeout=300)

    def ask(self, role: str, method: str, address: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[role]}", **more.pop("headers", {})}
        return self.client.request(method, address, headers=headers, **more)

    def get(self, role: str, address: str, **parameters: str) -> Any:
        answer = self.ask(role, "GET", address, params=parameters)
        assert answer.status_code == 200, (address, answer.text)
        return answer.json()

    def say(self, message: bytes) -> None:
        ack = Ack.read(exchange(self.server.hl7_port, message))
        assert ack.code == "AA", (message[:60], ack)

    def clock(self, at: str) -> None:
        answer = self.ask("service", "PUT", "/api/v1/testbed/clock", json={"now": at})
        assert answer.status_code == 200, answer.text

    def tick(self) -> dict[str, int]:
        answer = self.ask("quality", "POST", "/api/v1/retention/run")
        assert answer.status_code == 200, answer.text
        counts: dict[str, int] = answer.json()
        return counts

    def study(self, uid: str) -> Any:
        return self.get("service", f"/api/v1/studies/{uid}")

    def wado(self, uid: str) -> httpx.Response:
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        return self.ask("radiologist", "GET", f"/dicom-web/studies/{uid}", headers={"Accept": accept})

    def got(self, study: str, name: str, *more: str) -> list[Dataset]:
        """The study by C-GET, bit for bit as it is sent."""
        folder = self.folder / name
        folder.mkdir()
        level = () if more else ("-k", "QueryRetrieveLevel=STUDY")
        tool(
            *("getscu", "+B", "-S", "-aet", "READER", "-aec", "MINIPACS", "-od", folder),
            *("127.0.0.1", self.server.dicom_port, *level, "-k", f"StudyInstanceUID={study}", *more),
        )
        return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]

    def on_disk(self, tier: str, uid: str) -> dict[str, str]:
        """Digests of the copies of a study on a tier, as the files are now, by the digest that was taken at first."""
        wanted = {copy["digest"] for copy in self.study(uid)["copies"] if copy["tier"] == tier}
        found = {}
        for path in (self.server.data_dir / tier).rglob("*.dcm"):
            if path.relative_to(self.server.data_dir / tier).parts[0].isdigit():
                digest = hashlib.sha256(data_set_of(path.read_bytes())).hexdigest()
                if digest in wanted:
                    found[digest] = str(path)
        assert set(found) == wanted
        return found


@pytest.fixture
def story(calendar: Calendar, tmp_path: Path, database_url: str) -> Iterator[Story]:
    need("storescu", "getscu")
    variables = environment(CONFIG) | {"MINIPACS_SITE__PROFILE": calendar.profile}
    server = Server(tmp_path / "server", database_url, variables)
    server.start()
    told = Story(server, calendar, tmp_path)
    told.open()
    yield told
    told.client.close()
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Traceback" not in log, log[-4000:]


@pytest.mark.req(
    *("REQ-CDC-03", "REQ-CDC-04", "REQ-CDC-06", "REQ-CDC-10", "REQ-CDC-13", "REQ-CDC-76"),
    *("REQ-DCM-37", "REQ-DCM-70", "REQ-DCM-71", "REQ-DCM-80", "REQ-DCM-81", "REQ-DCM-83", "REQ-DCM-84", "REQ-DCM-92"),
    *("REQ-HL7-40", "REQ-HL7-73", "REQ-HL7-95"),
)
@pytest.mark.parametrize(  # a minute and a half each: both profiles, both databases, not each with each
    ("calendar", "database_url"),
    [
        pytest.param(LIBERAL, "sqlite", id="liberal-sqlite"),
        pytest.param(HOSPITAL, "postgresql", id="hospital-postgresql"),
    ],
    indirect=["database_url"],
)
def test_the_whole_journey(story: Story) -> None:
    an_exam_is_ordered_and_stored(story)
    it_is_found_and_given_back(story)
    the_ris_corrects_and_merges(story)
    three_years_pass(story)
    the_time_of_keeping_ends(story)
    everything_is_in_the_audit(story)
    the_index_is_lost(story)


def an_exam_is_ordered_and_stored(story: Story) -> None:
    story.clock("2026-01-05T09:00:00+01:00")
    story.say(hl7("ADT^A28", "ADT_A05", 1, EVN, pid("R2001", "LEFEBVRE^ANNE", "19600215")))
    story.say(
        hl7(
            *("ORM^O01", "ORM_O01", 2, pid("R2001", "LEFEBVRE^ANNE", "19600215"), "PV1||O"),
            "ORC|NW|PL-2001^RIS|FI-2001^RIS||SC||^^^20260105093000^^R",
            "OBR|1|PL-2001^RIS|FI-2001^RIS|ZBQH001^Scanner^CCAM" + "|" * 14 + "ACC-2001|RP-2001|SPS-2001||||CT",
            f"ZDS|{CT_STUDY}^PACS^Application^DICOM",
        )
    )
    story.ct = re_dated(
        *(CT, story.folder / "ct", CT_STUDY),
        PatientID="R2001",
        PatientName="LEFEBVRE^ANNE",
        PatientBirthDate="19600215",
        PatientSex="F",
        AccessionNumber="ACC-2001",
    )
    story.mr = re_dated(
        *(MR, story.folder / "mr", MR_STUDY),
        PatientID="URG-77",
        PatientName="INCONNU^FEMME",
        PatientBirthDate="19700101",
        PatientSex="F",
    )
    port = story.server.dicom_port
    tool("storescu", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", port, *story.ct)
    tool("storescu", "-aec", "MINIPACS", "-aet", "MR1", "127.0.0.1", port, *story.mr)
    waiting = story.get("service", "/api/v1/work-items", kind="unknown_patient", state="open")["items"]
    assert [item["study"] for item in waiting] == [MR_STUDY]


def it_is_found_and_given_back(story: Story) -> None:
    for uid, files in ((CT_STUDY, story.ct), (MR_STUDY, story.mr)):
        studies = find(
            *(story.server, StudyRoot),
            QueryRetrieveLevel="STUDY",
            StudyInstanceUID=uid,
            NumberOfStudyRelatedInstances="",
        )
        assert [(one.NumberOfStudyRelatedInstances, one.InstanceAvailability) for one in studies] == [(8, "ONLINE")]
        # the RIS says what the header says: not one byte is another
        assert given_back(story.got(uid, f"first-{uid}")) == digests(files)
        assert parts_digests(story.wado(uid)) == digests(files)
    assert story.study(CT_STUDY)["tier"] == "hot"


def given_back(received: list[Dataset]) -> dict[str, str]:
    return {
        str(ds.SOPInstanceUID): hashlib.sha256(data_set_of(Path(ds.filename).read_bytes())).hexdigest()
        for ds in received
    }


def the_ris_corrects_and_merges(story: Story) -> None:
    before = story.on_disk("hot", CT_STUDY)
    story.say(hl7("ADT^A31", "ADT_A05", 3, EVN, pid("R2001", "LEFÈBVRE^Anne-Lise", "19600216")))
    story.say(hl7("ADT^A28", "ADT_A05", 4, EVN, pid("R2002", "LEFÈBVRE-ŒUF^Anne-Lise", "19600216")))
    loser = "MRG|R2001^^^CIM-RIVAGES&2.25.171717001&ISO^PI"
    first = find(story.server, StudyRoot, QueryRetrieveLevel="STUDY", StudyInstanceUID=CT_STUDY, PatientName="")
    assert [str(one.PatientName) for one in first] == ["LEFÈBVRE^Anne-Lise"]
    story.say(hl7("ADT^A40", "ADT_A39", 5, EVN, pid("R2002", "NE PAS LIRE^X", "19000101"), loser))

    # every way out says the same
    for asked in ("R2002", "R2001"):  # the old identifier finds the survivor
        patients = find(
            *(story.server, PatientRoot),
            QueryRetrieveLevel="STUDY",
            PatientID=asked,
            StudyInstanceUID="",
            PatientBirthDate="",
            PatientName="",
        )
        assert [(one.StudyInstanceUID, one.PatientID, str(one.PatientName)) for one in patients] == [
            (CT_STUDY, "R2002", "LEFÈBVRE-ŒUF^Anne-Lise")
        ]
        assert patients[0].PatientBirthDate == "19600216"
        rows = story.get("radiologist", "/dicom-web/studies", PatientID=asked)
        assert [row["00100020"]["Value"] for row in rows] == [["R2002"]]
        assert rows[0]["00100010"]["Value"] == [{"Alphabetic": "LEFÈBVRE-ŒUF^Anne-Lise"}]
    received = story.got(CT_STUDY, "corrected")
    assert len(received) == 8
    originals = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, story.ct)}
    metadata = story.get("radiologist", f"/dicom-web/studies/{CT_STUDY}/metadata")
    by_wado = {one["00080018"]["Value"][0]: one for one in metadata}
    for ds in received:
        assert (ds.PatientID, str(ds.PatientName), ds.PatientBirthDate) == (
            "R2002",
            "LEFÈBVRE-ŒUF^Anne-Lise",
            "19600216",
        )
        former = ds.OriginalAttributesSequence[-1].ModifiedAttributesSequence[0]
        assert (former.PatientID, str(former.PatientName), former.PatientBirthDate) == (
            "R2001",
            "LEFEBVRE^ANNE",
            "19600215",
        )
        assert ds.OriginalAttributesSequence[-1].ReasonForTheAttributeModification in ("COERCE", "CORRECT")
        assert ds.PixelData == originals[str(ds.SOPInstanceUID)].PixelData
        told = by_wado[str(ds.SOPInstanceUID)]
        assert told["00100020"]["Value"] == ["R2002"]
        assert told["04000561"]["Value"][-1]["04000550"]["Value"][0]["00100020"]["Value"] == ["R2001"]
    assert given_back(received) == parts_digests(story.wado(CT_STUDY))
    # and the stored bytes are what they were
    assert story.on_disk("hot", CT_STUDY) == before
    old = story.get("service", "/api/v1/patients", identifier="R2001", authority="2.25.171717001")
    assert (old["exists"], old["merged_into"]) == (True, "R2002")
    order = story.get("service", "/api/v1/orders", accession="ACC-2001")
    assert order["patient_id"] == "R2002"


def three_years_pass(story: Story) -> None:
    uids = set(digests(story.ct))
    story.clock("2029-01-04T09:00:00+01:00")  # the last day of the three years
    assert story.tick()["migrated"] == 0
    story.clock("2029-01-06T09:00:00+01:00")  # three years and a day
    assert story.study(CT_STUDY)["availability"] == "ONLINE"
    counts = story.tick()
    assert counts["migrated"] == 2
    assert counts["derived"] > 0

    # in grace: the originals are what everybody sees
    assert images(story, CT_STUDY) == uids
    assert story.study(CT_STUDY)["availability"] == "ONLINE"
    assert given_ids(story.wado(CT_STUDY)) == uids
    story.clock("2029-02-04T09:00:00+01:00")  # the 29th day
    story.tick()
    assert images(story, CT_STUDY) == uids

    story.clock("2029-02-06T09:00:00+01:00")  # the grace of 30 days is over
    story.tick()
    derived = images(story, CT_STUDY)
    assert len(derived) == 8
    assert derived.isdisjoint(uids)
    assert story.study(CT_STUDY)["availability"] == "NEARLINE"
    assert story.study(CT_STUDY)["tier"] == "cold"
    assert story.on_disk("hot", CT_STUDY) == {}
    studies = find(story.server, StudyRoot, QueryRetrieveLevel="STUDY", StudyInstanceUID=CT_STUDY, PatientName="")
    assert [one.InstanceAvailability for one in studies] == ["NEARLINE"]
    received = story.got(CT_STUDY, "cold")
    assert {str(ds.SOPInstanceUID) for ds in received} == derived == given_ids(story.wado(CT_STUDY))
    for ds in received:
        assert (ds.PatientID, str(ds.PatientName)) == ("R2002", "LEFÈBVRE-ŒUF^Anne-Lise")
        assert (ds.LossyImageCompression, ds.ImageType[0]) == ("01", "DERIVED")
        assert ds.DerivationCodeSequence[0].CodeValue == "113040"
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID in uids
        assert ds.pixel_array.shape == (512, 512)
    # the original is known, and not given: never a silent substitution
    one = str(pydicom.dcmread(story.ct[0], stop_before_pixels=True).SOPInstanceUID)
    series = str(pydicom.dcmread(story.ct[0], stop_before_pixels=True).SeriesInstanceUID)
    address = f"/dicom-web/studies/{CT_STUDY}/series/{series}/instances/{one}"
    gone = story.ask("radiologist", "GET", address)
    assert gone.status_code == 410
    alternate = next(
        str(ds.SOPInstanceUID) for ds in received if ds.SourceImageSequence[0].ReferencedSOPInstanceUID == one
    )
    assert alternate in gone.headers["link"]
    assert 'rel="alternate"' in gone.headers["link"]
    found = find(
        *(story.server, StudyRoot),
        QueryRetrieveLevel="IMAGE",
        StudyInstanceUID=CT_STUDY,
        SeriesInstanceUID=series,
        SOPInstanceUID=one,
        AlternateRepresentationSequence=[],
    )
    assert [found[0].InstanceAvailability] == ["UNAVAILABLE"]
    assert found[0].AlternateRepresentationSequence[0].ReferencedSOPInstanceUID == alternate
    refused = subprocess.run(
        [
            *("getscu", "-d", "-S", "-aec", "MINIPACS", "-od", str(story.folder), "127.0.0.1"),
            *(str(story.server.dicom_port), "-k", "QueryRetrieveLevel=IMAGE", "-k", f"StudyInstanceUID={CT_STUDY}"),
            *("-k", f"SeriesInstanceUID={series}", "-k", f"SOPInstanceUID={one}"),
        ],
        *(),
        capture_output=True,
        text=True,
        env=DCMTK,
        timeout=60,
        check=False,
    )
    said = refused.stdout + refused.stderr
    assert "0xa702" in said.lower()
    assert f"see {alternate}"[:64] in said


def images(story: Story, study: str) -> set[str]:
    """SOP Instance UIDs by QIDO-RS, and as C-FIND counts them."""
    rows = story.get("radiologist", f"/dicom-web/studies/{study}/instances")
    studies = find(
        *(story.server, StudyRoot),
        QueryRetrieveLevel="STUDY",
        StudyInstanceUID=study,
        NumberOfStudyRelatedInstances="",
    )
    assert [one.NumberOfStudyRelatedInstances for one in studies] == [len(rows)]
    return {row["00080018"]["Value"][0] for row in rows}


def given_ids(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 200, answer.text
    return set(parts_digests(answer))


def the_time_of_keeping_ends(story: Story) -> None:
    calendar = story.calendar
    kept = story.study(CT_STUDY)["keep_until"]
    assert kept["date"] == calendar.ct_until
    assert kept["reasons"]
    assert story.study(MR_STUDY)["keep_until"]["date"] == calendar.mr_until
    ahead = story.get("quality", "/api/v1/retention/preview", on=calendar.ct_until)["items"]
    assert (CT_STUDY, "announce") in {(item["study"], item["action"]) for item in ahead}
    story.clock(calendar.held_from)
    held = story.ask("quality", "POST", "/api/v1/holds", json={"study": MR_STUDY, "reason": "expertise judiciaire"})
    assert held.status_code == 201, held.text
    denied = story.ask("it_admin", "POST", "/api/v1/holds", json={"study": CT_STUDY, "reason": "x"})
    assert denied.status_code == 403

    story.clock(calendar.due)
    counts = story.tick()
    assert (counts["announced"], counts["purged"]) == (1, 0)
    assert story.study(CT_STUDY)["announced"]["purge_on"] == calendar.purge_on

    story.clock(calendar.day_before)
    assert story.tick()["purged"] == 0
    assert len(images(story, CT_STUDY)) == 8
    story.clock(calendar.notice_over)
    counts = story.tick()
    assert (counts["purged"], counts["blocked"] > 0) == (1, True)

    assert is_gone(story)
    assert len(images(story, MR_STUDY)) == 8  # on hold
    # an exam of the merged patient under the old identifier: filed under the survivor
    late = ct_slice(
        StudyInstanceUID=LATE_STUDY,
        SeriesInstanceUID=new_uid(),
        StudyDate=calendar.late_exam,
        PatientID="R2001",
        PatientName="LEFEBVRE^ANNE",
        PatientBirthDate="19600215",
        AccessionNumber="ACC-LATE",
    )
    late.save_as(story.folder / "late.dcm", enforce_file_format=True)
    port = story.server.dicom_port
    tool("storescu", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", port, story.folder / "late.dcm")
    purges = story.get("quality", "/api/v1/retention/purges")["items"]
    assert [one["study"] for one in purges] == [CT_STUDY]
    address = f"/api/v1/retention/purges/{purges[0]['id']}/certificate"
    certificate = story.get("quality", address, format="json")
    assert set(digests(story.ct).values()) <= set(re_digests(certificate))
    printed = story.ask("quality", "GET", address, params={"format": "pdf"})
    assert printed.headers["content-type"] == "application/pdf"
    assert printed.content.startswith(b"%PDF-")
    left = [path for tier in ("hot", "cold") for path in (story.server.data_dir / tier).rglob("*.dcm")]
    notes = [pydicom.dcmread(path) for path in left if "evidence" in path.parts]
    assert [note.ConceptNameCodeSequence[0].CodeValue for note in notes] == ["113039"]


def re_digests(found: Any) -> list[str]:
    """Every SHA-256 in a certificate."""
    if isinstance(found, dict):
        return [digest for value in found.values() for digest in re_digests(value)]
    if isinstance(found, list):
        return [digest for value in found for digest in re_digests(value)]
    return [found] if isinstance(found, str) and len(found) == 64 else []


def is_gone(story: Story) -> bool:
    """The CT as a purged study is seen from outside; its late copies are refused."""
    assert story.wado(CT_STUDY).status_code == 410
    assert find(story.server, StudyRoot, QueryRetrieveLevel="STUDY", StudyInstanceUID=CT_STUDY) == []
    again = subprocess.run(
        ["storescu", "-d", "-aec", "MINIPACS", "127.0.0.1", str(story.server.dicom_port), str(story.ct[0])],
        capture_output=True,
        text=True,
        env=DCMTK,
        timeout=60,
        check=False,
    )
    assert "0xc0f2" in (again.stdout + again.stderr).lower()
    return True


def everything_is_in_the_audit(story: Story) -> None:
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = story.get("auditor", "/api/v1/audit", limit="1000", **cursor)
        rows += page["items"]
        if not page["next"]:
            break
        cursor = {"cursor": page["next"]}
    for row in rows:
        assert row["time"]
        assert row["user"]
        assert row["source"]
    seen = {(row["event"], row["action"], row["outcome"], row["study"]) for row in rows}
    patients = {(row["event"], row["action"], (row["patient"] or "").split("^")[0]) for row in rows}
    assert {
        ("110104", "C", 0, CT_STUDY),  # received
        ("110104", "R", 0, CT_STUDY),  # given
        ("110105", "D", 0, CT_STUDY),  # purged
        ("110104", "C", 0, MR_STUDY),
    } <= seen
    assert {
        ("110110", "C", "R2001"),
        ("110110", "U", "R2001"),
        ("110110", "U", "R2002"),
        ("110109", "C", "R2001"),
    } <= patients
    assert ("110112", "E") in {(row["event"], row["action"]) for row in rows}
    denied = [row for row in rows if row["outcome"] != 0]
    assert {row["door"] for row in denied} >= {"api", "dicom"}  # the hold, the late C-STORE

    server = story.server
    assert server.stop() == 0
    done = server.command("verify-audit", "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True), done.stdout
    engine = create_engine(server.database_url)
    with engine.begin() as conn:
        pk = conn.execute(text("SELECT max(pk) - 1 FROM audit")).scalar_one()
        kept = conn.execute(text("SELECT source FROM audit WHERE pk = :pk"), {"pk": pk}).scalar_one()
        conn.execute(text("UPDATE audit SET source = source || '1' WHERE pk = :pk"), {"pk": pk})
    done = server.command("verify-audit", "--json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["ok"]) == (1, False)
    assert str(pk) in json.dumps(verdict["row"])
    with engine.begin() as conn:
        conn.execute(text("UPDATE audit SET source = :kept WHERE pk = :pk"), {"kept": kept, "pk": pk})
    engine.dispose()


def the_index_is_lost(story: Story) -> None:
    server = story.server
    empty(server.database_url)
    done = server.command("migrate")
    assert done.returncode == 0, done.stderr
    done = server.command("rebuild-index")
    assert done.returncode == 0, done.stdout + done.stderr
    server.start()
    story.client.close()
    story.open()
    story.clock(story.calendar.notice_over)
    assert is_gone(story)
    assert len(images(story, MR_STUDY)) == 8
    assert story.study(MR_STUDY)["availability"] == "NEARLINE"
    holds = story.study(MR_STUDY)["holds"]
    assert [hold["reason"] for hold in holds] == ["expertise judiciaire"]
    for asked in ("R2001", "R2002"):
        rows = story.get("radiologist", "/dicom-web/studies", PatientID=asked)
        assert [row["0020000D"]["Value"] for row in rows] == [[LATE_STUDY]]
        assert rows[0]["00100010"]["Value"] == [{"Alphabetic": "LEFÈBVRE-ŒUF^Anne-Lise"}]
    received = story.got(LATE_STUDY, "rebuilt")
    assert [(ds.PatientID, str(ds.PatientName)) for ds in received] == [("R2002", "LEFÈBVRE-ŒUF^Anne-Lise")]

    # nothing is removed until somebody has looked
    lifted = story.ask("quality", "DELETE", f"/api/v1/holds/{holds[0]['id']}")
    assert lifted.status_code == 204, lifted.text
    story.clock(story.calendar.lifted)
    assert story.tick()["announced"] == 1
    story.clock(story.calendar.after_resume)
    counts = story.tick()
    assert (counts["purged"], counts["blocked"] > 0) == (0, True)
    resumed = story.ask("quality", "POST", "/api/v1/retention/resume", json={"reason": "index vérifié"})
    assert resumed.status_code in (200, 204), resumed.text
    assert story.tick()["purged"] == 1


def empty(url: str) -> None:
    """The database is lost: the file, or everything in it."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        for one in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            one.unlink(missing_ok=True)
        return
    with psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"), autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public")
