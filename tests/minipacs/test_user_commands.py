"""Accounts, tokens and the audit at the command line (sheet 60 §2): as real processes, on both databases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from archive import accounts
from archive.access import Action, Door
from archive.config import Settings
from archive.core import open_archive
from archive.errors import NotAuthenticated
from archive.schema import audit

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PASSWORD = "correct horse battery"


@pytest.fixture
def minipacs(settings: Settings, tmp_path: Path) -> Run:
    """Run the command with these settings, stdin closed unless it is given."""
    config = tmp_path / "minipacs.toml"
    config.write_text(
        f"data_dir = {json.dumps(str(settings.data_dir))}\n[database]\nurl = {json.dumps(settings.database.url)}\n"
    )

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MINIPACS_")}
        return subprocess.run(
            [sys.executable, "-m", "minipacs", *arguments],
            check=False,
            env={**kept, "MINIPACS_CONFIG": str(config)},
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def data(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_account_is_added_listed_changed_and_disabled(minipacs: Run, settings: Settings) -> None:
    done = minipacs("user", "add", "anais", "--role", "radiologist", "--role", "quality")
    assert done.returncode == 0, done.stderr
    made = done.stdout.removesuffix("\n")
    assert "\n" not in made

    given = minipacs("user", "add", "paul", "--role", "auditor", "--password-stdin", stdin=f"{PASSWORD}\n")
    assert (given.returncode, given.stdout) == (0, "")
    assert [
        (one["name"], one["roles"], one["disabled"]) for one in data(minipacs("user", "list", "--json"))["items"]
    ] == [
        ("anais", ["radiologist", "quality"], False),
        ("paul", ["auditor"], False),
    ]
    with open_archive(settings, process="test") as archive:
        for name, password in (("anais", made), ("paul", PASSWORD)):
            assert accounts.authenticate(archive, name, password, source="", door=Door.API)

    changed = minipacs("user", "password", "anais")
    assert changed.returncode == 0 and changed.stdout != done.stdout
    assert minipacs("user", "disable", "paul").returncode == 0
    assert "disabled" in minipacs("user", "list").stdout.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "reason"),
    [
        (("user", "add", "a", "--role", "surgeon"), None, 1, "unknown role 'surgeon'"),
        (("user", "add", "a", "--role", "quality", "--password-stdin"), "short\n", 1, "has 5 characters, it needs 12"),
        (("user", "add", "a", "--role", "quality", "--password-stdin"), "", 1, "has 0 characters"),
        (("user", "add", "a"), None, 2, "--role"),
        (("user", "disable", "nobody"), None, 1, "no account 'nobody'"),
        (("token", "revoke", "nothing"), None, 1, "no token 'nothing'"),
        (("token", "create", "--name", "a", "--role", "service", "--days", "0"), None, 2, "days"),
        (("verify-audit", "/nowhere/at/all"), None, 2, "does not exist"),
    ],
)
@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_a_mistake_is_said_in_words(
    minipacs: Run, arguments: tuple[str, ...], stdin: str | None, code: int, reason: str
) -> None:
    done = minipacs(*arguments, stdin=stdin)
    assert done.returncode == code
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_is_printed_once_and_works_until_it_is_revoked(minipacs: Run, settings: Settings) -> None:
    alone = minipacs("token", "create", "--name", "ris", "--role", "service")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.startswith("mp_") and alone.stdout.count("\n") == 1
    made = data(minipacs("token", "create", "--name", "viewer", "--role", "service", "--days", "3", "--json"))
    assert set(made) == {"id", "token", "roles", "expires"}
    assert made["roles"] == ["service"] and made["expires"].startswith("20")

    listed = minipacs("token", "list", "--json")
    assert [(one["name"], one["active"]) for one in data(listed)["items"]] == [("ris", True), ("viewer", True)]
    assert "mp_" not in listed.stdout + minipacs("token", "list").stdout

    with open_archive(settings, process="test") as archive:
        for secret in (alone.stdout.strip(), made["token"]):
            assert Action.SEE in accounts.actor_of_token(archive, secret, source="", door=Door.API).may
        assert minipacs("token", "revoke", made["id"]).returncode == 0
        archive.recognition.grants.forget()
        with pytest.raises(NotAuthenticated):
            accounts.actor_of_token(archive, made["token"], source="", door=Door.API)


def test_what_is_done_at_the_command_line_is_audited(minipacs: Run, settings: Settings) -> None:
    minipacs("user", "add", "anais", "--role", "quality")
    with open_archive(settings, process="test") as archive, archive.engine.connect() as conn:
        row = conn.execute(audit.select()).one()
    assert (row.event, row.door) == ("110113", "command")
    assert row.user and row.source.startswith(row.user + "@")


@pytest.mark.req("REQ-SEC-04")
def test_verify_audit_names_an_altered_row_in_the_database_and_in_an_export(
    minipacs: Run, settings: Settings, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        assert minipacs("token", "create", "--name", name, "--role", "service").returncode == 0
    file = tmp_path / "audit.jsonl"
    assert data(minipacs("audit", "export", "--to", str(file), "--json"))["rows"] == 4
    assert file.stat().st_mode & 0o077 == 0
    assert data(minipacs("verify-audit", str(file), "--json")) == {"ok": True, "row": None, "reason": "", "rows": 4}
    assert "every chain is whole" in minipacs("verify-audit").stdout

    file.write_text(
        file.read_text(encoding="utf-8").replace('\\"name\\":\\"b\\"', '\\"name\\":\\"x\\"'), encoding="utf-8"
    )
    with open_archive(settings, process="test") as archive, archive.engine.connect() as conn:
        pk = conn.execute(text('SELECT pk FROM audit WHERE detail LIKE \'%"name":"b"%\'')).scalar_one()
        conn.rollback()
        conn.execution_options(minipacs_write=True).execute(update(audit).where(audit.c.pk == pk).values(user="nobody"))
        conn.commit()

    for arguments in (("verify-audit", str(file)), ("verify-audit",)):
        done = minipacs(*arguments, "--json")
        verdict = json.loads(done.stdout)
        assert (done.returncode, verdict["ok"], verdict["row"]["pk"]) == (1, False, pk)
        assert "altered" in verdict["reason"]
        assert f"pk {pk}" in minipacs(*arguments).stdout


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_an_export_that_cannot_be_written_leaves_nothing(minipacs: Run, tmp_path: Path) -> None:
    done = minipacs("audit", "export", "--to", str(tmp_path / "no" / "audit.jsonl"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (tmp_path / "folder").mkdir()
    done = minipacs("audit", "export", "--to", str(tmp_path / "folder"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".folder*"))
