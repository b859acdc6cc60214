"""C-STORE: the receipt, and what is refused with which words (table 2.3 of sheet 10)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from sqlalchemy import select

from archive import errors
from archive.audit.record import Event
from archive.config import Settings
from archive.errors import ArchiveError
from archive.instance import Outcome
from archive.schema import instance, location
from dicom_scp import dimse, pdu, status
from dicom_scp.classes import STORAGE_SYNTAXES
from dicom_scp.dimse import Field
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set, new_uid, part10
from tests.conftest import need
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.wire import CT, EXPLICIT, Peer, Proposed, request

OVER_TLS = "settings"

# Command Data Set Type (0000,0800): 0001 becomes 0101
WITHOUT_DATA_SET = dimse.store_request(1, CT, "1.2.3").replace(b"\0\0\0\x08\x02\0\0\0\1\0", b"\0\0\0\x08\x02\0\0\0\1\1")


def send(server: Running, data: bytes, uid: str, *, context: int = 3, sop_class: str = CT) -> dimse.Command:
    with Peer(server) as peer:
        peer.associate()
        return send_on(peer, data, uid, context=context, sop_class=sop_class)


def send_on(peer: Peer, data: bytes, uid: str, *, context: int = 3, sop_class: str = CT) -> dimse.Command:
    peer.say(wire.command(context, dimse.store_request(1, sop_class, uid)))
    for start in range(0, len(data), 16_000):
        last = wire.LAST if start + 16_000 >= len(data) else 0
        peer.say(wire.p_data(wire.pdv(context, last, data[start : start + 16_000])))
    return peer.answer()


def stored_files(server: Running) -> list[Path]:
    return sorted(Path(server.archive.hot.root).glob("*/*/*/*/*.dcm"))


@pytest.mark.req("REQ-DCM-10")
def test_the_data_set_is_kept_bit_for_bit(server: Running) -> None:
    ds = ct_slice(rows=300, columns=301)
    ds.add_new(0x00090010, "LO", "SOMEBODY")
    ds.add_new(0x00091001, "UN", b"\1\2\3\4")
    data = data_set(ds)
    assert send(server, data, ds.SOPInstanceUID).status == Status.SUCCESS
    [path] = stored_files(server)
    assert hashlib.sha256(path.read_bytes()[-len(data) :]).digest() == hashlib.sha256(data).digest()
    assert server.incoming_files() == []


@pytest.mark.req("REQ-DCM-12")
def test_each_syntax_is_stored_as_received(server: Running) -> None:
    """The bytes are little endian whatever they are called: they are stored unopened beyond the header."""
    syntaxes = sorted(
        syntax
        for syntax in STORAGE_SYNTAXES
        if syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
    )
    proposed = tuple(Proposed(2 * place + 1, CT, (syntax,)) for place, syntax in enumerate(syntaxes))
    sent = {}
    with Peer(server) as peer:
        peer.associate(request(contexts=proposed))
        for context in proposed:
            ds = ct_slice()
            sent[ds.SOPInstanceUID] = context.transfer_syntaxes[0]
            assert send_on(peer, data_set(ds), ds.SOPInstanceUID, context=context.id).status == 0, context
    with server.archive.engine.connect() as conn:
        rows = conn.execute(
            select(instance.c.sop_instance_uid, location.c.transfer_syntax_uid).join_from(location, instance)
        ).all()
    assert {row.sop_instance_uid: row.transfer_syntax_uid for row in rows} == sent


@pytest.mark.req("REQ-DCM-13", "REQ-DCM-16")
@pytest.mark.parametrize("uid", ["", "1.2.abc", "1..2", "1.02.3", "1." + "2" * 64])
def test_an_illegal_uid_in_the_command_is_refused(server: Running, uid: str) -> None:
    ds = ct_slice()
    answer = send(server, data_set(ds), uid)
    assert answer.status == Status.DOES_NOT_MATCH_CLASS
    assert server.stored_uids() == []
    assert server.incoming_files() == []


@pytest.mark.req("REQ-DCM-13", "REQ-DCM-16")
def test_a_uid_that_is_not_the_announced_one_is_named(server: Running) -> None:
    ds = ct_slice()
    with Peer(server) as peer:
        peer.associate()
        peer.say(wire.command(3, dimse.store_request(1, CT, "1.2.3.4")))
        peer.say(wire.data_set(3, data_set(ds)))
        kind, body = peer.hear()
        assert peer.echoes()
    answer = dimse.decode(body[6:])
    assert (kind, answer.status) == (4, Status.DOES_NOT_MATCH_CLASS)
    assert b"\x00\x00\x01\x09\x04\x00\x00\x00\x08\x00\x18\x00" in body  # Offending Element (0008,0018)
    assert b"announced" in body  # Error Comment
    assert server.stored_uids() == []


@pytest.mark.req("REQ-DCM-13", "REQ-DCM-16")
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_missing_uid_is_refused(server: Running, keyword: str) -> None:
    ds = ct_slice()
    uid = ds.SOPInstanceUID
    delattr(ds, keyword)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CT, uid
    assert send(server, data_set(ds), uid).status == Status.DOES_NOT_MATCH_CLASS


@pytest.mark.req("REQ-DCM-13")
def test_what_cannot_be_parsed_is_not_understood(server: Running) -> None:
    assert send(server, b"\x08\x00\x05\x00CS\xff\x7f" + bytes(100), "1.2.3").status == Status.CANNOT_UNDERSTAND
    assert server.stored_uids() == []
    assert server.incoming_files() == []


@pytest.mark.req("REQ-DCM-13", "REQ-DCM-15")
def test_other_content_under_a_known_uid_is_a_conflict_and_the_same_again_a_success(server: Running) -> None:
    ds = ct_slice(number=1)
    other = ct_slice(number=2, SOPInstanceUID=ds.SOPInstanceUID)
    assert send(server, data_set(ds), ds.SOPInstanceUID).status == Status.SUCCESS
    assert send(server, data_set(ds), ds.SOPInstanceUID).status == Status.SUCCESS
    assert send(server, data_set(other), ds.SOPInstanceUID).status == Status.UID_CONFLICT
    assert server.stored_uids() == [ds.SOPInstanceUID]


@pytest.mark.req("REQ-DCM-13")
def test_a_full_volume_answers_out_of_resources_and_the_association_lives(settings: Settings) -> None:
    full = replace_storage(settings, reserve_bytes=1 << 60)
    ds = ct_slice(rows=300, columns=300)
    with running(full) as server, Peer(server) as peer:
        peer.associate()
        assert send_on(peer, data_set(ds), ds.SOPInstanceUID).status == Status.OUT_OF_RESOURCES
        assert peer.echoes()


def replace_storage(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"storage": settings.storage.model_copy(update=changes)})


@pytest.mark.req("REQ-DCM-13")
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Status.OUT_OF_RESOURCES),
        (OSError(errno.EIO, "Input/output error"), Status.OUT_OF_RESOURCES),
        (ZeroDivisionError("a bug"), Status.BUG),
    ],
    ids=["full", "failing", "bug"],
)
def test_a_volume_that_fails_on_the_way_drops_the_object_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch, failure: Exception, code: Status
) -> None:
    """The kernel's answer is made up: no disk fails at a chosen byte."""
    ds = ct_slice(rows=800, columns=800)
    real, calls = os.writev, []

    def writev(fd: int, parts: list[memoryview]) -> int:
        calls.append(fd)
        if len(calls) > 3:
            raise failure
        return real(fd, parts)

    with Peer(server) as peer:
        peer.associate()
        monkeypatch.setattr(os, "writev", writev)
        assert send_on(peer, data_set(ds), ds.SOPInstanceUID).status == code
        monkeypatch.setattr(os, "writev", real)
        assert server.incoming_files() == []
        assert server.stored_uids() == []
        assert send_on(peer, data_set(ds), ds.SOPInstanceUID).status == Status.SUCCESS


