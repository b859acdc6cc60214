"""Bad input on every door: a clear error on the wire, nothing lost, nothing half-visible, the process lives."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification

from archive.errors import UnreadableInstance
from archive.storage.part10 import read_meta
from tests.acceptance.test_first_study import StudyRoot, find
from tests.acceptance.test_whole_data import data as data  # noqa: PLC0414
from tests.builders import ct_slice, data_set, new_uid, part10
from tests.conftest import STRICT
from tests.server import Server


def store(server: Server, ds: Dataset) -> int:
    """The status of one C-STORE by pynetdicom."""
    ae = AE("BAD")
    ae.add_requested_context(ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    try:
        return int(assoc.send_c_store(ds).Status)
    finally:
        assoc.release()


def store_raw(server: Server, sop_class: str, uid: str, syntax: str, raw: bytes) -> int | None:
    """One C-STORE of any bytes, over a socket of our own; None when the association was refused or aborted."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(body)) + body

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHI", 0, number, len(value)) + value

    def pdv(flags: int, body: bytes) -> bytes:
        return struct.pack(">BxIIBB", 4, len(body) + 6, len(body) + 2, 1, flags) + body

    with socket.create_connection(("127.0.0.1", server.dicom_port), 20) as sock:
        sock.settimeout(20)
        context = item(0x20, b"\x01\0\0\0" + item(0x30, sop_class.encode()) + item(0x40, syntax.encode()))
        user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
        body = struct.pack(">Hxx16s16s32x", 1, b"MINIPACS".ljust(16), b"RAW".ljust(16))
        body += item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
        sock.sendall(struct.pack(">BxI", 1, len(body)) + body)
        reader = sock.makefile("rb")
        kind, answer = _pdu(reader)
        if kind != 2 or b"\x21\x00" not in answer:
            return None
        command = element(0x0002, sop_class.encode()) + element(0x0100, b"\1\0") + element(0x0110, b"\1\0")
        command += element(0x0700, b"\0\0") + element(0x0800, b"\1\0") + element(0x1000, uid.encode())
        command = struct.pack("<HHII", 0, 0, 4, len(command)) + command
        sock.sendall(pdv(3, command))
        for start in range(0, max(len(raw), 1), 16000):
            piece = raw[start : start + 16000]
            sock.sendall(pdv(2 if start + 16000 >= len(raw) else 0, piece))
        kind, answer = _pdu(reader)
        if kind != 4:
            return None
        at = answer.index(struct.pack("<HHI", 0, 0x0900, 2))
        return int(struct.unpack_from("<H", answer, at + 8)[0])


def _pdu(reader: io.BufferedReader) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxI", reader.read(6))
    return kind, reader.read(length)


def alive(server: Server) -> None:
    ae = AE("ALIVE")
    ae.add_requested_context(Verification)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established
    assert assoc.send_c_echo().Status == 0x0000
    assoc.release()
    assert httpx.get(f"{server.web}/readyz").status_code == 200


def seen(server: Server, study: str = "") -> int:
    """Instances that anybody can find."""
    keys = {"QueryRetrieveLevel": "STUDY", "NumberOfStudyRelatedInstances": ""}
    studies = find(server, StudyRoot, StudyInstanceUID=study, **keys)
    return sum(int(study.NumberOfStudyRelatedInstances) for study in studies)


# What becomes of each broken file: stored as it is (its header can be read; pixels are never looked at), or refused.
STORED = {
    "ExplVR_BigEndNoMeta.dcm",
    "ExplVR_LitEndNoMeta.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "MR_truncated.dcm",
    "OT-PAL-8-face.dcm",
    "emri_small_jpeg_2k_lossless_too_short.dcm",
    "explicit_VR-UN.dcm",
    "report_dfl",
}


