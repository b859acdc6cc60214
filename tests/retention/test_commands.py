"""`minipacs retention run`, `approve`, `resume`: words, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from sqlalchemy import select

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy
from archive.leases import leased
from archive.lifecycle.suspension import Kind, suspend
from archive.schema import suspension
from archive.testbed import advance, set_clock
from minipacs.commands import retention as commands
from minipacs.terminal import exit_code, whoever_types
from retention.tick import LEASE
from tests.builders import new_uid
from tests.retention.conftest import EXAM
from tests.retention.life import audited, receive_exam

pytestmark = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)

UID = new_uid("study")
COUNTS = {"migrated", "derived", "kept_lossless", "announced", "purged", "blocked"}
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """A test bed, whose clock the commands follow."""
    with open_archive(settings.model_copy(update={"test_mode": True}), process="test") as opened:
        set_clock(opened, datetime.fromisoformat(EXAM + "+00:00"), actor=whoever_types())
        yield opened


def test_a_tick_is_told_in_words_and_as_json(archive: Archive, run: Run) -> None:
    receive_exam(archive)
    advance(archive, "5y", actor=whoever_types())
    code, said = run("retention", "run", "--json")
    assert code == 0
    counts = json.loads(said)
    assert counts.keys() >= COUNTS
    assert {name: counts[name] for name in COUNTS} | {"announced": 0} == {
        "migrated": 1, "derived": 0, "kept_lossless": 2, "announced": 0, "purged": 0, "blocked": 0
    }  # fmt: skip
    assert counts["announced"] == 1
    advance(archive, "30d", actor=whoever_types())
    archive.commit.run(lambda conn: suspend(conn, Kind.REBUILT, "no journal", at=archive.clock()))
    code, said = run("retention", "run")
    assert code == 0  # what is blocked is data
    assert "blocked" in said
    assert "removal is suspended" in said
    assert len(audited(archive, "110100", user=whoever_types().user)) == 2


def test_resume_lifts_and_says_what(archive: Archive, run: Run) -> None:
    archive.commit.run(lambda conn: suspend(conn, Kind.CLOCK, "it jumped", at=archive.clock()))
    assert run("retention", "resume")[0] == 2
    assert run("retention", "resume", "--reason", " ")[0] == 1
    code, said = run("retention", "resume", "--reason", "vérifié")
    assert (code, "clock" in said, "it jumped" in said) == (0, True, True)
    assert run("retention", "resume", "--reason", "vérifié") == (0, "removal was not suspended\n")
    with archive.reading() as conn:
        (row,) = conn.execute(select(suspension)).all()
    assert (row.lifted_by, row.reason) == (whoever_types().user, "vérifié")
    code, said = run("retention", "resume", "--reason", "encore", "--json")
    assert json.loads(said) == {"lifted": []}


def test_approvals_are_counted(archive: Archive, run: Run) -> None:
    assert run("retention", "approve", "1.2.3", "--reason", "vu")[0] == 1
    assert run("retention", "approve", "--reason", "vu")[0] == 2
    receive_exam(archive)
    advance(archive, "5y", actor=whoever_types())
    run("retention", "run")
    code, said = run("retention", "approve", UID, "--reason", "vu", "--json")
    assert (code, json.loads(said)) == (0, {"study": UID, "approvals": 1, "needed": 2})
    assert run("retention", "approve", "--study", UID, "--reason", "encore") == (0, f"{UID}: 1 of 2 approvals\n")


def test_the_gate_is_tried_on_own_images(archive: Archive, run: Run) -> None:
    assert run("retention", "quality") == (0, "no image on the hot tier has a gate\n")
    receive_exam(archive)
    code, said = run("retention", "quality", "--sample", "5")
    assert (code, said.startswith("CT: 0 of 2 pass")) == (0, True)  # noise fails it
    code, said = run("retention", "quality", "--modality", "CT", "--json")
    (item,) = json.loads(said)["items"]
    assert (code, item["modality"], item["tried"], item["passed"]) == (0, "CT", 2, 0)
    assert json.loads(run("retention", "quality", "--modality", "MR", "--json")[1])["items"] == []


def test_a_tick_of_another_process_is_waited_for_in_vain(
    archive: Archive, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setenv("MINIPACS_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("MINIPACS_DATABASE__URL", settings.database.url)
    with leased(archive, LEASE), pytest.raises(Busy, match="another process") as refused:
        commands.run()
    assert exit_code(refused.value) == 3
