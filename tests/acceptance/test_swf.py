"""Scheduled workflow, from the patient's registration to the images on a workstation, with real clients (sheet 30 §2).

One archive of each kind; the modality is pynetdicom (worklist, MPPS, commitment) and DCMTK (images), the RIS an MLLP
sender.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
)
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRoot

from tests.acceptance.clients import data_set_of, find, receiver, tool
from tests.acceptance.modality import AUTHORITY, PID, begun, ended, images, ordered, perform, say, worklist
from tests.conftest import STRICT, need
from tests.dicom_scp.listening import Listener, listening, request
from tests.server import Server, free_port

STUDY = "2.25.777001"


@pytest.fixture(scope="module")
def move_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def modality(module_database_url: str) -> Iterator[Listener]:
    """Where the modality hears what was committed; one for each server."""
    with listening("CT1") as listener:
        yield listener


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, module_database_url: str, move_port: int, modality: Listener
) -> Iterator[Server]:
    ct = {"host": "127.0.0.1", "port": modality.port, "modalities": ["CT"]}
    peers = {
        "CT1": {**ct, "may": ["store", "query", "commit", "worklist", "mpps"]},
        "STORESCP": {"host": "127.0.0.1", "port": move_port},
        "PYNETDICOM": {},
    }
    running = Server(
        tmp_path_factory.mktemp("swf"),
        module_database_url,
        {"MINIPACS_DICOM__PEERS": json.dumps(peers), "MINIPACS_HL7__AUTHORITIES": AUTHORITY},
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def commit(server: Server, transaction_uid: str, uids: list[str]) -> int:
    ae = AE("CT1")
    ae.add_requested_context(StorageCommitmentPushModel)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    wanted = request(transaction_uid, *((CTImageStorage, uid) for uid in uids))
    status, _ = assoc.send_n_action(wanted, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
    assoc.release()
    return int(status.Status)


@pytest.mark.req("REQ-IHE-01", "REQ-DCM-50", "REQ-DCM-52", "REQ-DCM-53")
def test_the_scheduled_workflow_from_registration_to_the_images(
    server: Server, move_port: int, modality: Listener, tmp_path: Path
) -> None:
    """The end-to-end check of sheet 30 §2."""
    need("storescu", "movescu", "storescp")
    say(server, "ADT^A28", "SWF1", PID.format(pid="R77", name="LEFÈVRE^Anaïs"))
    say(server, "ORM^O01", "SWF2", *ordered("77", "R77", "LEFÈVRE^Anaïs", STUDY))

    (item,) = worklist(server, ScheduledStationAETitle="CT1", ScheduledProcedureStepStartDate="20260110", Modality="CT")
    assert (item.PatientName, item.PatientID, item.PatientBirthDate) == ("LEFÈVRE^Anaïs", "R77", "19600615")
    assert (item.AccessionNumber, item.StudyInstanceUID) == ("A77", STUDY)
    done = server.command("mwl", "list", "--date", "20260110", "--json")
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)["items"]
    assert (shown["accession_number"], shown["station_aes"], shown["patient_name"]) == ("A77", ["CT1"], "LEFÈVRE^Anaïs")
    assert "1 items" in server.command("mwl", "list").stdout

    step, series = "2.25.777900", "2.25.777100"
    assert perform(server, "create", step, begun(item)) == 0x0000
    assert worklist(server, Modality="CT") == [], "it is being done"
    paths = images(tmp_path, item, series, step)
    tool("storescu", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", server.dicom_port, *paths)
    uids = [f"{series}.{number}" for number in (1, 2, 3)]
    assert perform(server, "set", step, ended(series, uids)) == 0x0000

    assert commit(server, "2.25.777300", uids) == 0x0000
    event, report = modality.hear(30)
    assert (event, report.TransactionUID) == (1, "2.25.777300")
    assert [one.ReferencedSOPInstanceUID for one in report.ReferencedSOPSequence] == uids
    assert "FailedSOPSequence" not in report

    (study,) = find(
        server, StudyRoot, QueryRetrieveLevel="STUDY", AccessionNumber="A77", StudyInstanceUID="", PatientID="",
        NumberOfStudyRelatedInstances="",
    )  # fmt: skip
    assert (study.StudyInstanceUID, study.PatientID) == (STUDY, "R77")
    assert study.NumberOfStudyRelatedInstances == 3
    received = tmp_path / "received"
    received.mkdir()
    with receiver(received, move_port):
        tool(
            "movescu", "-S", "-aet", "PYNETDICOM", "-aec", "MINIPACS", "-aem", "STORESCP", "127.0.0.1",
            server.dicom_port, "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}",
        )  # fmt: skip
    moved = {data_set_of(path.read_bytes()) for path in received.iterdir()}
    assert len(moved) == 3

    with server.client("service") as client:
        order = client.get("/api/v1/orders", params={"accession": "A77"}).json()
        trail = client.get("/api/v1/audit", params={"patient": "R77^^^CIM-RIVAGES", "limit": 500}).json()["items"]
        queries = client.get("/api/v1/audit", params={"event": "110112", "limit": 500}).json()["items"]
        waiting = client.get("/api/v1/work-items", params={"state": "open"}).json()["items"]
    assert (order["status"], order["in_worklist"], order["studies"]) == ("completed", False, [STUDY])
    (performed,) = order["performed"]
    assert (performed["status"], performed["instances_listed"], performed["instances_received"]) == ("COMPLETED", 3, 3)
    assert [one for one in waiting if one["study"] == STUDY] == []
    told = [(one["event"], one["action"]) for one in trail if one["outcome"] == 0]
    for wanted in (
        ("110110", "C"),  # the patient
        ("110109", "C"),  # the order
        ("110111", "C"),  # the step is begun
        ("110109", "U"),
        ("110104", "C"),  # images stored
        ("110111", "U"),  # the step is completed
        ("110103", "R"),  # committed
        ("110104", "R"),  # and moved
    ):
        assert wanted in told, (wanted, told)
    assert len([one for one in queries if one["user"] in ("CT1", "PYNETDICOM")]) >= 3
    done = server.command("verify-audit", "--json")
    assert json.loads(done.stdout)["ok"]


@pytest.mark.req("REQ-IHE-01", "REQ-DCM-52", "REQ-HL7-70", "REQ-HL7-71")
def test_orders_of_the_shared_samples_are_in_the_worklist(server: Server) -> None:
    shared = os.environ.get("MINIPACS_TEST_DATA")
    if not shared:
        message = "MINIPACS_TEST_DATA is not set: no shared HL7 samples"
        if STRICT:
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(shared) / "spec" / "samples" / "orders"
    assert b"\rMSA|AA|" in server.send_hl7(folder / "orm-nw.hl7")
    (item,) = worklist(server, Modality="CT", ScheduledProcedureStepID="SPS-1602")
    assert (item.PatientName, item.AccessionNumber) == ("SÁNCHEZ Y GARCÍA^José-María", "ACC-1602")
    assert b"\rMSA|AA|" in server.send_hl7(folder / "orm-dc.hl7")
    assert worklist(server, Modality="CT", ScheduledProcedureStepID="SPS-1602") == []

    assert b"\rMSA|AA|" in server.send_hl7(folder / "omi-nw.hl7")
    (item,) = worklist(server, ScheduledStationAETitle="IRM1AE", ScheduledProcedureStepStartDate="20260109")
    (step,) = item.ScheduledProcedureStepSequence
    assert (item.PatientName, item.AccessionNumber, item.StudyInstanceUID) == (
        "OUÉDRAOGO^Aïssata",
        "ACC-1601",
        "2.25.1601001",
    )
    assert (step.Modality, step.ScheduledProcedureStepID) == ("MR", "SPS-01")
    assert b"\rMSA|AA|" in server.send_hl7(folder / "omi-xo.hl7")
    (item,) = worklist(server, Modality="MR", ScheduledProcedureStepID="SPS-01", ScheduledProcedureStepStartTime="")
    assert item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime == "160000"
    assert b"\rMSA|AA|" in server.send_hl7(folder / "omi-ca.hl7")
    assert worklist(server, Modality="MR", ScheduledProcedureStepID="SPS-01") == []
