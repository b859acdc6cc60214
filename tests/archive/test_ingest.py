"""The promise of reception: what is acknowledged is durable, findable, and bit for bit what came."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless
from sqlalchemy import func, select

from archive.access import Actor
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.errors import StorageFailed, StorageFull, UidMismatch, UnreadableInstance
from archive.index.arrival import Arrival
from archive.index.write import add_instance
from archive.ingest import Outcome, arrival_of, ingest
from archive.schema import audit, instance, location, patient, quarantined, work_item
from archive.storage import incoming as storage_incoming
from archive.storage.incoming import Incoming
from tests.builders import ct_slice, data_set, new_uid

Send = Callable[..., Outcome]
MINUTE = datetime(2026, 1, 5, 10, 15, tzinfo=UTC)  # one folder for all, made by the first


def receive(archive: Archive, ds: Dataset, **announced: str) -> Incoming:
    """The bytes of a data set as C-STORE brings them."""
    meta = FileMeta(
        announced.get("sop_class_uid", str(ds.file_meta.MediaStorageSOPClassUID)),
        announced.get("sop_instance_uid", str(ds.file_meta.MediaStorageSOPInstanceUID)),
        str(ds.file_meta.TransferSyntaxUID),
        "CT1",
    )
    incoming = archive.hot.receive(meta, at=MINUTE)
    raw = data_set(ds)
    for start in range(0, len(raw), 1000):
        incoming.write(raw[start : start + 1000])
    return incoming


@pytest.fixture
def send(archive: Archive, actor: Actor) -> Send:
    return lambda ds, **announced: ingest(archive, receive(archive, ds, **announced), actor=actor, scope="a1")


def count(archive: Archive, table: object) -> int:
    with archive.engine.connect() as conn:
        return conn.execute(select(func.count()).select_from(table)).scalar_one()  # type: ignore[arg-type]


def files(archive: Archive) -> list[Path]:
    return [path for path in archive.hot.root.rglob("*.dcm") if path.is_file()]


@pytest.mark.req("REQ-DCM-14")
def test_bytes_then_name_then_row(archive: Archive, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 1: the order that makes 'acknowledged' mean 'durable', seen at the calls of the operating system."""
    send(ct_slice(number=7))  # the folder of this minute is there
    trace: list[str] = []
    real = {name: getattr(os, name) for name in ("fdatasync", "rename", "fsync")}

    def note(name: str) -> None:
        def call(*args: object, **kwargs: object) -> object:
            result = real[name](*args, **kwargs)
            trace.append({"fdatasync": "fdatasync file", "rename": "rename", "fsync": "fsync directory"}[name])
            return result

        monkeypatch.setattr(os, name, call)

    for name in real:
        note(name)
    from sqlalchemy import event

    event.listen(archive.engine, "commit", lambda conn: trace.append("COMMIT"))
    assert send(ct_slice()) is Outcome.STORED
    assert trace == ["fdatasync file", "rename", "fsync directory", "COMMIT"]


@pytest.mark.req("REQ-DCM-10")
def test_the_stored_data_set_is_what_was_sent_bit_for_bit(archive: Archive, send: Send) -> None:
    ds = ct_slice()
    ds.add_new(0x00091001, "LO", "private")
    ds.add_new(0x00090010, "LO", "MINIPACS TEST")
    assert send(ds) is Outcome.STORED
    with archive.engine.connect() as conn:
        row = conn.execute(select(location)).one()
    stored = Path(archive.hot.path(row.path)).read_bytes()[row.data_set_offset :]
    assert stored == data_set(ds)
    assert row.digest == hashlib.sha256(stored).hexdigest()


@pytest.mark.req("REQ-DCM-15")
def test_the_same_data_set_again_is_success_and_nothing_new(archive: Archive, send: Send) -> None:
    ds = ct_slice()
    assert send(ds) is Outcome.STORED
    assert send(ds) is Outcome.ALREADY_STORED
    assert count(archive, location) == 1
    assert len(files(archive)) == 1


@pytest.mark.req("REQ-DCM-15")
def test_a_resend_repairs_a_lost_copy(archive: Archive, send: Send) -> None:
    ds = ct_slice()
    send(ds)
    files(archive)[0].unlink()
    assert send(ds) is Outcome.REPAIRED
    assert send(ds) is Outcome.ALREADY_STORED
    assert len(files(archive)) == 1


