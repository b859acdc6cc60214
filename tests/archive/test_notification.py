"""Which studies peers are told of, when, and what: once they are quiet, again for late images, at once when asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, update

from archive.access import SYSTEM, Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.index.arrival import Notify
from archive.index.write import add_instance
from archive.ingest import Outcome, adopt, arrival_of, ingest
from archive.instance import Availability, CopyState, State
from archive.lifecycle.announce import announce as announce_purge
from archive.lifecycle.compute import compute_due, policy_of
from archive.lifecycle.purge import purge_study
from archive.notification import instances, owe_due
from archive.schema import audit, instance, job, location, study
from archive.settling import settle
from archive.work_items import How, list_items
from archive.workflow.availability import announce
from tests.archive.lifecycle.aging import STUDY, copy_of, migrated, noise, received, slices, switched
from tests.archive.lifecycle.studies import at, row_of, send, uid_of
from tests.archive.test_ingest import receive
from tests.builders import ct_slice, new_uid

ONLINE, NEARLINE, UNAVAILABLE = Availability.ONLINE, Availability.NEARLINE, Availability.UNAVAILABLE
Pass = Callable[[float], None]


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """With two peers that want to know, a minute after the last image."""
    peers = {name: {"host": "127.0.0.1", "port": 104, "notify": True} for name in ("RIS", "DRIM")}
    peers["CT1"] = {"host": "127.0.0.1", "port": 104}
    values = settings.model_dump()
    values["dicom"] |= {"peers": peers}
    with open_archive(Settings.model_validate(values), process="test") as opened:
        yield opened


@pytest.fixture
def passes(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Lets real seconds pass."""
    real = archive.time.real
    passed = [0.0]
    monkeypatch.setattr(archive.time, "real", lambda: real() + timedelta(seconds=passed[0]))

    def pass_by(seconds: float) -> None:
        passed[0] += seconds

    return pass_by


def owed(archive: Archive) -> list[tuple[str, str]]:
    """Peer and study of each job that is due; they are done then."""
    with archive.reading() as conn:
        rows = conn.execute(select(job).where(job.c.state == "due").order_by(job.c.pk)).all()
    assert {row.kind for row in rows} <= {"dicom.availability"}
    archive.commit.run(lambda conn: conn.execute(update(job).values(state="done", finished_at=archive.real_clock())))
    return [(payload["peer"], payload["study"]) for payload in (json.loads(row.payload) for row in rows)]


def told(archive: Archive, uid: str) -> list[tuple[str, Availability]]:
    return [(one.sop_instance_uid, one.availability) for one in instances(archive, uid)]


@pytest.mark.req("REQ-DCM-55")
def test_each_peer_is_told_once_when_no_more_images_come(archive: Archive, passes: Pass) -> None:
    for _ in range(4):
        send(archive, "a", "20260105")
        send(archive, "b", "20260105")
        passes(40)
        owe_due(archive)
        assert owed(archive) == []
    passes(51)
    assert owe_due(archive) == 2
    assert owed(archive) == [(peer, uid_of(name)) for name in ("a", "b") for peer in ("DRIM", "RIS")]
    passes(1000)
    assert owe_due(archive) == 0
    assert owed(archive) == []
    with archive.reading() as conn:
        rows = conn.execute(select(audit).where(audit.c.event == "110103").order_by(audit.c.pk)).all()
    assert [(row.study, row.patient, json.loads(row.detail)) for row in rows] == [
        (uid_of(name), f"P-{name}", {"notification": ["DRIM", "RIS"]}) for name in ("a", "b")
    ]


@pytest.mark.req("REQ-DCM-55")
def test_late_images_are_told_of_again(archive: Archive, passes: Pass) -> None:
    send(archive, "a", "20260105")
    passes(91)
    assert owe_due(archive) == 1
    assert len(owed(archive)) == 2
    send(archive, "a", "20260105")
    passes(59)
    assert owe_due(archive) == 0  # never before a minute of quiet
    passes(32)
    assert owe_due(archive) == 1
    assert len(told(archive, uid_of("a"))) == 2


