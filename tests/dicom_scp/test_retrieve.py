"""C-GET and C-MOVE: what comes back is what was sent, and the ending tells what happened (sheet 10 §3)."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread, read_dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode as encode_ds

from archive.access import EVERYTHING, Actor, Door
from archive.audit.record import Event
from archive.config import Settings
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.ingest import ingest
from dicom_scp import dimse
from dicom_scp.associate import Role
from dicom_scp.dimse import Field
from dicom_scp.echo import verify
from dicom_scp.ends import AssociationEnd, NotAssociated
from dicom_scp.messages import Answer
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set, new_uid
from tests.conftest import need
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.test_negotiate import user
from tests.dicom_scp.wire import CT, EXPLICIT, IMPLICIT, STUDY_GET, STUDY_MOVE, Peer, Proposed, request
from tests.server import free_port

STUDY = new_uid("study")
BIG_ENDIAN, DEFLATED, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
GETTER = request(user=user(roles={CT: Role(scu=False, scp=True)}))


def keep(archive: Archive, *objects: Dataset) -> list[Dataset]:
    """Put objects into the archive without the network."""
    who = Actor(user="tester", source="", door=Door.SYSTEM, may=EVERYTHING)
    for ds in objects:
        meta = FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID)
        incoming = archive.hot.receive(meta, at=archive.real_clock())
        incoming.write(data_set(ds))
        ingest(archive, incoming, actor=who)
    return list(objects)


def identifier(*, implicit: bool = False, **keys: Any) -> bytes:
    ds = Dataset()
    for keyword, value in (keys or {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}).items():
        setattr(ds, keyword, value)
    encoded = encode_ds(ds, implicit, True)
    assert encoded is not None
    return encoded


def retrieve_command(field: Field, sop_class: str, destination: str = "", message_id: int = 5) -> bytes:
    ds = Dataset()
    ds.CommandGroupLength = 0
    ds.AffectedSOPClassUID = sop_class
    ds.CommandField = int(field)
    ds.MessageID = message_id
    ds.Priority = 0
    ds.CommandDataSetType = 1
    if destination:
        ds.MoveDestination = destination
    encoded = encode_ds(ds, True, True)
    assert encoded is not None
    return encoded


def cancel(message_id: int = 5) -> bytes:
    ds = Dataset()
    ds.CommandField = int(Field.C_CANCEL_RQ)
    ds.MessageIDBeingRespondedTo = message_id
    ds.CommandDataSetType = 0x0101
    encoded = encode_ds(ds, True, True)
    assert encoded is not None
    return encoded


class Getter(Peer):
    """A caller of C-GET and C-MOVE that sees every message."""

    def ask(self, context: int, field: Field, keys: bytes, destination: str = "") -> None:
        sop_class = STUDY_GET if field is Field.C_GET_RQ else STUDY_MOVE
        self.say(wire.command(context, retrieve_command(field, sop_class, destination)))
        self.say(wire.data_set(context, keys))

    def get(self, keys: bytes, *, status: int = 0) -> tuple[dict[str, bytes], list[Dataset]]:
        """What came, and the C-GET responses; `status` is answered to each C-STORE."""
        self.ask(7, Field.C_GET_RQ, keys)
        return self.collect(status=status)

    def collect(self, *, status: int = 0) -> tuple[dict[str, bytes], list[Dataset]]:
        came: dict[str, bytes] = {}
        responses: list[Dataset] = []
        while True:
            context, command, data = self.message()
            if command.field == Field.C_STORE_RQ:
                came[command.sop_instance_uid] = data
                self.say(wire.command(context, stored(command, status)))
                continue
            responses.append(self.last_set)
            if command.status != Status.PENDING:
                return came, responses

    @property
    def last_set(self) -> Dataset:
        ds = read_dataset(BytesIO(self.last_command), True, True)
        if self.last_data:
            ds.identifier = read_dataset(BytesIO(self.last_data), False, True)
        return ds


def stored(command: dimse.Command, status: int) -> bytes:
    return dimse.response(command, Answer(status))


def counts(ds: Dataset) -> tuple[int | None, int, int, int]:
    return (
        ds.get("NumberOfRemainingSuboperations"),
        ds.NumberOfCompletedSuboperations,
        ds.NumberOfFailedSuboperations,
        ds.NumberOfWarningSuboperations,
    )


# --- C-GET


@pytest.mark.req("REQ-DCM-39")
@pytest.mark.parametrize("max_pdu", [0, 1024, 4096, 16_384, 1 << 20])
def test_what_is_got_is_what_was_kept_whatever_the_pdu(server: Running, max_pdu: int) -> None:
    slices = keep(server.archive, *(ct_slice(rows=90, columns=91, number=number) for number in (1, 2, 3)))
    roles = {CT: Role(scu=False, scp=True)}
    with Getter(server) as peer:
        peer.associate(request(user=user(max_pdu=max_pdu, roles=roles)))
        came, responses = peer.get(identifier())
        assert peer.echoes()
        assert peer.longest <= (max_pdu or 1 << 17)
    assert came == {ds.SOPInstanceUID: data_set(ds) for ds in slices}
    assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 3, 0, 0))
    assert (responses[0].Status, counts(responses[0])[0]) == (Status.PENDING, 2)


@pytest.mark.req("REQ-DCM-06", "REQ-DCM-39")
def test_without_the_scp_role_every_sub_operation_fails(server: Running) -> None:
    slices = keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    with Getter(server) as peer:
        peer.associate()
        came, responses = peer.get(identifier())
        assert peer.echoes()
    assert came == {}
    assert (responses[-1].Status, counts(responses[-1])) == (Status.SUB_OPERATIONS_FAILED, (None, 0, 2, 0))
    assert list(responses[-1].identifier.FailedSOPInstanceUIDList) == [ds.SOPInstanceUID for ds in slices]


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-46")
@pytest.mark.parametrize(
    ("status", "final", "told"),
    [(0xB000, Status.WARNING, (None, 0, 0, 2)), (0xA700, Status.SUB_OPERATIONS_FAILED, (None, 0, 2, 0))],
)
def test_the_answers_of_the_caller_make_the_ending(
    server: Running, status: int, final: Status, told: tuple[int | None, int, int, int]
) -> None:
    keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    with Getter(server) as peer:
        peer.associate(GETTER)
        _, responses = peer.get(identifier(), status=status)
    assert (responses[-1].Status, counts(responses[-1])) == (final, told)


@pytest.mark.req("REQ-DCM-40")
def test_lists_of_uids_and_every_level_select(server: Running) -> None:
    one = ct_slice(number=1)
    two = ct_slice(number=2, SeriesInstanceUID=new_uid("series 2"))
    three = ct_slice(number=3, StudyInstanceUID=new_uid("other"), SeriesInstanceUID=new_uid("series 3"))
    keep(server.archive, one, two, three)
    wanted: list[tuple[dict[str, Any], list[Dataset]]] = [
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": [STUDY, new_uid("other")]}, [one, two, three]),
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY, "PatientID": "WRONG"}, [one, two]),
        (
            {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": STUDY, "SeriesInstanceUID": two.SeriesInstanceUID},
            [two],
        ),
        (
            {
                "QueryRetrieveLevel": "SERIES",
                "SeriesInstanceUID": [two.SeriesInstanceUID, three.SeriesInstanceUID],
                "StudyInstanceUID": "",
            },
            [two, three],
        ),
        (
            {
                "QueryRetrieveLevel": "IMAGE",
                "StudyInstanceUID": STUDY,
                "SeriesInstanceUID": one.SeriesInstanceUID,
                "SOPInstanceUID": [one.SOPInstanceUID, two.SOPInstanceUID],
            },
            [one],
        ),
        ({"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": [one.SOPInstanceUID, three.SOPInstanceUID]}, [one, three]),
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "1.2.3"}, []),
    ]
    with Getter(server) as peer:
        peer.associate(GETTER)
        for keys, found in wanted:
            came, responses = peer.get(identifier(**keys))
            assert sorted(came) == sorted(ds.SOPInstanceUID for ds in found), keys
            assert responses[-1].Status == 0


@pytest.mark.req("REQ-DCM-40")
def test_a_patient_is_got_by_one_patient_id_in_patient_root(server: Running) -> None:
    one = ct_slice(number=1)
    other = ct_slice(
        number=2, PatientID="IPP2", StudyInstanceUID=new_uid("p2"), SeriesInstanceUID=new_uid("p2", "series")
    )
    keep(server.archive, one, other)
    contexts = (
        Proposed(1, wire.VERIFICATION, (IMPLICIT,)),
        Proposed(3, CT, (EXPLICIT,)),
        Proposed(7, wire.PATIENT_GET, (IMPLICIT,)),
    )
    with Getter(server) as peer:
        peer.associate(request(contexts=contexts, user=GETTER.user))
        for keys, status, found in (
            ({"QueryRetrieveLevel": "PATIENT", "PatientID": "IPP2"}, 0, [other]),
            ({"QueryRetrieveLevel": "PATIENT", "PatientID": ["IPP1", "IPP2"]}, Status.DOES_NOT_MATCH_CLASS, []),
            ({"QueryRetrieveLevel": "PATIENT", "PatientID": "IPP*"}, Status.DOES_NOT_MATCH_CLASS, []),
            ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY, "PatientID": "IPP2"}, 0, []),
            ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY, "PatientID": "IPP1"}, 0, [one]),
        ):
            peer.say(wire.command(7, retrieve_command(Field.C_GET_RQ, wire.PATIENT_GET)))
            peer.say(wire.data_set(7, identifier(implicit=True, **keys)))
            came, responses = peer.collect()
            assert (responses[-1].Status, sorted(came)) == (status, [ds.SOPInstanceUID for ds in found]), keys


@pytest.mark.req("REQ-DCM-46")
@pytest.mark.parametrize(
    ("keys", "status", "offending"),
    [
        (identifier(QueryRetrieveLevel="PATIENT", PatientID="IPP1"), Status.DOES_NOT_MATCH_CLASS, 0x00080052),
        (identifier(StudyInstanceUID="1.2"), Status.DOES_NOT_MATCH_CLASS, 0x00080052),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), Status.DOES_NOT_MATCH_CLASS, 0x0020000D),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID="*"), Status.DOES_NOT_MATCH_CLASS, 0x0020000D),
        (identifier(QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.2"), Status.DOES_NOT_MATCH_CLASS, 0x00080018),
        (b"\x08\x00\x52\x00CS\xf0\x00ab", Status.CANNOT_UNDERSTAND, None),
    ],
)
def test_an_identifier_that_asks_for_nothing_is_refused(
    server: Running, keys: bytes, status: Status, offending: int | None
) -> None:
    with Getter(server) as peer:
        peer.associate(GETTER)
        _, [response] = peer.get(keys)
        assert (response.Status, response.get("OffendingElement")) == (status, offending)
        assert peer.echoes()


@pytest.mark.req("REQ-DCM-46")
def test_a_peer_that_may_not_retrieve_is_told_and_audited(settings: Settings) -> None:
    with running(settings, peers={"TESTER": {"may": ["store"]}}) as server, Getter(server) as peer:
        peer.associate(GETTER)
        _, [response] = peer.get(identifier())
        assert response.Status == Status.NOT_AUTHORISED
        [row] = [row for row in server.audit_rows() if row.outcome]
        assert (row.event, row.action, row.user) == (Event.INSTANCES_TRANSFERRED, "R", "TESTER")


@pytest.mark.req("REQ-DCM-38")
def test_a_cancel_stops_a_get_and_says_what_was_left(server: Running) -> None:
    keep(server.archive, *(ct_slice(number=number) for number in range(1, 6)))
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        context, command, _ = peer.message()
        peer.say(wire.command(7, cancel()) + wire.command(context, stored(command, 0)))
        came, responses = peer.collect()
        assert peer.echoes()
    assert came == {}
    assert (responses[-1].Status, counts(responses[-1])) == (Status.CANCELLED, (4, 1, 0, 0))


def test_another_request_during_a_get_aborts(server: Running) -> None:
    """The asynchronous window is one operation."""
    keep(server.archive, ct_slice())
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        peer.message()
        peer.say(wire.command(1, dimse.echo_request(9)))
        assert peer.hear()[0] == 7


@pytest.mark.req("REQ-DCM-39")
def test_a_copy_that_is_missing_or_short_fails_alone(server: Running) -> None:
    slices = keep(server.archive, *(ct_slice(number=number) for number in (1, 2, 3)))
    paths = {path.read_bytes()[-400:]: path for path in Path(server.archive.hot.root).glob("*/*/*/*/*.dcm")}
    paths[data_set(slices[0])[-400:]].unlink()
    os.truncate(paths[data_set(slices[1])[-400:]], 700)
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier())
    assert list(came) == [slices[2].SOPInstanceUID]
    assert (responses[-1].Status, counts(responses[-1])) == (Status.WARNING, (None, 1, 2, 0))
    assert list(responses[-1].identifier.FailedSOPInstanceUIDList) == [ds.SOPInstanceUID for ds in slices[:2]]


def test_the_opening_row_stands_before_the_first_byte_and_the_closing_one_counts(server: Running) -> None:
    """Law 4."""
    keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    before = len(server.audit_rows())
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        context, command, _ = peer.message()
        [row] = server.audit_rows()[before:]
        assert (row.event, row.action, row.study, row.user) == (Event.INSTANCES_TRANSFERRED, "R", STUDY, "TESTER")
        peer.say(wire.command(context, stored(command, 0)))
        peer.collect()
    server.stop()
    server.archive.accesses.close()
    closing = json.loads(server.audit_rows()[-1].detail)
    assert (closing["phase"], closing["instances"]) == ("close", 2)


# --- C-MOVE


class Destination:
    """A storage SCP of pynetdicom: takes what it is told to take, and remembers it."""

    def __init__(self, *, syntaxes: tuple[str, ...] = (EXPLICIT, IMPLICIT), statuses: tuple[int, ...] = ()) -> None:
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
def destination(**how: Any) -> Iterator[Destination]:
    made = Destination(**how)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def moving(settings: Settings, port: int) -> Iterator[tuple[Running, Getter]]:
    peers = {"DEST": {"host": "127.0.0.1", "port": port}, "NOWHERE": {}}
    with running(settings, peers=peers) as server, Getter(server) as peer:
        peer.associate()
        yield server, peer


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-43")
def test_a_move_sends_what_was_kept_and_names_its_originator(settings: Settings) -> None:
    with destination() as to, moving(settings, to.port) as (server, peer):
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
    with destination(statuses=statuses) as to, moving(settings, to.port) as (server, peer):
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
    with destination() as to, moving(settings, to.port) as (server, peer):
        to.abort_at = 1
        slices = keep(server.archive, *(ct_slice(number=number) for number in (1, 2, 3)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        _, responses = peer.collect()
        assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 3, 0, 0))
        assert sorted(to.came) == sorted(ds.SOPInstanceUID for ds in slices)
        assert to.associations == 2


def test_a_copy_that_fails_while_it_is_sent_fails_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer is made up: no disk fails at a chosen byte."""
    with destination() as to, moving(settings, to.port) as (server, peer):
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


