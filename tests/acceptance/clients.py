"""Real clients, as the acceptance tests use them: DCMTK's tools, pynetdicom, what a multipart answer holds."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE

from tests.server import Server

DATA = Path(__file__).parent.parent / "data"
CT = sorted((DATA / "ct-philips-phantom").glob("I*"))
MR = sorted((DATA / "mr-ge").glob("*.dcm"))
OTHER_MR = sorted((DATA / "mr-siemens").glob("*.dcm"))
DCMTK = {**os.environ, "TCP_NODELAY": "1"}


def tool(*arguments: object, cwd: Path | None = None) -> str:
    """Run a DCMTK tool that must succeed; its output."""
    words = [str(argument) for argument in arguments]
    done = subprocess.run(words, capture_output=True, text=True, env=DCMTK, timeout=120, check=False, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def data_set_of(raw: bytes) -> bytes:
    """A PS3.10 file without preamble and group 0002."""
    assert raw[128:132] == b"DICM"
    length = int.from_bytes(raw[140:144], "little")
    return raw[144 + length :]


def digests(paths: list[Path]) -> dict[str, str]:
    """SOP Instance UID to digest of the data set."""
    return {
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): hashlib.sha256(
            data_set_of(path.read_bytes())
        ).hexdigest()
        for path in paths
    }


@contextmanager
def receiver(folder: Path, port: int) -> Iterator[None]:
    """DCMTK's storescp, writing what it receives bit for bit."""
    process = subprocess.Popen(
        ["storescp", "+B", "+xa", "-aet", "STORESCP", "-od", str(folder), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=DCMTK,
    )
    try:
        for _ in range(200):  # until it listens
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


def find(server: Server, model: str, **keys: object) -> list[Dataset]:
    """A C-FIND by pynetdicom; every status must be a pending one or success."""
    query = Dataset()
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    ae = AE("PYNETDICOM")
    ae.add_requested_context(model)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    try:
        answers = list(assoc.send_c_find(query, model))
    finally:
        assoc.release()
    assert answers[-1][0].Status == 0x0000
    assert {status.Status for status, _ in answers[:-1]} <= {0xFF00, 0xFF01}
    return [ds for _, ds in answers[:-1]]


def parts_digests(response: httpx.Response) -> dict[str, str]:
    """SOP Instance UID to digest, of the parts of a multipart answer."""
    boundary = response.headers["content-type"].split("boundary=")[1].split(";")[0].strip('"').encode()
    found = {}
    for part in response.content.split(b"--" + boundary)[1:-1]:
        raw = part.split(b"\r\n\r\n", 1)[1][:-2]
        instance = raw[144 + int.from_bytes(raw[140:144], "little") :]
        meta = pydicom.dcmread(pydicom.filebase.DicomBytesIO(raw), stop_before_pixels=True)
        found[str(meta.SOPInstanceUID)] = hashlib.sha256(instance).hexdigest()
    return found
