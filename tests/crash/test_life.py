"""`kill -9` of the retention tick: while it copies, while it switches, while it purges.

No image is lost before its day, none is migrated or purged twice, and what was begun is finished by the next tick.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, create_engine, text

from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.equipment import Equipment
from archive.dicom.rejection_note import Rejected, rejection_note
from archive.heartbeat import follow
from archive.ingest import ingest
from archive.integrity import fsck, verify
from archive.lifecycle.holds import add_hold
from archive.recovery import sweep
from archive.storage.part10 import Part10
from tests.builders import ct_slice, new_uid, part10
from tests.crash.test_kill import ROUNDS, SEED
from tests.forked import Forked
from tests.server import Server

ACTOR = Actor(user="tester", source="local", door=Door.SYSTEM, may=EVERYTHING)
STUDIES = ROUNDS * 2
SLICES = 2
HELD = new_uid("life 0")  # the study that a hold keeps


def smooth(number: int) -> bytes:
    """Pixels that a lossy codec makes much smaller, and well."""
    rows, columns = np.mgrid[0:256, 0:256]
    noise = np.random.default_rng(number).integers(0, 12, (256, 256))
    return (1000 + 900 * np.sin(rows / 40 + number) * np.cos(columns / 50) + noise).astype("<u2").tobytes()


def settings_of(server: Server) -> Settings:
    return Settings.model_validate(
        {
            "data_dir": server.data_dir,
            "database": {"url": server.database_url},
            "storage": {"reserve_bytes": 0},
            "test_mode": True,
        }
    )


def to(server: Server, when: str) -> None:
    assert server.command("testbed", "clock", "set", when).returncode == 0


def fill(settings: Settings) -> set[str]:
    """Studies of 2026, each with a key object; the digests that were taken."""
    digests = set()
    with open_archive(settings, process="test") as archive:
        follow(archive)
        for study in range(STUDIES):
            for number in range(1, SLICES + 1):
                ds = ct_slice(
                    rows=256,
                    columns=256,
                    number=number,
                    StudyInstanceUID=new_uid(f"life {study}"),
                    SeriesInstanceUID=new_uid(f"life series {study}"),
                    PatientID=f"P{study}",
                    SliceThickness="5",
                )
                ds.PixelData = smooth(study * SLICES + number)
                digests.add(take_in(archive, part10(ds)))
            named = [Rejected(ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.SOPClassUID)]
            key = rejection_note(
                ds.to_json_dict(), named, equipment=Equipment("1"), at=archive.clock(), title=("113000", "Of Interest")
            )
            digests.add(take_in(archive, key.content))
        add_hold(archive, HELD, reason="litige", until=None, actor=ACTOR)
    return digests


def take_in(archive: Archive, content: bytes) -> str:
    file = Part10(archive.hot, at=archive.clock())
    file.feed(content)
    incoming = file.finish()
    ingest(archive, incoming, actor=ACTOR)
    return incoming.digest


def count(engine: Engine, query: str) -> int:
    with engine.connect() as conn:
        return int(conn.execute(text(query)).scalar_one())


def ticks_killed(server: Server, rounds: int, progress: Callable[[], int], rng: random.Random) -> int:
    """Ticks, each killed soon after it got something done; how many were."""
    killed = 0
    for _ in range(rounds):
        before = progress()
        process = Forked(
            "minipacs",
            ["retention", "run"],
            env=server.variables(),
            cwd=server.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and progress() == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        killed += process.poll() is None
        process.kill()
        process.wait(30)
    return killed


def finished(server: Server) -> dict[str, Any]:
    """A tick that nobody disturbs."""
    done = server.command("retention", "run", "--json")
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def files(server: Server, tier: str) -> dict[str, str]:
    """Digests of the data sets of a tier's files, by path."""
    root = server.data_dir / tier
    found = {}
    for path in root.rglob("*.dcm"):
        if path.relative_to(root).parts[0].isdigit():
            raw = path.read_bytes()
            found[str(path)] = hashlib.sha256(raw[144 + int.from_bytes(raw[140:144], "little") :]).hexdigest()
    return found