@pytest.mark.req("REQ-DCM-38")
def test_a_cancel_stops_a_move(settings: Settings) -> None:
    with destination() as to, moving(settings, to.port) as (server, peer):
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
    with destination() as to, moving(settings, to.port) as (server, peer):
        to.pause = 0.2
        keep(server.archive, *(ct_slice(number=number) for number in range(1, 30)))
        peer.ask(9, Field.C_MOVE_RQ, identifier(), "DEST")
        peer.message()
        peer.sock.close()
        server.stop()
        assert len(to.came) < 20


@pytest.mark.req("REQ-DCM-41")
def test_a_destination_that_takes_only_lossy_syntaxes_gets_nothing(settings: Settings) -> None:
    with destination(syntaxes=("1.2.840.10008.1.2.4.50",)) as to, moving(settings, to.port) as (server, peer):
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
    with destination(syntaxes=(target,)) as to, moving(settings, to.port) as (server, peer):
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


# --- real clients


def write_study(server: Running) -> list[Dataset]:
    return keep(server.archive, *(ct_slice(rows=128, columns=128, number=number) for number in range(1, 8)))


def bodies(folder: Path) -> dict[str, bytes]:
    """The data sets of the files in a folder, by SOP Instance UID."""
    found = {}
    for path in folder.iterdir():
        whole = path.read_bytes()
        (length,) = struct.unpack_from("<I", whole, 140)
        found[str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = whole[144 + length :]
    return found


@pytest.mark.req("REQ-DCM-06", "REQ-DCM-39", "REQ-DCM-70")
def test_getscu_brings_a_study_back_byte_for_byte(server: Running, tmp_path: Path) -> None:
    need("getscu")
    slices = write_study(server)
    folder = tmp_path / "got"
    folder.mkdir()
    done = subprocess.run(
        ["getscu", "-S", "+B", "-od", str(folder), "-aec", "MINIPACS",
         "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}", "127.0.0.1", str(server.port)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert bodies(folder) == {ds.SOPInstanceUID: data_set(ds) for ds in slices}


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-70")
def test_movescu_has_a_study_sent_to_storescp_byte_for_byte(settings: Settings, tmp_path: Path) -> None:
    need("movescu", "storescp")
    folder, port = tmp_path / "moved", free_port()
    folder.mkdir()
    receiver = subprocess.Popen(["storescp", "+B", "-od", str(folder), "-aet", "DEST", str(port)])
    try:
        with running(settings, peers={"DEST": {"host": "127.0.0.1", "port": port}}) as server:
            slices = write_study(server)
            peer = server.archive.settings.dicom.callers()["DEST"]
            deadline = time.monotonic() + 10
            while True:
                try:
                    assert verify(server.archive.settings.dicom, "DEST", peer) == 0
                    break
                except AssociationEnd:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            done = subprocess.run(
                ["movescu", "-S", "-aec", "MINIPACS", "-aem", "DEST",
                 "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}", "127.0.0.1", str(server.port)],
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
        "MINIPACS": {"host": "127.0.0.1", "port": port},
        "OTHER": {"host": "127.0.0.1", "port": port},
    }
    dicom = Settings.model_validate(values).dicom
    assert verify(dicom, "MINIPACS", dicom.callers()["MINIPACS"]) == 0
    with pytest.raises(NotAssociated):
        verify(dicom, "OTHER", dicom.callers()["OTHER"])
