"""Rows and bytes, compared; and what a power cut leaves, settled."""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from archive.access import Actor
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.errors import NotFound, StorageFailed
from archive.ingest import Outcome, ingest
from archive.integrity import fsck, verify
from archive.recovery import sweep
from archive.retrieve import select as select_stored
from archive.schema import instance, location
from tests.archive.test_ingest import files, receive
from tests.builders import ct_slice


@pytest.fixture
def three(archive: Archive, actor: Actor) -> list[Path]:
    """Three stored slices; their files in order of reception."""
    for number in range(3):
        assert ingest(archive, receive(archive, ct_slice(number=number)), actor=actor) is Outcome.STORED
    with archive.engine.connect() as conn:
        return [Path(archive.hot.path(path)) for path in conn.execute(select(location.c.path).order_by("pk")).scalars()]


def test_an_untouched_archive_verifies(archive: Archive, three: list[Path]) -> None:
    report = verify(archive, everything=True)
    assert (report.checked, report.findings) == (3, [])
    assert fsck(archive).findings == []
    with archive.engine.connect() as conn:
        assert None not in conn.execute(select(location.c.verified_at)).scalars().all()


def test_a_study_that_is_not_there_is_not_verified(archive: Archive, three: list[Path]) -> None:
    with pytest.raises(NotFound):
        verify(archive, study_uid="1.2.3")


@pytest.mark.parametrize("study", [True, False])
def test_one_altered_byte_is_named_and_no_longer_given_out(archive: Archive, three: list[Path], study: bool) -> None:
    raw = bytearray(three[1].read_bytes())
    raw[-5] ^= 1
    three[1].write_bytes(raw)
    wanted = select_stored(archive, patient_id="IPP1")
    uid = wanted[0].study_instance_uid if study else None
    report = verify(archive, study_uid=uid, everything=not study)
    assert [finding.sop_instance_uid for finding in report.findings] == [wanted[1].sop_instance_uid]
    damaged = select_stored(archive, instance_uids=[wanted[1].sop_instance_uid])
    with pytest.raises(StorageFailed):
        damaged[0].open()


@pytest.mark.req("REQ-DCM-15")
def test_a_resend_of_a_damaged_instance_heals_it(archive: Archive, actor: Actor) -> None:
    ds = ct_slice()
    ingest(archive, receive(archive, ds), actor=actor)
    stored = files(archive)[0]
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x55")
    assert len(verify(archive, everything=True).findings) == 1
    assert ingest(archive, receive(archive, ds), actor=actor) is Outcome.REPAIRED
    one = select_stored(archive, instance_uids=[str(ds.SOPInstanceUID)])[0]
    os.close(one.open())
    assert Path(one.path) != stored


def test_a_lost_file_is_a_row_without_bytes(archive: Archive, three: list[Path]) -> None:
    three[0].unlink()
    three[1].write_bytes(b"short")
    reasons = [finding.reason for finding in fsck(archive).findings]
    assert len(reasons) == 2
    assert all(reason.startswith("row without bytes") for reason in reasons)
    assert fsck(archive, repair=True).repaired == 2
    assert fsck(archive).findings == []
    with archive.engine.connect() as conn:
        assert sorted(conn.execute(select(location.c.state)).scalars()) == ["damaged", "damaged", "ok"]


def test_a_file_without_a_row_is_found_and_taken_in(archive: Archive) -> None:
    incoming = receive(archive, ct_slice())
    incoming.settle()
    incoming.close()
    findings = fsck(archive).findings
    assert [finding.reason for finding in findings] == ["bytes without a row"]
    assert fsck(archive, repair=True).repaired == 1
    assert fsck(archive).findings == []
    with archive.engine.connect() as conn:
        assert conn.execute(select(func.count()).select_from(instance)).scalar_one() == 1


def test_a_quarantined_file_is_not_a_finding(archive: Archive, actor: Actor) -> None:
    first = ct_slice()
    ingest(archive, receive(archive, first), actor=actor)
    other = ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)
    assert ingest(archive, receive(archive, other), actor=actor) is Outcome.QUARANTINED
    assert fsck(archive).findings == []


def test_the_sweep_removes_what_never_got_a_name_after_an_hour(archive: Archive) -> None:
    incoming = archive.hot.receive(FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), at=archive.real_clock())
    incoming.write(b"half")
    incoming.close()
    assert sweep(archive).removed == 0
    old = archive.real_clock().timestamp() - 3700
    os.utime(incoming.path, (old, old))
    assert sweep(archive).removed == 1
    assert files(archive) == []


def test_one_unreadable_file_does_not_keep_the_sweep_from_the_others(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        incoming = receive(archive, ct_slice(number=number))
        incoming.settle()
        incoming.close()
    first = min(files(archive))
    real = open

    def failing(path: str, *rest: Any) -> Any:
        if str(path) == str(first):
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path, *rest)

    monkeypatch.setattr("archive.ingest.open", failing, raising=False)
    swept = sweep(archive, older_than=timedelta(seconds=-1), look_back=None)
    assert (swept.adopted, swept.unreadable) == (2, 1)


def test_the_sweep_leaves_stored_files_alone(archive: Archive, three: list[Path]) -> None:
    swept = sweep(archive, older_than=timedelta(0), look_back=None)
    assert (swept.adopted, swept.removed, swept.unreadable) == (0, 0, 0)
    assert all(path.exists() for path in three)
