"""ORM^O01: orders, their studies, and images that came before them (sheet 20 §7, §10)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import orjson
import pytest
from sqlalchemy import delete, select, text

from archive.access import Actor
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.identity.acts import Connection, lock_identities
from archive.identity.restore import restore_study
from archive.index.ordered import patient_for_images
from archive.journal import Kind
from archive.schema import imaging_order, patient, study
from archive.schema.types import AnyRow
from archive.workflow.orders import described
from archive.workflow.restore import restore_order
from tests.hl7_listener import saying
from tests.hl7_listener.saying import (
    ISSUER,
    cx,
    dicom,
    items,
    known,
    order,
    orders,
    pid,
    record,
    row,
    say,
    store,
    with_ris,
)

UID = "2.25.1602001"
PV1 = "PV1||O||||||899900000019^LE BIHAN^Yann"


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(with_ris(settings), process="test") as opened:
        yield opened


@pytest.fixture
def send(archive: Archive, actor: Actor) -> Callable[..., str]:
    return partial(store, archive, actor)


def group(
    control: str = "NW", *, placer: str = "PL1", accession: str = "A1", step: str = "S1", status: str = "SC",
    code: str = "ZBQH001", uid: str | None = UID, number: int = 1,
) -> list[str]:  # fmt: skip
    orc = f"ORC|{control}|{placer}^RIS|FI1^RIS||{status}||^^^20260110083000^^S"
    obr = f"OBR|{number}|{placer}^RIS|FI1^RIS|{code}^Scanner du thorax^CCAM^TDMTHX^TDM thorax basse dose^LOCAL"
    obr += f"||||||||||||899900000019^LE BIHAN^Yann||{accession}|RP1|{step}||||CT"
    return [orc, obr, *([f"ZDS|{uid}^PACS^Application^DICOM"] if uid else [])]


def refused(archive: Archive, *segments: str) -> tuple[int, str]:
    return saying.refused(archive, "O01", *segments, kind="ORM")


def only(archive: Archive) -> AnyRow:
    (found,) = orders(archive)
    return found


def study_of(archive: Archive, uid: str) -> AnyRow:
    with archive.reading() as conn:
        statement = select(study, patient.c.patient_id, patient.c.issuer).join(patient)
        return conn.execute(statement.where(study.c.study_instance_uid == uid)).one()


def corrections(archive: Archive, uid: str) -> dict[str, object]:
    text = study_of(archive, uid).corrections
    found: dict[str, object] = orjson.loads(text)["attributes"] if text else {}
    return found


def audits(archive: Archive) -> list[str]:
    with archive.reading() as conn:
        return [one["action"] for one in reversed(list_rows(conn, event="110109", limit=100).items)]


@pytest.mark.req("REQ-HL7-70", "REQ-HL7-73", "REQ-HL7-74")
def test_an_order_makes_its_patient_and_a_worklist_item(archive: Archive) -> None:
    order(archive, pid("R1", p7="19600615", p8="M"), PV1, *group())
    found = only(archive)
    assert (found.patient_pk, found.status, found.study_instance_uid) == (row(archive, "R1").pk, "scheduled", UID)
    assert record(archive, "R1").status == "PROV"
    assert dicom(found) == {
        "AccessionNumber": "A1",
        "StudyInstanceUID": UID,
        "RequestedProcedureID": "RP1",
        "ScheduledProcedureStepID": "S1",
        "ScheduledProcedureStepStartDate": "20260110",
        "ScheduledProcedureStepStartTime": "083000",
        "Modality": "CT",
        "RequestedProcedurePriority": "STAT",
        "RequestedProcedureDescription": "Scanner du thorax",
        "RequestedProcedureCodeSequence": [
            {"CodeValue": "ZBQH001", "CodingSchemeDesignator": "CCAM", "CodeMeaning": "Scanner du thorax"}
        ],
        "ScheduledProcedureStepDescription": "TDM thorax basse dose",
        "ScheduledProtocolCodeSequence": [
            {"CodeValue": "TDMTHX", "CodingSchemeDesignator": "LOCAL", "CodeMeaning": "TDM thorax basse dose"}
        ],
        "RequestingPhysician": "LE BIHAN^Yann",
        "ReferringPhysicianName": "LE BIHAN^Yann",
        "PlacerOrderNumberImagingServiceRequest": "PL1^RIS",
        "FillerOrderNumberImagingServiceRequest": "FI1^RIS",
    }
    assert audits(archive) == ["C"]


def test_weight_height_and_pregnancy_go_into_the_worklist(archive: Archive) -> None:
    obx = ["OBX|1|NM|^Body Weight||72,5|kg", "OBX|2|NM|^Body Height||171|cm"]
    order(archive, pid("R1"), "PV1||O|UF1^12" + "|" * 12 + "B6", *group(), *obx)
    held = dicom(only(archive))
    assert (held["PatientWeight"], held["PatientSize"], held["PregnancyStatus"]) == ("72.5", "1.71", 3)
    assert held["CurrentPatientLocation"] == "UF1^12"


def test_an_order_does_not_change_a_patient_that_is_known(archive: Archive) -> None:
    say(archive, "A28", pid("R1"))
    order(archive, pid("R1", "AUTRE^Nom"), *group())
    assert record(archive, "R1").birth_name.family == "DUPONT"


@pytest.mark.req("REQ-HL7-71")
@pytest.mark.parametrize(
    ("control", "status", "after", "action"),
    [
        ("XO", "IP", "in_progress", "U"),
        ("XO", "", "scheduled", "U"),
        ("SC", "CM", "completed", "U"),
        ("CA", "CA", "cancelled", "D"),
        ("DC", "CA", "discontinued", "D"),
    ],
)
def test_an_order_is_changed_and_closed(archive: Archive, control: str, status: str, after: str, action: str) -> None:
    order(archive, pid("R1"), *group())
    order(archive, pid("R1"), *group(control, status=status))
    assert only(archive).status == after
    assert audits(archive) == ["C", action]
    with archive.reading() as conn:
        (shown,) = described(conn, "A1")
    assert shown["in_worklist"] == (after == "scheduled")


@pytest.mark.req("REQ-HL7-71", "REQ-HL7-72", "REQ-HL7-74", "REQ-HL7-75")
@pytest.mark.parametrize(
    ("who", "segments", "code", "location"),
    [
        ("R1", group("HD"), 103, "ORC^1^1"),
        ("R1", group("SC", status=""), 101, "ORC^1^5"),
        ("R1", group("SC", status="ZZ"), 103, "ORC^1^5"),
        ("R1", group("CA", placer="PL9", accession="A9"), 204, "ORC^1^2"),
        ("R1", group("XO", placer="PL9", accession="A9"), 204, "ORC^1^2"),
        ("R2", group("XO"), 204, "PID^1^3"),
        ("R2", group("CA"), 204, "PID^1^3"),
        ("R2", group(placer="PL2", uid=None), 205, "ORC^1^2"),  # the accession number of another patient
        ("R2", group(accession="A2", uid=None), 205, "ORC^1^2"),  # the placer's number
        ("R2", group(placer="PL2", accession="A2"), 205, "ZDS^1^1^1"),
        ("R1", group(accession=""), 101, "OBR^1^18"),
        ("R1", group(accession="A" * 17), 102, "OBR^1^18"),
        ("R1", group(step="S" * 17), 102, "OBR^1^20"),
        ("R1", group(uid="2.25.01"), 102, "ZDS^1^1^1"),
        ("R1", group(uid="2.25." + "1" * 60), 102, "ZDS^1^1^1"),
        ("R1", group(uid="2.25.x"), 102, "ZDS^1^1^1"),
        ("R1", [*group(), *group(accession="", number=2, uid=None)], 101, "OBR^2^18"),
        ("R1", group(placer="PL9^N\0"), 102, "ORC^1^2"),
        ("R1", group(placer=f"PL9^{'N' * 200}"), 102, "ORC^1^2"),
    ],
)
def test_what_is_wrong_with_an_order_is_refused_and_nothing_is_applied(
    archive: Archive, who: str, segments: list[str], code: int, location: str
) -> None:
    order(archive, pid("R1"), *group())
    before = orders(archive)
    assert refused(archive, pid(who), *segments) == (code, location)
    assert orders(archive) == before
    assert not known(archive, "R2")


@pytest.mark.req("REQ-HL7-74")
def test_a_study_uid_that_nobody_gives_is_made_once_for_an_accession_number(archive: Archive) -> None:
    order(archive, pid("R1"), *group(uid=None))
    made = only(archive).study_instance_uid
    assert made.startswith("2.25.")
    order(archive, pid("R1"), *group("XO", uid=None))
    order(archive, pid("R1"), *group("NW", step="S2", uid=None))
    assert {one.study_instance_uid for one in orders(archive)} == {made}
    order(archive, pid("R1"), *group("NW", placer="PL2", accession="A2", uid=None))
    assert len({one.study_instance_uid for one in orders(archive)}) == 2


@pytest.mark.req("REQ-HL7-75")
def test_the_fillers_number_stands_in_where_the_site_allows_it(settings: Settings) -> None:
    with open_archive(with_ris(settings, accession_fallback=True), process="test") as archive:
        order(archive, pid("R1"), *group(accession=""))
        assert only(archive).accession_number == "FI1"


@pytest.mark.req("REQ-HL7-76")
def test_several_groups_are_several_steps_of_one_study(archive: Archive) -> None:
    segments = [*group(step="S1", uid=None), *group(step="S2", number=2)]  # one ZDS behind both
    order(archive, pid("R1"), *segments)
    assert [(one.step_id, one.study_instance_uid) for one in orders(archive)] == [("S1", UID), ("S2", UID)]
    order(archive, pid("R1"), *group("CA", step="S2", status="CA"))
    assert [one.status for one in orders(archive)] == ["scheduled", "cancelled"]


@pytest.mark.req("REQ-HL7-77")
def test_closing_an_order_with_images_keeps_them_and_asks_a_person(archive: Archive, send: Callable[..., str]) -> None:
    order(archive, pid("R1"), *group())
    send(PatientID="R1", IssuerOfPatientID=ISSUER, StudyInstanceUID=UID, AccessionNumber="A1")
    order(archive, pid("R1"), *group("DC", status="CA"))
    assert items(archive)["order_closed_with_images"]["study"] == UID
    assert study_of(archive, UID).patient_id == "R1"


@pytest.mark.req("REQ-HL7-78")
def test_a_changed_accession_number_and_procedure_correct_the_images(
    archive: Archive, send: Callable[..., str]
) -> None:
    order(archive, pid("R1"), *group())
    send(PatientID="R1", IssuerOfPatientID=ISSUER, StudyInstanceUID=UID, AccessionNumber="A1")
    assert corrections(archive, UID) == {}
    order(archive, pid("R1"), *group("XO", accession="A2", code="ZBQK002"))
    assert corrections(archive, UID)["00080050"] == {"vr": "SH", "Value": ["A2"]}
    assert "ZBQK002" in str(corrections(archive, UID)["00081032"])
    assert study_of(archive, UID).accession_number == "A2"
    assert only(archive).accession_number == "A2"
    order(archive, pid("R1"), *group("XO", accession="A1", code="ZBQK002"))
    assert "00080050" not in corrections(archive, UID), "as it came"


@pytest.mark.req("REQ-HL7-78")
def test_a_changed_study_uid_is_left_to_a_person_once_there_are_images(
    archive: Archive, send: Callable[..., str]
) -> None:
    order(archive, pid("R1"), *group())
    send(PatientID="R1", IssuerOfPatientID=ISSUER, StudyInstanceUID=UID, AccessionNumber="A1")
    order(archive, pid("R1"), *group("XO", uid="2.25.99"))
    assert only(archive).study_instance_uid == UID
    evidence = items(archive)["study_uid_changed"]["evidence"]
    assert (evidence["old"], evidence["new"]) == (UID, "2.25.99")


def test_before_there_are_images_a_changed_study_uid_is_taken(archive: Archive) -> None:
    order(archive, pid("R1"), *group())
    order(archive, pid("R1"), *group("XO", uid="2.25.99"))
    assert only(archive).study_instance_uid == "2.25.99"
    assert items(archive) == {}


@pytest.mark.req("REQ-HL7-95")
def test_images_without_accession_number_get_that_of_the_order_that_comes_later(
    archive: Archive, send: Callable[..., str]
) -> None:
    send(PatientID="R1", IssuerOfPatientID=ISSUER, StudyInstanceUID=UID, AccessionNumber="")
    order(archive, pid("R1"), *group())
    assert study_of(archive, UID).accession_number == "A1"
    assert items(archive) == {}, "the RIS has sent the patient now"


@pytest.mark.req("REQ-HL7-95")
def test_an_order_without_study_uid_takes_that_of_the_images_with_its_accession_number(
    archive: Archive, send: Callable[..., str]
) -> None:
    uid = send(PatientID="R1", IssuerOfPatientID=ISSUER, AccessionNumber="A1")
    order(archive, pid("R1"), *group(uid=None))
    assert only(archive).study_instance_uid == uid


@pytest.mark.req("REQ-HL7-98")
@pytest.mark.parametrize(
    ("header", "moved"),
    [
        ({"PatientID": "R1", "AccessionNumber": "A1", "IssuerOfPatientID": "HOPITAL"}, True),
        ({"PatientID": "R1", "AccessionNumber": "", "IssuerOfPatientID": "HOPITAL"}, False),
        ({"PatientID": "URG", "AccessionNumber": "A1", "IssuerOfPatientID": ISSUER}, False),
        ({"PatientID": "", "AccessionNumber": "A1"}, False),
    ],
)
def test_a_study_of_somebody_unknown_follows_an_order_only_when_nobody_can_doubt_it(
    archive: Archive, send: Callable[..., str], header: dict[str, str], moved: bool
) -> None:
    send(StudyInstanceUID=UID, **header)
    order(archive, pid("R1"), *group())
    assert (study_of(archive, UID).patient_pk == row(archive, "R1").pk) == moved
    assert items(archive).keys() == (set() if moved else {"unknown_patient", "order_unmatched"})


@pytest.mark.req("REQ-HL7-74")
def test_the_study_uid_of_another_patient_whom_the_ris_knows_is_refused(
    archive: Archive, send: Callable[..., str]
) -> None:
    say(archive, "A28", pid("R2"))
    send(PatientID="R2", IssuerOfPatientID=ISSUER, StudyInstanceUID=UID)
    assert refused(archive, pid("R1"), *group()) == (205, "ZDS^1^1^1")


@pytest.mark.req("REQ-HL7-40", "REQ-HL7-95")
def test_orders_follow_a_merge_and_meet_the_studies_of_the_other(archive: Archive, send: Callable[..., str]) -> None:
    send(PatientID="URG", IssuerOfPatientID=ISSUER, StudyInstanceUID=UID, AccessionNumber="")
    order(archive, pid("R1"), *group())
    order(archive, pid("R2"), *group(placer="PL2", accession="A2", uid=None))
    assert items(archive).keys() == {"unknown_patient", "order_unmatched"}
    say(archive, "A40", pid("R1"), f"MRG|{cx('URG')}")
    assert study_of(archive, UID).accession_number == "A1"
    assert items(archive) == {}
    say(archive, "A40", pid("R1"), f"MRG|{cx('R2')}")
    assert {one.patient_pk for one in orders(archive)} == {row(archive, "R1").pk}
    order(archive, pid("R1"), *group("CA", placer="PL2", accession="A2", status="CA", uid=None))


@pytest.mark.req("REQ-HL7-P11")
def test_an_order_for_somebody_merged_away_is_refused(archive: Archive) -> None:
    say(archive, "A40", pid("B"), f"MRG|{cx('A')}")
    assert refused(archive, pid("A"), *group()) == (204, "PID^1^3")
    assert items(archive).keys() == {"merged_id_used"}


@pytest.mark.req("REQ-HL7-05")
def test_an_order_waits_for_who_changes_identities_before_it_holds_a_patient(archive: Archive) -> None:
    """The other way round, an order and a merge of its patient would wait for each other."""
    if archive.engine.dialect.name != "postgresql":
        return  # one writer anyway
    say(archive, "A28", pid("R1"))
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    placing = threading.Thread(target=order, args=(archive, pid("R1"), *group()))
    with archive.engine.begin() as conn:
        lock_identities(conn)
        placing.start()
        while placing.is_alive() and not conn.execute(waiting).scalar_one():
            pass
        held = select(patient.c.pk).where(patient.c.patient_id == "R1").with_for_update(nowait=True)
        assert conn.execute(held).all()
    placing.join()
    assert orders(archive)


def test_images_without_issuer_belong_to_the_patient_they_were_ordered_for(archive: Archive) -> None:
    order(archive, pid("R1"), *group())
    say(archive, "A40", pid("R9"), f"MRG|{cx('R1')}")
    pk = row(archive, "R9").pk

    def asked(patient_id: str, accession: str, uid: str) -> int | None:
        with archive.reading() as conn:
            return patient_for_images(conn, patient_id=patient_id, accession_number=accession, study_instance_uid=uid)

    assert asked("R1", "A1", "9.9") == pk, "an identifier that was merged into theirs"
    assert asked("R9", "", UID) == pk
    assert asked("R2", "A1", UID) is None
    assert asked("R1", "", "9.9") is None
    assert asked("", "A1", UID) is None


IPC = "IPC|A1^RIS^2.25.171717002^ISO|RP-1|2.25.1601001|SPS-1|MR|GENOU^Genou sans injection^LOCAL|IRM1|SALLE 2|IRM1AE"
TQ1 = "TQ1|1||||||20260109140000||A"
ORC = "ORC|NW|PL1^RIS|FI1^RIS||SC" + "|" * 23 + "R^Restreint^HL70177"
OBR = "OBR|1|PL1^RIS|FI1^RIS|NZQN001^IRM du genou^CCAM"


def imaging_order_message(archive: Archive, *segments: str, event: str = "O23", kind: str = "OMI") -> None:
    saying.apply(archive, saying.bytes_of(event, *segments, kind=kind))


@pytest.mark.req("REQ-IHE-01", "REQ-HL7-70", "REQ-HL7-74")
def test_an_imaging_order_says_its_step_in_ipc_and_its_time_in_tq1(archive: Archive) -> None:
    pv1 = "PV1||O" + "|" * 17 + "V1^^^CIM-RIVAGES&2.25.171717001&ISO^VN"
    imaging_order_message(archive, pid("R1"), pv1, ORC, TQ1, OBR, IPC)
    found = only(archive)
    assert (found.accession_number, found.step_id, found.study_instance_uid) == ("A1", "SPS-1", "2.25.1601001")
    assert dicom(found) == {
        "AccessionNumber": "A1",
        "IssuerOfAccessionNumberSequence": [
            {"LocalNamespaceEntityID": "RIS", "UniversalEntityID": "2.25.171717002", "UniversalEntityIDType": "ISO"}
        ],
        "StudyInstanceUID": "2.25.1601001",
        "RequestedProcedureID": "RP-1",
        "ScheduledProcedureStepID": "SPS-1",
        "Modality": "MR",
        "ScheduledProcedureStepStartDate": "20260109",
        "ScheduledProcedureStepStartTime": "140000",
        "RequestedProcedurePriority": "HIGH",
        "RequestedProcedureDescription": "IRM du genou",
        "RequestedProcedureCodeSequence": [
            {"CodeValue": "NZQN001", "CodingSchemeDesignator": "CCAM", "CodeMeaning": "IRM du genou"}
        ],
        "ScheduledProcedureStepDescription": "Genou sans injection",
        "ScheduledProtocolCodeSequence": [
            {"CodeValue": "GENOU", "CodingSchemeDesignator": "LOCAL", "CodeMeaning": "Genou sans injection"}
        ],
        "ScheduledStationName": "IRM1",
        "ScheduledProcedureStepLocation": "SALLE 2",
        "ScheduledStationAETitle": "IRM1AE",
        "AdmissionID": "V1",
        "IssuerOfAdmissionIDSequence": [
            {
                "LocalNamespaceEntityID": ISSUER,
                "UniversalEntityID": "2.25.171717001",
                "UniversalEntityIDType": "ISO",
            }
        ],
        "ConfidentialityCode": "R",
        "ConfidentialityConstraintOnPatientDataDescription": "Restreint",
        "PlacerOrderNumberImagingServiceRequest": "PL1^RIS",
        "FillerOrderNumberImagingServiceRequest": "FI1^RIS",
    }


@pytest.mark.req("REQ-HL7-76")
def test_several_ipc_behind_one_obr_are_several_steps(archive: Archive) -> None:
    imaging_order_message(archive, pid("R1"), ORC, OBR, IPC, IPC.replace("SPS-1", "SPS-2"))
    assert [(one.step_id, one.study_instance_uid) for one in orders(archive)] == [
        ("SPS-1", "2.25.1601001"),
        ("SPS-2", "2.25.1601001"),
    ]
    imaging_order_message(archive, pid("R1"), ORC.replace("NW", "CA", 1), OBR, IPC.replace("SPS-1", "SPS-2"))
    assert [one.status for one in orders(archive)] == ["scheduled", "cancelled"]


@pytest.mark.req("REQ-HL7-70", "REQ-HL7-72", "REQ-HL7-74", "REQ-HL7-75")
@pytest.mark.parametrize(
    ("who", "segments", "code", "location"),
    [
        ("R1", [ORC, OBR], 100, "IPC^1"),
        ("R1", [ORC, IPC, OBR], 100, "IPC^1"),
        ("R1", [ORC, IPC], 100, "OBR^1"),
        ("R1", [ORC, OBR, IPC.replace("A1^RIS", "^RIS")], 101, "IPC^1^1"),
        ("R1", [ORC, OBR, IPC.replace("A1^RIS", "A" * 17 + "^RIS")], 102, "IPC^1^1"),
        ("R1", [ORC, OBR, IPC.replace("SPS-1", "S" * 17)], 102, "IPC^1^4"),
        ("R1", [ORC, OBR, IPC.replace("IRM1AE", "A" * 17)], 102, "IPC^1^9"),
        ("R1", [ORC, OBR, IPC.replace("2.25.16", "2.25.016")], 102, "IPC^1^3"),
        ("R2", [ORC.replace("PL1", "PL2"), OBR, IPC.replace("A1^RIS", "A2^RIS")], 205, "IPC^1^3"),
        ("R1", [ORC.replace("NW", "XO", 1).replace("PL1", "PL9"), OBR, IPC.replace("A1^", "A9^")], 204, "ORC^1^2"),
    ],
)
def test_what_is_wrong_with_an_imaging_order_is_refused_where_it_stands(
    archive: Archive, who: str, segments: list[str], code: int, location: str
) -> None:
    imaging_order_message(archive, pid("R1"), ORC, OBR, IPC)
    before = orders(archive)
    assert saying.refused(archive, "O23", pid(who), *segments, kind="OMI") == (code, location)
    assert orders(archive) == before


@pytest.mark.req("REQ-HL7-70")
def test_a_general_order_says_its_step_in_obr_and_its_time_in_tq1(archive: Archive) -> None:
    obr = OBR + "|" * 14 + "A4|RP-4|SPS-4||||MG"
    imaging_order_message(archive, pid("R1"), ORC, TQ1, obr, event="O19", kind="OMG")
    held = dicom(only(archive))
    assert (held["AccessionNumber"], held["Modality"], held["ScheduledProcedureStepID"]) == ("A4", "MG", "SPS-4")
    assert (held["ScheduledProcedureStepStartTime"], held["RequestedProcedurePriority"]) == ("140000", "HIGH")


def test_facts_alone_make_orders_and_studies_again(archive: Archive, send: Callable[..., str]) -> None:
    send(PatientID="R1", IssuerOfPatientID="HOPITAL", StudyInstanceUID=UID, AccessionNumber="A1")
    order(archive, pid("R1"), *group())
    order(archive, pid("R1"), *group("XO", accession="A2"))
    order(archive, pid("R1"), *group(placer="PL2", accession="A3", uid=None))
    order(archive, pid("R1"), *group("DC", placer="PL2", accession="A3", status="CA", uid=None))
    before, corrected, owner = orders(archive), corrections(archive, UID), study_of(archive, UID).patient_id
    assert owner == "R1"
    assert corrected["00080050"] == {"vr": "SH", "Value": ["A2"]}
    told = archive.journal.read()

    def forget(conn: Connection) -> None:
        conn.execute(delete(imaging_order))
        other = conn.execute(select(patient.c.pk).where(patient.c.issuer == "HOPITAL")).scalar_one()
        conn.execute(study.update().values(patient_pk=other, corrections=None))

    archive.commit.run(forget)
    for _ in range(2):
        for one in told:
            restore = {Kind.ORDER: restore_order, Kind.STUDY: restore_study}.get(Kind(one.kind))
            if restore is not None:
                archive.commit.run(lambda conn, one=one, restore=restore: restore(conn, one.subject, one.body, one.at))
    plain = ("accession_number", "step_id", "status", "study_instance_uid", "placer_number", "record", "patient_pk")
    assert {tuple(getattr(one, name) for name in plain) for one in orders(archive)} == {
        tuple(getattr(one, name) for name in plain) for one in before
    }
    assert (corrections(archive, UID), study_of(archive, UID).patient_id) == (corrected, owner)
