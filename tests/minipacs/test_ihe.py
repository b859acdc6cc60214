"""The IHE integration statement claims what has checks, and what the configuration does (REQ-IHE-11)."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archive.config import Settings
from minipacs import ihe_page
from minipacs.cli import app
from minipacs.ihe import CLAIMS, Claim, claimed, statement
from tests.certificates import Authority

ROOT = Path(__file__).parents[2]


def checked() -> set[str]:
    """The rows of the requirements that tests are marked with."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.req":
                found |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return found


CHECKED = checked()


@pytest.mark.req("REQ-IHE-11")
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.profile}, {claim.actor}")
def test_nothing_is_claimed_without_a_check(claim: Claim) -> None:
    """Tests that are marked with each of its rows, among them one of IHE's; that they pass is for the suite to say."""
    assert set(claim.checks) <= CHECKED, f"no test is marked with {set(claim.checks) - CHECKED}"
    assert any(row.startswith("REQ-IHE-") for row in claim.checks)


def test_the_look_for_marks_finds_them_and_no_others() -> None:
    assert {"REQ-IHE-11", "REQ-DCM-04"} <= CHECKED
    assert "REQ-IHE-99" not in CHECKED  # named here, and no mark


def test_each_actor_is_claimed_once() -> None:
    assert len({(one.profile, one.actor) for one in CLAIMS}) == len(CLAIMS)


def test_the_page_is_current() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "ihe.md").read_text(encoding="utf-8") == ihe_page.page()


@pytest.mark.req("REQ-IHE-11")
def test_the_statement_is_that_of_the_configuration(authority: Authority) -> None:
    """A node that is not secured, or does not know the time, is not claimed to."""

    def actors(settings: Settings) -> set[str]:
        return {one.actor for one in claimed(settings)}

    def secured(**change: object) -> Settings:
        told = {
            "tls": authority.settings(),
            "audit": {"repository": {"host": "arr.example"}},
            "time": {"servers": ["ntp.example"]},
        }
        return Settings.model_validate({**told, **change})

    assert {"Secure Node", "Time Client"} & actors(Settings()) == set()
    assert {"Secure Node", "Time Client"} <= actors(secured())
    clear = {"repository": {"host": "127.0.0.1", "transport": "tcp"}}
    for change in (
        {"tls": {**authority.settings(), "cert": None, "key": None}},
        {"dicom": {"tls_mutual": False}},
        {"dicom": {"insecure": True}},
        {"hl7": {"host": "0.0.0.0", "insecure": True}},
        {"api": {"host": "0.0.0.0", "insecure": True}},
        {"audit": clear},
        {"audit": {}},
        {"time": {}},
    ):
        assert "Secure Node" not in actors(secured(**change)), change
    lacking = {one["actor"]: one["lacks"] for one in statement(Settings(), on=None)["not_claimed"]}
    assert "time.servers" in lacking["Time Client"] and "tls.cert" in lacking["Secure Node"]


@pytest.mark.req("REQ-IHE-11")
def test_the_command_prints_it_with_the_day(tmp_path: Path) -> None:
    config = tmp_path / "minipacs.toml"
    config.write_text('test_mode = true\n[time]\nservers = ["ntp.example"]\n')
    said = json.loads(CliRunner().invoke(app, ["statement", "ihe", "--format", "json", "--config", str(config)]).stdout)
    assert (said["vendor"], said["product"], len(said["date"])) == ("minipacs", "minipacs", 10)
    assert {"profile", "actor", "options", "checks"} == said["claims"][0].keys()
    assert "Time Client" in {one["actor"] for one in said["claims"]}
    text = CliRunner().invoke(app, ["statement", "ihe", "--config", str(config)]).stdout
    assert f"| date | {said['date']} |" in text
    assert "| test mode | on: not for patients |" in text
    assert "| Consistent Time (CT) | Time Client | none | REQ-IHE-08 |" in text