@pytest.mark.req("REQ-DCM-15")
def test_a_resend_repairs_a_copy_whose_bytes_changed(archive: Archive, send: Send) -> None:
    """No check has noticed yet, and the length is still right."""
    ds = ct_slice()
    send(ds)
    held = files(archive)[0]
    rotten = bytearray(held.read_bytes())
    rotten[-5] ^= 1
    held.write_bytes(rotten)
    assert send(ds) is Outcome.REPAIRED
    with archive.engine.connect() as conn:
        good = conn.execute(select(location.c.path).where(location.c.state == "ok")).scalars().all()
    assert [Path(archive.hot.path(path)).read_bytes().endswith(data_set(ds)) for path in good] == [True]
    assert send(ds) is Outcome.ALREADY_STORED


@pytest.mark.req("REQ-DCM-15")
def test_a_copy_that_cannot_be_looked_at_is_not_called_damaged(
    archive: Archive, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = ct_slice()
    send(ds)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(StorageFailed):
        patch.setattr("archive.storage.filesystem.open", denied, raising=False)
        send(ds)
    with archive.engine.connect() as conn:
        assert conn.execute(select(location.c.state)).scalars().all() == ["ok"]


@pytest.mark.req("REQ-DCM-19")
def test_a_series_that_two_studies_claim_at_once_goes_to_one_and_the_other_instance_is_held(
    archive: Archive, actor: Actor
) -> None:
    """Two processes: the second does not see the first one's series before it makes its own."""
    series = new_uid()
    slices = [ct_slice(number=n, StudyInstanceUID=new_uid(), SeriesInstanceUID=series) for n in range(3)]
    assert ingest(archive, receive(archive, ct_slice()), actor=actor) is Outcome.STORED  # the patient is known
    arrivals = [arrival(archive, ds) for ds in slices[:2]]
    writing = archive.engine.execution_options(minipacs_write=True)
    with ThreadPoolExecutor(1) as pool, writing.connect() as first:
        assert add_instance(first, arrivals[0]) is Outcome.STORED

        def second() -> Outcome:
            with writing.begin() as conn:
                return add_instance(conn, arrivals[1])

        later = pool.submit(second)
        with pytest.raises(TimeoutError):
            later.result(0.5)
        first.commit()
        assert later.result(10) is Outcome.STORED_HELD


def arrival(archive: Archive, ds: Dataset) -> Arrival:
    """A data set that lies in its place, its row not yet written."""
    incoming = receive(archive, ds)
    incoming.settle()
    incoming.close()
    return arrival_of(archive, incoming.final)


def test_the_longest_identity_is_taken_in(archive: Archive, send: Send) -> None:
    """No database page is too small for it (REQ-DCM-17: images are never refused for their identity)."""
    words = ["".join(chr(0x20000 + (i * step) % 40_000) for i in range(5000)) for step in (7919, 6007)]

    def of(patient_id: str) -> Dataset:
        return ct_slice(PatientID=patient_id, IssuerOfPatientID=words[1], SpecificCharacterSet="ISO_IR 192")

    assert send(of(words[0])) is Outcome.STORED
    other = of(words[1])
    assert send(other) is Outcome.STORED_HELD


@pytest.mark.req("REQ-DCM-15")
def test_other_content_under_a_known_uid_is_kept_aside_once(archive: Archive, send: Send) -> None:
    first = ct_slice()
    other = ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)
    assert send(first) is Outcome.STORED
    assert send(other) is Outcome.QUARANTINED
    assert send(other) is Outcome.QUARANTINED
    assert count(archive, quarantined) == 1
    assert len(files(archive)) == 2
    with archive.engine.connect() as conn:
        assert conn.execute(select(quarantined.c.times)).scalar_one() == 2
        kinds = conn.execute(select(work_item.c.kind).where(work_item.c.state == "open")).scalars().all()
    assert sorted(kinds) == ["uid_conflict", "unknown_patient"]
    assert send(first) is Outcome.ALREADY_STORED


