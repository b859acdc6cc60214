"""The modality worklist: which items, with which attributes, to whom; then the same with real clients."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE
from sqlalchemy import event

from archive.access import Actor, Door
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import InvalidQuery, NotAllowed, UnreadableInstance
from archive.workflow.worklist import listed
from dicom_scp.associate import Proposed, title
from dicom_scp.classes import MODALITY_WORKLIST_FIND
from dicom_scp.dimse import Field
from dicom_scp.messages import Answer, FindRequest
from dicom_scp.status import Status
from dicom_scp.worklist import find
from tests.conftest import KINDS, need, new_database
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import running
from tests.dicom_scp.retrieving import Getter, cancel, retrieve_command
from tests.dicom_scp.test_find_encoding import EXPLICIT, IMPLICIT, encoded, read
from tests.hl7_listener.saying import AUTHORITY, ISSUER, cx, ins, order, pid, say

PEERS = {
    "CT1": {"modalities": ["CT"]},
    "CT2": {"modalities": ["CT"]},
    "IRM1": {"modalities": ["MR"]},
    "VIEWER": {"may": ["query", "retrieve"]},
}
PV1 = "PV1||O|SALLE^1||||899900000019^LE BIHAN^Yann|899900000019^LE BIHAN^Yann"


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Settings]:
    kind = getattr(request, "param", "sqlite")
    template = request.getfixturevalue(f"migrated_{kind}")
    with new_database(kind, tmp_path, request, template=template) as url:
        told = {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        yield Settings.model_validate(
            {
                **told,
                "test_mode": True,
                "hl7": {"authorities": [AUTHORITY]},
                "identity": {"ins_oids": ["1.2.250.1.213.1.4.10"]},
                "dicom": {"peers": PEERS},
            }
        )


on_both_databases = pytest.mark.parametrize("settings", KINDS, indirect=True)


def place(
    archive: Archive, number: str, *, patient: str = "", name: str = "DUPONT^Anne^^^^^L", start: str = "20260110083000",
    modality: str = "CT", station: str = "", control: str = "NW", status: str = "SC", step: str | None = None,
) -> None:  # fmt: skip
    orc = f"ORC|{control}|PL{number}^RIS|FI{number}^RIS||{status}||^^^{start}^^S{'|' * 11}{station}"
    obr = f"OBR|1|PL{number}^RIS|FI{number}^RIS|ZBQH001^Scanner du thorax^CCAM^TDMTHX^TDM thorax basse dose^LOCAL"
    obr += f"||||||||Patient diabétique|allergie \\E\\ à l'iode|||899900000019^LE BIHAN^Yann||A{number}|RP{number}"
    obr += f"|{f'S{number}' if step is None else step}||||{modality}"
    weight = "OBX|1|NM|29463-7^Body Weight^LN||72|kg"
    demographics = pid(patient or f"R{number}", name, p7="19600615", p8="M")
    order(archive, demographics, PV1, orc, obr, weight, f"ZDS|2.25.{number}^PACS^Application^DICOM")


def identifier(step: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    inner = Dataset()
    for keyword, value in {"ScheduledProcedureStepID": None, **(step or {})}.items():
        setattr(inner, keyword, value)
    ds.ScheduledProcedureStepSequence = Sequence([inner])
    return ds


def asked(archive: Archive, actor: Actor, ds: Dataset) -> list[Answer]:
    request = FindRequest(
        MODALITY_WORKLIST_FIND, encoded(ds, EXPLICIT), EXPLICIT, relational=False, combined_datetime=False, actor=actor
    )
    return list(find(request, archive))


def found(answers: list[Answer]) -> list[Dataset]:
    assert answers[-1] == Answer(Status.SUCCESS)
    return [read(answer.data_set or b"", EXPLICIT) for answer in answers[:-1]]


def numbers(archive: Archive, actor: Actor, step: dict[str, Any] | None = None, **keys: Any) -> str:
    """Accession numbers of the items that match, in order, without their A."""
    answers = found(asked(archive, actor, identifier(step, AccessionNumber=keys.pop("AccessionNumber", None), **keys)))
    return " ".join(str(one.AccessionNumber)[1:] for one in answers)


@on_both_databases
@pytest.mark.req("REQ-DCM-52", "REQ-DCM-73")
def test_an_order_is_an_item_with_all_that_the_ris_said(archive: Archive, actor: Actor) -> None:
    place(archive, "1", name="SÁNCHEZ Y GARCÍA^José-María^^^^^L")
    say(
        archive, "A31",
        pid("R1", "SÁNCHEZ Y GARCÍA^José-María^^^^^L", p3=ins("160059932710027"), p7="19600615", p8="M",
            p11="^^^^^^BDL^^99134", p32="VALI"),
    )  # fmt: skip
    wanted: dict[str, Any] = dict.fromkeys(
        (
            "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
            "StudyInstanceUID", "RequestedProcedureID", "RequestedProcedureDescription", "RequestedProcedurePriority",
            "ReferringPhysicianName", "RequestingPhysician", "PlacerOrderNumberImagingServiceRequest", "PatientWeight",
            "FillerOrderNumberImagingServiceRequest", "MedicalAlerts", "PatientState", "CurrentPatientLocation",
            "Allergies", "AdmissionID", "PregnancyStatus",
        )
    )  # fmt: skip
    for sequence in ("RequestedProcedureCodeSequence", "OtherPatientIDsSequence", "OrderPlacerIdentifierSequence"):
        wanted[sequence] = Sequence([])
    ds = identifier(
        dict.fromkeys(
            (
                "Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate",
                "ScheduledProcedureStepStartTime", "ScheduledProcedureStepDescription", "ScheduledProcedureStepStatus",
                "ScheduledPerformingPhysicianName",
            )
        ),
        **wanted,
    )  # fmt: skip
    ds.ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence = Sequence([])
    answers = asked(archive, actor, ds)
    assert [one.status for one in answers] == [Status.PENDING, Status.SUCCESS]
    (item,) = found(answers)
    assert item.SpecificCharacterSet == "ISO_IR 100"
    assert (item.PatientName, item.PatientID, item.IssuerOfPatientID) == ("SÁNCHEZ Y GARCÍA^José-María", "R1", ISSUER)
    assert (item.PatientBirthDate, item.PatientSex) == ("19600615", "M")
    assert item.OtherPatientIDsSequence[0].PatientID == "160059932710027"
    assert (item.AccessionNumber, item.StudyInstanceUID, item.RequestedProcedureID) == ("A1", "2.25.1", "RP1")
    assert item.RequestedProcedureCodeSequence[0].CodeValue == "ZBQH001"
    assert item.RequestedProcedureCodeSequence[0].CodeMeaning == "Scanner du thorax"
    assert item.RequestedProcedurePriority == "STAT"
    assert item.ReferringPhysicianName == item.RequestingPhysician == "LE BIHAN^Yann"
    assert (item.PlacerOrderNumberImagingServiceRequest, item.FillerOrderNumberImagingServiceRequest) == ("PL1", "FI1")
    assert item.OrderPlacerIdentifierSequence[0].LocalNamespaceEntityID == "RIS"
    assert (item.MedicalAlerts, item.PatientWeight) == ("allergie   à l'iode", 72), "a backslash is two values"
    assert item.PatientState == "Patient diabétique"
    for keyword in ("Allergies", "AdmissionID", "PregnancyStatus"):
        assert keyword in item  # supported, without a value: zero-length
        assert not item[keyword].value
    (step,) = item.ScheduledProcedureStepSequence
    assert (step.Modality, step.ScheduledProcedureStepID, step.ScheduledProcedureStepStatus) == (
        "CT",
        "S1",
        "SCHEDULED",
    )
    assert step.ScheduledStationAETitle == ["CT1", "CT2"], "it names no station: those that perform CT"
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == ("20260110", "083000")
    assert step.ScheduledProcedureStepDescription == "TDM thorax basse dose"
    assert step.ScheduledProtocolCodeSequence[0].CodeValue == "TDMTHX"
    assert "ScheduledProcedureStepLocation" not in step  # not asked


@on_both_databases
@pytest.mark.req("REQ-DCM-52")
def test_items_are_found_by_each_key(archive: Archive, actor: Actor) -> None:
    place(archive, "1", name="LEFÈVRE^Anaïs^^^^^L", start="20260110083000")
    place(archive, "2", name="MARTIN^Luc^^^^^L", start="20260110140000", modality="MR")
    place(archive, "3", name="LEFEVRE^Paul^^^^^L", start="20260111093000", station="CT2")
    place(archive, "4", name="N'DIAYE^Awa^^^^^L", start="20260112", modality="DX")

    def by(step: dict[str, Any] | None = None, **keys: Any) -> str:
        return numbers(archive, actor, step, **keys)

    def starting(date: str, time: str = "") -> str:
        return by({"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time or None})

    assert by() == "1 2 3 4"
    assert starting("20260110") == "1 2"
    assert starting("20260110-20260111") == "1 2 3"
    assert starting("20260111-") == "3 4"
    assert starting("20260110", "0800-1200") == "1"
    assert starting("20260110-20260111", "1000-0930") == "2 3", "one interval (PS3.4 Table K.6-1)"
    assert by({"ScheduledProcedureStepStartTime": "0930"}) == "3"
    assert by({"Modality": "CT"}) == "1 3"
    assert by({"Modality": "M*"}) == "2"
    assert by({"ScheduledStationAETitle": "CT1"}) == "1", "3 names another station"
    assert by({"ScheduledStationAETitle": "CT2"}) == "1 3"
    assert by({"ScheduledStationAETitle": ["CT1", "IRM1"]}) == "1 2"
    assert by({"ScheduledStationAETitle": "IRM1", "ScheduledProcedureStepStartDate": "20260110"}) == "2"
    assert by({"ScheduledStationAETitle": "VIEWER"}) == ""
    assert by({"ScheduledProcedureStepID": "S2"}) == "2"
    assert by(PatientName="lefevre*") == "1 3"
    assert by(PatientName="N’DIAYE^AWA") == "4"
    assert by(PatientID="R2") == "2"
    assert by(PatientID="R?") == "1 2 3 4"
    assert by(PatientID="R2", IssuerOfPatientID="ELSEWHERE") == ""
    assert by(PatientID="R2", IssuerOfPatientID=ISSUER) == "2"
    assert by(AccessionNumber="A3") == "3"
    assert by(RequestedProcedureID="RP3") == "3"
    assert by(StudyInstanceUID=["2.25.1", "2.25.4"]) == "1 4"
    assert by({"Modality": "CT"}, PatientName="LEFEVRE^ANAIS", AccessionNumber="A*") == "1"
    assert by({"ScheduledPerformingPhysicianName": "NOBODY*"}) == ""


@on_both_databases
@pytest.mark.req("REQ-DCM-52", "REQ-DCM-37")
def test_a_merged_patient_is_found_by_both_identifiers_and_called_by_one(archive: Archive, actor: Actor) -> None:
    place(archive, "1", patient="OLD")
    say(archive, "A28", pid("NEW", "DUPONT^Anne^^^^^L"))
    say(archive, "A40", pid("NEW"), f"MRG|{cx('OLD')}")
    for asked_for in ("OLD", "NEW"):
        (item,) = found(asked(archive, actor, identifier(PatientID=asked_for)))
        assert item.PatientID == "NEW"


@pytest.mark.req("REQ-DCM-52")
def test_only_what_nobody_has_begun_is_listed_unless_it_is_asked_for(archive: Archive, actor: Actor) -> None:
    for number, control, status in (("1", "NW", "SC"), ("2", "SC", "IP"), ("3", "SC", "CM"), ("4", "CA", "CA")):
        place(archive, number)
        if control != "NW":
            place(archive, number, control=control, status=status)

    def by(status: str) -> str:
        return numbers(archive, actor, {"ScheduledProcedureStepStatus": status or None})

    assert numbers(archive, actor) == by("") == by("SCHEDULED") == "1"
    assert by("STARTED") == "2"
    assert by("SCHEDULED\\STARTED") == "1 2"
    assert by("C*") == "3 4"
    assert by("*") == "1 2 3 4"
    with archive.reading() as conn:
        shown = listed(conn, status="all", stations={}, limit=3)
    assert [(one["accession_number"], one["status"]) for one in shown] == [
        ("A1", "SCHEDULED"),
        ("A2", "STARTED"),
        ("A3", "COMPLETED"),
    ]


@pytest.mark.req("REQ-DCM-52", "REQ-DCM-30")
def test_what_is_not_supported_is_left_out_and_said_with_ff01(archive: Archive, actor: Actor) -> None:
    place(archive, "1")
    outside, inside = identifier(), identifier()
    outside.StudyDescription = ""
    inside.ScheduledProcedureStepSequence[0].PreMedication = ""
    for ds in (outside, inside):
        answers = asked(archive, actor, ds)
        assert [one.status for one in answers] == [Status.PENDING_WITHOUT_KEYS, Status.SUCCESS]
        item = read(answers[0].data_set or b"", EXPLICIT)
        assert "StudyDescription" not in item
        assert "PreMedication" not in item.ScheduledProcedureStepSequence[0]


@pytest.mark.req("REQ-DCM-52")
def test_an_order_without_step_and_procedure_id_gets_its_accession_number(archive: Archive, actor: Actor) -> None:
    obr = f"OBR|1|P1|F1|C^D^CCAM{'|' * 14}A9||||||CT"
    order(archive, pid("R1"), "ORC|NW|P1|F1||SC||^^^20260110083000", obr, "ZDS|2.25.9^P^Application")
    ds = identifier({"ScheduledProcedureStepID": "A9"}, RequestedProcedureID=None)
    (item,) = found(asked(archive, actor, ds))
    assert (item.RequestedProcedureID, item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID) == ("A9", "A9")


@pytest.mark.req("REQ-DCM-52")
def test_an_item_in_another_character_set_than_the_request_says_so(archive: Archive, actor: Actor) -> None:
    place(archive, "1", name="ŒUVRE^Zoë^^^^^L")
    (item,) = found(asked(archive, actor, identifier(PatientName="oeuvre*")))
    assert (item.SpecificCharacterSet, item.PatientName) == ("ISO_IR 192", "ŒUVRE^Zoë")


@pytest.mark.req("REQ-DCM-52", "REQ-DCM-38")
def test_bad_requests_and_peers_that_may_not_are_refused(archive: Archive, actor: Actor) -> None:
    with pytest.raises(InvalidQuery) as caught:
        asked(archive, actor, identifier({"ScheduledProcedureStepStartDate": "tomorrow"}))
    assert caught.value.tag == 0x00400002
    request = FindRequest(
        MODALITY_WORKLIST_FIND, b"\x08\x00", EXPLICIT, relational=False, combined_datetime=False, actor=actor
    )
    with pytest.raises(UnreadableInstance):
        list(find(request, archive))
    nobody = Actor(user="VIEWER", source="127.0.0.1", door=Door.DICOM, may=frozenset())
    with pytest.raises(NotAllowed):
        asked(archive, nobody, identifier())
    with archive.reading() as conn:
        (row,) = list_rows(conn, user="VIEWER", limit=10).items
    assert (row["event"], row["outcome"]) == ("110112", 8)


@pytest.mark.req("REQ-DCM-52", "REQ-DCM-38")
def test_a_worklist_that_is_too_long_ends_with_a700(settings: Settings, actor: Actor) -> None:
    told = settings.model_dump()
    told["dicom"]["find_limit"] = 2
    with open_archive(Settings.model_validate(told), process="test") as archive:
        for number in ("1", "2", "3"):
            place(archive, number)
        answers = asked(archive, actor, identifier())
    assert [one.status for one in answers] == [Status.PENDING, Status.PENDING, Status.OUT_OF_RESOURCES]


def plan(archive: Archive, actor: Actor, step: dict[str, Any] | None = None, **keys: Any) -> str:
    """How the database looks for the items that match."""
    statements: list[tuple[str, Any]] = []

    def listen(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: Any) -> None:
        statements.append((statement, parameters))

    event.listen(archive.engine, "before_cursor_execute", listen)
    numbers(archive, actor, step, **keys)
    event.remove(archive.engine, "before_cursor_execute", listen)
    (asked_for,) = [one for one in statements if "FROM imaging_order" in one[0]]
    with archive.engine.connect() as conn:
        explain = "EXPLAIN QUERY PLAN "
        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("SET enable_seqscan = off")  # a table of one row is read whole
            explain = "EXPLAIN "
        return "\n".join(str(row) for row in conn.exec_driver_sql(explain + asked_for[0], asked_for[1]))


@on_both_databases
def test_a_day_is_read_off_an_index(archive: Archive, actor: Actor) -> None:
    """REQ-DCM-52: the orders of other days are not looked at."""
    place(archive, "1")
    found = plan(archive, actor, {"ScheduledProcedureStepStartDate": "20260110", "Modality": "CT"})
    assert "ix_imaging_order_worklist" in found
    assert "start_date" in found


@pytest.mark.parametrize("key", ["AccessionNumber", "StudyInstanceUID", "PatientID", "PatientName"])
def test_an_order_that_is_named_is_found_by_that_and_not_among_all_that_wait(
    archive: Archive, actor: Actor, key: str
) -> None:
    place(archive, "1")
    asked_for = {"AccessionNumber": "A1", "StudyInstanceUID": "2.25.1", "PatientID": "R1", "PatientName": "DUPONT^*"}
    found = plan(archive, actor, **{key: asked_for[key]})
    assert "SCAN" not in found
    assert "ix_imaging_order_worklist" not in found


def ae(title: str = "CT1") -> AE:
    made = AE(title)
    made.add_requested_context(MODALITY_WORKLIST_FIND, [IMPLICIT])
    return made


@pytest.mark.req("REQ-DCM-52")
def test_findscu_asks_for_the_worklist(settings: Settings) -> None:
    need("findscu")
    with running(settings) as server:
        place(server.archive, "1", name="LEFÈVRE^Anaïs^^^^^L")
        place(server.archive, "2", modality="MR")
        done = subprocess.run(
            [
                *("findscu", "-W", "-v", "-aet", "CT1", "-aec", "MINIPACS", "127.0.0.1", str(server.port)),
                *("-k", "(0008,0005)=ISO_IR 192", "-k", "PatientName", "-k", "StudyInstanceUID"),
                *("-k", "(0040,0100)[0].ScheduledStationAETitle=CT1"),
                *("-k", "(0040,0100)[0].ScheduledProcedureStepStartDate=20260101-20260131"),
                *("-k", "(0040,0100)[0].Modality"),
            ],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert output.count("Find Response: ") == 1, output
    assert "[LEFÈVRE^Anaïs" in output
    assert "[2.25.1]" in output


@pytest.mark.req("REQ-DCM-52", "REQ-DCM-38")
def test_pynetdicom_gets_every_item_and_a_peer_without_the_right_0124(settings: Settings) -> None:
    with running(settings) as server:
        for number in range(1, 30):
            place(server.archive, str(number))
        assoc = ae("VIEWER").associate("127.0.0.1", server.port, ae_title="MINIPACS")
        assert [status.Status for status, _ in assoc.send_c_find(identifier(), MODALITY_WORKLIST_FIND)] == [0x0124]
        assoc.release()
        assoc = ae().associate("127.0.0.1", server.port, ae_title="MINIPACS")
        answers = [status.Status for status, _ in assoc.send_c_find(identifier(), MODALITY_WORKLIST_FIND)]
        assoc.release()
    assert answers == [0xFF00] * 29 + [0x0000]


@pytest.mark.req("REQ-DCM-52", "REQ-DCM-38")
def test_a_cancel_ends_the_query_and_not_the_association(settings: Settings) -> None:
    with running(settings) as server, Getter(server) as peer:
        for number in range(1, 5):
            place(server.archive, str(number))
        contexts = (Proposed(1, wire.VERIFICATION, (IMPLICIT,)), Proposed(5, MODALITY_WORKLIST_FIND, (IMPLICIT,)))
        peer.associate(wire.request(calling=title("CT1"), contexts=contexts))
        asking = wire.command(5, retrieve_command(Field.C_FIND_RQ, MODALITY_WORKLIST_FIND))
        peer.say(asking + wire.data_set(5, encoded(identifier(), IMPLICIT)) + wire.command(5, cancel()))
        statuses: list[int | None] = []
        while not statuses or statuses[-1] == Status.PENDING:
            statuses.append(peer.message()[1].status)
        assert statuses[-1] == Status.CANCELLED
        assert len(statuses) < 5  # four items there are
        assert peer.echoes()