@pytest.mark.req("REQ-DCM-13", "REQ-DCM-16")
def test_each_broken_file_is_stored_or_refused_by_both_doors(data: Path, server: Server) -> None:
    client = server.client("technologist")
    files = sorted(path for name in ("broken", "broken-2", "broken-3") for path in (data / name).iterdir())
    assert len(files) == 22
    answers: dict[str, tuple[int | None, int]] = {}
    for path in files:
        raw = path.read_bytes()
        try:
            meta, start = read_meta(raw)
            dimse = store_raw(
                server,
                meta.sop_class_uid or str(CTImageStorage),
                meta.sop_instance_uid or new_uid(),
                meta.transfer_syntax_uid,
                raw[start:],
            )
        except UnreadableInstance:
            dimse = store_raw(server, str(CTImageStorage), new_uid(), "1.2.840.10008.1.2", raw)
        web = client.post(
            "/dicom-web/studies",
            headers={"Content-Type": "multipart/related; type=application/dicom; boundary=b"},
            content=b"--b\r\nContent-Type: application/dicom\r\n\r\n" + raw + b"\r\n--b--",
        )
        answers[path.name] = (dimse, web.status_code)
        alive(server)
    for name, (dimse, web) in answers.items():
        if dimse in (0x0000, 0xB007):
            assert web in (200, 202), (name, dimse, web)
        else:
            assert dimse is None or 0xA900 <= dimse <= 0xA9FF or 0xC000 <= dimse <= 0xCFFF, (name, dimse)
            assert web in (400, 409), (name, dimse, web)
    assert {name for name, (dimse, _) in answers.items() if dimse in (0x0000, 0xB007)} == STORED, answers
    assert answers["MR_truncated.dcm"] == (0xB007, 200)  # the second door has it already
    assert server.command("fsck").returncode == 0


@pytest.mark.req("REQ-DCM-16")
@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1" * 65])
def test_missing_and_illegal_uids_are_a900(shared: Server, keyword: str, value: str | None) -> None:
    ds = ct_slice()
    raw = data_set(ds)
    old = raw.index(struct.pack("<HH", *divmod(pydicom.datadict.tag_for_keyword(keyword) or 0, 1 << 16)))
    length = struct.unpack_from("<H", raw, old + 6)[0]
    changed = b"" if value is None else value.encode() + b"\0" * (len(value) % 2)
    new = b"" if value is None else raw[old : old + 6] + struct.pack("<H", len(changed)) + changed
    raw = raw[:old] + new + raw[old + 8 + length :]
    syntax = str(ds.file_meta.TransferSyntaxUID)
    assert store_raw(shared, str(ds.SOPClassUID), str(ds.SOPInstanceUID), syntax, raw) == 0xA900
    assert seen(shared) == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server (SQLite) for many refusals."""
    running = Server(tmp_path_factory.mktemp("shared"))
    running.start()
    yield running
    assert running.stop() == 0


def test_a_uid_other_than_the_announced_one_is_a900(shared: Server) -> None:
    ds = ct_slice()
    assert store_raw(shared, str(ds.SOPClassUID), new_uid(), "1.2.840.10008.1.2.1", data_set(ds)) == 0xA900


@pytest.mark.req("REQ-DCM-15")
def test_other_content_under_the_same_uid_is_c0d1(server: Server) -> None:
    uids = {"StudyInstanceUID": new_uid(), "SeriesInstanceUID": new_uid()}
    first = ct_slice(**uids)
    other = ct_slice(number=2, SOPInstanceUID=first.SOPInstanceUID, **uids)
    assert store(server, first) == 0x0000
    assert store(server, first) == 0x0000
    assert store(server, other) == 0xC0D1
    assert seen(server, uids["StudyInstanceUID"]) == 1
    with server.client("radiologist") as client:
        items = client.get("/api/v1/work-items?kind=uid_conflict&state=open").json()["items"]
    assert [item["kind"] for item in items] == ["uid_conflict"]


@pytest.mark.req("REQ-DCM-03")
def test_an_association_cut_in_mid_object_leaves_nothing(shared: Server) -> None:
    before = seen(shared), _files(shared)
    raw = data_set(ct_slice(rows=512, columns=512))
    with pytest.raises((OSError, struct.error)):
        _store_half(shared, raw)
    time.sleep(0.5)
    alive(shared)
    assert (seen(shared), _files(shared)) == before


def _files(server: Server) -> set[Path]:
    return {path for path in (server.data_dir / "hot").rglob("*") if path.is_file()}


def _store_half(server: Server, raw: bytes) -> None:
    original = socket.socket.sendall
    sent = 0

    def cut(self: socket.socket, data: bytes, *flags: int) -> None:
        nonlocal sent
        sent += len(data)
        if sent > len(raw) // 2:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()
            raise OSError("cut")
        original(self, data, *flags)

    socket.socket.sendall = cut  # type: ignore[method-assign, assignment]
    try:
        store_raw(server, str(CTImageStorage), new_uid(), "1.2.840.10008.1.2.1", raw)
    finally:
        socket.socket.sendall = original  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", range(5))
def test_garbage_on_each_port_is_survived(shared: Server, seed: int) -> None:
    import random

    rng = random.Random(seed)
    for port in (shared.dicom_port, shared.api_port):
        for head in (
            b"",
            b"\x01\x00\xff\xff\xff\xff",
            b"\x04\x00\x00\x00\x00\x0a",
            b"POST /dicom-web/studies HTTP/1.1\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), 10) as sock:
                sock.settimeout(3)
                try:
                    sock.sendall(head + rng.randbytes(rng.randrange(1, 5000)))
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except (ConnectionError, TimeoutError):
                    pass
    alive(shared)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A server whose volume is a tmpfs of 24 MiB."""
    running = Server(tmp_path / "server")
    running.data_dir.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(running.data_dir)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        if STRICT:
            pytest.fail("a tmpfs cannot be mounted here")
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    try:
        running.start()
        yield running
        assert running.stop() == 0
    finally:
        if running.process is not None:
            running.kill()
        subprocess.run(["umount", str(running.data_dir)], check=True)