def sound(settings: Settings) -> None:
    """Rows have their bytes, and every byte is the one that was written."""
    with open_archive(settings, process="check") as archive:
        assert [one for one in fsck(archive).findings if one.sop_instance_uid] == []
        assert verify(archive, everything=True).findings == []


@pytest.mark.req("REQ-CDC-08", "REQ-DCM-83", "REQ-DCM-86")
def test_a_tick_that_is_killed_loses_nothing_and_does_nothing_twice(
    tmp_path: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    server = Server(tmp_path / "server", database_url, {"MINIPACS_TEST_MODE": "true"})
    server.folder.mkdir()
    assert server.command("migrate").returncode == 0
    settings = settings_of(server)
    engine = create_engine(database_url)
    to(server, "2026-01-05T09:00:00+01:00")
    originals = fill(settings)
    images = STUDIES * SLICES

    # copying to cold storage
    to(server, "2029-01-06T09:00:00+01:00")
    copied = "SELECT count(*) FROM location WHERE tier = 'cold'"
    killed = ticks_killed(server, ROUNDS, lambda: count(engine, copied), rng)
    assert set(files(server, "hot").values()) == originals  # nobody may have lost one yet
    finished(server)
    sound(settings)
    with open_archive(settings, process="sweep") as archive:  # copies that a kill left before their COMMIT
        sweep(archive, older_than=timedelta(0), look_back=None)
    assert len(files(server, "cold")) == count(engine, copied)
    derived = "SELECT count(*) FROM instance WHERE state = 'pending'"
    assert count(engine, derived) == images - SLICES  # all but those on hold
    assert count(engine, f"{derived} AND derived_from_pk IS NOT NULL") == images - SLICES
    assert count(engine, "SELECT count(DISTINCT derived_from_pk) FROM instance") == images - SLICES
    assert set(files(server, "hot").values()) == originals

    # the switch, after grace
    to(server, "2029-02-08T09:00:00+01:00")
    ticks_killed(
        server, ROUNDS // 4, lambda: count(engine, "SELECT count(*) FROM instance WHERE state = 'replaced'"), rng
    )
    finished(server)
    sound(settings)
    with open_archive(settings, process="sweep") as archive:  # companions that a kill left before their COMMIT
        sweep(archive, older_than=timedelta(0), look_back=None)
    assert count(engine, "SELECT count(*) FROM instance WHERE state = 'replaced'") == images - SLICES
    companions = count(engine, "SELECT count(*) FROM instance WHERE state = 'stored' AND derivation LIKE '%\"names\"%'")
    assert companions == STUDIES - 1
    assert count(engine, "SELECT count(*) FROM instance WHERE state = 'stored'") == images + STUDIES + companions
    assert len(files(server, "hot")) == SLICES + 1
    filed = count(engine, "SELECT count(*) FROM location WHERE tier = 'cold'")
    assert filed == len(files(server, "cold")) == images - SLICES + (STUDIES - 1) + companions

    # the purge, after its notice
    to(server, "2031-01-06T09:00:00+01:00")
    assert finished(server)["announced"] == STUDIES - 1
    to(server, "2031-02-08T09:00:00+01:00")
    purged = ticks_killed(server, ROUNDS, lambda: count(engine, "SELECT count(*) FROM tombstone"), rng)
    finished(server)
    sound(settings)
    assert count(engine, "SELECT count(*) FROM purge WHERE state = 'done'") == STUDIES - 1
    assert count(engine, "SELECT count(*) FROM purge") == STUDIES - 1
    assert count(engine, "SELECT count(DISTINCT study_instance_uid) FROM purge") == STUDIES - 1
    assert count(engine, "SELECT count(*) FROM audit WHERE event = '110105'") == STUDIES - 1
    assert count(engine, "SELECT count(*) FROM study") == 1
    held = files(server, "hot")
    assert len(held) == SLICES + 1
    assert set(held.values()) <= originals
    assert files(server, "cold") == {}
    with capsys.disabled():
        print(
            f"\nticks: seed {SEED}, {killed} killed while copying, {purged} while purging, nothing lost, nothing twice"
        )
    assert killed > ROUNDS // 2, "the ticks were hardly disturbed: the test proves nothing"
    assert purged > ROUNDS // 2
    engine.dispose()
    done = server.command("verify-audit")
    assert done.returncode == 0, done.stdout
