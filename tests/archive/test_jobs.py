"""Work owed to another process: done at least once, tried again, given up, never lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy import func, select

from archive import commitment, jobs, mpps, notification
from archive.core import Archive
from archive.errors import Busy
from archive.schema import job

KIND = "retention.run"


@pytest.fixture
def later(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Lets real time pass."""
    real = archive.time.real
    passed = [timedelta(0)]
    monkeypatch.setattr(archive.time, "real", lambda: real() + passed[0])

    def pass_by(time: timedelta) -> None:
        passed[0] += time

    return pass_by


def owe(archive: Archive, kind: str = KIND, **payload: object) -> int:
    return archive.commit.run(lambda conn: jobs.put(conn, kind, payload, at=archive.real_clock()))


def test_a_job_is_done_by_one_and_seen_by_who_asked(archive: Archive) -> None:
    id = owe(archive, number=7)
    claimed = jobs.claim(archive, [KIND], holder="a")
    assert claimed is not None
    assert (claimed.id, claimed.payload, claimed.attempts) == (id, {"number": 7}, 1)
    assert jobs.claim(archive, [KIND], holder="b") is None
    assert jobs.finish(archive, claimed, {"purged": 3})
    found = jobs.wait(archive, id, seconds=0)
    assert (found.state, found.result) == ("done", {"purged": 3})


def test_jobs_of_other_edges_are_left_to_them(archive: Archive) -> None:
    owe(archive, "dicom.echo")
    assert jobs.claim(archive, [KIND], holder="a") is None
    assert jobs.claim(archive, [KIND, "dicom.echo"], holder="a") is not None


def test_many_workers_do_each_job_once(archive: Archive) -> None:
    ids = [owe(archive) for _ in range(12)]
    done: list[int] = []

    def work(holder: str) -> None:
        while (claimed := jobs.claim(archive, [KIND], holder=holder)) is not None:
            done.append(claimed.id)
            jobs.finish(archive, claimed, {})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    while (left := jobs.claim(archive, [KIND], holder="e")) is not None:  # those that all four lost a race for
        done.append(left.id)
    assert sorted(done) == ids


def test_a_worker_that_died_is_succeeded_and_too_late_for_its_word(
    archive: Archive, later: Callable[[timedelta], None]
) -> None:
    owe(archive)
    dead = jobs.claim(archive, [KIND], holder="dead")
    assert dead is not None
    later(jobs.LEASE - timedelta(seconds=5))
    assert jobs.extend(archive, dead)
    later(jobs.LEASE - timedelta(seconds=5))
    assert jobs.claim(archive, [KIND], holder="b") is None
    later(timedelta(seconds=10))
    heir = jobs.claim(archive, [KIND], holder="b")
    assert heir is not None
    assert heir.attempts == 2
    assert not jobs.finish(archive, dead, {})
    assert not jobs.extend(archive, dead)
    assert jobs.finish(archive, heir, {})


def test_what_fails_is_tried_again_later_and_later_then_given_up(
    archive: Archive, later: Callable[[timedelta], None]
) -> None:
    id = owe(archive)
    pauses: list[datetime] = []
    for number in range(jobs.ATTEMPTS):
        claimed = jobs.claim(archive, [KIND], holder="a")
        assert claimed is not None, number
        assert jobs.fail(archive, claimed, "no answer")
        assert jobs.claim(archive, [KIND], holder="a") is None  # not at once
        with archive.reading() as conn:
            due = conn.execute(select(job.c.due_at)).scalar_one()
        pauses.append(due)
        later(max(timedelta(0), due - archive.real_clock()) + timedelta(seconds=1))
    waits = [after - before for before, after in pairwise(pauses[:-1])]
    assert waits == sorted(waits)
    found = jobs.wait(archive, id, seconds=0)
    assert (found.state, found.error) == ("dead", "no answer")


