"""Orthanc asks for storage commitment before it would delete; a RIS is told what is available."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest

from tests.acceptance.clients import CT, data_set_of
from tests.dicom_scp.listening import Listener, listening
from tests.orthanc import orthanc as started
from tests.server import Server, free_port


@dataclass
class Orthanc:
    """A running Orthanc, over its REST API."""

    rest: httpx.Client

    def ask(self, **asked: Any) -> dict[str, Any]:
        """Ask the archive for storage commitment; what it has answered in the end."""
        answer = self.rest.post("/modalities/minipacs/storage-commitment", json=asked)
        assert answer.status_code == 200, answer.text
        report: dict[str, Any] = {}
        until = time.monotonic() + 60
        while report.get("Status", "Pending") == "Pending" and time.monotonic() < until:
            time.sleep(0.2)
            report = self.rest.get(f"/storage-commitment/{answer.json()['ID']}").json()
        return report


@pytest.fixture(scope="module")
def ris(module_database_url: str) -> Iterator[Listener]:
    """One for each server."""
    with listening("RIS") as listener:
        yield listener


@pytest.fixture(scope="module")
def orthanc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, module_database_url: str, orthanc_port: int, ris: Listener
) -> Iterator[Server]:
    peers = {
        "ORTHANC": {"host": "127.0.0.1", "port": orthanc_port, "may": ["store", "commit"]},
        "RIS": {"host": "127.0.0.1", "port": ris.port, "notify": True, "may": []},
    }
    environment = {"MINIPACS_DICOM__PEERS": json.dumps(peers), "MINIPACS_DICOM__NOTIFY_QUIET_SECONDS": "1"}
    running = Server(tmp_path_factory.mktemp("server"), module_database_url, environment)
    running.start()
    yield running
    assert running.stop() == 0
    log = running.log.read_text()
    assert "Traceback" not in log, log[-4000:]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, server: Server, orthanc_port: int) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("orthanc") / "data"
    with (
        started(folder, dicom_port=orthanc_port, move_to=server.dicom_port) as running,
        httpx.Client(base_url=running.url, timeout=60) as rest,
    ):
        yield Orthanc(rest)


@pytest.mark.req("REQ-DCM-50", "REQ-DCM-51", "REQ-DCM-55")
def test_orthanc_sends_a_study_has_it_committed_and_the_ris_is_told(
    server: Server, orthanc: Orthanc, ris: Listener
) -> None:
    ds = pydicom.dcmread(CT[0])
    for path in CT:
        assert orthanc.rest.post("/instances", content=path.read_bytes()).status_code == 200
    (study,) = orthanc.rest.get("/studies").json()
    unsent = orthanc.ask(Resources=[study])
    assert unsent["Status"] == "Failure"
    assert {one["FailureReason"] for one in unsent["Failures"]} == {0x0112}
    assert orthanc.rest.post("/modalities/minipacs/store", json=study).status_code == 200
    report = orthanc.ask(Resources=[study])
    assert (report["Status"], report["RemoteAET"], report["Failures"]) == ("Success", "MINIPACS", [])
    assert len(report["Success"]) == len(CT)
    told = 0
    while told < len(CT):  # on a slow machine, of the first ones before
        notification = ris.hear(30)[1]
        assert notification.StudyInstanceUID == ds.StudyInstanceUID
        told = sum(len(part.ReferencedSOPSequence) for part in notification.ReferencedSeriesSequence)
    with server.client("service") as client:
        held = client.get(f"/api/v1/studies/{ds.StudyInstanceUID}").json()
    (promise,) = held["commitments"]
    assert (promise["to"], promise["instances"]) == ("ORTHANC", len(CT))
    assert all(copy["verified_at"] for copy in held["copies"])


@pytest.mark.req("REQ-DCM-50")
def test_an_image_whose_bytes_changed_is_not_committed(server: Server, orthanc: Orthanc) -> None:
    """Between its reception and the request: nobody has read it since."""
    path = CT[0]
    ds = pydicom.dcmread(path)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID + ".1"
    changed = Path(server.folder / "changed.dcm")
    ds.save_as(changed)
    sent = orthanc.rest.post("/instances", content=changed.read_bytes()).json()["ID"]
    assert orthanc.rest.post("/modalities/minipacs/store", json=sent).status_code == 200
    content = data_set_of(changed.read_bytes())
    (stored,) = [one for one in (server.data_dir / "hot").rglob("*.dcm") if one.read_bytes().endswith(content)]
    with stored.open("r+b") as file:
        file.seek(-20, 2)
        file.write(b"spoilt")
    report = orthanc.ask(Resources=[sent])
    assert (report["Status"], [one["FailureReason"] for one in report["Failures"]]) == ("Failure", [0x0110])
