"""The database is lost: files and journal give back all that they know, and the answers are the same."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psycopg
import pydicom
import pytest
from sqlalchemy import delete, event, exists, or_, select, true, update

from archive import mpps
from archive.access import EVERYTHING, Actor, Door
from archive.commitment import Reference, ask, decide
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.attributes import Level
from archive.dicom.equipment import Equipment
from archive.dicom.rejection_note import Rejected, rejection_note
from archive.errors import Conflict, IndexUnavailable, StorageFailed
from archive.heartbeat import Heartbeat
from archive.identity import links, visits
from archive.identity.acts import Act, PatientKey
from archive.identity.merge import Pair
from archive.identity.patients import find as find_patient
from archive.identity.patients import say
from archive.identity.record import Name, Statement
from archive.index.query import Query, find, returnable
from archive.ingest import Outcome, ingest
from archive.integrity import fsck
from archive.journal import Fact, Kind, note
from archive.lifecycle.announce import announce
from archive.lifecycle.compute import compute_due, policy_of
from archive.lifecycle.finish import finish_purges
from archive.lifecycle.holds import add_hold
from archive.lifecycle.migrate import migrate
from archive.lifecycle.purge import purge_study
from archive.lifecycle.remove import finish_removals
from archive.lifecycle.suspension import suspensions
from archive.lifecycle.switch import switch
from archive.rebuild import catch_up, rebuild
from archive.retrieve import Stored, why_gone
from archive.retrieve import select as select_stored
from archive.schema import (
    commitment,
    fact,
    hold,
    imaging_order,
    instance,
    location,
    movement,
    patient,
    performed_for,
    performed_step,
    purge,
    study,
    suspension,
    tombstone,
    visit,
)
from archive.storage.part10 import Part10
from archive.workflow import orders
from archive.workflow.images import merge, rename
from tests.archive.lifecycle.studies import at, row_of, send, uid_of
from tests.archive.test_ingest import MINUTE, files, receive
from tests.builders import ct_slice
from tests.conftest import new_database


@pytest.fixture
def empty(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Settings of another database, empty, beside the same files."""
    kind = "postgresql" if settings.database_url.startswith("postgresql") else "sqlite"
    other = tmp_path / "other"
    other.mkdir()
    template = request.getfixturevalue(f"migrated_{kind}")
    with new_database(kind, other, request, template=template) as url:
        yield settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})


def suspended(archive: Archive) -> list[str]:
    with archive.reading() as conn:
        return [one.kind for one in suspensions(conn)]


def numbers(archive: Archive) -> list[tuple[int, int]]:
    """Of each fact its number, and whether it is in the journal and applied."""
    with archive.reading() as conn:
        return [
            (row.pk, row.journaled) for row in conn.execute(select(fact.c.pk, fact.c.journaled).order_by(fact.c.pk))
        ]


_SMOOTH = np.add.outer(np.arange(64), np.arange(64)).astype("<u2").tobytes()
# Patients whom only images know come back with their images; without any, there is nobody to remember.
_REMEMBERED = {
    patient: or_(
        exists().where(study.c.patient_pk == patient.c.pk),
        patient.c.record.is_not(None),
        patient.c.tombstone.is_not(None),
    )
}


