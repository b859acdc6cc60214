"""What is sent to peers: all of it, once, however often a peer or this archive breaks off."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from sqlalchemy import select, update

from archive import jobs, sending
from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Conflict, NotAllowed, NotFound
from archive.schema import audit, job
from archive.schema import sending as sending_table
from tests.acceptance.clients import receiver
from tests.archive.dicom.correcting import correct, element, pn
from tests.archive.lifecycle.aging import path_of
from tests.builders import ct_slice, data_set, new_uid
from tests.conftest import need
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import bodies, keep
from tests.dicom_scp.wire import CT
from tests.server import free_port

WHO = Actor(user="anne", source="127.0.0.1", door=Door.API, may=EVERYTHING)
STUDY = new_uid("deliver")


@dataclass
class Workstation:
    """A peer: what it was sent, on how many associations; `answer` decides its status."""

    port: int = field(default_factory=free_port)
    got: list[str] = field(default_factory=list)
    associations: int = 0
    answer: Callable[[evt.Event], int] = lambda _event: 0x0000

    def _store(self, event: evt.Event) -> int:
        status = self.answer(event)
        if status in (0x0000, 0xB000):
            self.got.append(str(event.request.AffectedSOPInstanceUID))
        return status

    def _associated(self, _event: evt.Event) -> None:
        self.associations += 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        ae = AE("STATION")
        ae.add_supported_context(CT, ["1.2.840.10008.1.2.1"])
        ae.add_supported_context("1.2.840.10008.1.1")
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._associated)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield
        finally:
            server.shutdown()


@pytest.fixture
def station() -> Workstation:
    return Workstation()


@pytest.fixture
def server(settings: Settings, station: Workstation) -> Iterator[Running]:
    with running(settings, peers={"STATION": {"host": "127.0.0.1", "port": station.port}}) as started:
        yield started


def slices(count: int, **changes: Any) -> list[Dataset]:
    return [ct_slice(number=number, StudyInstanceUID=STUDY, **changes) for number in range(1, count + 1)]


def ended(archive: Archive, id: int, *, attempts: int = 1, seconds: float = 20) -> jobs.Job:
    """The job when it is over, or was given back after an attempt."""
    until = monotonic() + seconds
    while monotonic() < until:
        found = jobs.wait(archive, id, seconds=0)
        if found.state in ("done", "dead") or (found.state == "due" and found.attempts >= attempts):
            return found
        sleep(0.05)
    raise AssertionError(f"the job does not end: {found}")


def again(archive: Archive, id: int) -> None:
    """Its next attempt is due now."""
    archive.commit.run(lambda conn: conn.execute(update(job).where(job.c.pk == id).values(due_at=archive.real_clock())))


def counted(archive: Archive, id: int) -> sending.Counts:
    with archive.reading() as conn:
        return sending.counts(conn, [id])[id]


def test_a_study_is_sent_as_it_lies_on_one_association(settings: Settings, tmp_path: Path) -> None:
    need("storescp")
    (folder := tmp_path / "out").mkdir()
    port = free_port()
    peers = {"STORE": {"ae_title": "STORESCP", "host": "127.0.0.1", "port": port}}
    with running(settings, peers=peers) as server, receiver(folder, port):
        kept = keep(server.archive, *slices(7))
        id, instances = sending.ask(server.archive, "STORE", actor=WHO, study_uids=[STUDY])
        assert instances == 7
        assert (ended(server.archive, id).state, counted(server.archive, id)) == ("done", sending.Counts(sent=7))
    assert bodies(folder) == {ds.SOPInstanceUID: data_set(ds) for ds in kept}


def test_sending_is_audited_as_whoever_asked_with_its_destination(server: Running, station: Workstation) -> None:
    keep(server.archive, *slices(3))
    with station.listening():
        id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
        ended(server.archive, id)
    server.archive.accesses.close()  # the closing row is durable
    with server.archive.engine.connect() as conn:
        rows = conn.execute(select(audit).where(audit.c.user == "anne").order_by(audit.c.seq)).all()
    assert [(row.event, row.action, row.outcome, row.study) for row in rows] == [
        ("110102", "E", 0, STUDY),
        ("110104", "R", 0, STUDY),
        ("110104", "R", 0, STUDY),
    ]
    assert '"peer":"STATION"' in rows[0].detail
    assert '"phase":"open"' in rows[1].detail
    assert '"destination":"STATION"' in rows[1].detail
    assert '"instances":3' in rows[2].detail


@pytest.mark.req("REQ-DCM-70")
def test_what_is_sent_says_what_the_ris_says_now_and_one_bad_copy_stops_no_other(
    server: Running, station: Workstation
) -> None:
    whole, cut = keep(server.archive, *slices(2))
    correct(server.archive, "IPP1", {"00100010": pn("MARTIN^Zoé"), "00100020": element("LO", "IPP1")})
    path = path_of(server.archive, cut.SOPInstanceUID)
    os.truncate(path, path.stat().st_size - 100)
    names: dict[str, str] = {}

    def look(event: evt.Event) -> int:
        names[event.request.AffectedSOPInstanceUID] = str(event.dataset.PatientName)
        return 0x0000

    station.answer = look
    with station.listening():
        id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
        assert ended(server.archive, id).state == "dead"
    assert names == {whole.SOPInstanceUID: "MARTIN^Zoé"}
    with server.archive.reading() as conn:
        (failure,) = sending.failures(conn, id, limit=10)
    assert failure["sop_instance_uid"] == cut.SOPInstanceUID
    assert "not as long as it was stored" in failure["reason"]


def test_what_was_acknowledged_is_not_sent_again_when_a_peer_went_away(server: Running, station: Workstation) -> None:
    kept = keep(server.archive, *slices(6))

    def leave_after_three(event: evt.Event) -> int:
        if len(station.got) == 3:
            event.assoc.abort()
        return 0x0000

    station.answer = leave_after_three
    with station.listening():
        id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
        broken = ended(server.archive, id)
    assert broken.state == "due"
    before = counted(server.archive, id)
    assert before.sent == 3
    station.answer = lambda _event: 0x0000
    first = station.got[:3]
    station.got.clear()
    with station.listening():
        again(server.archive, id)
        assert ended(server.archive, id, attempts=2).state == "done"
    assert sorted(first + station.got) == sorted(str(ds.SOPInstanceUID) for ds in kept)
    assert station.got[-1] == str(kept[3].SOPInstanceUID)  # what was on its way comes last: it may be the reason
    assert station.associations == 2


def test_a_peer_that_is_away_is_tried_again_and_its_job_can_be_hastened(server: Running, station: Workstation) -> None:
    keep(server.archive, *slices(2))
    id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
    away = ended(server.archive, id)
    assert (away.state, away.error) == ("due", "the peer cannot be reached")
    with station.listening():
        sending.retry(server.archive, id, actor=WHO)
        assert ended(server.archive, id).state == "done"
    assert len(station.got) == 2
    with pytest.raises(Conflict):
        sending.retry(server.archive, id, actor=WHO)


def test_what_a_peer_refuses_is_kept_with_its_reason_and_tried_again_when_asked(
    server: Running, station: Workstation
) -> None:
    kept = keep(server.archive, *slices(4))
    bad = str(kept[1].SOPInstanceUID)
    station.answer = lambda event: 0xA900 if event.request.AffectedSOPInstanceUID == bad else 0x0000
    with station.listening():
        id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
        dead = ended(server.archive, id)
        assert (dead.state, dead.attempts) == ("dead", 1)
        assert dead.error == "1 of 4 instances were not taken; the first: the peer answered A900"
        with server.archive.reading() as conn:
            (failure,) = sending.failures(conn, id, limit=10)
        assert failure == {"study_instance_uid": STUDY, "sop_instance_uid": bad, "reason": "the peer answered A900"}
        station.answer = lambda _event: 0x0000
        sending.retry(server.archive, id, actor=WHO)
        assert ended(server.archive, id).state == "done"
    assert station.got.count(bad) == 1
    assert len(station.got) == 4


def test_a_peer_without_room_is_left_alone_for_a_while(server: Running, station: Workstation) -> None:
    keep(server.archive, *slices(4))
    station.answer = lambda _event: 0xA700 if len(station.got) == 1 else 0x0000
    with station.listening():
        id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
        full = ended(server.archive, id)
    assert (full.state, full.error) == ("due", "the peer has no room now (status A700)")
    assert counted(server.archive, id) == sending.Counts(sent=1, waiting=3)


def test_a_sending_that_is_cancelled_stops(server: Running, station: Workstation) -> None:
    keep(server.archive, *slices(40))
    begun = threading.Event()

    def slow(_event: evt.Event) -> int:
        begun.set()
        sleep(0.1)
        return 0x0000

    station.answer = slow
    with station.listening():
        id, _ = sending.ask(server.archive, "STATION", actor=WHO, study_uids=[STUDY])
        assert begun.wait(10)
        sending.cancel(server.archive, id, actor=WHO)
        until = monotonic() + 10
        while (seen := len(station.got)) and monotonic() < until:
            sleep(1)
            if len(station.got) == seen:
                break
    assert 0 < len(station.got) < 40
    found = jobs.wait(server.archive, id, seconds=0)
    assert (found.state, found.error) == ("dead", "cancelled by anne")


def test_a_job_whose_process_died_goes_on_soon_where_it_was(settings: Settings, station: Workstation) -> None:
    """The lease of a sending is short, and what was recorded is not sent again."""
    peers = {"STATION": {"host": "127.0.0.1", "port": station.port}}
    values = settings.model_dump()
    values["dicom"] |= {"peers": peers}
    with open_archive(Settings.model_validate(values), process="died") as archive:
        kept = keep(archive, *slices(3))
        id, _ = sending.ask(archive, "STATION", actor=WHO, study_uids=[STUDY])
        claimed = jobs.claim(archive, [sending.KIND], holder="died")
        assert claimed is not None
        first, at = sending.waiting(archive, claimed)[0], archive.real_clock()
        record = partial(sending.record_progress, one=claimed, sent=[first.pk], failed=[], at=at, patience_seconds=0)
        assert archive.commit.run(record)
        with archive.reading() as conn:
            lease = conn.execute(select(job.c.lease_until)).scalar_one()
        assert lease - at <= timedelta(minutes=2)
        archive.commit.run(lambda conn: conn.execute(update(job).values(lease_until=at)))
    with running(settings, peers=peers) as server, station.listening():
        assert ended(server.archive, id, attempts=99).state == "done"
    assert station.got == [str(ds.SOPInstanceUID) for ds in kept[1:]]


def test_only_whoever_may_export_sends_and_only_to_peers_with_an_address(server: Running) -> None:
    keep(server.archive, *slices(1))
    nobody = Actor(user="igor", source="", door=Door.API, may=frozenset())
    with pytest.raises(NotAllowed):
        sending.ask(server.archive, "STATION", actor=nobody, study_uids=[STUDY])
    with pytest.raises(NotFound, match="no peer"):
        sending.ask(server.archive, "ELSEWHERE", actor=WHO, study_uids=[STUDY])
    with pytest.raises(NotFound, match="nothing of this"):
        sending.ask(server.archive, "STATION", actor=WHO, study_uids=["1.2.3"])
    with server.archive.reading() as conn:
        assert conn.execute(select(sending_table)).all() == []