@pytest.mark.req("REQ-DCM-15")
def test_the_same_image_in_another_lossless_syntax_is_a_duplicate(archive: Archive, send: Send) -> None:
    compressed = ct_slice(rows=64, columns=64)
    plain = ct_slice(rows=64, columns=64, SOPInstanceUID=compressed.SOPInstanceUID)
    compressed.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    assert send(compressed) is Outcome.STORED
    assert send(plain) is Outcome.ALREADY_STORED
    assert len(files(archive)) == 1


@pytest.mark.req("REQ-DCM-16")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SOPClassUID", None),
        ("SOPInstanceUID", None),
        ("StudyInstanceUID", None),
        ("SeriesInstanceUID", None),
        ("StudyInstanceUID", ""),
        ("SeriesInstanceUID", "../../etc"),
    ],
)
def test_a_missing_or_illegal_uid_is_refused_and_leaves_nothing(
    archive: Archive, send: Send, keyword: str, value: str | None
) -> None:
    good = ct_slice()
    announced = {"sop_class_uid": str(good.SOPClassUID), "sop_instance_uid": str(good.SOPInstanceUID)}
    ds = ct_slice(**{"SOPInstanceUID": good.SOPInstanceUID, keyword: value})
    meta = FileMeta(announced["sop_class_uid"], announced["sop_instance_uid"], "1.2.840.10008.1.2.1")
    incoming = archive.hot.receive(meta, at=archive.real_clock())
    incoming.write(_without_meta(ds))
    with pytest.raises(UidMismatch):
        ingest(archive, incoming, actor=_anyone())
    assert files(archive) == []
    assert count(archive, instance) == 0


@pytest.mark.req("REQ-DCM-16")
def test_a_uid_other_than_the_announced_one_is_refused(archive: Archive, send: Send) -> None:
    with pytest.raises(UidMismatch):
        send(ct_slice(), sop_instance_uid=new_uid())
    assert files(archive) == []


def test_garbage_is_refused_and_leaves_nothing(archive: Archive, actor: Actor) -> None:
    incoming = archive.hot.receive(FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), at=archive.real_clock())
    incoming.write(b"\x08\x00\x05\x00CS\xff\xff" + os.urandom(100))
    with pytest.raises((UnreadableInstance, UidMismatch)):
        ingest(archive, incoming, actor=actor)
    assert files(archive) == []


def test_an_object_that_is_cut_short_is_kept_and_waits_for_a_person(archive: Archive, actor: Actor) -> None:
    """In doubt, keep (law 7): half an image may be all that is left of it."""
    ds = ct_slice(rows=64, columns=64)
    meta = FileMeta(str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.file_meta.TransferSyntaxUID))
    incoming = archive.hot.receive(meta, at=MINUTE)
    incoming.write(data_set(ds)[:-1000])
    assert ingest(archive, incoming, actor=actor) is Outcome.TRUNCATED
    with archive.engine.connect() as conn:
        assert "truncated" in conn.execute(select(work_item.c.kind)).scalars().all()


@pytest.mark.req("REQ-DCM-17")
def test_images_without_a_patient_id_are_kept_and_wait_for_a_person(archive: Archive, send: Send) -> None:
    assert send(ct_slice(PatientID=None)) is Outcome.STORED
    assert send(ct_slice(PatientID="", number=2)) is Outcome.STORED
    with archive.engine.connect() as conn:
        assert conn.execute(select(patient.c.provisional)).scalars().all() == [1]
        assert conn.execute(select(work_item.c.kind)).scalars().all() == ["unknown_patient"]


@pytest.mark.req("REQ-DCM-19")
def test_one_study_under_two_patients_is_kept_and_held(archive: Archive, send: Send) -> None:
    assert send(ct_slice()) is Outcome.STORED
    assert send(ct_slice(PatientID="IPP2", number=2)) is Outcome.STORED_HELD
    with archive.engine.connect() as conn:
        assert sorted(conn.execute(select(instance.c.state)).scalars()) == ["held", "stored"]
        assert "identity_conflict" in conn.execute(select(work_item.c.kind)).scalars().all()


@pytest.mark.req("REQ-DCM-19")
def test_one_series_in_two_studies_is_kept_and_held(send: Send) -> None:
    assert send(ct_slice()) is Outcome.STORED
    assert send(ct_slice(StudyInstanceUID=new_uid("other study"), number=2)) is Outcome.STORED_HELD