def told(archive: Archive) -> dict[str, Any]:
    """What an archive answers to whoever asks: everything at every level, what is given back, holds, certificates."""
    answers: dict[str, Any] = {}
    with archive.reading() as conn:
        for level in Level:
            found = find(conn, Query(level, want=frozenset(returnable(level))))
            answers[level.name] = sorted(orjson.dumps(row).decode() for row in found)
        for table, columns in {
            patient: ("identity_key", "attributes", "received_attributes", "corrections", "record", "version", "ins",
                      "patient_name", "birth_date", "sex", "tombstone", "provisional"),
            study: ("study_instance_uid", "attributes", "received_attributes", "corrections", "policy_version",
                    "keep_until", "keep_reasons", "online_until"),
            instance: ("sop_instance_uid", "state", "digest", "identity", "derivation"),
            location: ("tier", "path", "state", "digest", "pixel_offset"),
            imaging_order: ("accession_number", "step_id", "status", "record", "study_instance_uid", "created_at",
                            "start_date", "start_time", "modality", "station_ae"),
            performed_step: ("sop_instance_uid", "status", "created", "modified", "version", "calling_ae"),
            performed_for: ("study_instance_uid", "accession_number", "step_id"),
            visit: ("number", "issuer", "status", "patient_class", "created_at"),
            movement: ("movement_id", "event", "start", "cancelled", "record"),
            hold: ("id", "study_instance_uid", "reason", "until", "placed_by", "placed_at", "removed_at"),
            purge: ("id", "study_instance_uid", "state", "certificate", "note_path", "note_digest", "done_at"),
            commitment: ("study_instance_uid", "transaction_uid", "ae_title", "instances", "at"),
            tombstone: ("sop_instance_uid", "series_instance_uid", "study_instance_uid", "digest", "purge_id", "at"),
        }.items():  # fmt: skip
            rows = conn.execute(select(*(table.c[name] for name in columns)).where(_REMEMBERED.get(table, true())))
            answers[table.name] = sorted(json.dumps(list(row), default=str) for row in rows)
        uids = list(conn.execute(select(study.c.study_instance_uid).order_by(study.c.study_instance_uid)).scalars())
        known = list(conn.execute(select(instance.c.sop_instance_uid)).scalars())
        gone = list(conn.execute(select(tombstone.c.study_instance_uid)).scalars())
        owners = select(study.c.study_instance_uid, patient.c.identity_key).join_from(study, patient)
        answers["owners"] = sorted(tuple(row) for row in conn.execute(owners))
        treated = select(visit.c.number, patient.c.identity_key).join_from(visit, patient)
        answers["visits of"] = sorted(tuple(row) for row in conn.execute(treated))
        ids = conn.execute(select(patient.c.pk, patient.c.identity_key)).all()
        answers["linked"] = sorted((key, other) for pk, key in ids for other in links.of_patient(conn, pk))
    answers["retrieve"] = [sorted(str(one) for one in select_stored(archive, study_uids=[uid])) for uid in uids]
    answers["by instance"] = sorted(str(one) for one in select_stored(archive, instance_uids=sorted(known)))
    answers["by identifier"] = [
        sorted(one.sop_instance_uid for one in select_stored(archive, patient_id=name))
        for name in ("P-merged", "P-kept", "P-renamed", "P-new")
    ]
    answers["purged"] = [why_gone(archive, study_uid=uid) for uid in sorted(gone)]
    return answers


def select_key_image(archive: Archive, name: str, actor: Actor) -> Outcome:
    """A key object that names the first image of a study."""
    first, *_ = select_stored(archive, study_uids=[uid_of(name)])
    named = [Rejected(first.sop_instance_uid, first.series_instance_uid, first.sop_class_uid)]
    attributes = pydicom.dcmread(first.path, stop_before_pixels=True).to_json_dict()
    made = rejection_note(
        attributes,
        named,
        equipment=Equipment("1"),
        at=datetime(2022, 1, 3, 12, tzinfo=UTC),
        title=("113000", "Of Interest"),
    )
    file = Part10(archive.hot, at=archive.clock())
    file.feed(made.content)
    return ingest(archive, file.finish(), actor=actor)


def _stored(archive: Archive, *names: str) -> list[Stored]:
    return select_stored(archive, study_uids=[uid_of(name) for name in names])


