"""The benchmark itself works: every row is measured. What it measures is not judged here."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import need


def test_a_small_run_prints_every_row() -> None:
    need("storescu", "findscu", "getscu")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--slices", "5", "--size", "64", "--repeat", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in done.stdout.splitlines()[2:]}
    wanted = {"C-STORE images/s", "C-GET first image ms", "C-GET series s", "C-GET images/s", "WADO series s"}
    assert wanted <= set(rows)
    assert {"findscu ms", "peak memory MiB", "CPU ms per stored image"} <= set(rows)
    assert all(float(value) >= 0 for value in rows.values())