def test_an_issuer_that_one_header_lacks_is_no_contradiction(send: Send) -> None:
    assert send(ct_slice(IssuerOfPatientID="CABINET")) is Outcome.STORED
    assert send(ct_slice(number=2)) is Outcome.STORED
    assert send(ct_slice(number=3, IssuerOfPatientID="AUTRE")) is Outcome.STORED_HELD


def test_a_caret_in_an_id_or_issuer_makes_no_two_patients_one(archive: Archive, send: Send) -> None:
    for number, (patient_id, issuer) in enumerate([("A^^^B", "C"), ("A", "B^^^C"), ("A", None), ("A", "C")]):
        uids = {"StudyInstanceUID": new_uid(), "SeriesInstanceUID": new_uid()}
        send(ct_slice(number=number, PatientID=patient_id, IssuerOfPatientID=issuer, **uids))
    assert count(archive, patient) == 4


def test_one_audit_row_for_each_association_and_study(archive: Archive, send: Send) -> None:
    for number in range(3):
        send(ct_slice(number=number))
    send(ct_slice(StudyInstanceUID=new_uid("other"), SeriesInstanceUID=new_uid("other series")))
    with archive.engine.connect() as conn:
        rows = conn.execute(select(audit.c.study, audit.c.patient, audit.c.event, audit.c.action)).all()
    assert len(rows) == 2
    assert {row.patient for row in rows} == {"IPP1"}
    assert {(row.event, row.action) for row in rows} == {("110104", "C")}


def test_below_the_reserve_nothing_is_begun(archive: Archive) -> None:
    full = type(archive.hot)(archive.hot.root, reserve_bytes=1 << 60)
    with pytest.raises(StorageFull):
        full.receive(FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), at=archive.real_clock())
    assert files(archive) == []


def test_the_reserve_is_looked_at_while_a_large_file_comes(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_incoming, "LOOK_BYTES", 1 << 20)
    incoming = archive.hot.receive(FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), at=archive.real_clock())
    monkeypatch.setattr(archive.hot, "_reserve_bytes", 1 << 60)  # others have filled the volume
    piece = bytes(1 << 18)
    with pytest.raises(StorageFull):
        for _ in range(8):
            incoming.write(piece)
    assert incoming.data_set_bytes <= 1 << 20
    incoming.discard()
    assert files(archive) == []


def test_a_write_that_fails_leaves_its_file_for_the_sweep(
    archive: Archive, send: Send, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT impossible: the sender is told so, the file is kept, and the sweep takes it in."""
    from datetime import timedelta

    from sqlalchemy import text

    from archive.errors import Unavailable
    from archive.recovery import sweep

    with archive.engine.connect() as conn:
        rename = "ALTER TABLE location RENAME TO location_away"
        conn.execute(text(rename))
        conn.commit()
    with pytest.raises(Unavailable):
        send(ct_slice())
    with archive.engine.connect() as conn:
        conn.execute(text("ALTER TABLE location_away RENAME TO location"))
        conn.commit()
    assert len(files(archive)) == 1
    assert count(archive, instance) == 0
    assert sweep(archive).adopted == 0  # too young: it might be in flight
    assert sweep(archive, older_than=timedelta(0), look_back=None).adopted == 1
    assert count(archive, instance) == 1


def test_add_instance_is_safe_to_run_twice(archive: Archive, send: Send) -> None:
    """Group commit re-runs writes alone after a failure of the batch: the same file is filed once."""
    ds = ct_slice()
    send(ds)
    second = arrival(archive, ct_slice(number=2))
    assert archive.commit.run(lambda conn: add_instance(conn, second)) is Outcome.STORED
    archive.commit.run(lambda conn: add_instance(conn, second))
    assert count(archive, location) == 2
    assert Path(archive.hot.path(second.path)).exists()


def _without_meta(ds: Dataset) -> bytes:
    import io

    import pydicom

    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, implicit_vr=False, little_endian=True, enforce_file_format=False, force_encoding=True)
    raw = buffer.getvalue()
    return raw[raw.index(b"\x08\x00\x05\x00") :]


def _anyone() -> Actor:
    from archive.access import EVERYTHING, Door

    return Actor(user="t", source="local", door=Door.SYSTEM, may=EVERYTHING)