def lived(archive: Archive, actor: Actor, *, sent: Collection[str] = ()) -> None:
    """An archive with a past: corrected, merged, ordered, held, migrated, purged. The images of `sent` are there."""
    at(archive, "2026-01-05")
    for name in ("plain", "corrected", "merged", "kept", "renamed", "ordered", "old", "grace", "gone", "held"):
        if name in sent:
            continue
        day = "20220103" if name in ("old", "grace") else "20150105" if name == "gone" else "20260105"
        for number in (1, 2):
            image = {"rows": 64, "columns": 64, "number": number}
            if number == 1 or name == "grace":
                image["PixelData"] = _SMOOTH
            assert send(archive, name, day, PatientComments="as received", **image) is Outcome.STORED
    assert send(archive, "plain", "20260105", PatientID="P-somebody-else", number=3) is Outcome.STORED_HELD
    if "old" not in sent:
        assert select_key_image(archive, "old", actor) is Outcome.STORED
    rules = archive.authorities
    said = Act(archive.clock(), actor, "A31", rules)
    key = {name: PatientKey(f"P-{name}", "") for name in ("corrected", "merged", "kept", "ordered")}

    def corrects(conn: Any) -> None:
        name = Name(family="LEFÈVRE", given="Zoé")
        say(conn, key["corrected"], Statement(names={"L": name}, birth_date="19800229"), act=said)

    archive.commit.run(corrects)
    archive.commit.run(lambda conn: merge(conn, Pair(key["kept"], key["merged"]), act=said))

    def renames(conn: Any) -> None:
        new = PatientKey("P-new", "")
        rename(conn, PatientKey("P-renamed", ""), new, Statement(names={"L": Name(family="MÜLLER")}), act=said)
        pks = [found.pk for one in (new, key["kept"]) if (found := find_patient(conn, one)) is not None]
        links.link(conn, *pks, linked=True, act=said)
        for movement_id, begun_by in (("M1", "A01"), ("M2", "A03")):
            moved = visits.Movement(begun_by, "20260105083000", (movement_id,), said={"patient_class": "I"})
            visits.enter(conn, visits.Numbered("V1"), moved, patient_pk=pks[0], act=said)

    archive.commit.run(renames)

    def places(conn: Any) -> None:
        pk = say(conn, key["ordered"], Statement(names={"L": Name(family="MARTIN", given="Luc")}), act=said).pk
        group = orders.Group(
            orders.Control.NEW,
            accession_number="A1001",
            placer_number="PL1",
            dicom={"RequestedProcedureDescription": "Scanner"},
            study_instance_uid=uid_of("ordered"),
        )
        orders.apply(conn, group, patient_pk=pk, act=said)

    archive.commit.run(places)
    performed = {
        "00100020": {"vr": "LO", "Value": ["P-ordered"]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00400241": {"vr": "AE", "Value": ["CT1"]},
        "00400244": {"vr": "DA", "Value": ["20260105"]},
        "00400245": {"vr": "TM", "Value": ["101500"]},
        "00400252": {"vr": "CS", "Value": ["IN PROGRESS"]},
        "00400253": {"vr": "SH", "Value": ["PPS1"]},
        "00400270": {"vr": "SQ", "Value": [{"0020000D": {"vr": "UI", "Value": [uid_of("ordered")]}}]},
    }
    mpps.create(archive, "1.2.3.4", performed, actor=actor, calling_ae="CT1")
    mpps.change(archive, "1.2.3.4", {"00400254": {"vr": "LO", "Value": ["Thorax"]}}, actor=actor, calling_ae="CT1")
    add_hold(archive, uid_of("held"), reason="expertise", until=date(2040, 1, 1), actor=actor)
    wanted = [Reference(one.sop_class_uid, one.sop_instance_uid) for one in _stored(archive, "held", "corrected")]
    assert decide(archive, ask(archive, "1.2.3", wanted, actor=actor, ae_title="CT1")) is not None
    compute_due(archive)
    for name in ("old", "grace"):
        assert migrate(archive, row_of(archive, name).pk).grace_until is not None, name
    at(archive, "2026-04-20")
    compute_due(archive)
    done = switch(archive, row_of(archive, "old").pk)
    assert (done.replaced, done.moved, done.companions) == (
        (2, 0, 0) if sent else (1, 2, 1)
    )  # noise does not pass the gate: it stays as it is
    assert announce(archive, row_of(archive, "gone").pk, policy_version=policy_of(archive.settings).version) is None
    at(archive, "2026-06-20")
    compute_due(archive)
    assert purge_study(archive, row_of(archive, "gone").pk) is None
    archive.commit.run(lambda conn: conn.execute(update(study).values(policy_version=None)))
    compute_due(archive)  # of all: after a rebuild they are


def test_an_archive_with_a_past_answers_as_before(archive: Archive, empty: Settings, actor: Actor) -> None:
    lived(archive, actor)
    before = told(archive)
    lines = [one.n for one in archive.journal.read()]
    archive.close()
    with open_archive(empty, process="rebuild") as again:
        at(again, "2026-06-20")
        rebuilt = rebuild(again, actor=actor)
        assert rebuilt.not_taken == []
        assert suspended(again) == ["rebuilt"]
        compute_due(again)
        finish_removals(again)
        after = told(again)
        assert numbers(again) == [(n, 1) for n in lines]
        for name in before:
            assert after[name] == before[name], name


def test_a_rebuild_of_what_was_rebuilt_knows_no_less(archive: Archive, empty: Settings, actor: Actor) -> None:
    """Killed at its end, or run by somebody who was not sure: facts and files are taken in once."""
    lived(archive, actor)
    archive.close()
    with open_archive(empty, process="rebuild") as again:
        at(again, "2026-06-20")
        rebuild(again, actor=actor)
        once = told(again)
        with pytest.raises(Conflict, match="not empty"):
            rebuild(again, actor=actor)
        unfinish(again)
        again.commit.run(lambda conn: conn.execute(update(fact).values(journaled=2)))
        rebuilt = rebuild(again, actor=actor)
        assert (rebuilt.stored, rebuilt.not_taken) == (0, [])
        assert told(again) == once


def unfinish(archive: Archive) -> None:
    """As if the power had failed before its last transaction."""
    begun = "rebuild-index has begun, and is not finished: run it again"
    archive.commit.run(lambda conn: conn.execute(update(suspension).values(detail=begun)))


def test_a_rebuild_that_was_killed_goes_on_where_it_was(archive: Archive, empty: Settings, actor: Actor) -> None:
    """The process is killed after some of its transactions, again and again, until one run comes to its end."""
    lived(archive, actor)
    before = told(archive)
    archive.close()
    child = "import sys; from tests.archive.test_rebuild import killed; killed(*sys.argv[1:])"
    deaths = 0
    for transactions in (1, 2, 3, 4, 5, 6, 1000):
        done = subprocess.run(
            [sys.executable, "-c", child, empty.model_dump_json(), str(transactions)], timeout=120, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9
        deaths += 1
        with open_archive(empty, process="serve") as again, pytest.raises(IndexUnavailable, match="run it again"):
            catch_up(again)
    assert deaths >= 3
    with open_archive(empty, process="test") as again:
        at(again, "2026-06-20")
        compute_due(again)
        finish_removals(again)
        assert suspended(again) == ["rebuilt"]
        after = told(again)
        for name in before:
            assert after[name] == before[name], name


def killed(settings: str, transactions: str) -> None:
    """A process that rebuilds, and dies after so many transactions of its own."""
    actor = Actor(user="tester", source="127.0.0.1", door=Door.COMMAND, may=EVERYTHING)
    left = iter(range(int(transactions)))
    with open_archive(Settings.model_validate_json(settings), process="rebuild") as archive:

        def count(conn: Any) -> None:
            writes = conn.get_execution_options().get("minipacs_write")  # readings are committed too
            if writes and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(archive.engine, "commit", count)
        rebuild(archive, actor=actor)


def test_files_alone_give_back_studies_in_the_order_in_which_they_came(
    archive: Archive, empty: Settings, actor: Actor
) -> None:
    """Received when their folder says, whatever the time is now."""
    sent = [ct_slice(number=number) for number in (3, 1, 2)]
    for ds in sent:
        assert ingest(archive, receive(archive, ds), actor=actor) is Outcome.STORED
    archive.close()
    with open_archive(empty, process="rebuild") as again:
        assert (rebuild(again, actor=actor)).stored == 3
        with again.reading() as conn:
            rows = conn.execute(select(instance).order_by(instance.c.pk)).all()
        assert [row.sop_instance_uid for row in rows] == [ds.SOPInstanceUID for ds in sent]
        assert {row.received_at for row in rows} == {MINUTE}


def test_other_content_is_set_aside_again_and_what_cannot_be_read_is_named(
    archive: Archive, empty: Settings, actor: Actor
) -> None:
    first = ct_slice()
    for ds in (first, ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)):
        ingest(archive, receive(archive, ds), actor=actor)
    folder = files(archive)[0].parent
    (folder / "x.dcm").write_bytes(b"not DICOM")
    archive.journal.write([Fact(1, MINUTE, "from the future", "x", {}), Fact(2, MINUTE, "hold", "h", {"no": "hold"})])
    (archive.journal.folder / "2025.jsonl").write_bytes(b'{"n":7,"at"')
    archive.close()
    with open_archive(empty, process="rebuild") as again:
        rebuilt = rebuild(again, actor=actor)
        assert (rebuilt.stored, rebuilt.quarantined, rebuilt.facts) == (1, 1, 0)
        assert sorted(one.path for one in rebuilt.not_taken) == [
            "facts/2025.jsonl", "facts: 1", "facts: 2", f"hot/{folder.relative_to(again.hot.root)}/x.dcm"
        ]  # fmt: skip
        assert not again.journal.ahead
        assert numbers(again) == [(1, 3), (2, 3)]
        again.commit.run(lambda conn: note(conn, Kind.HOLD, "new", {}, at=MINUTE))
        assert [pk for pk, _ in numbers(again)] == [1, 2, 3]


def test_a_file_of_a_purged_instance_is_removed_and_not_taken_in(
    archive: Archive, empty: Settings, actor: Actor
) -> None:
    """Power failed between the purge's COMMIT and the unlink, and then the database was lost."""
    at(archive, "2026-01-05")
    send(archive, "gone", "20150105")
    (left,) = files(archive)
    content = left.read_bytes()
    compute_due(archive)
    at(archive, "2026-04-20")
    compute_due(archive)
    announce(archive, row_of(archive, "gone").pk, policy_version=policy_of(archive.settings).version)
    at(archive, "2026-06-20")
    compute_due(archive)
    assert purge_study(archive, row_of(archive, "gone").pk) is None
    left.write_bytes(content)
    archive.close()
    with open_archive(empty, process="rebuild") as again:
        rebuilt = rebuild(again, actor=actor)
        assert (rebuilt.stored, rebuilt.removed, rebuilt.not_taken) == (0, 1, [])
        assert not left.exists()
        assert why_gone(again, study_uid=uid_of("gone"))


def test_a_database_in_use_is_not_rebuilt(archive: Archive, actor: Actor) -> None:
    ingest(archive, receive(archive, ct_slice()), actor=actor)
    with pytest.raises(Conflict, match="not empty"):
        rebuild(archive, actor=actor)


def test_a_running_archive_is_not_rebuilt(archive: Archive, actor: Actor) -> None:
    with Heartbeat(archive, "dicom"), pytest.raises(Conflict, match="dicom"):
        rebuild(archive, actor=actor)
    assert suspended(archive) == []


def test_an_empty_database_beside_files_is_not_served(archive: Archive, empty: Settings, actor: Actor) -> None:
    assert catch_up(archive) == 0
    ingest(archive, receive(archive, ct_slice()), actor=actor)
    assert catch_up(archive) == 0
    archive.close()
    with open_archive(empty, process="serve") as again, pytest.raises(IndexUnavailable, match="rebuild-index"):
        catch_up(again)


def test_a_volume_that_is_away_is_not_an_empty_archive(archive: Archive, settings: Settings, actor: Actor) -> None:
    ingest(archive, receive(archive, ct_slice()), actor=actor)
    archive.close()
    settings.hot_dir.rename(settings.hot_dir.with_name("elsewhere"))
    settings.hot_dir.mkdir()
    with pytest.raises(StorageFailed, match="mounted"), open_archive(settings, process="test"):
        pass
    assert list(settings.hot_dir.iterdir()) == []


@contextmanager
def backup(archive: Archive, settings: Settings, request: pytest.FixtureRequest, folder: Path) -> Iterator[Settings]:
    """A copy of the database as it is now, beside the same files."""
    if settings.database_url.startswith("sqlite"):
        with sqlite3.connect(settings.database_url.removeprefix("sqlite:///")) as source:
            with sqlite3.connect(folder / "backup.sqlite3") as target:
                source.backup(target)
            source.execute("SELECT 1")
        yield of_database(settings, f"sqlite:///{folder / 'backup.sqlite3'}")
        return
    base: str = request.getfixturevalue("postgres_server")
    name = archive.engine.url.database
    archive.close()
    with psycopg.connect(base, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}_backup" TEMPLATE "{name}"')
    yield of_database(settings, settings.database_url.replace(f"/{name}?", f"/{name}_backup?"))
    with psycopg.connect(base, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE "{name}_backup" WITH (FORCE)')


def of_database(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})


def test_a_database_that_is_older_than_the_journal_is_brought_up_to_date(
    settings: Settings, actor: Actor, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The backup of before corrections, migration and purge is restored beside the files of today."""
    with open_archive(settings, process="test") as archive:
        at(archive, "2026-01-05")
        archive.commit.run(lambda conn: note(conn, Kind.ORDER, "", {"gone": True}, at=archive.clock()))
        for number in (1, 2):
            assert send(archive, "gone", "20150105", number=number) is Outcome.STORED
            assert (
                send(archive, "old", "20220103", PixelData=_SMOOTH, rows=64, columns=64, number=number)
                is Outcome.STORED
            )
    with open_archive(settings, process="test") as archive, backup(archive, settings, request, tmp_path) as restored:
        with open_archive(settings, process="test") as living:
            at(living, "2026-01-05")
            lived(living, actor, sent=("gone", "old"))
            before = told(living)
        with open_archive(restored, process="serve") as again:
            at(again, "2026-06-20")
            assert again.journal.ahead
            assert catch_up(again) == len(again.journal.read()) - 1
            assert catch_up(again) == 0
            assert suspended(again) == ["rebuilt"]
            finish_removals(again)
            finish_purges(again)
            fsck(again, repair=True)  # copies that were good at the time of the backup, and have moved since
            again.commit.run(lambda conn: conn.execute(delete(location).where(location.c.state == "damaged")))
            compute_due(again)
            after = told(again)
            for name in before:
                assert after[name] == before[name], name
            again.commit.run(lambda conn: note(conn, Kind.HOLD, "new", {}, at=MINUTE))
            assert [pk for pk, _ in numbers(again)] == [one.n for one in again.journal.read()]
