"""C-MOVE: what arrives is what was kept, and the ending tells what happened (sheet 10 §3)."""

from __future__ import annotations

import errno
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.filereader import dcmread, read_dataset
from pynetdicom import AE, evt

from archive.config import Settings
from archive.dicom import lossless
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.syntaxes import JPEG
from dicom_scp.dimse import Field
from dicom_scp.echo import verify
from dicom_scp.ends import AssociationEnd, NotAssociated
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set
from tests.certificates import Authority
from tests.conftest import need
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import (
    BIG_ENDIAN,
    DEFLATED,
    RLE,
    STUDY,
    Getter,
    bodies,
    cancel,
    counts,
    identifier,
    keep,
    retrieve_command,
    write_study,
)
from tests.dicom_scp.wire import CT, EXPLICIT, IMPLICIT, STUDY_MOVE
from tests.server import free_port

OVER_TLS = "settings"
BASELINE, JPEG_LS = "1.2.840.10008.1.2.4.50", lossless.JPEG_LS


class Destination:
    """A storage SCP of pynetdicom: takes what it is told to take, and remembers it."""

    def __init__(
        self,
        *,
        syntaxes: tuple[str, ...] = (EXPLICIT, IMPLICIT),
        statuses: tuple[int, ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = free_port()
        self.statuses = list(statuses)
        self.came: dict[str, tuple[str, bytes]] = {}
        self.originators: set[tuple[object, object]] = set()
        self.pause = 0.0
        self.abort_at: int | None = None
        self.associations = 0
        self._ae = AE("DEST")
        self._ae.add_supported_context(CT, list(syntaxes))
        self._server = self._ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            ssl_context=tls,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._established)],
        )

    def _established(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int:
        time.sleep(self.pause)
        if self.abort_at is not None and len(self.came) == self.abort_at:
            self.abort_at = None
            event.assoc.abort()
            return 0
        rq = event.request
        self.originators.add((rq.MoveOriginatorApplicationEntityTitle, rq.MoveOriginatorMessageID))
        self.came[rq.AffectedSOPInstanceUID] = (event.context.transfer_syntax, rq.DataSet.getvalue())
        return self.statuses.pop(0) if self.statuses else 0

    def close(self) -> None:
        self._server.shutdown()


@contextmanager
def destination(settings: Settings, *, made_out_to: str = "127.0.0.1", **how: Any) -> Iterator[Destination]:
    """It speaks TLS, and demands a certificate, where the archive does; its own is made out to an address."""
    made = Destination(**how, tls=destination_context(settings, made_out_to))
    try:
        yield made
    finally:
        made.close()


def destination_context(settings: Settings, address: str) -> ssl.SSLContext | None:
    if settings.tls.cert is None:
        return None
    authority = Authority(settings.tls.cert.parent)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.root.cert))
    context.verify_mode = ssl.CERT_REQUIRED
    shown = authority.issue(f"destination-{address}", names=f"subjectAltName=DNS:localhost,IP:{address}")
    return shown.load(context)


@contextmanager
def moving(settings: Settings, port: int) -> Iterator[tuple[Running, Getter]]:
    peers = {"DEST": {"host": "127.0.0.1", "port": port, "tls": settings.tls.on}, "NOWHERE": {}}
    with running(settings, peers=peers) as server, Getter(server) as peer:
        peer.associate()
        yield server, peer


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-43")
def test_a_move_sends_what_was_kept_and_names_its_originator(settings: Settings) -> None:
    with destination(settings) as to, moving(settings, to.port) as (server, peer):
        slices = keep(server.archive, *(ct_slice(rows=200, columns=200, number=number) for number in (1, 2, 3)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 3, 0, 0))
        assert to.came == {ds.SOPInstanceUID: (EXPLICIT, data_set(ds)) for ds in slices}
        assert to.originators == {("TESTER", 5)}
        assert peer.echoes()


