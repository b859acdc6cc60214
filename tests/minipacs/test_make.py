"""The two commands of the README, and what they say where they cannot work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

import tests.conftest
from tests.server import Server

ROOT = Path(__file__).parents[2]


def outside_make(environ: dict[str, str]) -> dict[str, str]:
    """Without what a `make test` around this test hands down."""
    return {name: value for name, value in environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}


@pytest.mark.req("REQ-FACE-01")
def test_make_run_starts_everything_in_seconds_and_tells_addresses_and_account(tmp_path: Path) -> None:
    """The second time: the first one, with the installation, was that of whoever runs this test."""
    if not (ROOT / ".venv" / ".installed").exists():
        message = "this environment was not made by make"
        (pytest.fail if tests.conftest.STRICT else pytest.skip)(message)
    server = Server(tmp_path)
    with server.log.open("ab") as log:
        make = subprocess.Popen(
            ["make", "run"],
            cwd=ROOT,
            env=outside_make(server.variables()),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        ready = False
        while not ready and time.monotonic() < deadline and make.poll() is None:
            try:
                ready = httpx.get(f"{server.web}/readyz", timeout=5).status_code == 200
            except httpx.HTTPError:
                time.sleep(0.1)
        said = server.log.read_text()
        assert ready, said
        for line in (f"{server.web}/\n", f"{server.web}/dicom-web\n", f"MINIPACS @ 127.0.0.1:{server.dicom_port}\n"):
            assert line in said
        assert re.search(r"nom \(name\) +admin\n +mot de passe +\S{12,}\n", said)
        assert (server.data_dir / "minipacs.sqlite3").exists()
    finally:
        os.killpg(make.pid, signal.SIGTERM)
        make.wait(30)


@pytest.mark.req("REQ-FACE-01")
@pytest.mark.parametrize(
    ("python", "line"),
    [
        ("", "sudo apt install python3 python3-venv"),
        ("./without-venv", "sudo apt install python3.11-venv"),
    ],
)
def test_without_python_or_venv_the_line_to_type_is_said(tmp_path: Path, python: str, line: str) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "without-venv"
    fake.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; *version_info*) echo 3.11 ;; esac\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "install", f"PYTHON={python}"],
        cwd=tmp_path,
        env=outside_make(dict(os.environ)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert line in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.req("REQ-FACE-02")
def test_a_skip_is_a_failure_when_skips_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.conftest, "STRICT", False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program"):
        tests.conftest.need("no-such-program")
    monkeypatch.setattr(tests.conftest, "STRICT", True)
    with pytest.raises(pytest.fail.Exception, match="no-such-program"):
        tests.conftest.need("no-such-program")


@pytest.mark.req("REQ-FACE-02")
def test_continuous_integration_forbids_skips_and_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "export MINIPACS_TEST_STRICT=1" in script
    for command in ("make test", "make check"):
        assert re.search(rf"^{command}\b", script, re.M)
    assert "\nmake test\n" in (ROOT / "README.md").read_text()
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
