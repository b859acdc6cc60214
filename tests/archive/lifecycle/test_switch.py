"""After the grace period a whole study changes at once, and nothing goes that is not proven to be held."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless
from sqlalchemy import delete, select, update

from archive import retrieve
from archive.access import Actor
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.errors import Gone, StorageFailed
from archive.index.match import Key
from archive.index.query import Query, find
from archive.index.replaced import restore_derived, restore_replaced
from archive.index.write import repair_instance
from archive.ingest import Outcome, arrival_of
from archive.instance import CopyState, State
from archive.lifecycle import remove
from archive.lifecycle import switch as switching
from archive.lifecycle.cold import Stays
from archive.lifecycle.compute import compute_due, policy_of
from archive.lifecycle.holds import add_hold
from archive.lifecycle.remove import finish_removals
from archive.lifecycle.suspension import Kind, suspend
from archive.lifecycle.switch import due_for_switch, switch, to_undo, undo_grace
from archive.policy import local_day
from archive.schema import audit, instance, location, series, study
from archive.studies import describe
from tests.archive.lifecycle.aging import (
    ALTERNATES,
    AVAILABILITY,
    INSTANCES,
    OVER,
    STUDY,
    audited,
    by_uid,
    copies,
    copy_of,
    facts,
    files,
    instances,
    leave_tombstone,
    migrated,
    noise,
    old_study,
    path_of,
    receive,
    received,
    seen,
    slices,
    spoil,
    states,
    study_row,
    switched,
    value,
)
from tests.archive.lifecycle.studies import at
from tests.builders import data_set, new_uid


def in_grace(archive: Archive, *objects: Dataset) -> list[Dataset]:
    found = received(archive, *(objects or slices()))
    assert migrated(archive).stays is None
    return found


def purpose(row: dict[str, Any]) -> tuple[str, str, str]:
    """The alternate of a row: its SOP Instance UID, its series, and why it is named."""
    (item,) = row[ALTERNATES]["Value"]
    return value(item, "00081155"), value(item, "0020000E"), value(value(item, "0040A170"), "00080100")


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.req("REQ-DCM-86")
def test_nothing_goes_before_the_grace_is_over(archive: Archive) -> None:
    in_grace(archive)
    assert switched(archive, "2029-02-04").stays is Stays.GRACE
    assert len(files(archive, "hot")) == 3


@pytest.mark.req("REQ-DCM-83", "REQ-CDC-06", "REQ-CDC-10")
def test_after_it_the_study_is_its_lossy_copies_nearline(archive: Archive) -> None:
    originals = in_grace(archive)
    copied = [copy_of(archive, ds).sop_instance_uid for ds in originals]
    done = switched(archive)
    assert (done.replaced, done.moved, done.stays) == (3, 0, None)
    assert files(archive, "hot") == []
    (row,) = seen(archive, Level.STUDY)
    assert (value(row, INSTANCES), value(row, "00201206"), value(row, AVAILABILITY)) == (3, 1, "NEARLINE")
    assert {value(row, "00080018") for row in seen(archive)} == set(copied)
    given = retrieve.select(archive, study_uids=[STUDY])
    assert [one.sop_instance_uid for one in given] == copied  # one for each image, in their order
    assert {one.tier for one in given} == {"cold"} and all(one.stands() for one in given)
    assert study_row(archive).grace_until is None


@pytest.mark.req("REQ-DCM-83")
def test_each_names_the_other(archive: Archive) -> None:
    first, second, _ = old_study(archive)
    copied = copy_of(archive, first)
    copied_series = seen(archive, Level.SERIES)[0]["0020000E"]["Value"][0]
    rows = seen(archive, Level.IMAGE, by_uid(first.SOPInstanceUID, second.SOPInstanceUID))
    assert [value(row, AVAILABILITY) for row in rows] == ["UNAVAILABLE", "UNAVAILABLE"]
    assert purpose(rows[0]) == (copied.sop_instance_uid, copied_series, "121325")
    (row,) = seen(archive, Level.IMAGE, by_uid(copied.sop_instance_uid))
    assert value(row, AVAILABILITY) == "NEARLINE"
    assert purpose(row) == (first.SOPInstanceUID, first.SeriesInstanceUID, "121324")
    (one,) = retrieve.select(archive, instance_uids=[first.SOPInstanceUID], replaced=True)
    assert (one.replaced, one.alternate, one.alternate_series) == (True, copied.sop_instance_uid, copied_series)
    with pytest.raises(Gone) as caught:
        one.open()
    assert caught.value.alternate == copied.sop_instance_uid
    assert retrieve.select(archive, instance_uids=[first.SOPInstanceUID]) == []


@pytest.mark.req("REQ-DCM-83")
def test_an_original_of_which_a_copy_is_held_is_named_as_full_fidelity(archive: Archive) -> None:
    first, *_ = old_study(archive)
    with archive.engine.begin() as conn:  # as after a restore of the hot volume
        row = conn.execute(select(location)).first()
        assert row is not None
        pk = instances(archive)[first.SOPInstanceUID].pk
        held = {**row._mapping, "pk": None, "instance_pk": pk, "tier": "hot", "path": "2026/01/05/1200/held.dcm"}
        del held["pk"]
        conn.execute(location.insert().values(held))
    (found,) = seen(archive, Level.IMAGE, by_uid(copy_of(archive, first).sop_instance_uid))
    assert purpose(found)[2] == "121327"


@pytest.mark.req("REQ-DCM-86")
def test_what_failed_its_gate_is_the_same_image_in_cold_storage(archive: Archive) -> None:
    _, bad = in_grace(archive, slices(1)[0], noise())
    done = switched(archive)
    assert (done.replaced, done.moved) == (1, 1)
    (row,) = seen(archive, Level.IMAGE, by_uid(bad.SOPInstanceUID))
    assert (value(row, AVAILABILITY), ALTERNATES in row and "Value" in row[ALTERNATES]) == ("NEARLINE", False)
    assert path_of(archive, bad.SOPInstanceUID).read_bytes().endswith(data_set(bad))
    (found,) = seen(archive, Level.STUDY)
    assert value(found, INSTANCES) == 2


def test_the_audit_and_the_journal_tell_what_was_replaced(archive: Archive) -> None:
    first, *_ = originals = old_study(archive)
    told = audited(archive)[-1]
    assert (told["action"], told["replaced"], told["moved"]) == ("U", 3, 0)
    ((subject, body),) = facts(archive, "replaced")
    assert subject == STUDY
    assert [one["uid"] for one in body["originals"]] == [ds.SOPInstanceUID for ds in originals]
    assert body["originals"][0]["copy"] == copy_of(archive, first).sop_instance_uid
    assert body["originals"][0]["digest"] == instances(archive)[first.SOPInstanceUID].digest
    assert body["series"][first.SeriesInstanceUID]["modality"] == "CT"


def test_the_tick_is_told_which_studies_are_due(archive: Archive, actor: Actor) -> None:
    in_grace(archive)
    pk, policy = study_row(archive).pk, policy_of(archive.settings)

    def due() -> tuple[list[int], list[int]]:
        on = local_day(archive.clock())
        with archive.reading() as conn:
            ready = due_for_switch(conn, policy, today=on, at=archive.clock(), real_now=archive.real_clock(), limit=10)
            return ready, to_undo(conn, policy, today=on, real_now=archive.real_clock(), limit=10)

    assert due() == ([], [])
    at(archive, OVER)
    assert due() == ([pk], [])
    add_hold(archive, STUDY, reason="expertise", until=None, actor=actor)
    compute_due(archive)
    assert due() == ([], [pk])


# -- what stops it -----------------------------------------------------------------------------------------------------


def test_a_damaged_lossy_copy_is_made_again_before_anything_goes(archive: Archive) -> None:
    first, *_ = originals = in_grace(archive)
    bad = copy_of(archive, first).sop_instance_uid
    spoil(path_of(archive, bad))
    done = switched(archive)
    assert (done.damaged, done.stays) == (1, Stays.DAMAGED)
    assert len(files(archive, "hot")) == 3
    assert bad not in instances(archive)
    again = migrated(archive, OVER)
    assert again.derived == 1
    assert switched(archive, "2029-03-10").replaced == len(originals)


def test_a_damaged_second_copy_is_made_again_too(archive: Archive) -> None:
    (ds,) = in_grace(archive, noise())
    (cold,) = [row for row in copies(archive, ds.SOPInstanceUID) if row.tier == "cold"]
    spoil(Path(archive.cold.path(cold.path)))
    assert switched(archive).stays is Stays.DAMAGED
    assert [row.tier for row in copies(archive, ds.SOPInstanceUID)] == ["hot"]
    assert migrated(archive, OVER).kept_lossless == 1
    assert switched(archive, "2029-03-10").moved == 1


def test_the_last_copy_of_an_image_never_goes_however_bad_it_is(archive: Archive) -> None:
    (ds,) = in_grace(archive, slices(1)[0])
    spoil(path_of(archive, ds.SOPInstanceUID))
    with archive.engine.begin() as conn:
        conn.execute(update(location).where(location.c.tier == "hot").values(state=CopyState.DAMAGED))
    spoil(path_of(archive, copy_of(archive, ds).sop_instance_uid))
    assert switched(archive).stays is Stays.DAMAGED
    migrated(archive, OVER)
    assert (len(files(archive, "hot")), len(files(archive, "cold"))) == (1, 1)
    assert undo_grace(archive, study_row(archive).pk, reason="hold") == 0
    assert (len(files(archive, "hot")), len(files(archive, "cold"))) == (1, 1)


@pytest.mark.req("REQ-DCM-85")
def test_a_hold_keeps_the_originals_and_leads_back(archive: Archive, actor: Actor) -> None:
    originals = in_grace(archive)
    copied = [copy_of(archive, ds).sop_instance_uid for ds in originals]
    add_hold(archive, STUDY, reason="expertise", until=None, actor=actor)
    assert switched(archive).stays is Stays.HOLD
    assert undo_grace(archive, study_row(archive).pk, reason="hold") == 3
    assert states(archive) == {State.STORED: [ds.SOPInstanceUID for ds in originals]}
    assert (files(archive, "cold"), study_row(archive).grace_until) == ([], None)
    assert len(files(archive, "hot")) == 3
    assert facts(archive, "derived")[-3:] == [(uid, {}) for uid in copied]
    assert (audited(archive)[-1]["why"], audited(archive)[-1]["instances"]) == ("hold", 3)
    assert undo_grace(archive, study_row(archive).pk, reason="hold") == 0
    with archive.reading() as conn:
        assert len(conn.execute(select(series)).all()) == 1  # theirs went with them


def test_an_original_that_is_damaged_keeps_its_copy_when_a_hold_comes(archive: Archive) -> None:
    first, *_ = in_grace(archive)
    spoil(path_of(archive, first.SOPInstanceUID))
    assert undo_grace(archive, study_row(archive).pk, reason="hold") == 2
    assert copy_of(archive, first).state == State.PENDING


def test_while_removal_is_suspended_the_originals_stay(archive: Archive) -> None:
    in_grace(archive)
    archive.commit.run(lambda conn: suspend(conn, Kind.CLOCK, "a jump", at=archive.clock()))
    assert switched(archive).stays is Stays.SUSPENDED
    assert len(files(archive, "hot")) == 3


def test_a_fact_that_changed_keeps_the_originals_until_the_dates_are_computed(archive: Archive) -> None:
    in_grace(archive)
    at(archive, OVER)
    with archive.engine.begin() as conn:
        conn.execute(update(study).values(policy_version=None))
    assert switch(archive, study_row(archive).pk).stays is Stays.CHANGED


def test_an_image_that_came_late_brings_the_study_back_to_be_copied(archive: Archive) -> None:
    in_grace(archive)
    (late,) = slices(1, InstanceNumber=9)
    received(archive, late, day="2029-02-01")
    assert switched(archive).stays is Stays.INCOMPLETE
    assert study_row(archive).grace_until is None
    assert migrated(archive, OVER).derived == 1
    assert switched(archive, "2029-03-10").replaced == 4


def test_an_image_that_comes_after_the_switch_goes_the_same_way_into_the_same_series(archive: Archive) -> None:
    old_study(archive)
    (late,) = slices(1, InstanceNumber=9)
    received(archive, late, day="2029-03-01")
    (row,) = seen(archive, Level.STUDY)
    assert (value(row, INSTANCES), value(row, AVAILABILITY)) == (4, "NEARLINE")  # the worst of them
    assert migrated(archive, "2029-03-02").derived == 1
    assert switched(archive, "2029-04-10").replaced == 1
    (row,) = seen(archive, Level.STUDY)
    assert (value(row, INSTANCES), value(row, "00201206")) == (4, 1)
    assert len(facts(archive, "replaced")[-1][1]["originals"]) == 4  # the whole state


def test_a_volume_that_is_away_is_no_damage(archive: Archive, tmp_path: Path) -> None:
    in_grace(archive)
    archive.cold.root.rename(tmp_path / "away")
    try:
        with pytest.raises(StorageFailed):
            switched(archive)
    finally:
        (tmp_path / "away").rename(archive.cold.root)
    assert switched(archive).replaced == 3


# -- power fails -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Power fails."""


