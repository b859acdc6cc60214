"""`kill -9` of the HL7 edge under senders that correct and merge: what was acknowledged stands, nothing is done twice.

A sender behaves like a RIS: what was not acknowledged is sent again, with the same control ID.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import open_archive
from archive.ingest import ingest
from archive.storage.part10 import Part10
from tests.builders import ct_slice, new_uid, part10
from tests.crash.test_kill import ROUNDS, SEED, edge
from tests.server import Server

SENDERS = 2
SURVIVORS = 3
AUTHORITIES = '[{"namespace": "RIVAGES", "trusted": true}]'


def message(number: int, step: str) -> bytes:
    """The correction (A31) or the merge (A40) of patient `number`."""
    structure = {"A31": "ADT_A05", "A40": "ADT_A39"}[step]
    lines = [
        f"MSH|^~\\&|RIS|CRASH|PACS|CRASH|20260105083000||ADT^{step}^{structure}|{step}-{number}|P|2.5"
        "|||||FRA|UNICODE UTF-8",
        "EVN||20260105083000",
    ]
    if step == "A31":
        lines.append(f"PID|1||L{number}^^^RIVAGES^PI||NOM{number}^PRÉNOM^^^^^L||19600101|F")
    else:
        lines.append(f"PID|1||S{number % SURVIVORS}^^^RIVAGES^PI||SURVIVANT^UN^^^^^L")
        lines.append(f"MRG|L{number}^^^RIVAGES^PI")
    return "\r".join([*lines, ""]).encode()


@dataclass
class Told:
    """What a sender had acknowledged, and what it still has to send, in order."""

    acknowledged: set[tuple[int, str]] = field(default_factory=set)
    waiting: list[tuple[int, str]] = field(default_factory=list)


def send(server: Server, told: Told, numbers: itertools.count[int], stop: threading.Event) -> None:
    while not stop.is_set():
        if not told.waiting:
            number = next(numbers)
            told.waiting = [(number, "A31"), (number, "A40")]
        try:
            answer = server.send_hl7(message(*told.waiting[0]), timeout=5)
        except OSError:
            time.sleep(0.02)
            continue
        if b"\rMSA|AA|" in answer:
            told.acknowledged.add(told.waiting.pop(0))


def one_round(server: Server, tellers: list[Told], numbers: itertools.count[int], rng: random.Random) -> None:
    stop = threading.Event()
    before = sum(len(told.acknowledged) for told in tellers)
    threads = [threading.Thread(target=send, args=(server, told, numbers, stop)) for told in tellers]
    with edge(server, "hl7"):
        for thread in threads:
            thread.start()
        patience = time.monotonic() + 60
        while sum(len(told.acknowledged) for told in tellers) == before and time.monotonic() < patience:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sum(len(told.acknowledged) for told in tellers) > before, server.log.read_text()[-2000:]


def studies(settings: Settings, count: int) -> None:
    """One image for each of the first patients: a merge has something to move."""
    actor = Actor(user="tester", source="local", door=Door.SYSTEM, may=EVERYTHING)
    with open_archive(settings, process="test") as archive:
        for number in range(count):
            ds = ct_slice(
                PatientID=f"L{number}",
                IssuerOfPatientID="RIVAGES",
                StudyInstanceUID=new_uid(f"crash study {number}"),
                SeriesInstanceUID=new_uid(f"crash series {number}"),
            )
            file = Part10(archive.hot, at=archive.clock())
            file.feed(part10(ds))
            ingest(archive, file.finish(), actor=actor)


def check(settings: Settings, acknowledged: set[tuple[int, str]], *, with_studies: int) -> None:
    """The database as it lies there, and the journal."""
    engine = create_engine(settings.database_url)
    with engine.connect() as conn:
        patients = {
            row.patient_id: row
            for row in conn.execute(
                text(
                    "SELECT p.pk, p.patient_id, p.record, p.version, p.tombstone, s.patient_id AS survivor"
                    " FROM patient p LEFT JOIN patient s ON s.pk = p.merged_into_pk"
                )
            )
        }
        owners = {
            row.study_instance_uid: row.patient_id
            for row in conn.execute(
                text("SELECT s.study_instance_uid, p.patient_id FROM study s JOIN patient p ON p.pk = s.patient_pk")
            )
        }
        twice = conn.execute(
            text("SELECT sender, control_id FROM hl7_message WHERE state = 'applied' GROUP BY 1, 2 HAVING count(*) > 1")
        ).all()
    engine.dispose()
    assert twice == []
    for number, step in acknowledged:
        one = patients[f"L{number}"]
        if step == "A31":
            assert f"NOM{number}" in one.record
            assert one.version == 1  # sent twice or not
        else:
            assert (one.tombstone, one.survivor) == ("merged", f"S{number % SURVIVORS}")
            if number < with_studies:
                assert owners[new_uid(f"crash study {number}")] == f"S{number % SURVIVORS}"
    for patient_id, one in patients.items():
        if patient_id.startswith("S"):
            assert one.survivor is None
            assert one.version == 1
    with open_archive(settings, process="check") as archive:
        journaled = {(fact.subject, fact.body.get("tombstone")) for fact in archive.journal.read()}
    for number, step in acknowledged:
        if step == "A40":
            assert any(subject.endswith(f":L{number}") and tombstone == "merged" for subject, tombstone in journaled)


@pytest.mark.req("REQ-HL7-23", "REQ-HL7-24", "REQ-HL7-40")
def test_corrections_and_merges_survive_kill_9_and_happen_once(
    tmp_path: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    server = Server(tmp_path / "server", database_url, {"MINIPACS_HL7__AUTHORITIES": AUTHORITIES})
    server.folder.mkdir()
    assert server.command("migrate").returncode == 0
    settings = Settings.model_validate(
        {
            "data_dir": server.data_dir,
            "database": {"url": database_url},
            "storage": {"reserve_bytes": 0},
            "hl7": {"authorities": [{"namespace": "RIVAGES", "trusted": True}]},
        }
    )
    with_studies = ROUNDS * 2
    studies(settings, with_studies)
    tellers = [Told() for _ in range(SENDERS)]
    numbers = itertools.count()
    for number in range(ROUNDS):
        one_round(server, tellers, numbers, rng)
        if number % 5 == 4 or number == ROUNDS - 1:
            check(settings, set().union(*(told.acknowledged for told in tellers)), with_studies=with_studies)
    acknowledged = set().union(*(told.acknowledged for told in tellers))
    with capsys.disabled():
        print(f"\ncorrections and merges: seed {SEED}, {ROUNDS} rounds, {len(acknowledged)} acknowledged, none lost")
    assert {step for _, step in acknowledged} == {"A31", "A40"}
    done = server.command("verify-audit")
    assert done.returncode == 0, done.stdout
