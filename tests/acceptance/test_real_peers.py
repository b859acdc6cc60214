"""DCMTK's tools, GDCM's, pynetdicom's own programs and Orthanc, against one archive (issue 5)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest

from tests.acceptance.clients import DCMTK, data_set_of, tool
from tests.bench.__main__ import orthanc
from tests.builders import ct_slice, data_set, new_uid, part10
from tests.conftest import need
from tests.server import Server, free_port

pytestmark = pytest.mark.req("REQ-DCM-10", "REQ-DCM-39", "REQ-DCM-46")


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {title: free_port() for title in ("DCMRECV", "PYNETDICOM", "ORTHANC")}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[Server]:
    peers = ", ".join(f'"{title}": {{"host": "127.0.0.1", "port": {port}}}' for title, port in ports.items())
    running = Server(
        tmp_path_factory.mktemp("server"),
        environment={
            "MINIPACS_DICOM__PEERS": f"{{{peers}}}",
            "MINIPACS_DICOM__ACCEPT_UNKNOWN_CALLERS": "true",
            "MINIPACS_DICOM__WORKERS": "2",
        },
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def a_study(folder: Path, name: str, **changes: Any) -> tuple[str, dict[str, bytes]]:
    """Three slices of a study of its own, in `folder`: its UID, and the data sets by SOP Instance UID."""
    folder.mkdir()
    sent = {}
    for number in (1, 2, 3):
        ds = ct_slice(
            rows=64, columns=64, number=number, PatientID=name, StudyInstanceUID=new_uid("peers", name),
            SeriesInstanceUID=new_uid("peers", name, "1"), **changes,
        )  # fmt: skip
        (folder / f"{number}.dcm").write_bytes(part10(ds))
        sent[str(ds.SOPInstanceUID)] = data_set(ds)
    return new_uid("peers", name), sent


def came(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.iterdir():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        found[str(ds.SOPInstanceUID)] = data_set_of(path.read_bytes())
    return found


def alike(folder: Path, sent: dict[str, bytes]) -> None:
    """What a peer wrote in its own way has the same attributes and pixels."""
    files = [pydicom.dcmread(path) for path in folder.iterdir() if path.is_file()]
    assert {str(ds.SOPInstanceUID) for ds in files} == sent.keys()
    for ds in files:
        assert ds.PixelData == sent[str(ds.SOPInstanceUID)][-len(ds.PixelData) :]
        assert (ds.StudyDescription, str(ds.ReferringPhysicianName)) == ("Scanner thoracique", "LEFÈVRE^Anaïs")


def test_dcmtk_stores_finds_gets_and_moves(archive: Server, tmp_path: Path, ports: dict[str, int]) -> None:
    need("echoscu", "dcmsend", "findscu", "getscu", "movescu", "dcmrecv")
    study, sent = a_study(tmp_path / "sent", "DCMTK")
    place = ["-aec", "MINIPACS", "127.0.0.1", archive.dicom_port]
    tool("echoscu", *place)
    tool("dcmsend", *place, "+sd", tmp_path / "sent")
    found = tool(
        "findscu", "-S", *place, "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=DCMTK", "-k", "StudyInstanceUID",
        "-k", "NumberOfStudyRelatedInstances", "-k", "PatientName=dupont*",
    )  # fmt: skip
    assert study in found
    for model in ("-S", "-P"):
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}", "-k", "PatientID=DCMTK"]
        folder = tmp_path / f"got{model}"
        folder.mkdir()
        tool("getscu", model, "+B", *place, *keys, "-od", folder)
        assert came(folder) == sent
    moved = tmp_path / "moved"
    moved.mkdir()
    receiver = subprocess.Popen(
        [
            "dcmrecv",
            "-xf",
            "/etc/dcmtk/storescp.cfg",
            "Default",
            "-aet",
            "DCMRECV",
            "-od",
            str(moved),
            str(ports["DCMRECV"]),
        ],
        env=DCMTK,
    )
    try:
        _until_it_answers(ports["DCMRECV"], "DCMRECV")
        tool(
            "movescu",
            "-S",
            *place,
            "-aem",
            "DCMRECV",
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            f"StudyInstanceUID={study}",
        )
        assert came(moved) == sent
    finally:
        receiver.terminate()
        receiver.wait(10)


def _until_it_answers(port: int, title: str) -> None:
    deadline = time.monotonic() + 20
    while subprocess.run(
        ["echoscu", "-aec", title, "127.0.0.1", str(port)], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < deadline, f"{title} does not listen"
        time.sleep(0.1)


def pynetdicom(*words: object, cwd: Path) -> str:
    """One of pynetdicom's programs; what it says."""
    arguments = [sys.executable, "-m", "pynetdicom", *(str(word) for word in words)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_programs_of_pynetdicom_do_the_same(archive: Server, tmp_path: Path, ports: dict[str, int]) -> None:
    study, sent = a_study(tmp_path / "sent", "PYNETDICOM")
    place = ["127.0.0.1", archive.dicom_port, "-aec", "MINIPACS"]
    pynetdicom("echoscu", *place, cwd=tmp_path)
    pynetdicom("storescu", "127.0.0.1", archive.dicom_port, tmp_path / "sent", "-r", "-aec", "MINIPACS", cwd=tmp_path)
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
    said = pynetdicom("findscu", *place, "-S", *keys, "-k", "PatientID=", "-v", cwd=tmp_path)
    assert "PYNETDICOM" in said
    got = tmp_path / "got"
    got.mkdir()
    pynetdicom("getscu", *place, "-S", *keys, "-od", got, cwd=tmp_path)
    alike(got, sent)
    moved = tmp_path / "moved"
    moved.mkdir()
    pynetdicom(
        "movescu", *place, "-S", *keys, "-aem", "PYNETDICOM", "--store", "--store-port", ports["PYNETDICOM"],
        "--store-aet", "PYNETDICOM", "-od", moved, cwd=tmp_path,
    )  # fmt: skip
    alike(moved, sent)


def gdcm(*words: object) -> str:
    """GDCM's client; what it says. Debian's 3.0 ends by an exception of its own, whoever it talked to (storescp and
    Orthanc too), after the association was released: only what it did before is looked at."""
    arguments = ["gdcmscu", *(str(word) for word in words)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or "ProtocolStream" in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_gdcm_stores(archive: Server, tmp_path: Path) -> None:
    need("gdcmscu", "getscu")
    study, sent = a_study(tmp_path / "sent", "GDCM")
    place = ["127.0.0.1", archive.dicom_port, "--aetitle", "GDCM", "--call", "MINIPACS"]
    gdcm("--echo", *place)
    for path in (tmp_path / "sent").iterdir():
        gdcm("--store", *place, path)
    folder = tmp_path / "got"
    folder.mkdir()
    tool(
        "getscu", "-S", "-aec", "MINIPACS", "127.0.0.1", archive.dicom_port, "-k", "QueryRetrieveLevel=STUDY", "-k",
        f"StudyInstanceUID={study}", "-od", folder,
    )  # fmt: skip
    alike(folder, sent)


@pytest.fixture(scope="module")
def neighbour(
    tmp_path_factory: pytest.TempPathFactory, archive: Server, ports: dict[str, int]
) -> Iterator[httpx.Client]:
    """An Orthanc that knows the archive, by its REST interface."""
    need("Orthanc")
    scratch = tmp_path_factory.mktemp("orthanc")
    with orthanc(scratch, dicom=ports["ORTHANC"]) as target, httpx.Client(base_url=target.rest, timeout=60) as client:
        client.put("/modalities/minipacs", json=["MINIPACS", "127.0.0.1", archive.dicom_port]).raise_for_status()
        yield client


def test_orthanc_finds_here_and_has_it_moved_to_itself(
    archive: Server, neighbour: httpx.Client, tmp_path: Path
) -> None:
    need("dcmsend")
    study, sent = a_study(tmp_path / "sent", "FOR-ORTHANC")
    tool("dcmsend", "-aec", "MINIPACS", "127.0.0.1", archive.dicom_port, "+sd", tmp_path / "sent")
    asked = {"Level": "Study", "Query": {"StudyInstanceUID": study, "PatientName": "dupont*"}}
    query = neighbour.post("/modalities/minipacs/query", json=asked)
    query.raise_for_status()
    number = query.json()["ID"]
    assert neighbour.get(f"/queries/{number}/answers").json() == ["0"]
    neighbour.post(f"/queries/{number}/retrieve", content="ORTHANC").raise_for_status()
    got = {}
    for instance in neighbour.get("/instances").json():
        ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(neighbour.get(f"/instances/{instance}/file").content))
        if ds.StudyInstanceUID == study:
            got[str(ds.SOPInstanceUID)] = ds
    assert got.keys() == sent.keys()
    for uid, ds in got.items():
        assert sent[uid].endswith(ds.PixelData)


def test_orthanc_sends_here_of_itself_and_when_it_is_asked_to_move(
    archive: Server, neighbour: httpx.Client, tmp_path: Path, ports: dict[str, int]
) -> None:
    need("movescu", "getscu", "storescu")
    for name, how in (("BY-STORE", "store"), ("BY-MOVE", "move")):
        study, sent = a_study(tmp_path / name, name)
        there = [neighbour.post("/instances", content=path.read_bytes()).json() for path in (tmp_path / name).iterdir()]
        assert {one["Status"] for one in there} == {"Success"}
        if how == "store":
            neighbour.post("/modalities/minipacs/store", json=[one["ID"] for one in there]).raise_for_status()
        else:
            tool(
                "movescu", "-S", "-aec", "ORTHANC", "-aet", "MINIPACS", "-aem", "MINIPACS", "127.0.0.1",
                ports["ORTHANC"], "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}",
            )  # fmt: skip
        folder = tmp_path / f"{name}-back"
        folder.mkdir()
        tool(
            "getscu", "-S", "+B", "-aec", "MINIPACS", "127.0.0.1", archive.dicom_port, "-k",
            "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}", "-od", folder,
        )  # fmt: skip
        alike(folder, sent)