@pytest.mark.req("REQ-DCM-13")
def test_a_peer_that_may_not_store_is_told_and_audited_once(settings: Settings) -> None:
    with running(settings, peers={"TESTER": {"may": ["query"]}}) as server, Peer(server) as peer:
        peer.associate()
        for _ in range(2):
            ds = ct_slice()
            assert send_on(peer, data_set(ds), ds.SOPInstanceUID).status == Status.NOT_AUTHORISED
        assert peer.echoes()
        assert server.stored_uids() == []
        [row] = [row for row in server.audit_rows() if row.outcome]
    assert (row.event, row.action, row.user, row.outcome) == (Event.INSTANCES_TRANSFERRED, "C", "TESTER", 8)


@pytest.mark.parametrize(
    ("context", "command", "code"),
    [
        (3, dimse.echo_request(1), Status.UNRECOGNISED_OPERATION),
        (1, dimse.store_request(1, CT, "1.2.3"), Status.UNRECOGNISED_OPERATION),
        (3, dimse.store_request(1, "1.2.840.10008.5.1.4.1.1.4", "1.2.3"), Status.CLASS_NOT_SUPPORTED),
        (3, WITHOUT_DATA_SET, Status.MISTYPED_ARGUMENT),
    ],
    ids=["echo on storage", "store on verification", "other class", "no data set"],
)  # fmt: skip
@pytest.mark.req("REQ-DCM-13")
def test_a_wrong_request_is_answered_and_the_association_lives(
    server: Running, context: int, command: bytes, code: Status
) -> None:
    with Peer(server) as peer:
        peer.associate()
        peer.say(wire.command(context, command))
        if dimse.decode(command).has_data_set:
            peer.say(wire.data_set(context, bytes(300)))
        answer = peer.answer()
        assert (answer.status, answer.responding_to) == (code, 1)
        assert peer.echoes()