def test_a_study_that_goes_on_arriving_is_written_now_and_then(archive: Archive) -> None:
    """Not for every image: writers of one study would wait for each other."""
    written = set()
    for _ in range(20):
        send(archive, "a", "20260105")
        with archive.reading() as conn:
            written.add(conn.execute(select(study.c.notify_at)).scalar_one())
    assert len(written) == 1


def test_images_that_are_there_already_tell_nobody_anything(archive: Archive, passes: Pass) -> None:
    uid = new_uid()
    assert send(archive, "a", "20260105", SOPInstanceUID=uid) is Outcome.STORED
    passes(91)
    owe_due(archive)
    owed(archive)
    assert send(archive, "a", "20260105", SOPInstanceUID=uid) is Outcome.ALREADY_STORED
    passes(91)
    assert owe_due(archive) == 0


def test_an_image_that_recovery_finds_is_told_of(archive: Archive, passes: Pass) -> None:
    """Power failed before its COMMIT: whoever sends it again is answered that it is here."""
    incoming = receive(archive, ct_slice())
    incoming.settle()
    assert adopt(archive, incoming.final, actor=SYSTEM) is Outcome.STORED
    passes(91)
    assert owe_due(archive) == 1


@pytest.mark.req("REQ-DCM-55")
def test_who_says_so_is_told_at_once(archive: Archive, passes: Pass) -> None:
    """A performed procedure step is complete: before the quiet, and again when more comes."""
    send(archive, "a", "20260105")
    now = archive.real_clock()
    archive.commit.run(partial(announce, study_instance_uid=uid_of("a"), at=now))
    assert owe_due(archive) == 1
    assert owed(archive) == [("DRIM", uid_of("a")), ("RIS", uid_of("a"))]
    archive.commit.run(partial(announce, study_instance_uid=new_uid(), at=now))  # of a study without images: nothing
    assert owe_due(archive) == 0
    later = now + timedelta(seconds=30)
    for moment in (later, later + timedelta(seconds=30)):  # the sooner one holds
        archive.commit.run(partial(announce, study_instance_uid=uid_of("a"), at=moment))
    passes(31)
    assert owe_due(archive) == 1


def test_a_peer_that_is_owed_the_same_already_is_not_owed_it_twice(archive: Archive) -> None:
    for _ in range(2):
        send(archive, "a", "20260105")
        archive.commit.run(partial(announce, study_instance_uid=uid_of("a"), at=archive.real_clock()))
        owe_due(archive)
    assert len(owed(archive)) == 2


@pytest.mark.req("REQ-DCM-55")
def test_what_is_current_is_told_with_its_availability_and_what_is_hidden_as_unavailable(archive: Archive) -> None:
    states = ("stored", "stored", "purging", "held", "pending")
    uids = [f"1.2.3.{number}" for number in range(len(states))]
    for uid in uids:
        send(archive, "a", "20260105", SOPInstanceUID=uid)

    def turn(conn: Any) -> None:
        for uid, state in zip(uids, states, strict=True):
            mine = instance.c.sop_instance_uid == uid
            conn.execute(update(instance).where(mine).values(state=State(state)))
        second = select(instance.c.pk).where(instance.c.sop_instance_uid == uids[1]).scalar_subquery()
        damaged = update(location).where(location.c.instance_pk == second)
        conn.execute(damaged.values(state=CopyState.DAMAGED))

    archive.commit.run(turn)
    assert told(archive, uid_of("a")) == [(uids[0], ONLINE), (uids[1], UNAVAILABLE), (uids[2], UNAVAILABLE)]


