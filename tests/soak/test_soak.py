"""The short form of the soak: a quarter of a minute, 500 associations, an object of 100 MiB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.req("REQ-DCM-03", "REQ-DCM-10", "REQ-DCM-14")
def test_nothing_is_lost_and_nothing_left_behind_under_full_load(database_url: str) -> None:
    """Two processes, honest and hostile peers at once, on both databases; memory, threads and descriptors stay."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--seconds", "15", "--associations", "500", "--object-mib", "100"]
        + (["--database", database_url] if database_url.startswith("postgresql") else []),
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'large objects': 1" in done.stdout
