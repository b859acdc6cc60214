"""`kill -9` of a process that commits facts: each one that it was told of stands in the file, and no row lacks its line
after the next start. Rounds and seed as in `tests/crash/test_kill.py`."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import select

from archive.config import Settings
from archive.core import open_archive
from archive.journal import FactJournal
from archive.schema import fact
from tests.forked import Forked

ROUNDS = int(os.environ.get("MINIPACS_CRASH_ROUNDS", "20"))
SEED = int(os.environ["MINIPACS_CRASH_SEED"])
WRITERS = ("a", "b")


def child(settings: Settings, name: str) -> tuple[Forked, IO[bytes]]:
    """A process that commits facts without end, and what it says."""
    read, write = os.pipe()
    process = Forked(
        "tests.crash.facts_child",
        [str(settings.data_dir), settings.database_url, name, "-1"],
        env=os.environ,
        cwd=Path.cwd(),
        stdout=write,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    return process, os.fdopen(read, "rb")


def test_a_fact_that_was_told_stands_in_the_file(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    journal = FactJournal(settings.hot_dir / "facts")
    told: set[int] = set()
    for _ in range(ROUNDS):
        children = [child(settings, name) for name in WRITERS]
        for _, said in children:
            told.add(int(said.readline()))  # it has begun
        time.sleep(rng.uniform(0, 0.2))
        for process, _ in children:
            process.kill()
        for process, said in children:
            with said:
                told |= {int(line) for line in said.read().splitlines(keepends=True) if line.endswith(b"\n")}
            process.wait(30)
        assert told <= {one.n for one in journal.read()}
        with open_archive(settings, process="check") as archive, archive.reading() as conn:
            numbers = set(conn.execute(select(fact.c.pk)).scalars())
        assert numbers == {one.n for one in journal.read()}
    with capsys.disabled():
        print(f"\nfacts: seed {SEED}, {ROUNDS} rounds, {len(told)} told, none lost")
    assert len(told) > 2 * ROUNDS, "the writers hardly got anything in: the test proves nothing"
