"""The gate tried on the archive's own images (`minipacs retention quality`)."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import select

from archive.access import Actor, Door
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.ingest import Outcome, ingest
from archive.lifecycle.trial import Tried, trial
from archive.schema import instance, location
from tests.archive.dicom.deriving import original, smooth
from tests.archive.dicom.test_derive import noise
from tests.builders import data_set

MR = "1.2.840.10008.5.1.4.1.1.4"
CT1 = Actor("CT1", "127.0.0.1", Door.DICOM, frozenset())


def send(archive: Archive, **changes: Any) -> None:
    ds = original(**changes)
    incoming = archive.hot.receive(
        FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, str(ds.file_meta.TransferSyntaxUID), "CT1"), at=archive.clock()
    )
    incoming.write(data_set(ds))
    assert ingest(archive, incoming, actor=CT1) is Outcome.STORED


def mr(archive: Archive, **changes: Any) -> None:
    send(archive, Modality="MR", SOPClassUID=MR, SeriesInstanceUID="1.2.840.99", **changes)


def files(archive: Archive) -> list[Path]:
    return sorted(path for tier in (archive.hot, archive.cold) for path in tier.root.rglob("*.dcm"))


def test_a_trial_tells_what_would_pass_and_why_the_rest_would_stay(archive: Archive) -> None:
    for number in range(3):
        send(archive, pixels=smooth(high=1900 + number))
    send(archive, pixels=noise())
    send(archive, LossyImageCompression="01")
    mr(archive, pixels=noise())
    ct, resonance = trial(archive, 50, random=Random(1))
    assert (ct.modality, ct.tried, ct.passed) == ("CT", 5, 3)
    assert ct.kept == {"gate": 1, "already lossy": 1}
    assert ct.worst_passed is not None
    assert ct.worst_failed is not None
    assert ct.worst_failed.psnr_db < 55 <= ct.worst_passed.psnr_db
    assert ct.stored_bytes == ct.uncompressed_bytes == 3 * 64 * 64 * 2
    shape = ct.shape()
    assert shape["ratio"] > 6
    assert shape["saved_bytes"] == ct.stored_bytes - ct.compressed_bytes > 0
    assert (resonance.modality, resonance.passed, resonance.kept) == ("MR", 0, {"gate": 1})
    assert resonance.shape()["ratio"] is None


def test_a_trial_stores_nothing(archive: Archive) -> None:
    send(archive)
    before = files(archive)
    content = [path.read_bytes() for path in before]
    trial(archive, 10)
    assert files(archive) == before
    assert [path.read_bytes() for path in before] == content
    with archive.reading() as conn:
        assert len(conn.execute(select(instance.c.pk)).all()) == 1
        assert len(conn.execute(select(location.c.pk)).all()) == 1


def test_a_trial_takes_as_many_as_it_is_told_each_once_and_tells_how_far_it_is(archive: Archive) -> None:
    for number in range(6):
        send(archive, pixels=smooth(high=1000 + 50 * number))
    mr(archive)
    told: list[tuple[int, int]] = []
    found = trial(archive, 3, progress=lambda done, total: told.append((done, total)), random=Random(3))
    assert [(one.modality, one.tried) for one in found] == [("CT", 3), ("MR", 1)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_trial_can_be_of_one_modality(archive: Archive) -> None:
    send(archive)
    mr(archive)
    assert [one.modality for one in trial(archive, 5, modalities=["MR"])] == ["MR"]
    assert trial(archive, 5, modalities=["US"]) == []


def test_a_file_that_is_gone_does_not_end_a_trial(archive: Archive) -> None:
    send(archive)
    (path,) = files(archive)
    path.unlink()
    (found,) = trial(archive, 5)
    assert isinstance(found, Tried)
    assert found.kept == {"unreadable": 1}


def test_an_empty_archive_has_nothing_to_try(archive: Archive) -> None:
    assert trial(archive, 5) == []
