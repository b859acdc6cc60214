"""`/api/v1/changes`: every change once, under a number that stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
from sqlalchemy import delete, select

from archive import changes as feed
from archive.access import Actor
from archive.core import Archive, open_archive
from archive.identity.acts import Act
from archive.lifecycle.remove import finish_removals, mark_instances
from archive.schema import change, instance
from archive.workflow.images import note_study
from tests.api.conftest import on_both_databases
from tests.api.test_purges import may
from tests.api.test_stow import post
from tests.builders import ct_slice, part10

__all__ = ["may"]


def told(client: httpx.Client, since: int = 0, **more: Any) -> dict[str, Any]:
    answer = client.get("/api/v1/changes", params={"since": since, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def kinds(page: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["kind"], one["study"]) for one in page["changes"]]


@on_both_databases
def test_what_comes_is_corrected_and_rejected_is_told_in_its_order(
    archive: Archive, client: httpx.Client, may: Callable[..., httpx.Client]
) -> None:
    empty = told(client)
    assert (empty["changes"], empty["done"]) == ([], True)
    one, two = ct_slice(number=1), ct_slice(number=2)
    for ds in (one, two):
        assert post(client, part10(ds)).status_code == 200
    first = told(client, empty["last"])
    assert [(row["kind"], row["instance"]) for row in first["changes"]] == [
        ("stored", one.SOPInstanceUID),
        ("stored", two.SOPInstanceUID),
    ]
    assert (first["done"], first["last"]) == (True, first["changes"][-1]["seq"])
    assert told(client, first["last"])["changes"] == []
    assert post(client, part10(one)).status_code == 200  # known already: nothing changed
    assert told(client, first["last"])["changes"] == []

    anne = may("radiologist", "anne")
    wish = {"code": "113001", "reason": "bougé", "instances": [two.SOPInstanceUID]}
    note = anne.post(f"/api/v1/studies/{one.StudyInstanceUID}/reject", json=wish).json()["note"]
    second = told(client, first["last"])
    assert kinds(second) == [("stored", one.StudyInstanceUID), ("rejected", one.StudyInstanceUID)]  # the note, its work
    assert second["changes"][0]["instance"] == note
    assert anne.delete(f"/api/v1/rejections/{note}", params={"reason": "relu"}).status_code == 204
    third = told(client, second["last"])
    assert kinds(third) == [("updated", one.StudyInstanceUID)]
    assert told(client)["changes"] == first["changes"] + second["changes"] + third["changes"]  # for ever the same


@on_both_databases
def test_pages_say_where_to_go_on_and_whether_that_was_all(archive: Archive, client: httpx.Client) -> None:
    assert post(client, *(part10(ct_slice(number=number)) for number in range(1, 8))).status_code == 200
    everything = told(client)["changes"]
    found: list[Any] = []
    since, done = 0, False
    while not done:
        page = told(client, since, limit=3)
        assert len(page["changes"]) <= 3
        found += page["changes"]
        since, done = page["last"], page["done"]
    assert found == everything
    assert len({one["seq"] for one in found}) == 7
    assert sorted(found, key=lambda one: one["seq"]) == found


@on_both_databases
def test_two_who_ask_at_once_get_the_same_numbers(archive: Archive, client: httpx.Client, actor: Actor) -> None:
    assert post(client, *(part10(ct_slice(number=number)) for number in range(1, 30))).status_code == 200
    answers: list[dict[str, int]] = []

    def ask() -> None:
        with open_archive(archive.settings, process="other") as other:
            page = feed.changes(other, since=0, limit=100, feed=None, actor=actor)
            answers.append({one.sop_instance_uid or "": one.number for one in page.changes})

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3
    assert all(answer == answers[0] and len(answer) == 29 for answer in answers)


def test_a_long_backlog_is_told_in_parts(archive: Archive, client: httpx.Client, monkeypatch: Any) -> None:
    assert post(client, *(part10(ct_slice(number=number)) for number in range(1, 12))).status_code == 200
    monkeypatch.setattr(feed, "BATCH", 2)
    monkeypatch.setattr(feed, "ROUNDS", 2)
    monkeypatch.setattr(feed, "_NEW_INSTANCES", feed._NEW_INSTANCES.limit(2))
    page = told(client)
    assert (len(page["changes"]), page["done"]) == (4, False)
    found = page["changes"]
    while not page["done"]:
        page = told(client, page["last"])
        found += page["changes"]
    assert len({one["instance"] for one in found}) == 11


@on_both_databases
def test_a_corrected_study_is_told(archive: Archive, client: httpx.Client, actor: Actor) -> None:
    ds = ct_slice()
    assert post(client, part10(ds)).status_code == 200
    last = told(client)["last"]
    act = Act(archive.clock(), actor, "a correction", archive.authorities, reason="CORRECT")
    archive.commit.run(partial(note_study, uid=ds.StudyInstanceUID, act=act))
    assert kinds(told(client, last)) == [("corrected", ds.StudyInstanceUID)]


@on_both_databases
def test_what_comes_after_a_purge_of_the_newest_is_told_too(archive: Archive, client: httpx.Client) -> None:
    """SQLite gives the key of the newest row, once it is gone, to the next one."""
    one, two, three = (ct_slice(number=number) for number in (1, 2, 3))
    for ds in (one, two):
        assert post(client, part10(ds)).status_code == 200
    before = told(client)
    newest = select(instance.c.pk).where(instance.c.sop_instance_uid == two.SOPInstanceUID)
    with archive.reading() as conn:
        pk = conn.execute(newest).scalar_one()
    archive.commit.run(partial(mark_instances, pks=[pk]))
    assert finish_removals(archive).instances == 1
    assert post(client, part10(three)).status_code == 200
    after = told(client, before["last"])
    assert [(row["kind"], row["instance"]) for row in after["changes"]] == [("stored", three.SOPInstanceUID)]
    assert told(client)["changes"] == before["changes"] + after["changes"]


def test_a_feed_that_began_anew_is_said(archive: Archive, client: httpx.Client, stranger: httpx.Client) -> None:
    assert post(client, part10(ct_slice())).status_code == 200
    page = told(client)
    archive.commit.run(lambda conn: conn.execute(delete(change)))  # as after «minipacs rebuild-index»
    for asked in ({"since": page["last"] + 5}, {"since": 1, "feed": page["feed"]}):
        answer = client.get("/api/v1/changes", params=asked)
        assert (answer.status_code, "begin at 0" in answer.json()["detail"]) == (409, True)
    assert len(told(client)["changes"]) == 1
    assert stranger.get("/api/v1/changes").status_code == 401
