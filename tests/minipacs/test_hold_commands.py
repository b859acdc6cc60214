"""`minipacs hold` and `minipacs retention preview`: as real processes, on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archive.config import Settings
from archive.core import open_archive
from tests.archive.lifecycle.studies import at, send, uid_of
from tests.minipacs.test_user_commands import Run, data, minipacs

__all__ = ["minipacs"]


@pytest.fixture
def ct(settings: Settings) -> str:
    """A study of 1 March 2021, received the next day."""
    with open_archive(settings, process="test") as archive:
        at(archive, "2021-03-02")
        send(archive, "ct", "20210301")
    return uid_of("ct")


def test_a_hold_is_added_listed_and_removed(minipacs: Run, ct: str) -> None:
    done = minipacs("hold", "add", "--study", ct, "--reason", "expertise", "--until", "2999-12-31")
    assert done.returncode == 0, done.stderr
    id = done.stdout.removesuffix("\n")
    (one,) = data(minipacs("hold", "list", "--json"))["items"]
    assert (one["id"], one["study"], one["reason"], one["until"]) == (id, ct, "expertise", "2999-12-31")
    assert "until 2999-12-31" in minipacs("hold", "list", "--study", ct).stdout
    assert data(minipacs("hold", "add", "--study", ct, "--reason", "litige", "--json"))["until"] is None

    assert minipacs("hold", "remove", id).returncode == 0
    assert [one["reason"] for one in data(minipacs("hold", "list", "--json"))["items"]] == ["litige"]
    assert len(data(minipacs("hold", "list", "--all", "--json"))["items"]) == 2
    again = minipacs("hold", "remove", id)
    assert (again.returncode, again.stdout, again.stderr) == (1, "", "minipacs: no such hold\n")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--study", "1.2.3", "--reason", "x"], 1, "no such study"),
        (["--study", "1.2.3", "--reason", " "], 1, "reason"),
        (["--study", "1.2.3"], 2, "--reason"),
        (["--study", "1.2.3", "--reason", "x", "--until", "2020-01-01"], 1, "over"),
        (["--study", "1.2.3", "--reason", "x", "--until", "tomorrow"], 2, "--until"),
    ],
)
def test_a_wrong_hold_is_refused_in_words(minipacs: Run, arguments: list[str], code: int, reason: str) -> None:
    done = minipacs("hold", "add", *arguments)
    assert done.returncode == code
    assert reason in done.stderr


def acts(found: Any) -> list[tuple[str, str]]:
    return [(item["action"], item["date"]) for item in found["items"]]


def test_the_preview_is_printed_for_people_and_machines(minipacs: Run, ct: str, tmp_path: Path) -> None:
    found = data(minipacs("retention", "preview", "--on", "2999-01-01", "--json"))
    assert found["next"] is None
    assert [action for action, _ in acts(found)] == ["migrate", "announce", "purge"]
    assert {item["study"] for item in found["items"]} == {ct}
    assert data(minipacs("retention", "preview", "--on", "2024-02-29", "--json")) == {"items": [], "next": None}
    lines = minipacs("retention", "preview", "--on", "2026-03-01").stdout.splitlines()
    assert lines[-1].startswith(f"2026-03-01  announce  {ct}  cabinet libéral : 5 ans")

    draft = tmp_path / "draft.toml"
    draft.write_text("[retention]\nkeep_years = 900\n")
    tried = data(minipacs("retention", "preview", "--on", "2999-01-01", "--policy", str(draft), "--json"))
    assert [action for action, _ in acts(tried)] == ["migrate", "announce", "purge"]
    assert acts(tried)[1] == ("announce", "2921-03-01")
    draft.write_text("[retention]\nkeep_years = 3\n")
    refused = minipacs("retention", "preview", "--policy", str(draft))
    assert (refused.returncode, "retention.keep_years" in refused.stderr) == (1, True)
    assert json.loads(minipacs("hold", "list", "--json").stdout)["items"] == []
