"""The benchmark itself works: every row is measured. What it measures is not judged here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench import index, speedtest
from tests.conftest import need


def test_a_small_run_prints_every_row() -> None:
    need("storescu", "findscu", "getscu")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--slices", "5", "--size", "64", "--repeat", "1", "--openings", "0"],
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


def test_a_small_index_is_measured_at_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert index.main(["--studies", "20", "40", "--queries", "3"]) == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(int(studies), key.strip()) for studies, key in rows] == [
        (studies, f"{door} {kind}") for studies in (20, 40) for door in index.DOORS for kind in index.KINDS
    ]


@pytest.mark.req("REQ-DCM-90")
def test_people_look_while_a_modality_stores() -> None:
    """Nothing fails, everything comes back whole; a download that is given up ends."""
    need("storescu")
    sizes = ["--viewers", "5", "--slices", "8", "--rounds", "2", "--series", "40", "--size", "64", "--object-mib", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.viewers", *sizes, "--ready", "0", "--most-mib", "200"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| viewers · first images · stored meanwhile | 5 · 10 · " in done.stdout


@pytest.mark.req("REQ-DRIM-03")
def test_a_small_speed_test_moves_every_image_as_it_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    need("storescu")
    assert speedtest.main(["--slices", "12", "--size", "64"]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert row[0].startswith("12 · ")
    assert float(row[1]) >= 0
    assert float(row[2]) > 0
    assert row[4] == "as stored (JPEG-LS)"
