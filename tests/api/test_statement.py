"""The conformance statement of DICOMweb says what the port does."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from api import stow
from api.capabilities import RESOURCES
from api.statement import statement
from archive.config import Settings
from archive.dicom.syntaxes import EXPLICIT_LE
from archive.dicom.transcode import alternatives
from minipacs.cli import app


@pytest.mark.req("REQ-DCM-91", "REQ-DCM-93", "REQ-DCM-94", "REQ-DCM-99")
def test_every_resource_syntax_and_reason_is_stated() -> None:
    text = statement(Settings())
    assert all(f"| `{path}` | {one.name} |" in text for path, methods in RESOURCES.items() for one in methods)
    assert all(uid in text for uid in alternatives(EXPLICIT_LE)[1:])
    codes = {*stow._REASONS.values(), *stow.WARNINGS.values(), stow.OTHER_STUDY, stow.ANOTHER_CONTENT, stow.NOT_DICOM}
    assert all(f"| {code:04X} |" in text for code in codes - {0xC000})
    assert "stored as it comes, and corrected on the way out" in text


def test_the_command_states_the_running_configuration(tmp_path: Path) -> None:
    config = tmp_path / "minipacs.toml"
    config.write_text('data_dir = "data"\n[dicom]\nfind_limit = 77\n')
    done = CliRunner().invoke(app, ["statement", "dicomweb", "--config", str(config)])
    assert (done.exit_code, "at most 77 results" in done.output) == (0, True), done.output
