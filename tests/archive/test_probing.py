"""Immediate access, measured by the archive itself: what is opened, how it is kept and summed up (REQ-CDC-09)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, select

from archive.access import Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy, StorageFailed
from archive.ingest import ingest
from archive.journal import Kind
from archive.leases import leased
from archive.probing import Measured, Probe, Prober, Subject, choose, list_probes, restore_probe, summary
from archive.schema import probe
from archive.storage.part10 import Part10
from tests.builders import ct_slice, key_object, new_uid, part10

GOOD = Measured(images=600, sent_bytes=1, first_seconds=0.2, all_seconds=3.0)


def fill(archive: Archive, actor: Actor, *, study: str = "st", modality: str = "CT", slices: int = 3) -> None:
    for number in range(slices):
        ds = ct_slice(
            number=number + 1, Modality=modality, PatientID="IPP9", StudyInstanceUID=new_uid(study),
            SeriesInstanceUID=new_uid(study, "series"), SOPInstanceUID=new_uid(study, str(number)),
        )  # fmt: skip
        take_in(archive, actor, part10(ds))


def take_in(archive: Archive, actor: Actor, content: bytes) -> None:
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(content)
    ingest(archive, file.finish(), actor=actor)


def giving(measured: Measured) -> Callable[[Archive, Subject, Callable[[], bool]], Measured]:
    return lambda archive, subject, goes_on: measured


def with_probe(archive: Archive, **changes: int) -> Archive:
    settings = archive.settings
    probing = settings.probe.model_copy(update=changes)
    return replace(archive, settings=settings.model_copy(update={"probe": probing}))


@pytest.mark.req("REQ-CDC-09")
def test_a_ct_is_preferred_and_documents_are_never_opened(archive: Archive, actor: Actor) -> None:
    assert choose(archive) is None
    image = ct_slice(StudyInstanceUID=new_uid("ko"))
    take_in(archive, actor, part10(key_object(image)))
    assert choose(archive) is None
    fill(archive, actor, study="us", modality="US", slices=5)
    chosen = choose(archive)
    assert chosen == Subject(
        new_uid("us"), new_uid("us", "series"), frozenset(new_uid("us", str(number)) for number in range(5))
    )
    fill(archive, actor, study="ct", slices=2)
    chosen = choose(archive)
    assert chosen is not None
    assert chosen.study_instance_uid == new_uid("ct")
    assert choose(with_probe(archive, images=1)) == replace(chosen, instances=frozenset([new_uid("ct", "0")]))


@pytest.mark.req("REQ-CDC-09")
def test_each_door_is_measured_once_in_its_time_and_by_one_process_alone(archive: Archive, actor: Actor) -> None:
    fill(archive, actor)
    hourly = with_probe(archive, every_seconds=3600)
    one, other = (Prober(hourly, door, giving(GOOD), look_seconds=3600) for door in (Door.DICOM, Door.DICOMWEB))
    try:
        with leased(archive, "probe dicom"), pytest.raises(Busy):
            one.look()
        first = one.look()
        assert first is not None
        assert (first.door, first.first_seconds, first.all_seconds, first.within) == ("dicom", 0.2, 3.0, True)
        assert one.look() is None, "not due"
        assert other.look() is not None, "another door"
        with archive.reading() as conn:
            assert [known.door for known in list_probes(conn, limit=10)] == ["dicomweb", "dicom"]
    finally:
        one.close()
        other.close()


@pytest.mark.req("REQ-CDC-09")
def test_a_failure_is_kept_with_its_reason_and_counts_as_one(archive: Archive, actor: Actor) -> None:
    fill(archive, actor)

    def fails(archive: Archive, subject: Subject, goes_on: Callable[[], bool]) -> Measured:
        raise StorageFailed("no good copy is left")

    prober = Prober(archive, Door.DICOM, fails, look_seconds=3600)
    failed = prober.look()
    prober.close()
    assert failed is not None
    assert (failed.error, failed.first_seconds, failed.within) == ("StorageFailed: no good copy is left", None, False)
    with archive.reading() as conn:
        said = summary(conn, now=archive.real_clock())
    assert said["within"] is False
    assert (said["doors"]["dicom"]["failed"], said["doors"]["dicom"]["over_limit"]) == (1, 0)
    assert said["doors"]["dicom"]["first_image_seconds"] is None


@pytest.mark.req("REQ-CDC-09")
@pytest.mark.parametrize(
    ("images", "first", "every", "within"),
    [
        (600, 4.9, 59.0, True),
        (600, 5.0, 59.0, False),
        (600, 1.0, 60.0, False),
        (300, 1.0, 29.0, True),  # 58 s for 600
        (300, 1.0, 31.0, False),
        (1200, 1.0, 61.0, False),
        (4, 1.0, 5.0, True),  # too few to say what 600 take
    ],
)
def test_the_limits_are_those_of_the_law(images: int, first: float, every: float, within: bool) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert Probe("1", at, "dicom", "1.2", "1.3", images, 1, first, every, None).within is within


@pytest.mark.req("REQ-CDC-30")
def test_percentiles_are_values_that_were_measured_within_the_window(archive: Archive) -> None:
    now = archive.real_clock()
    shape = {"door": "dicom", "study_instance_uid": "1.2", "series_instance_uid": "1.3", "images": 600}

    def write(conn: object) -> None:
        for number in range(1, 101):
            body = {**shape, "sent_bytes": 1, "first_seconds": number / 10, "all_seconds": number / 2, "error": None}
            restore_probe(conn, str(number), body, now - timedelta(hours=number))  # type: ignore[arg-type]
        old = {**shape, "sent_bytes": 1, "first_seconds": 99.0, "all_seconds": 99.0, "error": None}
        restore_probe(conn, "old", old, now - timedelta(days=31))  # type: ignore[arg-type]

    archive.commit.run(write)
    with archive.reading() as conn:
        said = summary(conn, now=now)["doors"]["dicom"]
        assert said["first_image_seconds"] == {"median": 5.0, "p95": 9.5, "worst": 10.0}
        assert said["seconds_for_600"] == {"median": 25.0, "p95": 47.5, "worst": 50.0}
        assert (said["probes"], said["over_limit"], said["last"]["id"]) == (100, 51, "1")
        assert summary(conn, now=now, window=timedelta(hours=10))["doors"]["dicom"]["probes"] == 10


def test_measurements_outlive_the_database_in_the_journal(archive: Archive, actor: Actor) -> None:
    fill(archive, actor)
    prober = Prober(archive, Door.DICOM, giving(GOOD), look_seconds=3600)
    done = prober.look()
    prober.close()
    assert done is not None
    (line,) = [line for line in archive.journal.lines() if getattr(line, "kind", "") == Kind.PROBE]
    archive.commit.run(lambda conn: conn.execute(delete(probe)))
    for _ in range(2):  # twice is once
        archive.commit.run(lambda conn: restore_probe(conn, line.subject, line.body, line.at))  # type: ignore[union-attr]
    with archive.reading() as conn:
        assert list_probes(conn, limit=10) == [done]


def test_without_a_time_nothing_is_measured_and_closing_waits_for_nobody(settings: Settings) -> None:
    off = settings.model_copy(update={"probe": settings.probe.model_copy(update={"every_seconds": 0})})
    with open_archive(off, process="test") as archive:
        before = threading.active_count()
        Prober(archive, Door.DICOM, giving(GOOD), look_seconds=0.01).close()
        assert threading.active_count() == before
        with archive.reading() as conn:
            assert conn.execute(select(probe.c.id)).first() is None


def test_the_thread_measures_by_itself_and_stops_when_it_is_told(archive: Archive, actor: Actor) -> None:
    fill(archive, actor)
    begun, over = threading.Event(), threading.Event()

    def slow(archive: Archive, subject: Subject, goes_on: Callable[[], bool]) -> Measured:
        begun.set()
        while goes_on():
            over.wait(0.01)
        raise Busy("the archive stops")

    prober = Prober(archive, Door.DICOM, slow, look_seconds=0.01)
    assert begun.wait(10)
    prober.close()
    with archive.reading() as conn:
        assert list_probes(conn, limit=10) == [], "what was broken off is no measurement"
