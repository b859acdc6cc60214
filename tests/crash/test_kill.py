"""`kill -9` in a loop under parallel senders: what was acknowledged reads back with its digest, no row without bytes.

Each write path is killed MINIPACS_CRASH_ROUNDS times (20 unless told) on each database; the seed stands at the head of
every run and can be given back as MINIPACS_CRASH_SEED.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from sqlalchemy import create_engine, text

from archive.config import Settings
from archive.core import open_archive
from archive.integrity import fsck, verify
from archive.retrieve import select
from tests.builders import ct_slice, data_set, part10
from tests.forked import Forked
from tests.server import Server

ROUNDS = int(os.environ.get("MINIPACS_CRASH_ROUNDS", "20"))
SEED = int(os.environ["MINIPACS_CRASH_SEED"])  # chosen in tests/conftest.py, printed at the head of every run
SENDERS = 3
TOKENS: dict[int, str] = {}  # by the server's port

Acknowledged = dict[str, str]  # SOP Instance UID to digest of the data set
Sender = Callable[[Server, Acknowledged, threading.Event, int], None]


def by_store(server: Server, acknowledged: Acknowledged, stop: threading.Event, seed: int) -> None:
    """Send over associations until the server is gone."""
    ae = AE(f"SENDER{seed}")
    ae.add_requested_context(CTImageStorage)
    ae.dimse_timeout = ae.acse_timeout = ae.network_timeout = 5
    while not stop.is_set():
        assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
        while assoc.is_established and not stop.is_set():
            ds = ct_slice(rows=64, columns=64, number=len(acknowledged))
            digest = hashlib.sha256(data_set(ds)).hexdigest()
            try:
                status = assoc.send_c_store(ds)
            except (RuntimeError, ValueError):
                break
            if status and status.Status == 0x0000:
                acknowledged[str(ds.SOPInstanceUID)] = digest
        if assoc.is_established:
            assoc.abort()


def by_stow(server: Server, acknowledged: Acknowledged, stop: threading.Event, seed: int) -> None:
    """Send by STOW-RS, three instances a request."""
    boundary = "b0undary"
    headers = {
        "Authorization": f"Bearer {TOKENS[server.api_port]}",
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    while not stop.is_set():
        slices = [ct_slice(rows=64, columns=64, number=number) for number in range(3)]
        body = b"".join(
            f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + part10(ds) + b"\r\n" for ds in slices
        )
        try:
            answer = httpx.post(
                f"{server.web}/dicom-web/studies", headers=headers, content=body + f"--{boundary}--".encode(), timeout=5
            )
        except httpx.HTTPError:
            continue
        if answer.status_code == 200:
            for ds in slices:
                acknowledged[str(ds.SOPInstanceUID)] = hashlib.sha256(data_set(ds)).hexdigest()


def check(server: Server, acknowledged: Acknowledged) -> None:
    """Open the archive as it lies there."""
    settings = Settings.model_validate(
        {"data_dir": server.data_dir, "database": {"url": server.database_url}, "storage": {"reserve_bytes": 0}}
    )
    with open_archive(settings, process="check") as archive:
        stored = {one.sop_instance_uid: one for one in select(archive, patient_id="IPP1")}
        missing = set(acknowledged) - set(stored)
        assert not missing, f"acknowledged and not there: {len(missing)}"
        for uid, digest in acknowledged.items():
            one = stored[uid]
            raw = Path(one.path).read_bytes()[one.data_set_offset :]
            assert hashlib.sha256(raw).hexdigest() == digest == one.digest
        assert [one for one in fsck(archive).findings if one.sop_instance_uid] == []
        assert verify(archive, everything=True).findings == []


@contextmanager
def edge(server: Server, name: str) -> Iterator[Forked]:
    """One edge's process alone, as the supervisor starts it: nothing else shares the work of a round."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ports = {"dicom": server.dicom_port, "hl7": server.hl7_port, "api": server.api_port}
        listening.bind(("127.0.0.1", ports[name]))
        listening.listen(64)
        with server.log.open("ab") as log:
            process = Forked(
                "minipacs.edge",
                [name, "--fd"],
                env=server.variables(),
                cwd=server.folder,
                stdout=log,
                stderr=log,
                fd=listening.fileno(),
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


def one_round(server: Server, send: Sender, acknowledged: Acknowledged, rng: random.Random) -> None:
    """Start, let parallel senders get something in, kill at a moment of the seed's choice."""
    stop = threading.Event()
    mine: list[Acknowledged] = [{} for _ in range(SENDERS)]
    threads = [threading.Thread(target=send, args=(server, mine[i], stop, i)) for i in range(SENDERS)]
    with edge(server, "dicom" if send is by_store else "api"):
        for thread in threads:
            thread.start()
        patience = time.monotonic() + 60
        while not any(mine) and time.monotonic() < patience:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert any(mine), server.log.read_text()[-2000:]
    for part in mine:
        acknowledged.update(part)


@pytest.mark.req("REQ-DCM-14")
@pytest.mark.parametrize("send", [by_store, by_stow])
def test_what_was_acknowledged_survives_kill_9(
    tmp_path: Path, database_url: str, send: Sender, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    server = Server(tmp_path / "server", database_url)
    server.folder.mkdir()
    assert server.command("migrate").returncode == 0
    TOKENS[server.api_port] = server.token("service")
    acknowledged: Acknowledged = {}
    for number in range(ROUNDS):
        one_round(server, send, acknowledged, rng)
        if number % 5 == 4 or number == ROUNDS - 1:
            check(server, acknowledged)
    with capsys.disabled():
        print(f"\n{send.__name__}: seed {SEED}, {ROUNDS} rounds, {len(acknowledged)} acknowledged, none lost")
    assert len(acknowledged) > ROUNDS, "the senders hardly got anything in: the test proves nothing"
    done = server.command("verify-audit")
    assert done.returncode == 0, done.stdout


@pytest.mark.req("REQ-DCM-14")
def test_an_import_that_is_killed_goes_on_where_it_was(tmp_path: Path, database_url: str) -> None:
    rng = random.Random(SEED)
    folder = tmp_path / "media"
    folder.mkdir()
    expected: Acknowledged = {}
    for number in range(ROUNDS * 12):
        ds = ct_slice(rows=64, columns=64, number=number)
        (folder / f"{number:04}.dcm").write_bytes(part10(ds))
        expected[str(ds.SOPInstanceUID)] = hashlib.sha256(data_set(ds)).hexdigest()
    server = Server(tmp_path / "server", database_url)
    server.folder.mkdir()
    assert server.command("migrate").returncode == 0
    for _ in range(ROUNDS):
        process = Forked(
            "minipacs",
            ["import", str(folder)],
            env=server.variables(),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        enough = _files(server) + rng.randrange(1, 12)
        while process.poll() is None and _files(server) < enough:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    check(server, {})
    assert server.command("import", str(folder)).returncode == 0
    check(server, expected)
    engine = create_engine(database_url)
    with engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM instance")).scalar_one() == len(expected)
    engine.dispose()


def _files(server: Server) -> int:
    return sum(len(names) for _, _, names in os.walk(server.data_dir / "hot"))