@pytest.mark.req("REQ-DCM-13")
def test_a_full_disk_is_a700_and_507_and_nothing_is_lost(small: Server) -> None:
    client = small.client("technologist")
    ballast = small.data_dir / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(small.data_dir)
        file.write(bytes(free.f_bavail * free.f_frsize - (4 << 20)))
    acknowledged: list[str] = []
    refused = 0
    for number in range(40):
        ds = ct_slice(rows=512, columns=512, number=number)
        status = store(small, ds)
        if status == 0x0000:
            acknowledged.append(str(ds.SOPInstanceUID))
        else:
            assert 0xA700 <= status <= 0xA7FF, hex(status)
            refused += 1
            if refused == 5:
                break
    assert acknowledged
    assert refused == 5
    web = client.post(
        "/dicom-web/studies",
        headers={"Content-Type": "multipart/related; type=application/dicom; boundary=b"},
        content=b"--b\r\nContent-Type: application/dicom\r\n\r\n"
        + part10(ct_slice(rows=512, columns=512))
        + b"\r\n--b--",
    )
    assert web.status_code in (507, 503)
    alive(small)
    assert seen(small) == len(acknowledged)
    ballast.unlink()
    more = ct_slice(rows=512, columns=512, number=99)
    assert store(small, more) == 0x0000
    images = find(
        small,
        StudyRoot,
        QueryRetrieveLevel="IMAGE",
        StudyInstanceUID=str(more.StudyInstanceUID),
        SeriesInstanceUID=str(more.SeriesInstanceUID),
        SOPInstanceUID="",
    )
    assert {str(image.SOPInstanceUID) for image in images} >= {*acknowledged, str(more.SOPInstanceUID)}
    done = small.command("verify", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