@pytest.mark.req("REQ-DCM-39")
@pytest.mark.parametrize(
    ("statuses", "final", "told", "failed"),
    [
        ((0, 0, 0), Status.SUCCESS, (None, 3, 0, 0), []),
        ((0, 0xB007, 0), Status.WARNING, (None, 2, 0, 1), []),
        ((0, 0xA700, 0xC123), Status.WARNING, (None, 1, 2, 0), [1, 2]),
        ((0xA700, 0xA900, 0x0122), Status.SUB_OPERATIONS_FAILED, (None, 0, 3, 0), [0, 1, 2]),
    ],
)
def test_the_answers_of_the_destination_make_the_ending(
    settings: Settings,
    statuses: tuple[int, ...],
    final: Status,
    told: tuple[int | None, int, int, int],
    failed: list[int],
) -> None:
    with destination(settings, statuses=statuses) as to, moving(settings, to.port) as (server, peer):
        slices = keep(server.archive, *(ct_slice(number=number) for number in (1, 2, 3)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
    assert (responses[-1].Status, counts(responses[-1])) == (final, told)
    listed = responses[-1].identifier.FailedSOPInstanceUIDList if failed else []
    listed = [listed] if isinstance(listed, str) else list(listed)
    assert listed == [slices[place].SOPInstanceUID for place in failed]


@pytest.mark.req("REQ-DCM-39")
@pytest.mark.parametrize("title", ["UNKNOWN", "NOWHERE", ""])
def test_an_unknown_destination_is_said(settings: Settings, title: str) -> None:
    with moving(settings, free_port()) as (server, peer):
        keep(server.archive, ct_slice())
        peer.ask(9, Field.C_MOVE_RQ, identifier(), title)
        _, [response] = peer.collect()
        assert response.Status == Status.UNKNOWN_DESTINATION
        assert peer.echoes()


@pytest.mark.req("REQ-DCM-39")
def test_a_destination_that_does_not_answer_fails_every_sub_operation(settings: Settings) -> None:
    with moving(settings, free_port()) as (server, peer):
        keep(server.archive, ct_slice(number=1), ct_slice(number=2))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (Status.SUB_OPERATIONS_FAILED, (None, 0, 2, 0))
        assert "cannot be reached" in responses[-1].ErrorComment
        assert peer.echoes()


def test_a_destination_that_is_lost_on_the_way_is_called_again(settings: Settings) -> None:
    with destination(settings) as to, moving(settings, to.port) as (server, peer):
        to.abort_at = 1
        slices = keep(server.archive, *(ct_slice(number=number) for number in (1, 2, 3)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 3, 0, 0))
        assert sorted(to.came) == sorted(ds.SOPInstanceUID for ds in slices)
        assert to.associations == 2


def test_a_copy_that_fails_while_it_is_sent_fails_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer is made up: no disk fails at a chosen byte."""
    with destination(settings) as to, moving(settings, to.port) as (server, peer):
        large = ct_slice(rows=700, columns=700, number=1)
        small = ct_slice(number=2)
        keep(server.archive, large, small)
        real = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            if offset > 400_000:
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (Status.WARNING, (None, 1, 1, 0))
        assert list(to.came) == [small.SOPInstanceUID]


@pytest.mark.req("REQ-DCM-46")
@pytest.mark.parametrize(
    ("sop_class", "keys", "status"),
    [
        (STUDY_MOVE, identifier(QueryRetrieveLevel="PATIENT", PatientID="IPP1"), Status.DOES_NOT_MATCH_CLASS),
        (STUDY_MOVE, identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID="*"), Status.DOES_NOT_MATCH_CLASS),
        (STUDY_MOVE, b"\x08\x00\x52\x00CS\xf0\x00ab", Status.CANNOT_UNDERSTAND),
        (wire.STUDY_GET, identifier(), Status.CLASS_NOT_SUPPORTED),  # another class than the context's
    ],
    ids=["level", "wildcard", "unreadable", "class"],
)
def test_a_move_that_makes_no_sense_is_refused_and_nothing_is_sent(
    settings: Settings, sop_class: str, keys: bytes, status: Status
) -> None:
    with destination(settings) as to, moving(settings, to.port) as (server, peer):
        keep(server.archive, ct_slice())
        peer.say(wire.command(9, retrieve_command(Field.C_MOVE_RQ, sop_class, "DEST")) + wire.data_set(9, keys))
        _, [response] = peer.collect()
        assert response.Status == status
        assert response.get("ErrorComment")
        assert (peer.echoes(), to.associations) == (True, 0)


@pytest.mark.req("REQ-DCM-46")
def test_a_peer_that_may_not_retrieve_may_not_have_it_moved(settings: Settings) -> None:
    peers = {"TESTER": {"may": ["store", "query"]}, "DEST": {"host": "127.0.0.1", "port": free_port()}}
    with running(settings, peers=peers) as server, Getter(server) as peer:
        peer.associate()
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, [response] = peer.collect()
        assert response.Status == Status.NOT_AUTHORISED


@pytest.mark.req("REQ-DCM-38")
def test_a_cancel_stops_a_move(settings: Settings) -> None:
    with destination(settings) as to, moving(settings, to.port) as (server, peer):
        to.pause = 0.3
        keep(server.archive, *(ct_slice(number=number) for number in range(1, 6)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, first, _ = peer.message()
        assert first.status == Status.PENDING
        peer.say(wire.command(9, cancel()))
        _, responses = peer.collect()
        assert responses[-1].Status == Status.CANCELLED
        remaining, completed, failed, warnings = counts(responses[-1])
        assert remaining
        assert (remaining + completed, failed, warnings) == (5, 0, 0)
        assert peer.echoes()


def test_a_caller_that_aborts_stops_its_move(settings: Settings) -> None:
    with destination(settings) as to, moving(settings, to.port) as (server, peer):
        to.pause = 0.2
        keep(server.archive, *(ct_slice(number=number) for number in range(1, 30)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        peer.message()
        peer.sock.close()
        server.stop()
        assert len(to.came) < 20


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("syntaxes", [(BASELINE,), (f"{JPEG}201", f"{JPEG}202")])
def test_a_destination_that_takes_only_lossy_syntaxes_or_what_cannot_be_made_gets_nothing(
    settings: Settings, syntaxes: tuple[str, ...]
) -> None:
    """HTJ2K: there is no encoder here (docs/decisions/0022)."""
    with destination(settings, syntaxes=syntaxes) as to, moving(settings, to.port) as (server, peer):
        keep(server.archive, ct_slice())
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (Status.SUB_OPERATIONS_FAILED, (None, 0, 1, 0))
        assert to.came == {}


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("kept_in", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED, RLE])
def test_a_destination_without_the_stored_syntax_gets_another_without_loss(
    settings: Settings, kept_in: str, target: str
) -> None:
    """Large enough for several sends."""
    with destination(settings, syntaxes=(target,)) as to, moving(settings, to.port) as (server, peer):
        ds = ct_slice(rows=700, columns=701, transfer_syntax=kept_in if kept_in != RLE else EXPLICIT)
        pixels = ds.pixel_array.copy()
        if kept_in == RLE:
            ds.compress(RLE, generate_instance_uid=False)
        elif kept_in == BIG_ENDIAN:
            ds.PixelData = pixels.astype(">u2").tobytes()
        keep(server.archive, ds)
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 1, 0, 0))
        syntax, data = to.came[ds.SOPInstanceUID]
        assert syntax == target
        sent = read_dataset(BytesIO(data), target == IMPLICIT, True)
        assert sent.PixelData == pixels.astype("<u2").tobytes()
        assert sent.PatientName == ds.PatientName
        if kept_in == target:
            assert data == data_set(ds)


@pytest.mark.req("REQ-DCM-41")
@pytest.mark.parametrize("target", lossless.SYNTAXES)
@pytest.mark.parametrize("kept_in", [EXPLICIT, RLE])
def test_a_destination_that_takes_a_compressed_syntax_alone_gets_it_without_loss(
    settings: Settings, kept_in: str, target: str
) -> None:
    with destination(settings, syntaxes=(target, BASELINE)) as to, moving(settings, to.port) as (server, peer):
        ds = ct_slice(rows=700, columns=701)
        pixels = ds.pixel_array.copy()
        if kept_in == RLE:
            ds.compress(RLE, generate_instance_uid=False)
        keep(server.archive, ds)
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 1, 0, 0))
        syntax, data = to.came[ds.SOPInstanceUID]
        assert syntax == target
        sent = dcmread(BytesIO(file_head(FileMeta(CT, ds.SOPInstanceUID, syntax)) + data))
        assert (sent.pixel_array == pixels).all()
        assert "LossyImageCompression" not in sent


@pytest.mark.req("REQ-DCM-41")
def test_as_stored_comes_before_other_syntaxes_and_compressed_ones_before_native(settings: Settings) -> None:
    """One peer that takes all: uncompressed leaves as it lies, RLE as it lies; without RLE, JPEG-LS before plain."""
    plain, packed = ct_slice(number=1, rows=64, columns=64), ct_slice(number=2, rows=64, columns=64)
    packed.compress(RLE, generate_instance_uid=False)
    for accepted, syntaxes in (
        ((JPEG_LS, RLE, IMPLICIT, EXPLICIT), [EXPLICIT, RLE]),
        ((JPEG_LS, IMPLICIT), [IMPLICIT, JPEG_LS]),
    ):
        with destination(settings, syntaxes=accepted) as to, moving(settings, to.port) as (server, peer):
            keep(server.archive, plain, packed)
            peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
            _, responses = peer.collect()
            assert responses[-1].Status == 0
            assert [to.came[ds.SOPInstanceUID][0] for ds in (plain, packed)] == syntaxes


@pytest.mark.req("REQ-DCM-41")
def test_what_a_codec_does_not_take_falls_back_to_little_endian(settings: Settings) -> None:
    """Overlays in unused bits."""
    ds = ct_slice(rows=32, columns=32)
    ds.PixelData = values = bytes(byte | 0x80 for byte in ds.PixelData)
    ds.compress(RLE, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    for syntaxes, outcome in (((JPEG_LS,), (0, 1)), ((JPEG_LS, IMPLICIT), (1, 0))):
        with destination(settings, syntaxes=syntaxes) as to, moving(settings, to.port) as (server, peer):
            keep(server.archive, ds)
            peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
            _, responses = peer.collect()
            assert counts(responses[-1])[1:3] == outcome
            sent = [read_dataset(BytesIO(data), syntax == IMPLICIT, True) for syntax, data in to.came.values()]
            assert [one.PixelData for one in sent] == [values] * outcome[0]


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-70")
def test_movescu_has_a_study_sent_to_storescp_byte_for_byte(settings: Settings, tmp_path: Path) -> None:
    need("movescu", "storescp")
    folder, port = tmp_path / "moved", free_port()
    receiving = []
    if settings.tls.cert is not None:
        authority = Authority(settings.tls.cert.parent)
        receiving = authority.options(authority.issue("destination"))
    folder.mkdir()
    receiver = subprocess.Popen(["storescp", *receiving, "+B", "-od", str(folder), "-aet", "DEST", str(port)])
    try:
        with running(settings, peers={"DEST": {"host": "127.0.0.1", "port": port, "tls": settings.tls.on}}) as server:
            slices = write_study(server)
            peer = server.archive.settings.dicom.callers()["DEST"]
            deadline = time.monotonic() + 10
            while True:
                try:
                    assert verify(server.archive.settings, "DEST", peer) == 0
                    break
                except AssociationEnd:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with server.port_in_clear() as here:
                done = subprocess.run(
                    ["movescu", "-S", "-aec", "MINIPACS", "-aem", "DEST",
                     "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}", "127.0.0.1", str(here)],
                    capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
            assert done.returncode == 0, done.stderr
    finally:
        receiver.terminate()
        receiver.wait()
    assert bodies(folder) == {ds.SOPInstanceUID: data_set(ds) for ds in slices}


@pytest.mark.req("REQ-DCM-01")
def test_a_peer_is_asked_whether_it_answers(settings: Settings, server: Running) -> None:
    port = server.port
    values = settings.model_dump()
    values["dicom"]["peers"] = {
        "MINIPACS": {"host": "127.0.0.1", "port": port, "tls": settings.tls.on},
        "OTHER": {"host": "127.0.0.1", "port": port, "tls": settings.tls.on},
    }
    changed = Settings.model_validate(values)
    callers = changed.dicom.callers()
    assert verify(changed, "MINIPACS", callers["MINIPACS"]) == 0
    with pytest.raises(NotAssociated):
        verify(changed, "OTHER", callers["OTHER"])