@pytest.mark.req("REQ-DCM-55")
def test_a_study_that_was_switched_to_cold_storage_is_told_of(archive: Archive) -> None:
    images = slices(1)
    rest = noise()
    received(archive, *images, rest)
    archive.commit.run(lambda conn: conn.execute(update(study).values(notify_at=None)))
    assert migrated(archive).stays is None
    assert switched(archive).stays is None
    assert owe_due(archive) == 1
    assert dict(told(archive, STUDY)) == {
        str(images[0].SOPInstanceUID): UNAVAILABLE,
        copy_of(archive, images[0]).sop_instance_uid: NEARLINE,
        str(rest.SOPInstanceUID): NEARLINE,
    }


@pytest.mark.req("REQ-DCM-55")
def test_a_purged_study_is_told_of_when_nothing_of_it_is_left(archive: Archive) -> None:
    at(archive, "2026-01-05")
    uid = new_uid()
    send(archive, "a", "20150105", SOPInstanceUID=uid)
    compute_due(archive)
    at(archive, "2026-04-20")
    compute_due(archive)
    pk = row_of(archive, "a").pk
    assert announce_purge(archive, pk, policy_version=policy_of(archive.settings).version) is None
    at(archive, "2026-06-20")
    compute_due(archive)
    assert purge_study(archive, pk) is None
    assert owed(archive) == [("DRIM", uid_of("a")), ("RIS", uid_of("a"))]
    assert told(archive, uid_of("a")) == [(uid, UNAVAILABLE)]


def test_where_no_peer_wants_to_know_nothing_is_written(settings: Settings) -> None:
    with open_archive(settings, process="test") as archive:
        send(archive, "a", "20260105")
        assert row_of(archive, "a").notify_at is None
        archive.commit.run(partial(announce, study_instance_uid=uid_of("a"), at=archive.real_clock()))
        assert owe_due(archive) == 1
        assert owed(archive) == []
        assert row_of(archive, "a").notify_at is None


def test_an_image_that_is_being_filed_is_waited_for(archive: Archive) -> None:
    """It found that its study is to be told of; the job that tells must not be read before it is there."""
    send(archive, "a", "20260105", number=1)
    archive.commit.run(partial(announce, study_instance_uid=uid_of("a"), at=archive.real_clock()))
    ds = ct_slice(StudyInstanceUID=uid_of("a"), SeriesInstanceUID=new_uid("series", "a", "1"), PatientID="P-a")
    incoming = receive(archive, ds)
    incoming.settle()
    long_ago = archive.real_clock() - timedelta(hours=1)
    arrival = replace(arrival_of(archive, incoming.final), notify=Notify(long_ago, long_ago))
    filed, go_on = threading.Event(), threading.Event()

    def slowly(conn: Any) -> None:
        add_instance(conn, arrival)
        filed.set()
        go_on.wait(20)

    with open_archive(archive.settings, process="filing") as mine:
        filing = threading.Thread(target=mine.commit.run, args=(slowly,))
        filing.start()
        assert filed.wait(20)
        owing = threading.Thread(target=owe_due, args=(archive,))
        owing.start()
        owing.join(0.5)
        assert owing.is_alive()
        go_on.set()
        for thread in (filing, owing):
            thread.join(20)
    assert len(owed(archive)) == 2
    assert len(told(archive, uid_of("a"))) == 2


@pytest.mark.req("REQ-DCM-55", "REQ-DCM-19")
def test_images_that_a_person_accepts_are_told_of_at_once(archive: Archive, actor: Actor, passes: Pass) -> None:
    ingest(archive, receive(archive, ct_slice()), actor=actor)
    strange = ct_slice(number=2, PatientID="SOMEBODY ELSE")
    assert ingest(archive, receive(archive, strange), actor=actor) is Outcome.STORED_HELD
    passes(200)
    owe_due(archive)
    owed(archive)
    with archive.reading() as conn:
        (item,) = list_items(conn, kind="identity_conflict", state="open")
    settle(archive, item["id"], how=How.ACCEPT, reason="vérifié", actor=actor)
    assert owe_due(archive) == 1
    assert (strange.SOPInstanceUID, ONLINE) in told(archive, strange.StudyInstanceUID)
