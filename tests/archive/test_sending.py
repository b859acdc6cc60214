"""The rows behind a sending, on both databases: how far it is, what failed, tried again, given up, forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import func, select, update

from archive import jobs, sending
from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Conflict, NotFound
from archive.schema import job
from archive.schema import sending as rows
from archive.sending import Counts
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.retrieving import keep

STUDY = new_uid("sending")


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    values = settings.model_dump()
    values["dicom"] |= {"peers": {"VIEWER": {"host": "127.0.0.1", "port": 104}}}
    with open_archive(Settings.model_validate(values), process="test") as opened:
        keep(opened, *(ct_slice(number=number, StudyInstanceUID=STUDY) for number in range(3)))
        yield opened


def begun(archive: Archive, actor: Actor) -> jobs.Job:
    """A sending that a process is at."""
    id, instances = sending.ask(archive, "VIEWER", actor=actor, study_uids=[STUDY])
    assert instances == 3
    claimed = jobs.claim(archive, [sending.KIND], holder="a")
    assert claimed is not None
    assert claimed.id == id
    return claimed


def recorded(archive: Archive, one: jobs.Job, sent: list[int], failed: list[tuple[int, str]]) -> bool:
    write = partial(
        sending.record_progress, one=one, sent=sent, failed=failed, at=archive.real_clock(), patience_seconds=60
    )
    return archive.commit.run(write)


def how_far(archive: Archive, one: jobs.Job) -> Counts:
    with archive.reading() as conn:
        return sending.counts(conn, [one.id])[one.id]


def test_progress_is_kept_and_what_failed_is_tried_again_when_asked(archive: Archive, actor: Actor) -> None:
    one = begun(archive, actor)
    first, second, third = sending.waiting(archive, one)
    at = archive.real_clock()
    archive.commit.run(partial(sending.interrupted, one=first, why="the peer aborted", at=at))
    assert [left.pk for left in sending.waiting(archive, one)] == [second.pk, third.pk, first.pk]
    assert recorded(archive, one, [second.pk], [(third.pk, "the peer answered A900")])
    assert how_far(archive, one) == Counts(waiting=1, sent=1, failed=1)
    assert jobs.fail(archive, one, "gone", again=False)
    assert not recorded(archive, one, [first.pk], [])  # it is not this worker's any more
    (said,) = sending.described(archive, sending.jobs_of(archive, STUDY, limit=5))
    assert (said["state"], said["error"], said["peer"], said["sent"]) == ("dead", "gone", "VIEWER", 1)
    with archive.reading() as conn:
        assert [failure["reason"] for failure in sending.failures(conn, one.id, limit=9)] == ["the peer answered A900"]
    sending.retry(archive, one.id, actor=actor)
    assert how_far(archive, one) == Counts(waiting=2, sent=1)
    again = jobs.claim(archive, [sending.KIND], holder="b")
    assert again is not None
    assert again.attempts == 1


def test_a_sending_that_gets_on_is_not_given_up(archive: Archive, actor: Actor) -> None:
    """Attempts are counted from the last progress; without any a peer may be away for a weekend."""
    one = begun(archive, actor)
    archive.commit.run(lambda conn: conn.execute(update(job).values(attempts=19)))
    assert recorded(archive, one, [sending.waiting(archive, one)[0].pk], [])
    assert jobs.fail(archive, one, "gone")
    assert jobs.wait(archive, one.id, seconds=0).state == "due"
    pause, away = jobs.FIRST_PAUSE, timedelta(0)
    for _ in range(1, jobs.ATTEMPTS_OF[sending.KIND]):
        away, pause = away + pause, min(2 * pause, jobs.LONGEST_PAUSE)
    assert timedelta(days=2) < away < timedelta(days=4)


def test_a_sending_is_given_up_and_may_be_revived(archive: Archive, actor: Actor) -> None:
    one = begun(archive, actor)
    sending.cancel(archive, one.id, actor=actor)
    assert not jobs.finish(archive, one, {})
    with pytest.raises(Conflict, match="dead"):
        sending.cancel(archive, one.id, actor=actor)
    sending.retry(archive, one.id, actor=actor)
    with pytest.raises(NotFound):
        sending.retry(archive, one.id + 1, actor=actor)


def test_the_rows_of_a_sending_go_with_its_job(archive: Archive, actor: Actor) -> None:
    one = begun(archive, actor)
    assert recorded(archive, one, [left.pk for left in sending.waiting(archive, one)], [])
    assert jobs.finish(archive, one, {"sent": 3})
    past = archive.real_clock() - jobs.KEPT - timedelta(hours=1)
    archive.commit.run(lambda conn: conn.execute(update(job).values(finished_at=past)))
    archive.commit.run(lambda conn: jobs.put(conn, "dicom.echo", {}, at=archive.real_clock()))
    with archive.reading() as conn:
        assert conn.execute(select(func.count()).select_from(rows)).scalar_one() == 0
        assert [found.kind for found in jobs.list_jobs(conn, limit=9)] == ["dicom.echo"]
        assert jobs.list_jobs(conn, kind="dicom.echo", state="dead", limit=9) == []