@pytest.mark.parametrize("unlinked", [0, 1, 3])
def test_what_the_switch_left_the_next_tick_finishes(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, unlinked: int
) -> None:
    """Law 2: `PURGING` committed, then power failed."""
    originals = in_grace(archive)
    left = unlinked
    real = type(archive.hot).unlink

    def failing(tier: Any, name: str) -> None:
        nonlocal left
        if left == 0:
            raise Stop
        left -= 1
        real(tier, name)

    with monkeypatch.context() as patch:
        patch.setattr(type(archive.hot), "unlink", failing)
        if unlinked == 3:
            patch.setattr(remove, "_drop_copies", lambda *_, **__: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            switched(archive)
    assert len(files(archive, "hot")) == 3 - unlinked
    assert {row.state for ds in originals for row in copies(archive, ds.SOPInstanceUID)} == {CopyState.PURGING}
    (row,) = seen(archive, Level.STUDY)
    assert (value(row, INSTANCES), value(row, AVAILABILITY)) == (3, "NEARLINE")
    (one,) = seen(archive, Level.IMAGE, by_uid(originals[0].SOPInstanceUID))
    assert value(one, AVAILABILITY) == "UNAVAILABLE"
    assert finish_removals(archive).copies == 3
    assert files(archive, "hot") == []
    assert [copies(archive, ds.SOPInstanceUID) for ds in originals] == [[], [], []]
    assert finish_removals(archive) == remove.Removed()


def test_the_folders_are_flushed_before_the_rows_are_dropped(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    in_grace(archive, slices(1)[0])
    trace: list[str] = []
    real_unlink, real_fsync = type(archive.hot).unlink, os.fsync

    def unlink(tier: Any, name: str) -> None:
        real_unlink(tier, name)
        trace.append("unlink")

    def fsync(fd: int) -> None:
        real_fsync(fd)
        name = os.readlink(f"/proc/self/fd/{fd}")
        if name.startswith(str(archive.hot.root)) and "facts" not in name:
            trace.append("fsync folder")

    from sqlalchemy import event

    at(archive, OVER)
    compute_due(archive)
    monkeypatch.setattr(type(archive.hot), "unlink", unlink)
    monkeypatch.setattr(os, "fsync", fsync)
    event.listen(archive.engine, "commit", lambda conn: trace.append("COMMIT"))
    switch(archive, study_row(archive).pk)
    start = trace.index("unlink")
    assert "COMMIT" in trace[:start]
    assert trace[start : start + 3] == ["unlink", "fsync folder", "COMMIT"]


# -- readers -----------------------------------------------------------------------------------------------------------


@pytest.mark.req("REQ-DCM-83")
def test_whoever_reads_during_the_switch_sees_all_old_or_all_new(archive: Archive) -> None:
    originals = in_grace(archive, *slices(8), noise())
    bad = originals.pop().SOPInstanceUID
    old = {ds.SOPInstanceUID for ds in originals}
    new = {copy_of(archive, ds).sop_instance_uid for ds in originals}
    views: list[str] = []
    wrong: list[Any] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            with archive.reading() as conn:
                key = (Key(0x0020000D, "UI", STUDY),)
                (row,) = find(conn, Query(Level.STUDY, key, frozenset({0x00201208, 0x00080056, 0x00201206})))
                images = {
                    value(one, "00080018") for one in find(conn, Query(Level.IMAGE, key, frozenset({0x00080018})))
                }
            given = {one.sop_instance_uid for one in retrieve.select(archive, study_uids=[STUDY])}
            told = (value(row, INSTANCES), value(row, AVAILABILITY), images)
            if told == (9, "ONLINE", old | {bad}):
                views.append("old")
            elif told == (9, "NEARLINE", new | {bad}):
                views.append("new")
            else:
                wrong.append(told)
            if given not in (old | {bad}, new | {bad}):
                wrong.append(given)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    while views.count("old") < 3 and not wrong:
        stop.wait(0.01)
    assert switched(archive).replaced == 8
    while views.count("new") < 3 and not wrong:
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert {"old", "new"} == set(views)


def test_a_reader_that_has_a_file_open_finishes(archive: Archive) -> None:
    first, *_ = in_grace(archive)
    (one,) = retrieve.select(archive, instance_uids=[first.SOPInstanceUID])
    fd = one.open()
    try:
        switched(archive)
        assert os.pread(fd, one.data_set_bytes, one.data_set_offset) == data_set(first)
    finally:
        os.close(fd)


@pytest.mark.req("REQ-DCM-84")
def test_a_reader_that_comes_too_late_learns_what_became_of_the_image(archive: Archive) -> None:
    good, bad = in_grace(archive, slices(1)[0], noise())
    chosen = {one.sop_instance_uid: one for one in retrieve.select(archive, study_uids=[STUDY])}
    switched(archive)
    for one in chosen.values():
        with pytest.raises(StorageFailed):
            one.open()
    now = retrieve.again(archive, chosen[good.SOPInstanceUID])
    assert now is not None and now.alternate == copy_of(archive, good).sop_instance_uid
    moved = retrieve.again(archive, chosen[bad.SOPInstanceUID])
    assert moved is not None and (moved.tier, moved.digest) == ("cold", chosen[bad.SOPInstanceUID].digest)
    os.close(moved.open())


# -- sent again --------------------------------------------------------------------------------------------------------


@pytest.mark.req("REQ-DCM-15")
def test_a_replaced_original_that_is_sent_again_is_held_already(archive: Archive) -> None:
    first, *_ = old_study(archive)
    assert receive(archive, first) is Outcome.ALREADY_STORED
    assert files(archive, "hot") == []
    assert instances(archive)[first.SOPInstanceUID].state == State.REPLACED


@pytest.mark.req("REQ-DCM-15")
def test_other_content_under_its_uid_is_quarantined(archive: Archive) -> None:
    first, *_ = old_study(archive)
    first.PixelData = bytes(len(first.PixelData))
    assert receive(archive, first) is Outcome.QUARANTINED


@pytest.mark.req("REQ-DCM-15")
def test_an_image_that_was_moved_is_held_already(archive: Archive) -> None:
    (ds,) = old_study(archive, noise())
    assert receive(archive, ds) is Outcome.ALREADY_STORED
    ds.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    assert receive(archive, ds) is Outcome.ALREADY_STORED
    assert files(archive, "hot") == []


@pytest.mark.req("REQ-DCM-15")
def test_a_moved_image_whose_copy_rotted_is_repaired_by_a_resend(archive: Archive) -> None:
    (ds,) = old_study(archive, noise())
    spoil(path_of(archive, ds.SOPInstanceUID))
    assert receive(archive, ds) is Outcome.REPAIRED
    (one,) = retrieve.select(archive, study_uids=[STUDY])
    assert (one.tier, one.stands()) == ("hot", True)


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_resend_brings_an_original_back_whose_lossy_copy_is_gone(archive: Archive, how: str) -> None:
    first, second, _ = old_study(archive)
    gone = copy_of(archive, first).sop_instance_uid
    path_of(archive, gone).unlink() if how == "lost" else spoil(path_of(archive, gone))
    assert receive(archive, first) is Outcome.REPAIRED
    assert instances(archive)[first.SOPInstanceUID].state == State.STORED
    found = {value(row, "00080018"): value(row, AVAILABILITY) for row in seen(archive)}
    assert (found[first.SOPInstanceUID], gone in found, len(found)) == ("ONLINE", False, 3)
    still = [one["uid"] for one in facts(archive, "replaced")[-1][1]["originals"]]
    assert first.SOPInstanceUID not in still and second.SOPInstanceUID in still
    assert migrated(archive, "2029-03-01").derived == 1
    assert switched(archive, "2029-04-10").replaced == 1
    assert gone not in instances(archive)


@pytest.mark.req("REQ-DCM-15")
def test_a_copy_that_the_switch_removes_while_a_resend_looks_at_it_stays_removed(archive: Archive) -> None:
    first, *_ = in_grace(archive)
    (held,) = copies(archive, first.SOPInstanceUID)
    again = held.path.replace(".dcm", "-again.dcm")
    shutil.copy(archive.hot.path(held.path), archive.hot.path(again))
    arrival = arrival_of(archive, again)
    archive.commit.run(lambda conn: remove.mark_copies(conn, [held.pk]))
    assert archive.commit.run(lambda conn: repair_instance(conn, arrival, damaged=[held.pk])) is Outcome.REPAIRED
    assert {row.path: row.state for row in copies(archive, first.SOPInstanceUID)} == {
        held.path: CopyState.PURGING,
        again: CopyState.OK,
    }


@pytest.mark.req("REQ-DCM-15")
def test_what_why_gone_is_refused_and_leaves_no_file(archive: Archive) -> None:
    (ds,) = slices(1)
    leave_tombstone(archive, ds)
    with pytest.raises(Gone):
        receive(archive, ds)
    assert files(archive, "hot") == []
    with archive.reading() as conn:
        (row,) = conn.execute(select(audit).where(audit.c.outcome == 8)).all()
    assert (row.event, row.action, row.study) == ("110104", "C", STUDY)
    assert retrieve.why_gone(archive, study_uid=STUDY, instance_uid=ds.SOPInstanceUID)
    assert not retrieve.why_gone(archive, study_uid=STUDY, instance_uid=new_uid())


# -- from the journal --------------------------------------------------------------------------------------------------


def lost_index(archive: Archive) -> None:
    """What is left when files alone are read again: every file an instance that others see, no replaced original."""
    with archive.engine.begin() as conn:
        conn.execute(delete(instance).where(instance.c.state == State.REPLACED))
        conn.execute(update(instance).values(state=State.STORED, derived_from_pk=None, derivation=None))
        empty = ~select(instance.c.pk).where(instance.c.series_pk == series.c.pk).exists()
        conn.execute(delete(series).where(empty))


def whole(archive: Archive) -> Any:
    """What is known of every instance, but for keys."""
    rows = instances(archive)
    names = {row.pk: uid for uid, row in rows.items()}
    ours = ("state", "digest", "sop_class_uid", "instance_number", "attributes", "identity", "derivation", "source")
    return {
        uid: (*(row._mapping[name] for name in ours), row.received_at, names.get(row.derived_from_pk))
        for uid, row in rows.items()
        if not (row.derivation and row.derived_from_pk is None)
    }


def replay(archive: Archive) -> None:
    def write(conn: Any) -> None:
        for subject, body in facts(archive, "derived"):
            restore_derived(conn, subject, body, archive.clock())
        for subject, body in facts(archive, "replaced"):
            restore_replaced(conn, subject, body, archive.clock())

    archive.commit.run(write)
    archive.commit.run(write)  # twice changes nothing


@pytest.fixture(params=["grace", "switched"])
def aged(archive: Archive, request: pytest.FixtureRequest) -> Iterator[Archive]:
    in_grace(archive) if request.param == "grace" else old_study(archive)
    yield archive


def test_facts_alone_bring_back_who_stands_for_whom(aged: Archive) -> None:
    before = whole(aged)
    views = [seen(aged, level) for level in (Level.STUDY, Level.SERIES, Level.IMAGE)]
    lost_index(aged)
    assert whole(aged) != before
    replay(aged)
    assert whole(aged) == before
    assert [seen(aged, level) for level in (Level.STUDY, Level.SERIES, Level.IMAGE)] == views


def test_an_original_whose_copy_is_not_held_stays_when_facts_are_replayed(archive: Archive) -> None:
    """Power failed after the COMMIT of the switch, then the index and the copy were lost: its bytes are still there."""
    first, *_ = in_grace(archive)
    held = copies(archive, first.SOPInstanceUID)
    lost = copy_of(archive, first).sop_instance_uid
    switched(archive)
    with archive.engine.begin() as conn:
        conn.execute(location.insert().values({**held[0]._mapping, "state": CopyState.OK}))
        conn.execute(update(instance).where(instance.c.sop_instance_uid == first.SOPInstanceUID).values(state="stored"))
        pk = conn.execute(select(instance.c.pk).where(instance.c.sop_instance_uid == lost)).scalar_one()
        conn.execute(delete(location).where(location.c.instance_pk == pk))
        conn.execute(delete(instance).where(instance.c.pk == pk))
    replay(archive)
    assert instances(archive)[first.SOPInstanceUID].state == State.STORED
    assert [row.state for row in copies(archive, first.SOPInstanceUID)] == [CopyState.OK]


# -- described ---------------------------------------------------------------------------------------------------------


def test_a_study_is_described_with_what_stands_for_what(archive: Archive) -> None:
    originals = old_study(archive, *slices(2), noise())
    with archive.reading() as conn:
        told = describe(conn, STUDY)
    assert told is not None and told.tier == "cold"
    by = {one.sop_instance_uid: one for one in told.instances}
    copied = by[copy_of(archive, originals[0]).sop_instance_uid]
    assert copied.original == originals[0].SOPInstanceUID
    assert copied.derivation["figures"]["psnr_db"]["worst"] >= 55
    assert by[originals[2].SOPInstanceUID].derivation["kept"] == "gate"
    assert [(one.sop_instance_uid, one.alternate) for one in told.replaced] == [
        (ds.SOPInstanceUID, copy_of(archive, ds).sop_instance_uid) for ds in originals[:2]
    ]


def test_a_study_in_grace_is_described_as_hot(archive: Archive) -> None:
    in_grace(archive, *slices(1), noise())
    with archive.reading() as conn:
        told = describe(conn, STUDY)
    assert told is not None
    assert (told.availability, told.tier, told.replaced, len(told.instances)) == ("ONLINE", "hot", (), 2)


def test_the_switch_writes_only_what_it_has_read(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last check and the transaction a copy was made anew: it is read first."""
    first, *_ = in_grace(archive)
    real = switching._switch

    def other(conn: Any, **known: Any) -> Any:
        pk = copies(archive, copy_of(archive, first).sop_instance_uid)[0].pk
        row = conn.execute(select(location).where(location.c.pk == pk)).one()
        conn.execute(delete(location).where(location.c.pk == pk))
        conn.execute(location.insert().values({**row._mapping, "pk": pk + 1000}))
        return real(conn, **known)

    monkeypatch.setattr(switching, "_switch", other)
    assert switched(archive).stays is Stays.CHANGED
    assert len(files(archive, "hot")) == 3
    monkeypatch.undo()
    assert switched(archive).replaced == 3
