"""Listening and stopping; and what the association's loop adds to C-FIND."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import AE

from archive.audit.record import Event
from archive.config import Settings
from dicom_scp import dimse
from dicom_scp.associate import encode_request
from dicom_scp.dimse import Field
from dicom_scp.server import serve
from dicom_scp.status import Status
from tests.bench.__main__ import cpu_seconds, tree
from tests.builders import ct_slice, data_set
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import Getter, cancel, identifier, keep, retrieve_command
from tests.dicom_scp.wire import CT, STUDY_FIND, Peer
from tests.server import Server

OVER_TLS = "settings"

ABORT = 7
IMAGES = identifier(
    implicit=True,
    QueryRetrieveLevel="IMAGE",
    StudyInstanceUID=ct_slice().StudyInstanceUID,
    SeriesInstanceUID="",
    SOPInstanceUID="",
)


def ask(peer: Peer, keys: bytes = IMAGES, *, then: bytes = b"") -> list[tuple[int | None, Dataset]]:
    """The answers to a C-FIND; `then` is said in the same breath."""
    command = retrieve_command(Field.C_FIND_RQ, STUDY_FIND)
    peer.say(wire.command(5, command) + wire.data_set(5, keys) + then)
    answers: list[tuple[int | None, Dataset]] = []
    while not answers or answers[-1][0] in (Status.PENDING, Status.PENDING_WITHOUT_KEYS):
        _, response, data = peer.message()
        answers.append((response.status, read_dataset(BytesIO(data), True, True)))
    return answers


def test_every_match_is_answered_in_order(server: Running) -> None:
    slices = keep(server.archive, *(ct_slice(number=number) for number in range(1, 120)))
    with Peer(server) as peer:
        peer.associate()
        answers = ask(peer)
        assert peer.echoes()
    assert [status for status, _ in answers] == [Status.PENDING] * 119 + [Status.SUCCESS]
    assert {ds.SOPInstanceUID for _, ds in answers[:-1]} == {ds.SOPInstanceUID for ds in slices}


@pytest.mark.req("REQ-DCM-38")
def test_a_cancel_ends_a_query(server: Running) -> None:
    keep(server.archive, *(ct_slice(number=number) for number in range(1, 30)))
    with Peer(server) as peer:
        peer.associate()
        answers = ask(peer, then=wire.command(5, cancel()))
        assert answers[-1][0] == Status.CANCELLED
        assert len(answers) < 10
        assert peer.echoes()
        assert ask(peer)[-1][0] == Status.SUCCESS


@pytest.mark.req("REQ-DCM-38")
def test_a_query_that_makes_no_sense_is_refused_with_its_element(server: Running) -> None:
    with Getter(server) as peer:
        peer.associate()
        [(status, _)] = ask(peer, identifier(implicit=True, QueryRetrieveLevel="NOWHERE"))
        assert status == Status.DOES_NOT_MATCH_CLASS
        assert read_dataset(BytesIO(peer.last_command), True, True).OffendingElement == 0x00080052
        [(status, _)] = ask(peer, b"\x08\x00\x52\x00\xf0\xff\xff\x7fab")
        assert status == Status.CANNOT_UNDERSTAND
        assert peer.echoes()


def test_a_peer_that_may_not_query_is_told_and_audited(settings: Settings) -> None:
    with running(settings, peers={"TESTER": {"may": ["store"]}}) as server, Peer(server) as peer:
        peer.associate()
        [(status, _)] = ask(peer)
        assert status == Status.NOT_AUTHORISED
        [row] = [row for row in server.audit_rows() if row.outcome]
        assert (row.event, row.user) == (Event.QUERY, "TESTER")


@pytest.mark.req("REQ-DCM-03")
def test_a_hundred_associations_live_side_by_side(server: Running) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(server)) for _ in range(100)]
        for peer in peers:
            peer.associate()
        threads = threading.active_count()
        assert all(peer.echoes() for peer in peers)
        assert threads < 130
    deadline = time.monotonic() + 5
    while threading.active_count() > threads - 90 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= threads - 90, "threads of ended associations stay"


def test_stopping_ends_idle_associations_at_once(settings: Settings) -> None:
    with running(settings) as server, Peer(server) as one, Peer(server) as two, Peer(server) as silent:
        one.associate()
        two.associate()
        assert one.echoes()
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 2
        assert one.hear()[0] == ABORT
        assert two.hear()[0] == ABORT
        assert silent.hear()[0] in (0, ABORT)


def test_stopping_lets_a_message_finish(server: Running) -> None:
    ds = ct_slice(rows=200, columns=200)
    data = data_set(ds)
    with Peer(server) as peer:
        peer.associate()
        peer.say(wire.command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
        peer.say(wire.p_data(wire.pdv(3, 0, data[:30_000])))
        while not server.incoming_files():
            time.sleep(0.01)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        time.sleep(0.2)
        peer.say(wire.data_set(3, data[30_000:]))
        assert peer.answer().status == 0
        assert peer.hear()[0] == ABORT
        stopper.join()
    assert server.stored_uids() == [ds.SOPInstanceUID]


def test_stopping_does_not_wait_for_a_peer_that_does_not_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_scp.server.FINISH_SECONDS", 0.3)
    ds = ct_slice(rows=200, columns=200)
    with running(settings) as server, Peer(server) as peer:
        peer.associate()
        peer.say(wire.command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
        peer.say(wire.p_data(wire.pdv(3, 0, data_set(ds)[:30_000])))
        while not server.incoming_files():
            time.sleep(0.01)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 3
        assert peer.hear()[0] == ABORT
        assert server.incoming_files() == []


def test_two_servers_share_a_listening_socket_and_one_may_stop(settings: Settings) -> None:
    with running(settings) as one, running(settings) as other:
        shared = socket.create_server(("127.0.0.1", 0))
        stops = [threading.Event(), threading.Event()]
        threads = [
            threading.Thread(
                target=serve,
                args=(server.archive, None if settings.tls.on else shared, stop),
                kwargs={"tls_sock": shared if settings.tls.on else None},
                daemon=True,
            )
            for server, stop in zip((one, other), stops, strict=True)
        ]
        for thread in threads:
            thread.start()
        port = shared.getsockname()[1]
        stops[0].set()
        threads[0].join(10)
        for _ in range(5):
            ae = AE("TESTER")
            ae.add_requested_context(wire.VERIFICATION)
            assoc = ae.associate("127.0.0.1", port, ae_title="MINIPACS", tls_args=one.tls_args)
            assert assoc.send_c_echo().Status == 0
            assoc.release()
        stops[1].set()
        threads[1].join(10)
        assert not any(thread.is_alive() for thread in threads)
        shared.close()


@pytest.mark.req("REQ-DCM-03")
def test_a_hundred_idle_associations_cost_less_than_two_percent_of_a_core(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", environment={"MINIPACS_DICOM__ACCEPT_UNKNOWN_CALLERS": "true"})
    server.start()
    try:
        assert server.process is not None
        with ExitStack() as stack:
            for _ in range(100):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.dicom_port), timeout=10))
                sock.sendall(encode_request(wire.REQUEST))
                assert sock.recv(1) == b"\2"
            time.sleep(0.5)
            [dicom] = [pid for pid in tree(server.process.pid) if _serves_dicom(pid)]
            before, began = cpu_seconds(dicom), time.monotonic()
            time.sleep(3)
            assert (cpu_seconds(dicom) - before) / (time.monotonic() - began) < 0.02
    finally:
        assert server.stop() == 0


def _serves_dicom(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"minipacs.edge" in words and b"dicom" in words