def test_an_unknown_operation_is_answered_as_its_response(server: Running) -> None:
    n_create = dimse.echo_request(8).replace(b"\0\0\0\1\2\0\0\0\x30\0", b"\0\0\0\1\2\0\0\0\x40\1")
    with Peer(server) as peer:
        peer.associate()
        peer.say(wire.command(1, n_create))
        answer = peer.answer()
    assert (answer.field, answer.status) == (0x8140, Status.UNRECOGNISED_OPERATION)


def test_a_cancel_of_nothing_is_ignored(server: Running) -> None:
    cancel = dimse.echo_request(8).replace(b"\0\0\0\1\2\0\0\0\x30\0", b"\0\0\0\1\2\0\0\0\xff\x0f")
    cancel = cancel.replace(b"\0\0\x10\1", b"\0\0\x20\1")
    assert dimse.decode(cancel).field == Field.C_CANCEL_RQ
    with Peer(server) as peer:
        peer.associate()
        peer.say(wire.command(1, cancel))
        assert peer.echoes()


def test_one_audit_row_for_each_association_and_study_and_a_closing_one(server: Running) -> None:
    """Law 4."""
    with Peer(server) as peer:
        peer.associate()
        for study in ("a", "a", "b"):
            ds = ct_slice(StudyInstanceUID=new_uid(study), SeriesInstanceUID=new_uid(study, "series"))
            assert send_on(peer, data_set(ds), ds.SOPInstanceUID).status == 0
        peer.say(pdu.RELEASE_RQ)
        assert peer.hear()[0] == 6
    server.stop()
    server.archive.accesses.close()
    rows = [row for row in server.audit_rows() if row.event == Event.INSTANCES_TRANSFERRED]
    opened = [row for row in rows if json.loads(row.detail)["phase"] == "open"]
    closed = {row.study: json.loads(row.detail)["instances"] for row in rows if row not in opened}
    assert sorted(row.study for row in opened) == sorted([new_uid("a"), new_uid("b")])
    assert closed == {new_uid("a"): 2, new_uid("b"): 1}
    assert {(row.user, row.source, row.door, row.action) for row in rows} == {("TESTER", "127.0.0.1", "dicom", "C")}


def test_every_error_and_outcome_of_the_archive_has_a_status() -> None:
    def family(kind: type[ArchiveError]) -> Iterator[type[ArchiveError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from family(child)

    assert set(family(ArchiveError)) == set(status.OF_ERROR)
    assert set(Outcome) - {Outcome.SAME_UID} == set(status.OF_OUTCOME)
    for kind in family(errors.Unavailable):
        assert status.OF_ERROR[kind] == 0xA700
    assert status.refusal(errors.UidMismatch("x", tag=0x0020000D)).offending == (0x0020000D,)


@contextmanager
def files(folder: Path, *objects: Dataset) -> Iterator[list[str]]:
    folder.mkdir()
    paths = []
    for place, ds in enumerate(objects):
        path = folder / f"{place}.dcm"
        path.write_bytes(part10(ds))
        paths.append(str(path))
    yield paths


@pytest.mark.req("REQ-DCM-10")
def test_storescu_and_pynetdicom_store(server: Running, tmp_path: Path) -> None:
    need("storescu")
    slices = [ct_slice(rows=128, columns=128, number=number) for number in range(1, 6)]
    with files(tmp_path / "sent", *slices) as paths:
        done = subprocess.run(
            ["storescu", "-v", "-aec", "MINIPACS", *server.options(), "127.0.0.1", str(server.port), *paths],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = ct_slice(number=9)
    ae = AE("TESTER")
    ae.add_requested_context(CT, EXPLICIT)
    assoc = ae.associate("127.0.0.1", server.port, ae_title="MINIPACS", tls_args=server.tls_args)
    assert assoc.send_c_store(last).Status == 0
    assoc.release()
    assert server.stored_uids() == [ds.SOPInstanceUID for ds in [*slices, last]]


def test_a_large_object_is_received_in_little_memory(server: Running) -> None:
    ds = ct_slice(rows=4096, columns=4096)
    data = data_set(ds)
    with Peer(server) as peer:
        peer.associate()
        tracemalloc.start()
        try:
            assert send_on(peer, data, ds.SOPInstanceUID).status == 0
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(data) > 32 << 20
    assert peak < 8 << 20
