"""Three years later: copies in cold storage beside each original, and nobody sees a difference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pydicom
import pytest

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.errors import CommitInDoubt, StorageFailed
from archive.instance import State
from archive.lifecycle import cold, filing
from archive.lifecycle import migrate as migrating
from archive.lifecycle.cold import Stays
from archive.lifecycle.compute import compute_due
from archive.lifecycle.holds import add_hold
from archive.lifecycle.migrate import migrate
from archive.retrieve import select
from tests.archive.lifecycle.aging import (
    AVAILABILITY,
    EXAM,
    INSTANCES,
    OLD,
    STUDY,
    audited,
    by_uid,
    copies,
    copy_of,
    facts,
    files,
    instances,
    migrated,
    noise,
    path_of,
    received,
    seen,
    slices,
    spoil,
    states,
    study_row,
    value,
)
from tests.archive.lifecycle.studies import at
from tests.builders import data_set

DATA = Path(__file__).parents[2] / "data"


def changed(settings: Settings, **retention: Any) -> Settings:
    values = settings.model_dump(exclude_unset=True)
    return Settings.model_validate({**values, "retention": retention})


@pytest.mark.req("REQ-CDC-06", "REQ-CDC-08", "REQ-DCM-85")
def test_nothing_is_copied_before_three_years_are_over(archive: Archive) -> None:
    received(archive, *slices())
    done = migrated(archive, "2029-01-04")
    assert (done.stays, files(archive, "cold")) == (Stays.YOUNG, [])


@pytest.mark.req("REQ-CDC-10", "REQ-DCM-83")
def test_each_image_gets_a_lossy_copy_that_no_door_knows(archive: Archive) -> None:
    originals = received(archive, *slices())
    before = [seen(archive, level) for level in (Level.STUDY, Level.SERIES, Level.IMAGE)]
    done = migrated(archive)
    assert (done.derived, done.kept_lossless, done.stays) == (3, 0, None)
    pending = states(archive)[State.PENDING]
    assert len(pending) == 3
    assert [seen(archive, level) for level in (Level.STUDY, Level.SERIES, Level.IMAGE)] == before
    assert seen(archive, Level.IMAGE, by_uid(*pending)) == []
    assert select(archive, instance_uids=pending, replaced=True) == []
    assert value(before[0][0], AVAILABILITY) == "ONLINE"
    assert [one.sop_instance_uid for one in select(archive, study_uids=[STUDY])] == [
        ds.SOPInstanceUID for ds in originals
    ]


@pytest.mark.req("REQ-DCM-81", "REQ-DCM-86")
def test_a_lossy_copy_is_an_instance_of_its_own_with_its_figures(archive: Archive) -> None:
    first, second = received(archive, *slices(2))
    migrated(archive)
    rows = [copy_of(archive, ds) for ds in (first, second)]
    assert rows[0].series_pk == rows[1].series_pk  # one new series for each original one
    assert rows[0].series_pk != instances(archive)[first.SOPInstanceUID].series_pk
    told = orjson.loads(rows[0].derivation)
    assert (told["codec"], told["original"]) == ("jpeg2000", first.SOPInstanceUID)
    assert told["figures"]["psnr_db"]["worst"] >= 55
    assert told["policy_version"] == study_row(archive).policy_version
    ds = pydicom.dcmread(path_of(archive, rows[0].sop_instance_uid))
    assert ds.SOPInstanceUID == rows[0].sop_instance_uid
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert ds.SeriesInstanceUID != first.SeriesInstanceUID
    assert ds.SeriesDescription == "Axial [lossy]"


@pytest.mark.req("REQ-DCM-86", "REQ-CDC-08")
def test_originals_stay_as_they_came_for_thirty_days(archive: Archive) -> None:
    originals = received(archive, *slices())
    done = migrated(archive)
    assert done.grace_until is not None and 29.9 < (done.grace_until - archive.clock()).total_seconds() / 86400 <= 30
    assert abs((study_row(archive).grace_until - done.grace_until).total_seconds()) < 1
    for ds in originals:
        path = path_of(archive, ds.SOPInstanceUID)
        assert path.is_relative_to(archive.hot.root) and path.read_bytes().endswith(data_set(ds))


@pytest.mark.req("REQ-DCM-86")
def test_an_image_that_fails_its_gate_is_copied_as_it_is_and_says_why(archive: Archive) -> None:
    good, bad = received(archive, slices(1)[0], noise())
    done = migrated(archive)
    assert (done.derived, done.kept_lossless) == (1, 1)
    hot, cold = copies(archive, bad.SOPInstanceUID)
    assert (hot.tier, cold.tier, cold.digest, cold.state) == ("hot", "cold", hot.digest, "ok")
    assert Path(archive.cold.path(cold.path)).read_bytes() == Path(archive.hot.path(hot.path)).read_bytes()
    told = orjson.loads(instances(archive)[bad.SOPInstanceUID].derivation)
    assert told["kept"] == "gate" and told["figures"]["psnr_db"]["worst"] < 55
    assert copy_of(archive, good).state == State.PENDING


@pytest.mark.req("REQ-CDC-10")
def test_a_site_may_choose_cold_storage_without_loss(settings: Settings) -> None:
    from archive.core import open_archive

    with open_archive(changed(settings, cold="lossless"), process="test") as archive:
        received(archive, *slices(2))
        done = migrated(archive)
        assert (done.derived, done.kept_lossless) == (0, 2)
        assert states(archive).keys() == {State.STORED}


@pytest.mark.req("REQ-CDC-10", "REQ-DCM-86")
@pytest.mark.parametrize("folder", ["ct-philips-phantom", "mr-siemens"])
def test_real_images_are_copied_through_their_gate(archive: Archive, folder: str) -> None:
    originals = [pydicom.dcmread(path) for path in sorted((DATA / folder).iterdir()) if path.name != "LICENSE"]
    originals = originals[:3]
    received(archive, *originals)
    at(archive, OLD)
    compute_due(archive)
    done = migrate(archive, study_row(archive, originals[0].StudyInstanceUID).pk)
    assert (done.stays, done.derived + done.kept_lossless) == (None, len(originals))
    assert done.derived, "not one of these passed its gate"
    for ds in originals:
        assert path_of_hot(archive, ds.SOPInstanceUID).read_bytes().endswith(data_set(ds))


def path_of_hot(archive: Archive, uid: str) -> Path:
    (row,) = [row for row in copies(archive, uid) if row.tier == "hot"]
    return Path(archive.hot.path(row.path))


@pytest.mark.req("REQ-DCM-86")
def test_the_audit_and_the_journal_tell_of_every_copy(archive: Archive) -> None:
    originals = received(archive, *slices(2), noise())
    migrated(archive)
    (told,) = audited(archive)
    assert (told["action"], told["study"], told["lossy"], told["lossless"]) == ("C", STUDY, 2, 1)
    assert told["worst"]["psnr_db"] >= 55 and told["bytes"]["cold"] < told["bytes"]["hot"]
    rows = facts(archive, "derived")
    assert [body["original"] for _, body in rows] == [ds.SOPInstanceUID for ds in originals[:2]]
    assert rows[0][0] == copy_of(archive, originals[0]).sop_instance_uid
    assert rows[0][1]["digest"] == copies(archive, rows[0][0])[0].digest


class Stop(Exception):
    """Power fails."""


@pytest.mark.parametrize("step", ["receive", "read_back", "fdatasync", "rename", "commit"])
@pytest.mark.parametrize("survived", [0, 2])
def test_whatever_stops_it_the_next_call_goes_on_and_makes_nothing_twice(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, step: str, survived: int
) -> None:
    received(archive, *slices(2), noise())
    at(archive, OLD)
    compute_due(archive)
    left = survived

    def failing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Stop
            left -= 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if step == "receive":
            patch.setattr(type(archive.cold), "receive", failing(type(archive.cold).receive))
        elif step == "read_back":
            again = failing(cold.read_back)
            patch.setattr(migrating, "read_back", again)
            patch.setattr(cold, "read_back", again)
        elif step == "commit":
            patch.setattr(migrating, "file_derived", failing(filing.file_derived))
            patch.setattr(migrating, "file_copy", failing(filing.file_copy))
        else:
            patch.setattr(os, step, failing(getattr(os, step)))
        with pytest.raises((Stop, CommitInDoubt)):  # the journal of facts is flushed too
            migrate(archive, study_row(archive).pk)
    done = migrate(archive, study_row(archive).pk)
    assert done.stays is None and done.grace_until is not None
    assert (len(states(archive)[State.PENDING]), len(states(archive)[State.STORED])) == (2, 3)
    assert len(files(archive, "cold")) == 3  # none without a row
    assert migrate(archive, study_row(archive).pk).derived == 0
    assert (len(files(archive, "cold")), len(audited(archive))) == (3, 1)


def test_it_stops_between_two_images_when_it_is_told_to(archive: Archive) -> None:
    received(archive, *slices(3))
    at(archive, OLD)
    compute_due(archive)
    turns = iter([True, False])
    done = migrate(archive, study_row(archive).pk, proceed=lambda: next(turns))
    assert (done.derived, done.stays, done.grace_until) == (1, Stays.STOPPED, None)
    assert migrate(archive, study_row(archive).pk).derived == 2


@pytest.mark.req("REQ-DCM-85")
def test_a_held_study_is_not_copied(archive: Archive, actor: Actor) -> None:
    received(archive, *slices(1))
    at(archive, OLD)
    add_hold(archive, STUDY, reason="expertise", until=None, actor=actor)
    compute_due(archive)
    done = migrate(archive, study_row(archive).pk)
    assert (done.stays, files(archive, "cold")) == (Stays.HOLD, [])


@pytest.mark.req("REQ-DCM-85")
def test_a_hold_that_comes_between_two_images_ends_the_copying(
    archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    received(archive, *slices(2))
    at(archive, OLD)
    compute_due(archive)
    real = cold.read_back

    def held(*args: Any) -> None:
        real(*args)
        if not states(archive).get(State.PENDING):
            return
        add_hold(archive, STUDY, reason="expertise", until=None, actor=actor)

    monkeypatch.setattr(migrating, "read_back", held)
    done = migrate(archive, study_row(archive).pk)
    assert done.derived == 1 and done.stays in (Stays.HOLD, Stays.CHANGED)
    assert done.grace_until is None
    assert len(files(archive, "cold")) == 1


def test_a_damaged_original_is_not_copied_and_holds_nobody_back(archive: Archive) -> None:
    first, second = received(archive, *slices(2))
    spoil(path_of(archive, first.SOPInstanceUID))
    done = migrated(archive)
    assert (done.derived, done.damaged, done.stays) == (1, 1, None)
    assert done.grace_until is not None
    (row,) = copies(archive, first.SOPInstanceUID)
    assert (row.tier, row.state) == ("hot", "damaged")
    assert copy_of(archive, second).state == State.PENDING


def test_a_volume_that_is_away_is_no_damage(archive: Archive, tmp_path: Path) -> None:
    (ds,) = received(archive, *slices(1))
    at(archive, OLD)
    compute_due(archive)
    archive.hot.root.rename(tmp_path / "away")
    try:
        with pytest.raises(StorageFailed):
            migrate(archive, study_row(archive).pk)
    finally:
        (tmp_path / "away").rename(archive.hot.root)
    assert copies(archive, ds.SOPInstanceUID)[0].state == "ok"


def test_a_lossy_copy_that_is_lost_in_grace_is_made_again(archive: Archive) -> None:
    from archive.integrity import verify

    first, second = received(archive, *slices(2))
    migrated(archive)
    lost, kept = copy_of(archive, first), copy_of(archive, second)
    path_of(archive, lost.sop_instance_uid).unlink()
    verify(archive, everything=True)
    done = migrate(archive, study_row(archive).pk)
    assert done.derived == 1
    assert copy_of(archive, first).sop_instance_uid != lost.sop_instance_uid
    assert copy_of(archive, second).sop_instance_uid == kept.sop_instance_uid
    assert copy_of(archive, first).series_pk == kept.series_pk
    assert facts(archive, "derived")[2] == (lost.sop_instance_uid, {})


def test_an_image_that_comes_late_gets_its_copy_and_a_new_grace(archive: Archive) -> None:
    received(archive, *slices(2))
    first = migrated(archive)
    (late,) = slices(1, InstanceNumber=7)
    received(archive, late, day="2029-01-20")
    second = migrated(archive, "2029-01-21")
    assert (second.derived, second.stays) == (1, None)
    assert first.grace_until is not None and second.grace_until is not None
    assert (second.grace_until - first.grace_until).days in (14, 15)
    assert len({copy_of(archive, late).series_pk} | {row.series_pk for row in instances(archive).values()}) == 2


@pytest.mark.req("REQ-CDC-06")
def test_an_exam_that_was_old_when_it_came_stays_online_longer_where_the_site_says_so(settings: Settings) -> None:
    """DD-25."""
    from archive.core import open_archive

    with open_archive(changed(settings, min_online_days=60), process="test") as archive:
        received(archive, *slices(1), day="2029-06-01")
        done = migrated(archive, "2029-06-02")
        assert done.grace_until is not None and 89.9 < (done.grace_until - archive.clock()).total_seconds() / 86400 < 91


@pytest.mark.req("REQ-CDC-06")
def test_counts_in_grace_are_those_of_the_originals(archive: Archive) -> None:
    received(archive, *slices(3), day=EXAM)
    migrated(archive)
    (row,) = seen(archive, Level.STUDY)
    assert (value(row, INSTANCES), value(row, "00201206"), value(row, AVAILABILITY)) == (3, 1, "ONLINE")
