"""What a purge leaves, in which order it removes, and what it can be made from again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import EnhancedXRayRadiationDoseSRStorage, XRayRadiationDoseSRStorage
from sqlalchemy import delete, event, select, update

from archive.access import Actor
from archive.core import Archive
from archive.errors import Conflict, Gone, InvalidRequest, NotAllowed, NotFound, StorageFailed
from archive.index.write import quarantine
from archive.ingest import Outcome, adopt_cold, arrival_of
from archive.instance import State
from archive.lifecycle.approvals import approve
from archive.lifecycle.finish import finish_purges, restore_purge
from archive.lifecycle.holds import add_hold, remove_hold
from archive.lifecycle.purge import purge_study
from archive.lifecycle.purged import find_purge, list_purges
from archive.lifecycle.remove import finish_removals, mark_instances
from archive.lifecycle.tombstones import purged
from archive.schema import (
    audit,
    hold,
    instance,
    location,
    patient,
    purge,
    purge_approval,
    quarantined,
    series,
    study,
    tombstone,
    work_item,
)
from retention.tick import tick
from tests.builders import ct_slice, data_set, new_uid
from tests.retention.life import (
    audited,
    exam,
    image_files,
    move_clock,
    put_clock,
    receive,
    receive_exam,
    rows,
    study_row,
)

EXAM, DUE, NOTICE_OVER = "2026-01-05T09:00:00", "2031-01-05T09:00:00", "2031-02-04T09:00:00"
UID = new_uid("study")

quick = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # rules that no database has a part in


@pytest.fixture
def archive(archive: Archive) -> Archive:
    put_clock(archive, EXAM)
    return archive


def announced(archive: Archive) -> int:
    """Has the exam announced, and the notice go by; the key of its study."""
    put_clock(archive, DUE)
    assert tick(archive).announced == 1
    put_clock(archive, NOTICE_OVER)
    return int(study_row(archive, UID).pk)


def the(archive: Archive, statement: Any) -> list[Any]:
    with archive.reading() as conn:
        return list(conn.execute(statement).all())


@pytest.mark.req("REQ-DCM-92")
def test_what_a_purge_leaves(archive: Archive) -> None:
    slices = receive_exam(archive, images=3)
    announced(archive)
    assert tick(archive).purged == 1

    assert image_files(archive) == []
    for table in (study, series, instance, location):
        assert rows(archive, table) == 0
    assert rows(archive, patient) == 1  # a patient stays
    left = the(archive, select(tombstone).order_by(tombstone.c.pk))
    assert [(row.sop_instance_uid, row.digest) for row in left] == [
        (ds.SOPInstanceUID, hashlib.sha256(data_set(ds)).hexdigest()) for ds in slices
    ]
    (row,) = the(archive, select(purge))
    assert (row.state, row.study_instance_uid, row.patient) == ("done", UID, "IPP1")
    assert row.done_at >= row.begun_at
    certificate = json.loads(row.certificate)
    assert certificate["legal_basis"]["keep_until"] == "20310105"
    assert {one["digest"] for one in certificate["instances"]} == {one.digest for one in left}
    assert certificate["finished_at"] == row.done_at.isoformat()

    content = Path(archive.hot.path(row.note_path)).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row.note_digest
    note = pydicom.dcmread(io.BytesIO(content))
    assert note.SOPInstanceUID == row.note_uid
    assert note.ConceptNameCodeSequence[0].CodeValue == "113039"
    (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
    named = [
        one.ReferencedSOPInstanceUID for part in evidence.ReferencedSeriesSequence for one in part.ReferencedSOPSequence
    ]
    assert set(named) == {ds.SOPInstanceUID for ds in slices}
    (told,) = audited(archive, "110105")
    assert (told.action, told.outcome, told.patient, told.study) == ("D", 0, "IPP1", UID)
    assert json.loads(told.detail)["instances"] == 3


@quick
def test_the_note_is_durable_before_the_decision_and_the_bytes_go_after_it(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laws 1 and 2."""
    receive_exam(archive, images=1)
    pk = announced(archive)
    trace: list[str] = []
    real = {name: getattr(os, name) for name in ("fdatasync", "rename", "fsync", "unlink")}

    def traced(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            what = str(args[0]) if not isinstance(args[0], int) else os.readlink(f"/proc/self/fd/{args[0]}")
            if "facts" not in what:  # the journal is flushed with each COMMIT
                trace.append(f"{name} {'note' if '/evidence' in what or '/incoming' in what else 'image'}")
            return real[name](*args, **kwargs)

        return call

    for name in real:
        monkeypatch.setattr(os, name, traced(name))
    event.listen(archive.engine, "commit", lambda _conn: trace.append("COMMIT"))
    assert purge_study(archive, pk) is None
    kept = trace[: trace.index("COMMIT")]
    assert [step for step in kept if step.endswith("note")][-3:] == ["fdatasync note", "rename note", "fsync note"]
    assert not any(step.startswith("unlink") for step in kept)
    after = trace[trace.index("COMMIT") :]
    assert after.index("COMMIT") < after.index("unlink image") < after.index("fsync image")
    assert "COMMIT" in after[after.index("fsync image") :]


def test_a_blocked_purge_leaves_no_note(archive: Archive, actor: Actor) -> None:
    receive_exam(archive)
    pk = announced(archive)
    add_hold(archive, UID, reason="expertise", until=None, actor=actor)
    assert purge_study(archive, pk) is not None
    assert not (archive.hot.root / "evidence").exists() or not list((archive.hot.root / "evidence").iterdir())
    assert rows(archive, purge) == rows(archive, tombstone) == 0


def test_what_waits_for_a_person_about_it_is_closed_and_quarantine_goes_too(archive: Archive) -> None:
    (first, *_) = receive_exam(archive)
    other = ct_slice(number=9, StudyInstanceUID=UID, SeriesInstanceUID=first.SeriesInstanceUID)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    assert receive(archive, other) is Outcome.QUARANTINED
    assert rows(archive, quarantined) == 1
    announced(archive)
    assert tick(archive).purged == 1
    assert image_files(archive) == []
    assert rows(archive, quarantined) == 0
    items = {row.kind: (row.state, row.closed_by) for row in the(archive, select(work_item))}
    assert items["uid_conflict"] == ("closed", "minipacs")
    (row,) = the(archive, select(purge.c.certificate))
    digest = hashlib.sha256(data_set(other)).hexdigest()
    assert json.loads(row.certificate)["quarantined"] == [{"sop_instance_uid": first.SOPInstanceUID, "digest": digest}]


@pytest.mark.parametrize("sop_class", [XRayRadiationDoseSRStorage, EnhancedXRayRadiationDoseSRStorage])
@pytest.mark.req("REQ-CDC-16")
def test_radiation_dose_reports_outlive_the_images(archive: Archive, sop_class: str) -> None:
    receive_exam(archive)
    report = ct_slice(StudyInstanceUID=UID, SeriesInstanceUID=new_uid(), SOPClassUID=sop_class, Modality="SR")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    report.file_meta.MediaStorageSOPClassUID = sop_class
    receive(archive, report)
    announced(archive)
    assert tick(archive).purged == 1
    kept = the(archive, select(instance.c.sop_instance_uid, instance.c.state))
    assert [tuple(row) for row in kept] == [(report.SOPInstanceUID, "stored")]
    assert rows(archive, tombstone) == 2
    assert tick(archive).blocked == 0
    assert study_row(archive, UID).keep_until == "20460105"
    put_clock(archive, "2046-01-04T09:00:00")
    assert tick(archive).announced == 0
    put_clock(archive, "2046-01-05T09:00:00")
    assert tick(archive).announced == 1
    move_clock(archive, 30)
    assert tick(archive).purged == 1
    assert rows(archive, study) == 0
    assert image_files(archive) == []
    assert len(the(archive, select(purge))) == 2


def test_originals_that_were_replaced_and_copies_get_tombstones(archive: Archive) -> None:
    """A smooth image passes its gate: after the switch only its lossy copy has bytes."""
    smooth = bytes(b for row in range(64) for column in range(64) for b in (row + column, 0))
    for ds in exam(images=2, rows=64, columns=64):
        ds.PixelData = smooth
        receive(archive, ds)
    put_clock(archive, "2029-01-06T09:00:00")
    assert tick(archive).derived == 2
    move_clock(archive, 31)
    tick(archive)
    states = [row.state for row in the(archive, select(instance.c.state).order_by(instance.c.pk))]
    assert states == [State.REPLACED] * 2 + [State.STORED] * 2
    announced(archive)
    assert tick(archive).purged == 1
    assert rows(archive, tombstone) == 4
    assert rows(archive, instance) == 0
    assert image_files(archive) == []


def test_a_slice_that_comes_while_it_goes_stays(archive: Archive) -> None:
    receive_exam(archive)
    pk = announced(archive)
    stuck = Path(image_files(archive)[0])
    stuck.unlink()
    stuck.mkdir()  # what cannot be unlinked
    with pytest.raises(Exception, match="cannot be removed"):
        purge_study(archive, pk)
    stuck.rmdir()
    late = ct_slice(StudyInstanceUID=UID, SeriesInstanceUID=new_uid("study", "series"), SOPInstanceUID=new_uid())
    assert receive(archive, late) is Outcome.STORED
    assert finish_purges(archive) == 1
    assert [row.sop_instance_uid for row in the(archive, select(instance))] == [late.SOPInstanceUID]
    assert len(image_files(archive)) == 1
    assert study_row(archive, UID).announced_at is None
    assert tick(archive).purged == 0
    assert finish_purges(archive) == 0


def test_a_file_that_cannot_be_removed_keeps_no_other_from_going(archive: Archive) -> None:
    """Neither of its own study nor of others, on a tick that has to finish them (FIELD, pain 3)."""
    for name in ("first", "second"):
        receive_exam(archive, study=name)
    paths = image_files(archive)
    with archive.reading() as conn:
        pks = list(conn.execute(select(instance.c.pk).order_by(instance.c.pk)).scalars())
        stuck = Path(archive.hot.path(conn.execute(select(location.c.path).order_by(location.c.pk)).scalars().first()))
    archive.commit.run(lambda conn: mark_instances(conn, pks))
    stuck.unlink()
    stuck.mkdir()  # what cannot be unlinked
    with pytest.raises(StorageFailed):
        finish_removals(archive)
    assert [path for path in paths if path.exists()] == [stuck]
    assert (rows(archive, location), rows(archive, instance), rows(archive, series)) == (1, 1, 1)
    stuck.rmdir()
    finish_removals(archive)
    assert rows(archive, instance) == 0


def test_a_purge_that_cannot_be_finished_keeps_no_other_from_it(archive: Archive) -> None:
    for name in ("first", "second"):
        receive_exam(archive, study=name, images=1)
    put_clock(archive, DUE)
    assert tick(archive).announced == 2
    put_clock(archive, NOTICE_OVER)
    stuck = [Path(path) for path in image_files(archive)]
    for path in stuck:
        path.rename(path.with_suffix(".away"))
        path.mkdir()
    assert tick(archive).reasons == {"a step failed": 2}
    archive.commit.run(
        lambda conn: conn.execute(
            update(purge).where(purge.c.study_instance_uid == new_uid("first")).values(certificate="{")
        )
    )
    for path in stuck:
        path.rmdir()
    assert finish_purges(archive) == 1
    with archive.reading() as conn:
        states = {row.study_instance_uid: row.state for row in conn.execute(select(purge))}
    assert states == {new_uid("first"): "purging", new_uid("second"): "done"}


def test_a_copy_that_is_found_while_it_goes_is_not_filed(archive: Archive) -> None:
    """Filed beside the copies that were marked, it would keep the purge from its end for ever."""
    receive_exam(archive, images=1)
    (path,) = image_files(archive)
    found = "2026/01/05/0900/found.dcm"
    archive.cold.make_ready(os.path.dirname(archive.cold.path(found)))
    shutil.copy(path, archive.cold.path(found))
    with ThreadPoolExecutor(1) as pool, archive.engine.connect() as conn:
        going = conn.execution_options(minipacs_write=True)
        pk = going.execute(select(instance.c.pk)).scalar_one()
        mark_instances(going, [pk])
        filing = pool.submit(adopt_cold, archive, found)
        wait([filing], timeout=1)  # for the transaction that removes
        going.commit()
        with pytest.raises(Gone):
            filing.result()
    finish_removals(archive)
    assert (rows(archive, instance), rows(archive, location)) == (0, 0)


def test_other_content_that_was_compared_while_it_went_is_not_kept_aside(archive: Archive) -> None:
    receive_exam(archive, images=1)
    (path,) = image_files(archive)
    arrival = arrival_of(archive, str(path.relative_to(archive.hot.root)))
    put_clock(archive, DUE)
    tick(archive)
    put_clock(archive, NOTICE_OVER)
    assert tick(archive).purged == 1
    with pytest.raises(Gone):
        archive.commit.run(partial(quarantine, arrival=arrival))
    assert rows(archive, quarantined) == 0


def test_a_purge_is_made_again_from_its_fact(archive: Archive) -> None:
    receive_exam(archive)
    announced(archive)
    tick(archive)
    before = {table.name: [tuple(row)[1:] for row in the(archive, select(table))] for table in (purge, tombstone)}
    archive.commit.run(lambda conn: [conn.execute(delete(table)) for table in (purge, tombstone)])
    facts = [one for one in archive.journal.read() if one.kind == "purge"]
    assert [one.body["state"] for one in facts] == ["purging", "done"]
    for one in [*facts, *facts[-1:]]:  # twice changes nothing
        archive.commit.run(lambda conn, one=one: restore_purge(conn, one.subject, one.body, one.at))
    after = {table.name: [tuple(row)[1:] for row in the(archive, select(table))] for table in (purge, tombstone)}
    assert after == before


def test_purges_are_listed_in_their_order(archive: Archive) -> None:
    for number in range(3):
        receive_exam(archive, study=f"study {number}", images=1)
    put_clock(archive, DUE)
    tick(archive)
    put_clock(archive, NOTICE_OVER)
    assert tick(archive).purged == 3
    with archive.reading() as conn:
        first = list_purges(conn, limit=2)
        rest = list_purges(conn, after=first[-1].number)
        assert [one.study_instance_uid for one in [*first, *rest]] == [
            new_uid(f"study {number}") for number in range(3)
        ]
        assert find_purge(conn, rest[0].id) == rest[0]
        assert list_purges(conn, study=new_uid("study 1")) == [first[1]]
        with pytest.raises(NotFound):
            find_purge(conn, "no such")
    assert purged_all(archive, first[0].study_instance_uid)


def purged_all(archive: Archive, uid: str) -> bool:
    with archive.reading() as conn:
        uids = conn.execute(select(tombstone.c.sop_instance_uid).where(tombstone.c.study_instance_uid == uid)).scalars()
        return all(purged(conn, one) for one in uids)


class TestApprovals:
    def test_only_an_announced_purge_of_a_known_study_can_be_approved(self, archive: Archive, actor: Actor) -> None:
        receive_exam(archive)
        with pytest.raises(NotFound):
            approve(archive, "1.2.3", reason="vu", actor=actor)
        with pytest.raises(Conflict, match="not announced"):
            approve(archive, UID, reason="vu", actor=actor)
        with pytest.raises(InvalidRequest, match="reason"):
            approve(archive, UID, reason=" ", actor=actor)
        nobody = Actor(user="n", source="x", door=actor.door, may=frozenset())
        with pytest.raises(NotAllowed):
            approve(archive, UID, reason="vu", actor=nobody)
        refusals = the(archive, select(audit.c.user, audit.c.outcome).where(audit.c.outcome != 0))
        assert [tuple(row) for row in refusals] == [("tester", 8), ("tester", 8), ("n", 8)]
        assert rows(archive, purge_approval) == 0

    def test_approvals_and_holds_are_in_the_certificate(self, archive: Archive, actor: Actor) -> None:
        receive_exam(archive)
        placed = add_hold(archive, UID, reason="expertise", until=None, actor=actor)
        remove_hold(archive, placed.id, actor=actor)
        announced(archive)
        assert approve(archive, UID, reason="vu", actor=actor) == 1
        assert tick(archive).purged == 1
        (row,) = the(archive, select(purge.c.certificate))
        notice = json.loads(row.certificate)["notice"]
        assert [one["user"] for one in notice["approvals"]] == ["tester"]
        assert [one["reason"] for one in notice["holds"]] == ["expertise"]
        assert rows(archive, hold) == 1