@pytest.mark.req("REQ-DCM-50", "REQ-DCM-54", "REQ-DCM-55")
@pytest.mark.parametrize("kind", [commitment.JOB, notification.JOB, mpps.FORWARD])
def test_who_is_told_of_images_may_be_away_over_a_weekend(
    archive: Archive, later: Callable[[timedelta], None], kind: str
) -> None:
    id = owe(archive, kind)
    begun = archive.real_clock()
    while (claimed := jobs.claim(archive, [kind], holder="a")) is not None:
        last = archive.real_clock()
        jobs.fail(archive, claimed, "no answer")
        with archive.reading() as conn:
            due = conn.execute(select(job.c.due_at)).scalar_one()
        later(max(timedelta(0), due - archive.real_clock()) + timedelta(seconds=1))
    assert jobs.wait(archive, id, seconds=0).state == "dead"
    assert timedelta(days=3) < last - begun < timedelta(days=5)


def test_what_is_owed_already_is_not_owed_twice(archive: Archive) -> None:
    def once(**payload: object) -> int:
        return archive.commit.run(lambda conn: jobs.put(conn, KIND, payload, at=archive.real_clock(), once=True))

    first = once(study="1.2.3")
    assert once(study="1.2.3") == first
    assert once(study="1.2.4") != first
    assert jobs.claim(archive, [KIND], holder="a") is not None
    assert once(study="1.2.3") != first  # what is being done may have read its facts already


def test_what_is_asked_for_again_is_not_kept_waiting_for_its_next_attempt(archive: Archive) -> None:
    def once() -> int:
        return archive.commit.run(lambda conn: jobs.put(conn, KIND, {}, at=archive.real_clock(), once=True))

    first = once()
    claimed = jobs.claim(archive, [KIND], holder="a")
    assert claimed is not None
    assert jobs.fail(archive, claimed, "no answer")
    assert jobs.claim(archive, [KIND], holder="a") is None
    assert once() == first
    again = jobs.claim(archive, [KIND], holder="a")
    assert again is not None
    assert (again.id, again.attempts) == (first, 2)


def test_a_job_whose_workers_never_come_back_does_not_go_on_for_ever(
    archive: Archive, later: Callable[[timedelta], None]
) -> None:
    id = owe(archive)
    for _ in range(jobs.ATTEMPTS):
        assert jobs.claim(archive, [KIND], holder="a") is not None
        later(jobs.LEASE + timedelta(seconds=1))
    assert jobs.claim(archive, [KIND], holder="a") is None
    assert jobs.wait(archive, id, seconds=0).state == "dead"


def test_whoever_asks_gets_the_result(archive: Archive) -> None:
    asked = threading.Event()

    def work() -> None:
        asked.wait(10)
        while (claimed := jobs.claim(archive, [KIND], holder="a")) is None:
            pass
        jobs.finish(archive, claimed, {"answer": claimed.payload["question"]})

    worker = threading.Thread(target=work)
    worker.start()
    asked.set()
    assert jobs.ask(archive, KIND, {"question": 42}, seconds=30) == {"answer": 42}
    worker.join(10)


def test_what_nobody_takes_is_withdrawn(archive: Archive) -> None:
    with pytest.raises(Busy, match="no process took it"):
        jobs.ask(archive, KIND, {}, seconds=0)
    assert jobs.claim(archive, [KIND], holder="a") is None


def test_a_failure_is_told_to_who_asked(archive: Archive) -> None:
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            if (claimed := jobs.claim(archive, [KIND], holder="a")) is not None:
                jobs.fail(archive, claimed, "the volume is away", again=False)

    worker = threading.Thread(target=work)
    worker.start()
    with pytest.raises(Busy, match="the volume is away"):
        jobs.ask(archive, KIND, {}, seconds=30)
    done.set()
    worker.join(10)


def test_jobs_that_are_done_are_forgotten_after_a_week(archive: Archive, later: Callable[[timedelta], None]) -> None:
    owe(archive)
    claimed = jobs.claim(archive, [KIND], holder="a")
    assert claimed is not None
    jobs.finish(archive, claimed, {})
    later(jobs.KEPT + timedelta(hours=1))
    owe(archive)
    with archive.reading() as conn:
        assert conn.execute(select(func.count()).select_from(job)).scalar_one() == 1
