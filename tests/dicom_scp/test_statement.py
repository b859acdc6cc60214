"""The conformance statement says what the port does: it is made from the same tables (sheet 60 §2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archive.config import Settings
from archive.dicom.attributes import ATTRIBUTES
from archive.index.computed import COMPUTED
from archive.workflow.item import OF_STEP, RETURNABLE
from dicom_scp import status
from dicom_scp.classes import QUERY_RETRIEVE, STORAGE_CLASSES, STORAGE_SYNTAXES, VERIFICATION, WORKFLOW, service_of
from dicom_scp.stated_services import Part, markdown
from dicom_scp.statement import statement
from minipacs import conformance_page
from minipacs.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    return {part.title: part for part in statement(Settings())}


def test_the_page_is_current() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8") == conformance_page.page()


def test_every_class_and_syntax_that_is_negotiated_is_in_it_and_nothing_else(parts: dict[str, Part]) -> None:
    assert {row[1] for row in parts["Storage"].rows} == STORAGE_CLASSES
    assert {row[1] for row in parts["Transfer syntaxes"].rows} == STORAGE_SYNTAXES
    services = {row[2]: row[0] for row in parts["SOP classes"].rows if row[4] == "yes"}
    assert services.keys() == {VERIFICATION, *QUERY_RETRIEVE, *WORKFLOW}
    for uid, service in services.items():
        negotiated = service_of(uid)
        assert negotiated is not None
        assert negotiated.value == service
    for part in parts.values():  # a UID is never its own name
        if part.title in ("Storage", "Transfer syntaxes"):
            assert all(row[0] != row[1] for row in part.rows)


def test_every_key_and_every_status_of_reception_is_in_it(parts: dict[str, Part]) -> None:
    stated = {row[1] for row in parts["Modality Worklist SCP"].rows}
    assert stated == {f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in (*RETURNABLE, *OF_STEP)}
    named = {row[0] for title, part in parts.items() if title.startswith("Keys of level") for row in part.rows}
    assert named == {one.keyword for one in (*ATTRIBUTES, *COMPUTED)}
    said = {row[0] for row in parts["Statuses of C-STORE"].rows}
    assert {f"{answer.status:04X}" for answer in status.OF_OUTCOME.values()} <= said
    assert {"A700", "A900", "C001", "C0F2", "0122", "0124", "0211", "0212", "C000", "B000", "B007"} <= said


@pytest.mark.req("REQ-DCM-33", "REQ-DCM-99")
def test_what_the_sheets_want_said_is_said() -> None:
    text = markdown(statement(Settings()))
    assert "É is E, œ is oe, ç is c" in text
    assert "STOW-RS does not coerce what is stored" in text


def test_the_command_states_the_running_configuration(tmp_path: Path) -> None:
    config = tmp_path / "minipacs.toml"
    config.write_text(
        'data_dir = "data"\n[dicom]\nae_title = "CABINET"\nartim_seconds = 7\nunknown_sop_classes = true\n'
        '[dicom.peers.CT1]\nhost = "10.0.0.7"\nport = 104\nmay = ["store"]\n'
    )
    done = CliRunner().invoke(app, ["statement", "dicom", "--config", str(config)])
    assert done.exit_code == 0, done.output
    assert "| AE titles | CABINET |" in done.output
    assert "| ARTIM | 7 s" in done.output
    assert "CT1 (store)" in done.output
    assert "`dicom.unknown_sop_classes`" in done.output
    done = CliRunner().invoke(app, ["statement", "dicom", "--config", str(config), "--format", "json"])
    stated = json.loads(done.output)
    assert stated["statement"] == "dicom"
    assert [part["title"] for part in stated["parts"]] == [part.title for part in statement(Settings())]
    assert not (tmp_path / "data").exists()
