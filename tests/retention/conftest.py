"""An archive at the day of the exams, and a way to change its settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from archive.config import Settings
from archive.core import Archive, open_archive
from tests.retention.life import put_clock

EXAM = "2026-01-05T09:00:00"


@pytest.fixture
def archive(archive: Archive) -> Archive:
    """The archive of every test, on the day of `tests.retention.life.exam`."""
    put_clock(archive, EXAM)
    return archive


@pytest.fixture
def with_retention(settings: Settings) -> Iterator[Callable[..., Archive]]:
    """Opens the archive with other settings of retention, on the day of the exams."""
    with ExitStack() as opened:

        def open_with(**retention: Any) -> Archive:
            values = settings.model_dump()
            values["retention"] |= retention
            made = opened.enter_context(open_archive(Settings.model_validate(values), process="other"))
            put_clock(made, EXAM)
            return made

        yield open_with


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs `minipacs …` on the archive of the test: exit code, and what it said on both streams."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MINIPACS_")}
    variables = clean | {
        "MINIPACS_DATA_DIR": str(settings.data_dir),
        "MINIPACS_DATABASE__URL": settings.database.url,
        "MINIPACS_STORAGE__RESERVE_BYTES": "0",
        "MINIPACS_TEST_MODE": "true",
    }

    def run_command(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "minipacs", *arguments]
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout or done.stderr

    return run_command
