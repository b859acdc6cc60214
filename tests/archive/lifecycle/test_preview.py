"""What will leave when: foretold for any day, from the facts, without writing."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import InvalidRequest
from archive.instance import State
from archive.lifecycle import preview as module
from archive.lifecycle.compute import compute_due
from archive.lifecycle.holds import add_hold
from archive.lifecycle.preview import Item, draft_of, preview
from archive.lifecycle.suspension import Kind, suspend
from archive.schema import audit, instance, purge_approval, series, study
from tests.archive.lifecycle.studies import at, row_of, send, statements, uid_of


@pytest.fixture
def ct(archive: Archive) -> str:
    """A CT of 1 March 2021 in a practice."""
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    return uid_of("ct")


def items(archive: Archive, on: str, **more: Any) -> list[Item]:
    return [item for _, some in preview(archive, on=date.fromisoformat(on), **more) for item in some]


def said(archive: Archive, on: str, **more: Any) -> list[tuple[str, str]]:
    return [(str(item.action), item.day.isoformat()) for item in items(archive, on, **more)]


@pytest.mark.parametrize("computed", [True, False], ids=["computed", "not computed yet"])
def test_a_studys_life_is_foretold(archive: Archive, ct: str, computed: bool) -> None:
    if computed:
        compute_due(archive)
    assert said(archive, "2024-02-29") == []
    assert said(archive, "2024-03-01") == [("migrate", "2024-03-01")]
    assert said(archive, "2026-02-28") == [("migrate", "2024-03-01")]
    life = [("migrate", "2024-03-01"), ("announce", "2026-03-01")]
    assert said(archive, "2026-03-01") == said(archive, "2026-03-30") == life
    assert said(archive, "2026-03-31") == said(archive, "2060-01-01") == [*life, ("purge", "2026-03-31")]


def test_what_is_overdue_happens_at_the_next_tick(archive: Archive, ct: str) -> None:
    at(archive, "2026-05-05")
    assert said(archive, "2026-05-05") == [("migrate", "2026-05-05"), ("announce", "2026-05-05")]
    assert said(archive, "2026-06-04")[-1] == ("purge", "2026-06-04")
    assert said(archive, "2026-03-01") == [("migrate", "2026-03-01"), ("announce", "2026-03-01")], "a day that is over"
    assert [(str(one.action), one.day) for _, some in preview(archive) for one in some][-1] == (
        "announce", date(2026, 5, 5),
    )  # fmt: skip


def test_an_announced_study_is_purged_on_its_day(archive: Archive, ct: str) -> None:
    compute_due(archive)
    at(archive, "2026-03-10")
    values = {"announced_at": archive.clock(), "purge_on": "20260409"}
    archive.commit.run(lambda conn: conn.execute(update(study).values(values)))
    assert said(archive, "2026-04-08") == [("migrate", "2026-03-10")]
    assert said(archive, "2026-04-09") == [("migrate", "2026-03-10"), ("purge", "2026-04-09")]


def test_originals_in_grace_leave_at_its_end(archive: Archive, ct: str) -> None:
    compute_due(archive)
    at(archive, "2024-03-01")
    grace = {"grace_until": archive.clock() + timedelta(days=30)}
    archive.commit.run(lambda conn: conn.execute(update(study).values(grace)))
    assert said(archive, "2024-03-30") == []
    assert said(archive, "2024-03-31") == [("migrate", "2024-03-31")]


def test_a_hold_blocks_and_says_so(archive: Archive, actor: Actor, ct: str) -> None:
    add_hold(archive, ct, reason="expertise", until=date(2026, 6, 30), actor=actor)
    compute_due(archive)
    assert said(archive, "2024-03-01") == [("blocked", "2024-03-01")]
    found = items(archive, "2026-06-30")
    assert [(str(one.action), one.day.isoformat()) for one in found] == [
        ("blocked", "2024-03-01"),
        ("blocked", "2026-03-01"),
    ]
    assert [[reason["rule"] for reason in one.reasons] for one in found] == [["hold"], ["hold"]]
    assert ("announce", "2026-07-01") in said(archive, "2026-07-01")
    add_hold(archive, ct, reason="for good", until=None, actor=actor)
    assert {action for action, _ in said(archive, "2060-01-01")} == {"blocked"}


def test_an_unknown_birth_date_at_a_hospital_blocks(archive: Archive) -> None:
    at(archive, "2006-03-01")
    send(archive, "ct", "20060301", PatientBirthDate=None)
    hospital = Settings.model_validate(
        {**archive.settings.model_dump(exclude_unset=True), "site": {"profile": "hospital"}}
    )
    (_, blocked) = items(archive, "2026-03-01", draft=hospital)
    assert (str(blocked.action), [reason["rule"] for reason in blocked.reasons]) == ("blocked", ["birth_date_unknown"])


def test_images_that_are_held_back_block(archive: Archive, ct: str) -> None:
    send(archive, "ct", "20210301", PatientID="SOMEBODY ELSE")
    compute_due(archive)
    with archive.reading() as conn:
        assert State.HELD in conn.execute(select(instance.c.state)).scalars().all()
    assert [reason["rule"] for reason in items(archive, "2026-03-01")[-1].reasons] == ["held_back"]


def test_a_suspension_and_missing_approvals_block_the_purge_alone(archive: Archive, ct: str) -> None:
    compute_due(archive)
    at(archive, "2026-03-01")
    archive.commit.run(lambda conn: suspend(conn, Kind.CLOCK, "it went back", at=archive.clock()))
    last = items(archive, "2026-03-31")
    assert [str(one.action) for one in last] == ["migrate", "announce", "blocked"]
    assert [reason["rule"] for reason in last[-1].reasons] == ["suspended"]
    assert "it went back" in str(last[-1].reasons[0]["text"])


def test_two_persons_have_to_approve_where_the_site_wants_it(settings: Settings, actor: Actor) -> None:
    values = {**settings.model_dump(exclude_unset=True), "retention": {"purge_approval": "two-person"}}
    with open_archive(Settings.model_validate(values), process="test") as archive:
        at(archive, "2021-03-01")
        send(archive, "ct", "20210301")
        compute_due(archive)
        at(archive, "2026-03-01")
        assert [reason["rule"] for reason in items(archive, "2026-03-31")[-1].reasons] == ["approvals"]

        def write(conn: Connection) -> None:
            now = archive.clock()
            conn.execute(update(study).values(announced_at=now, purge_on="20260331"))
            for user in ("a", "b"):
                conn.execute(
                    insert(purge_approval).values(study_instance_uid=uid_of("ct"), user=user, reason="x", at=now)
                )

        archive.commit.run(write)
        assert said(archive, "2026-03-31")[-1] == ("purge", "2026-03-31")


def test_nothing_is_written(archive: Archive, actor: Actor, ct: str) -> None:
    before = row_of(archive, "ct")
    with statements(archive) as sql:
        items(archive, "2060-01-01")
        items(archive, "2060-01-01", draft=draft_of(archive.settings, b"[retention]\nkeep_years = 9"))
    assert {one.split()[0] for one in sql} <= {"SELECT", "BEGIN"}
    assert row_of(archive, "ct") == before
    with archive.reading() as conn:
        assert not conn.execute(select(audit.c.detail).where(audit.c.detail.contains("withdrawn"))).all()


def test_a_draft_of_a_policy_is_tried(archive: Archive, ct: str) -> None:
    compute_due(archive)
    draft = draft_of(archive.settings, b"[retention]\nkeep_years = 7\nimmediate_years = 4\npurge_notice_days = 60\n")
    assert said(archive, "2060-01-01", draft=draft) == [
        ("migrate", "2025-03-01"), ("announce", "2028-03-01"), ("purge", "2028-04-30"),
    ]  # fmt: skip
    assert said(archive, "2028-02-29", draft=draft) == [("migrate", "2025-03-01")]


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        (b"[retention", "TOML"),
        (b"\xff", "TOML"),
        (b"[site]\nprofile = 'hospital'", "[retention]"),
        (b"[retention]\n[site]", "[retention]"),
        (b"retention = 3", "[retention]"),
        (b"[retention]\nkeep_years = 4", "retention.keep_years"),
        (b"[retention]\nkeep_year = 9", "retention.keep_year"),
    ],
)
def test_a_draft_that_is_none_is_refused_by_name(archive: Archive, toml: bytes, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named.replace("[", r"\[").replace("]", r"\]")):
        draft_of(archive.settings, toml)


def test_a_draft_below_the_floor_of_a_hospital_is_refused(settings: Settings) -> None:
    hospital = settings.model_copy(update={"site": settings.site.model_copy(update={"profile": "hospital"})})
    values = {**hospital.model_dump(exclude_unset=True), "site": {"profile": "hospital"}}
    with pytest.raises(InvalidRequest, match="at least 20"):
        draft_of(Settings.model_validate(values), b"[retention]\nkeep_years = 10")


def test_studies_come_in_pages_and_those_without_anything_are_not_read(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    at(archive, "2021-03-01")
    for number in range(5):
        send(archive, f"old{number}", "20210301")
    at(archive, "2022-03-01")
    for number in range(5):
        send(archive, f"young{number}", "20220301")
    compute_due(archive)
    found = list(preview(archive, on=date(2024, 3, 1)))
    assert [item.study_instance_uid for _, some in found for item in some] == [uid_of(f"old{n}") for n in range(5)]
    rest = list(preview(archive, on=date(2024, 3, 1), after=found[2][0]))
    assert rest == found[3:]
    with statements(archive) as sql:
        assert list(preview(archive, on=date(2024, 2, 29))) == []
    assert len(sql) == 2, "suspensions, and no study"
    with archive.reading() as conn:
        assert len(conn.execute(select(series.c.pk)).all()) == 10
