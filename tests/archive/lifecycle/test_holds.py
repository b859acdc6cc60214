"""Holds take effect at once, end when they should, and outlive the index."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, delete, insert, select, update

from archive.access import Action, Actor
from archive.core import Archive
from archive.errors import ArchiveError, Gone, InvalidRequest, NotAllowed, NotFound
from archive.instance import State
from archive.journal import Kind
from archive.lifecycle.compute import compute_due, explain
from archive.lifecycle.guard import Blocker, keeps, terms
from archive.lifecycle.holds import Hold, add_hold, holds, list_holds, remove_hold, restore_hold
from archive.schema import audit, fact, hold, instance, study, tombstone
from archive.schema.types import AnyRow
from tests.archive.lifecycle.studies import at, row_of, send, uid_of


@pytest.fixture
def ct(archive: Archive) -> str:
    """A study of 1 March 2021 whose dates are computed."""
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    compute_due(archive)
    return uid_of("ct")


def told(archive: Archive, act: str) -> list[AnyRow]:
    with archive.reading() as conn:
        return list(conn.execute(select(audit).where(audit.c.detail.contains(f'"hold":"{act}"'))))


def standing(archive: Archive, today: str, **more: Any) -> list[Hold]:
    with archive.reading() as conn:
        return list_holds(conn, today=date.fromisoformat(today), **more)


def test_a_hold_takes_effect_in_its_own_transaction(archive: Archive, actor: Actor, ct: str) -> None:
    at(archive, "2026-03-02")
    values = {"announced_at": archive.clock(), "purge_on": "20260401"}
    archive.commit.run(lambda conn: conn.execute(update(study).values(values)))
    placed = add_hold(archive, ct, reason="  expertise judiciaire ", until=None, actor=actor)
    row = row_of(archive, "ct")
    assert (row.policy_version, row.announced_at, row.purge_on) == (None, None, None)
    assert (placed.reason, placed.placed_by, placed.study_instance_uid) == ("expertise judiciaire", "tester", ct)
    with archive.reading() as conn:
        known = terms(conn, row.pk)
        assert known is not None
        assert keeps(conn, known, on=date(2099, 1, 1)) is Blocker.HOLD
    compute_due(archive)
    assert row_of(archive, "ct").keep_until is None
    assert explain(archive, ct)["date"] is None
    assert explain(archive, ct)["reasons"][0]["rule"] == "hold"
    (audited,) = told(archive, "placed")
    assert (audited.study, audited.patient, audited.action, audited.user) == (ct, "P-ct", "U", "tester")
    assert orjson.loads(audited.detail)["reason"] == "expertise judiciaire"

    ended = remove_hold(archive, placed.id, actor=replace(actor, user="other"))
    assert (ended.removed_by, ended.id) == ("other", placed.id)
    assert row_of(archive, "ct").policy_version is None
    compute_due(archive)
    assert row_of(archive, "ct").keep_until == "20260301"
    assert [row.user for row in told(archive, "removed")] == ["other"]


def test_a_hold_with_a_last_day_ends_by_itself(archive: Archive, actor: Actor, ct: str) -> None:
    placed = add_hold(archive, ct, reason="litige", until=date(2030, 6, 30), actor=actor)
    compute_due(archive)
    assert row_of(archive, "ct").keep_until == "20300701"
    assert standing(archive, "2030-06-30") == [placed]
    assert standing(archive, "2030-07-01") == []
    assert standing(archive, "2030-07-01", everything=True) == [placed]


def test_several_holds_keep_until_the_last_one_ends(archive: Archive, actor: Actor, ct: str) -> None:
    first = add_hold(archive, ct, reason="a", until=date(2030, 6, 30), actor=actor)
    second = add_hold(archive, ct, reason="b", until=None, actor=actor)
    send(archive, "other", "20210301")
    third = add_hold(archive, uid_of("other"), reason="c", until=None, actor=actor)
    assert standing(archive, "2026-01-05") == [first, second, third]
    assert standing(archive, "2026-01-05", study_instance_uid=ct) == [first, second]
    assert standing(archive, "2026-01-05", after=first.id, limit=1) == [second]
    remove_hold(archive, second.id, actor=actor)
    compute_due(archive)
    assert row_of(archive, "ct").keep_until == "20300701"
    assert [one.id for one in holds(archive, actor=actor)] == [first.id, third.id]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"uid": "1.2.3"}, NotFound),
        ({"reason": " "}, InvalidRequest),
        ({"reason": "x" * 501}, InvalidRequest),
        ({"until": date(2021, 2, 28)}, InvalidRequest),
        ({"may": frozenset({Action.FIND})}, NotAllowed),
    ],
)
def test_a_hold_is_refused(
    archive: Archive, actor: Actor, ct: str, values: dict[str, Any], error: type[ArchiveError]
) -> None:
    who = replace(actor, may=values.get("may", actor.may))
    with pytest.raises(error):
        add_hold(
            archive, values.get("uid", ct), reason=values.get("reason", "litige"), until=values.get("until"), actor=who
        )  # fmt: skip
    assert standing(archive, "2021-03-01") == []
    assert row_of(archive, "ct").policy_version is not None
    if error is not InvalidRequest:
        assert [row.outcome for row in told(archive, "placed")] == [8 if error is NotAllowed else 4]


def test_the_last_day_of_a_hold_may_be_today(archive: Archive, actor: Actor, ct: str) -> None:
    assert add_hold(archive, ct, reason="litige", until=date(2021, 3, 1), actor=actor).until == date(2021, 3, 1)


def test_nothing_is_left_to_hold_once_a_purge_has_begun(archive: Archive, actor: Actor, ct: str) -> None:
    def purge(conn: Connection) -> None:
        conn.execute(update(instance).values(state=State.PURGING))
        left = {"sop_instance_uid": "1.2.9", "series_instance_uid": "1.2", "sop_class_uid": "1", "digest": "0" * 64}
        conn.execute(insert(tombstone).values(**left, study_instance_uid=ct, purge_id="p1", at=archive.clock()))

    archive.commit.run(purge)
    with pytest.raises(Gone):
        add_hold(archive, ct, reason="too late", until=None, actor=actor)
    assert [row.outcome for row in told(archive, "placed")] == [4]


def test_a_hold_is_removed_once(archive: Archive, actor: Actor, ct: str) -> None:
    placed = add_hold(archive, ct, reason="litige", until=None, actor=actor)
    remove_hold(archive, placed.id, actor=actor)
    for unknown in (placed.id, "nothing"):
        with pytest.raises(NotFound):
            remove_hold(archive, unknown, actor=actor)
    with pytest.raises(NotAllowed):
        remove_hold(archive, placed.id, actor=replace(actor, may=frozenset()))
    assert [row.outcome for row in told(archive, "removed")] == [0, 4, 4, 8]


def test_a_hospitals_clock_stands_still_while_a_hold_lasts(archive: Archive, actor: Actor) -> None:
    """CSP R.1112-7; the settings of a hospital are tried in `test_compute`."""
    from archive.lifecycle.facts import gather

    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    placed = add_hold(archive, uid_of("ct"), reason="litige", until=None, actor=actor)
    at(archive, "2021-03-31")
    remove_hold(archive, placed.id, actor=actor)
    with archive.reading() as conn:
        (known,) = gather(conn, archive.settings, [row_of(archive, "ct").pk])
    (one,) = known.facts.holds
    assert (one.since, one.until, one.removed) == (date(2021, 3, 1), date(2021, 3, 31), True)


def test_holds_come_back_from_the_journal_alone(archive: Archive, actor: Actor, ct: str) -> None:
    standing_one = add_hold(archive, ct, reason="litige", until=date(2030, 6, 30), actor=actor)
    ended = remove_hold(archive, add_hold(archive, ct, reason="fini", until=None, actor=actor).id, actor=actor)
    archive.commit.run(lambda conn: conn.execute(delete(hold)))
    facts = [one for one in archive.journal.read() if one.kind == Kind.HOLD]
    assert [one.subject for one in facts] == [standing_one.id, ended.id, ended.id]

    def restore(conn: Connection) -> None:
        for one in facts:
            restore_hold(conn, one.subject, one.body, one.at)

    for _ in range(2):  # idempotent
        archive.commit.run(restore)
        assert standing(archive, "2021-03-01", everything=True) == [standing_one, ended]
    assert row_of(archive, "ct").policy_version is None
    with archive.reading() as conn:
        assert len(conn.execute(select(fact.c.pk).where(fact.c.kind == "hold")).all()) == 3


def test_looking_at_holds_is_in_the_audit(archive: Archive, actor: Actor, ct: str) -> None:
    holds(archive, study_instance_uid=ct, actor=actor)
    archive.commit.run(lambda conn: None)  # whatever was queued is committed with it
    with archive.reading() as conn:
        rows = conn.execute(select(audit.c.event, audit.c.study).where(audit.c.detail.contains('"holds"'))).all()
    assert [tuple(row) for row in rows] == [("110112", ct)]
    with pytest.raises(NotAllowed):
        holds(archive, actor=replace(actor, may=frozenset({Action.FIND})))
