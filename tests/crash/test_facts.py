"""`kill -9` of a process that commits facts: each one that it was told of stands in the file, and no row lacks its line
after the next start. Rounds and seed as in `tests/crash/test_kill.py`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest
from sqlalchemy import select

from archive.config import Settings
from archive.core import open_archive
from archive.journal import FactJournal
from archive.schema import fact

ROUNDS = int(os.environ.get("MINIPACS_CRASH_ROUNDS", "20"))
SEED = int(os.environ["MINIPACS_CRASH_SEED"])
WRITERS = ("a", "b")


def test_a_fact_that_was_told_stands_in_the_file(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    journal = FactJournal(settings.hot_dir / "facts")
    told: set[int] = set()
    for _ in range(ROUNDS):
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.crash.facts_child", settings.data_dir, settings.database_url, name, "-1"],
                stdout=subprocess.PIPE,
            )
            for name in WRITERS
        ]
        for child in children:
            assert child.stdout is not None
            told.add(int(child.stdout.readline()))  # it has begun
        time.sleep(rng.uniform(0, 0.2))
        for child in children:
            child.kill()
        for child in children:
            heard = child.communicate(timeout=30)[0]
            told |= {int(line) for line in heard.splitlines(keepends=True) if line.endswith(b"\n")}
        assert told <= {one.n for one in journal.read()}
        with open_archive(settings, process="check") as archive, archive.reading() as conn:
            numbers = set(conn.execute(select(fact.c.pk)).scalars())
        assert numbers == {one.n for one in journal.read()}
    with capsys.disabled():
        print(f"\nfacts: seed {SEED}, {ROUNDS} rounds, {len(told)} told, none lost")
    assert len(told) > 2 * ROUNDS, "the writers hardly got anything in: the test proves nothing"
