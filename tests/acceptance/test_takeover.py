"""The commands that send, ask and take over, between real archives: minipacs, a second minipacs, and Orthanc."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from typer.testing import CliRunner

from minipacs.cli import app
from tests.acceptance.clients import CT, MR, digests, tool
from tests.builders import ct_slice, new_uid
from tests.orthanc import Orthanc, orthanc
from tests.server import Server, free_port

MR_STUDY = str(pydicom.dcmread(MR[0], stop_before_pixels=True).StudyInstanceUID)
CT_STUDY = str(pydicom.dcmread(CT[0], stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int]) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("other") / "orthanc", move_to=ports[0]) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int], other: Orthanc) -> Iterator[Server]:
    """With two other archives; MR that arrive are sent on to the second minipacs."""
    peers = {
        "ORTHANC": {"host": "127.0.0.1", "port": other.dicom_port},
        "SECOND": {"ae_title": "SECONDPACS", "host": "127.0.0.1", "port": ports[1]},
        "AWAY": {"host": "127.0.0.1", "port": free_port()},
    }
    rule = {"name": "mr", "to": "SECOND", "quiet_seconds": 0.5, "when": {"modalities": ["MR"]}}
    with started(
        tmp_path_factory.mktemp("first"), ports[0], PEERS=json.dumps(peers), FORWARD=json.dumps([rule])
    ) as running:
        yield running


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int]) -> Iterator[Server]:
    peers = {"MINIPACS": {"host": "127.0.0.1", "port": ports[0]}}
    with started(
        tmp_path_factory.mktemp("second"), ports[1], PEERS=json.dumps(peers), AE_TITLE="SECONDPACS"
    ) as running:
        yield running


@contextmanager
def started(folder: Path, port: int, **dicom: str) -> Iterator[Server]:
    server = Server(folder, "", {f"MINIPACS_DICOM__{key}": text for key, text in dicom.items()})
    server.dicom_port = port
    server.start()
    yield server
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Traceback" not in log, log[-4000:]


def index(server: Server) -> sqlite3.Connection:
    """Its database, to read."""
    found = sqlite3.connect(f"file:{server.data_dir}/minipacs.sqlite3?mode=ro", uri=True, timeout=30)
    found.row_factory = sqlite3.Row
    return found


def stored(server: Server, study: str = "%") -> dict[str, str]:
    """SOP Instance UID to digest, each once."""
    with index(server) as conn:
        rows = conn.execute(
            "SELECT i.sop_instance_uid, i.digest FROM instance i JOIN series s ON s.pk = i.series_pk"
            " JOIN study t ON t.pk = s.study_pk JOIN location l ON l.instance_pk = i.pk"
            " WHERE t.study_instance_uid LIKE ?",
            (study,),
        ).fetchall()
    assert len({row["sop_instance_uid"] for row in rows}) == len(rows), "stored twice"
    return {row["sop_instance_uid"]: row["digest"] for row in rows}


def until(met: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)


def report(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_arrives_is_sent_on_by_a_rule_once_and_does_not_come_back(server: Server, second: Server) -> None:
    tool("storescu", "-aec", "MINIPACS", "127.0.0.1", server.dicom_port, *MR)
    until(lambda: len(stored(second, MR_STUDY)) == len(MR))
    assert stored(second, MR_STUDY) == digests(MR)
    tool("storescu", "-aec", "MINIPACS", "127.0.0.1", server.dicom_port, MR[0])  # a resend
    time.sleep(2)
    jobs = report(server.command("jobs", "list", "--kind", "dicom.send", "--json"))["items"]
    assert sum(one["sent"] for one in jobs) == len(MR)
    assert {(one["rule"], one["state"], one["study"]) for one in jobs} == {("mr", "done", MR_STUDY)}
    preview = report(server.command("forward", "preview", "--study", MR_STUDY, "--json"))["items"]
    assert [(one["rule"], one["to"], one["sends"]) for one in preview] == [("mr", "SECOND", True)]


def test_a_study_is_sent_by_the_command_line(server: Server, second: Server) -> None:
    tool("storescu", "-aec", "MINIPACS", "127.0.0.1", server.dicom_port, *CT)
    sent = report(server.command("send", "--study", CT_STUDY, "--to", "SECOND", "--json"))
    assert (sent["state"], sent["sent"], sent["failed"], sent["failures"]) == ("done", len(CT), 0, [])
    assert stored(second, CT_STUDY) == digests(CT)
    away = server.command("send", "--study", CT_STUDY, "--to", "AWAY")
    assert away.returncode == 3
    assert "cannot be reached; the job waits" in away.stderr


@pytest.mark.req("REQ-DCM-01")
def test_a_peer_is_asked_whether_it_answers(server: Server, second: Server) -> None:
    with server.client("it_admin") as admin:
        assert admin.post("/api/v1/peers/SECOND/echo").json() == {
            "peer": "SECOND", "ok": True, "status": "0000", "reason": None,
        }  # fmt: skip
        away = admin.post("/api/v1/peers/AWAY/echo").json()
        assert (away["ok"], away["reason"]) == (False, "the peer cannot be reached")
        assert admin.post("/api/v1/peers/NOBODY/echo").status_code == 404


def test_studies_of_another_archive_are_found_and_pulled(server: Server, second: Server) -> None:
    """From minipacs into minipacs: every byte as it was."""
    objects = [
        ct_slice(
            number=number, StudyInstanceUID=new_uid("fetched"), SeriesInstanceUID=new_uid("fetched", str(number % 2)),
            PatientID="FETCH", PatientName="LEFÈVRE^Zoé", StudyDate="20240607",
        )
        for number in range(6)
    ]  # fmt: skip
    folder = server.folder / "fetched"
    folder.mkdir()
    for number, ds in enumerate(objects):
        pydicom.dcmwrite(folder / f"{number}", ds, enforce_file_format=True)
    files = sorted(folder.iterdir())
    tool("storescu", "-aec", "SECONDPACS", "127.0.0.1", second.dicom_port, *files)

    found = report(server.command("remote", "find", "--peer", "SECOND", "--name", "lefevre*", "--json"))
    (one,) = found["items"]
    assert (one["StudyInstanceUID"], one["PatientName"]) == (new_uid("fetched"), "LEFÈVRE^Zoé")
    assert (one["NumberOfStudyRelatedInstances"], one["ModalitiesInStudy"]) == ("6", ["CT"])
    assert server.command("remote", "find", "--peer", "AWAY", "--patient", "FETCH").returncode == 3

    pulled = report(server.command("remote", "pull", "--peer", "SECOND", "--study", new_uid("fetched"), "--json"))
    assert pulled["total"] == {
        "studies": 1, "complete": 1, "listed": 6, "already_here": 0, "pulled": 6, "missing": 0,
    }  # fmt: skip
    assert stored(server, new_uid("fetched")) == digests(files)
    with index(server) as conn:
        sources = conn.execute(
            "SELECT DISTINCT source FROM instance WHERE sop_instance_uid = ?", (objects[0].SOPInstanceUID,)
        ).fetchall()
    assert [row["source"] for row in sources] == ["network:SECONDPACS"]
    assert server.command("remote", "pull", "--peer", "AWAY", "--study", "1.2.3").returncode == 3


def test_another_archive_moves_to_us_and_no_rule_sends_it_on(server: Server, second: Server, other: Orthanc) -> None:
    """C-MOVE to our own port: what we asked for is not sent on, though it is an MR."""
    objects = [
        ct_slice(
            number=number, StudyInstanceUID=new_uid("moved"), SeriesInstanceUID=new_uid("moved", "s"),
            StudyDate="20230115", PatientID="MOVED", Modality="MR",
        )
        for number in range(3)
    ]  # fmt: skip
    other.keep(*objects)
    dates = ("--since", "2023-01-01", "--until", "2023-01-31")
    done = report(server.command("pull", "--from", "ORTHANC", *dates, "--via", "move", "--json"))
    assert done["total"]["pulled"] == 3
    assert sorted(stored(server, new_uid("moved"))) == sorted(ds.SOPInstanceUID for ds in objects)
    time.sleep(2)
    assert stored(second, new_uid("moved")) == {}


def test_a_takeover_that_is_killed_goes_on_where_it_was(server: Server, other: Orthanc, tmp_path: Path) -> None:
    """kill -9 in the middle; then all is here, once, and the report counts every image."""
    studies = [new_uid("taken", str(number)) for number in range(12)]
    for number, study in enumerate(studies):
        other.keep(
            *(
                ct_slice(
                    number=at, StudyInstanceUID=study, SeriesInstanceUID=new_uid(study, "s"),
                    StudyDate=f"202203{number + 10}", PatientID=f"TAKEN{number}",
                )
                for at in range(5)
            )
        )  # fmt: skip
    command = ("pull", "--from", "ORTHANC", "--since", "2022-03-01", "--until", "2022-03-31")

    def here() -> int:
        return sum(len(stored(server, study)) for study in studies)

    running = subprocess.Popen(
        [sys.executable, "-m", "minipacs", *command], env=server.variables(), cwd=server.folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: here() >= 18)
    running.send_signal(signal.SIGKILL)
    running.wait(10)
    before = here()
    assert 18 <= before < 60
    half = report(server.command(*command, "--only-report", "--json"), 1)
    assert half["total"]["studies"] == 12
    assert half["total"]["complete"] < 12

    lines = tmp_path / "report.csv"
    done = report(server.command(*command, "--csv", str(lines), "--json"))
    assert done["total"] == {
        "studies": 12, "complete": 12, "listed": 60, "already_here": 0, "pulled": 60, "missing": 0,
    }  # fmt: skip
    assert here() == 60
    with lines.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [(one["state"], one["listed"], one["missing"]) for one in table] == [("complete", "5", "0")] * 12
    with index(server) as conn:
        marks = ",".join("?" * len(studies))
        sent = conn.execute(
            f"SELECT detail FROM audit WHERE study IN ({marks}) AND event = '110104' AND action = 'C'"
            " AND detail LIKE '%close%'",
            studies,
        ).fetchall()
    counted = sum(json.loads(row["detail"])["instances"] for row in sent)
    assert counted <= 60  # nothing came twice: of what was under way when it was killed the count is lost

    again = server.command(*command)
    assert again.returncode == 0
    assert again.stdout == ("studies 12, complete 12; images listed 60: pulled 60, already here 0, missing 0\n")


@pytest.mark.parametrize(
    "wrong",
    [
        ["pull", "--from", "ORTHANC", "--via", "wado"],
        ["pull", "--from", "ORTHANC", "--url", "http://127.0.0.1"],
        ["pull", "--from", "ORTHANC", "--via", "pigeon"],
        ["pull", "--from", "ORTHANC", "--between", "night"],
        ["remote", "pull", "--peer", "ORTHANC", "--study", "1.2", "--via", "wado"],
        ["remote", "find", "--peer", "ORTHANC"],
        ["jobs", "list", "--state", "lost"],
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: list[str]) -> None:
    assert CliRunner().invoke(app, wrong).exit_code == 2
