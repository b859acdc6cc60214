"""Key objects and presentation states still open after their images were replaced (REQ-DCM-87)."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select, update

from archive import retrieve
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.dicom.equipment import Equipment
from archive.dicom.rejection_note import Rejected, rejection_note
from archive.errors import StorageFailed
from archive.ingest import Outcome, ingest
from archive.instance import State
from archive.lifecycle import companions
from archive.lifecycle.compute import compute_due
from archive.lifecycle.holds import add_hold
from archive.lifecycle.migrate import migrate
from archive.lifecycle.switch import switch, undo_grace
from archive.recovery import not_needed
from archive.schema import audit, study
from archive.storage.part10 import Part10
from retention.tick import tick
from tests.archive.dicom.test_companions import errors, image, names, series_item
from tests.archive.lifecycle.aging import (
    ALTERNATES,
    AVAILABILITY,
    CT1,
    EXAM,
    INSTANCES,
    OLD,
    OVER,
    STUDY,
    by_uid,
    copies,
    copy_of,
    facts,
    files,
    instances,
    migrated,
    noise,
    old_study,
    path_of,
    receive,
    received,
    seen,
    slices,
    spoil,
    study_row,
    switched,
    value,
)
from tests.archive.lifecycle.studies import at
from tests.builders import data_set, new_uid, part10
from tests.conftest import need

REAL = Path(__file__).parents[2] / "data" / "ct-philips-phantom"
LATE = "2029-03-01"
_CARRIED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "StudyInstanceUID",
)


def key_object(archive: Archive, *images: Dataset, study_of: Dataset | None = None) -> Dataset:
    """Of interest: these images; made now."""
    named = [Rejected(one.SOPInstanceUID, one.SeriesInstanceUID, one.SOPClassUID) for one in images]
    attributes = (study_of or images[0]).to_json_dict()
    made = rejection_note(
        attributes,
        named,
        equipment=Equipment("1"),
        at=archive.clock(),
        text="à revoir",
        title=("113000", "Of Interest"),
    )
    return pydicom.dcmread(io.BytesIO(made.content))


def presentation_state(*images: Dataset) -> Dataset:
    """A grayscale presentation state of images of one series."""
    first, ds = images[0], Dataset()
    for keyword in _CARRIED:
        setattr(ds, keyword, first.get(keyword))
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.11.1", new_uid()
    ds.SeriesInstanceUID, ds.Modality, ds.SeriesNumber, ds.InstanceNumber = new_uid(), "PR", 900, 1
    ds.Manufacturer = "minipacs tests"
    ds.ContentLabel, ds.ContentDescription, ds.ContentCreatorName = "LUNG", "", "LEFÈVRE^Anaïs"
    ds.PresentationCreationDate, ds.PresentationCreationTime = first.StudyDate, "120000"
    ds.PresentationLUTShape = "IDENTITY"
    part = series_item([])
    part.SeriesInstanceUID = first.SeriesInstanceUID
    part.ReferencedImageSequence = [image(one.SOPInstanceUID) for one in images]
    ds.ReferencedSeriesSequence = [part]
    area, window = Dataset(), Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [first.Columns, first.Rows]
    area.PresentationSizeMode, area.PresentationPixelAspectRatio = "SCALE TO FIT", [1, 1]
    window.WindowCenter, window.WindowWidth = "40", "400"
    window.ReferencedImageSequence = [image(images[0].SOPInstanceUID)]
    ds.DisplayedAreaSelectionSequence, ds.SoftcopyVOILUTSequence = [area], [window]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def companions_of(archive: Archive, ds: Dataset) -> list[Any]:
    """Rows of what repeats an object, in the order in which they were made."""
    rows = instances(archive)
    return [row for row in rows.values() if row.derived_from_pk == rows[ds.SOPInstanceUID].pk]


def given(archive: Archive, uid: str) -> Dataset:
    """An instance as it is retrieved."""
    (one,) = retrieve.select(archive, instance_uids=[uid])
    assert one.stands()
    return pydicom.dcmread(one.path)


def named_by(ds: Dataset) -> set[str]:
    """The images that an object names, in evidence, content and presentation."""
    found: set[str] = set()
    for element in ds:
        if element.VR == "SQ" and element.keyword not in (
            "ConversionSourceAttributesSequence", "PredecessorDocumentsSequence"
        ):  # fmt: skip
            for item in element.value:
                found |= named_by(item)
        elif element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    return found


def resolves(archive: Archive, ds: Dataset) -> None:
    """Every image that it names is a current instance, that is given out, in the series that it says."""
    named = named_by(ds)
    found = {one.sop_instance_uid: one for one in retrieve.select(archive, instance_uids=sorted(named))}
    assert set(found) == named
    assert all(one.stands() for one in found.values())
    if ds.Modality == "KO":
        assert names(ds) == {(one.series_instance_uid, uid) for uid, one in found.items()}


@pytest.mark.req("REQ-DCM-87")
def test_a_key_object_on_two_of_ten_images_still_opens_after_replacement(archive: Archive, tmp_path: Path) -> None:
    need("dciodvfy")
    at(archive, EXAM)
    images = slices(10)
    key, state = key_object(archive, images[2], images[7]), presentation_state(images[1], images[3])
    received(archive, *images, key, state)
    before = {one.SOPInstanceUID: path_of(archive, one.SOPInstanceUID).read_bytes() for one in (key, state)}
    assert migrated(archive).stays is None
    assert companions_of(archive, key) == companions_of(archive, state) == []  # in grace there is nothing to open
    done = switched(archive)
    assert (done.stays, done.replaced, done.moved, done.companions) == (None, 10, 2, 2)
    for source, wanted in ((key, [images[2], images[7]]), (state, [images[1], images[3]])):
        (row,) = companions_of(archive, source)
        made = given(archive, row.sop_instance_uid)
        assert named_by(made) == {copy_of(archive, one).sop_instance_uid for one in wanted}
        resolves(archive, made)
        assert (made.StudyInstanceUID, made.PatientName) == (STUDY, source.PatientName)
        (stays,) = copies(archive, source.SOPInstanceUID)
        assert (stays.tier, instances(archive)[source.SOPInstanceUID].state) == ("cold", State.STORED)
        assert path_of(archive, source.SOPInstanceUID).read_bytes().endswith(data_set(source))
        (tmp_path / "before.dcm").write_bytes(before[source.SOPInstanceUID])
        assert errors(path_of(archive, row.sop_instance_uid)) - errors(tmp_path / "before.dcm") == Counter()
        for uid in (source.SOPInstanceUID, row.sop_instance_uid):  # each stands for itself
            (found,) = seen(archive, Level.IMAGE, by_uid(uid))
            assert (value(found, AVAILABILITY), value(found, ALTERNATES)) == ("NEARLINE", None)
    (found,) = seen(archive, Level.STUDY)
    assert (value(found, INSTANCES), value(found, "00201206"), value(found, AVAILABILITY)) == (14, 5, "NEARLINE")
    assert files(archive, "hot") == []


@pytest.mark.req("REQ-DCM-87")
def test_real_images_of_a_scanner_are_found_by_the_companion(archive: Archive) -> None:
    at(archive, EXAM)
    images = [pydicom.dcmread(REAL / name) for name in ("I10", "I40")]
    for ds in images:
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260105"
    key = key_object(archive, *images)
    received(archive, *images, key)
    with archive.reading() as conn:
        pk = conn.execute(select(study.c.pk)).scalar_one()
    at(archive, OLD)
    compute_due(archive)
    assert migrate(archive, pk).derived == 2
    at(archive, OVER)
    assert switch(archive, pk).companions == 1
    (row,) = companions_of(archive, key)
    resolves(archive, given(archive, row.sop_instance_uid))


def test_what_stayed_as_it_came_is_named_as_it_is(archive: Archive) -> None:
    at(archive, EXAM)
    good, bad = slices(1)[0], noise()
    key = key_object(archive, good, bad)
    received(archive, good, bad, key)
    migrated(archive)
    switched(archive)
    (row,) = companions_of(archive, key)
    made = given(archive, row.sop_instance_uid)
    assert named_by(made) == {copy_of(archive, good).sop_instance_uid, bad.SOPInstanceUID}
    resolves(archive, made)


def test_where_nothing_is_replaced_there_is_none(archive: Archive) -> None:
    at(archive, EXAM)
    bad = noise()
    key = key_object(archive, bad)
    received(archive, bad, key)
    migrated(archive)
    assert switched(archive).companions == 0
    assert set(instances(archive)) == {bad.SOPInstanceUID, key.SOPInstanceUID}


def test_a_rejection_gets_none(archive: Archive) -> None:
    """A copy of it would reject the lossy images."""
    at(archive, EXAM)
    images = slices(2)
    named = [Rejected(images[0].SOPInstanceUID, images[0].SeriesInstanceUID, images[0].SOPClassUID)]
    note = rejection_note(
        images[0].to_json_dict(), named, equipment=Equipment("1"), at=archive.clock(), title=("113001", "Rejected")
    )
    old_study(archive, *images, pydicom.dcmread(io.BytesIO(note.content)))
    assert companions_of(archive, pydicom.dcmread(io.BytesIO(note.content))) == []


def test_none_is_there_while_a_hold_undoes_the_grace_and_one_after_it(archive: Archive) -> None:
    at(archive, EXAM)
    images = slices(2)
    key = key_object(archive, images[0])
    received(archive, *images, key)
    migrated(archive)
    undo_grace(archive, study_row(archive).pk, reason="hold")
    assert set(instances(archive)) == {one.SOPInstanceUID for one in (*images, key)}
    migrated(archive, OVER)
    assert switched(archive, "2029-03-20").companions == 1
    assert len(companions_of(archive, key)) == 1


def test_a_copy_that_was_made_again_is_the_one_that_is_named(archive: Archive) -> None:
    at(archive, EXAM)
    images = slices(2)
    key = key_object(archive, images[0])
    received(archive, *images, key)
    migrated(archive)
    bad = copy_of(archive, images[0]).sop_instance_uid
    spoil(path_of(archive, bad))
    assert switched(archive).damaged == 1
    assert companions_of(archive, key) == []
    migrated(archive, LATE)
    assert switched(archive, "2029-04-10").companions == 1
    (row,) = companions_of(archive, key)
    assert bad not in orjson.loads(row.derivation)["names"].values()
    resolves(archive, given(archive, row.sop_instance_uid))


def test_after_a_lost_copy_was_replaced_there_is_one_more_that_opens(archive: Archive) -> None:
    """The earlier one was seen, and stays (REQ-DCM-51)."""
    at(archive, EXAM)
    images = slices(2)
    key = key_object(archive, images[0])
    old_study(archive, *images, key)
    path_of(archive, copy_of(archive, images[0]).sop_instance_uid).unlink()
    assert receive(archive, images[0]) is Outcome.REPAIRED
    assert migrated(archive, LATE).derived == 1
    assert switched(archive, "2029-04-10").companions == 1
    earlier, later = companions_of(archive, key)
    assert earlier.series_pk == later.series_pk
    resolves(archive, given(archive, later.sop_instance_uid))
    assert companions.complete(archive, study_row(archive).pk) == 0


@pytest.mark.req("REQ-DCM-87")
def test_one_that_comes_after_the_switch_opens_with_the_next_tick(archive: Archive) -> None:
    """Its own images stay on the hot tier for years yet."""
    images = old_study(archive)
    at(archive, LATE)
    key = key_object(archive, images[1])
    assert receive(archive, key) is Outcome.STORED
    archive.commit.run(lambda conn: conn.execute(update(study).values(notify_at=None)))
    tick(archive)
    assert study_row(archive).notify_at is not None, "peers are told of it"
    (row,) = companions_of(archive, key)
    resolves(archive, given(archive, row.sop_instance_uid))
    (one,) = retrieve.select(archive, instance_uids=[key.SOPInstanceUID])
    assert one.tier == "hot"
    at(archive, "2029-04-02")
    add_hold(archive, STUDY, reason="litige", until=None, actor=CT1)  # facts change, and nothing is made twice
    tick(archive)
    assert len(companions_of(archive, key)) == 1
    with archive.reading() as conn:
        told = [orjson.loads(one) for one in conn.execute(select(audit.c.detail)).scalars()]
    assert [one["companions"] for one in told if "companions" in one] == [0, 1]


def test_one_that_fails_is_made_by_a_later_tick(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    images = old_study(archive)
    at(archive, LATE)
    key = key_object(archive, images[1])
    receive(archive, key)

    def full(*_: Any, **__: Any) -> Any:
        raise StorageFailed("the cold volume failed: EIO")

    monkeypatch.setattr(type(archive.cold), "receive", full)
    tick(archive)
    monkeypatch.undo()
    assert companions_of(archive, key) == []
    with archive.reading() as conn:
        now = archive.real_clock().replace(year=2100)
        assert companions.lacking(conn, real_now=now, limit=10) == [study_row(archive).pk]
    assert companions.complete(archive, study_row(archive).pk) == 1


def test_images_of_another_study_are_named_by_the_copies_that_stand(archive: Archive) -> None:
    elsewhere = old_study(archive)
    at(archive, LATE)
    images = slices(1, StudyInstanceUID=new_uid("2"), SeriesInstanceUID=new_uid("2", "1"), StudyDate="20290301")
    key = key_object(archive, images[0], elsewhere[0])
    receive(archive, images[0])
    receive(archive, key)
    assert companions.complete(archive, study_row(archive, new_uid("2")).pk) == 1
    (row,) = companions_of(archive, key)
    assert named_by(given(archive, row.sop_instance_uid)) == {
        images[0].SOPInstanceUID,
        copy_of(archive, elsewhere[0]).sop_instance_uid,
    }


def test_an_object_that_cannot_be_followed_keeps_nobody_from_being_migrated(archive: Archive) -> None:
    at(archive, EXAM)
    images = slices(2)
    received(archive, *images)
    raw = part10(presentation_state(*images))
    where = b"\x28\x00\x50\x10DS\x02\x0040"  # Window Center, now of another VR and not of its length
    assert raw.count(where) == 1
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(raw.replace(where, where.replace(b"DS", b"FL")))
    assert ingest(archive, file.finish(), actor=CT1) is Outcome.STORED
    migrated(archive)
    done = switched(archive)
    assert (done.replaced, done.companions, done.stays) == (2, 0, None)


@pytest.mark.req("REQ-DCM-87")
def test_a_companion_changes_no_date_and_is_a_fact(archive: Archive) -> None:
    at(archive, EXAM)
    images = slices(2)
    key = key_object(archive, images[0])
    received(archive, *images, key)
    migrated(archive)
    before = study_row(archive).keep_until
    switched(archive)
    (row,) = companions_of(archive, key)
    assert (row.state, row.source) == (State.STORED, "derived:minipacs")
    archive.commit.run(lambda conn: conn.execute(study.update().values(policy_version=None)))
    compute_due(archive)
    assert study_row(archive).keep_until == before
    told = dict(facts(archive, "derived"))[row.sop_instance_uid]
    assert (told["original"], told["digest"]) == (key.SOPInstanceUID, row.digest)
    assert told["derivation"]["names"] == {images[0].SOPInstanceUID: copy_of(archive, images[0]).sop_instance_uid}


@pytest.mark.parametrize("left", ["good", "damaged"])
def test_a_companion_that_power_left_without_a_row_goes_while_its_object_is_good(archive: Archive, left: str) -> None:
    images = old_study(archive)
    at(archive, LATE)
    key = key_object(archive, images[1])
    receive(archive, key)
    (made,) = companions.make(archive, study_row(archive).pk, switching={})
    if left == "damaged":
        spoil(path_of(archive, key.SOPInstanceUID))
    assert not_needed(archive, made.incoming.final) is (left == "good")


def test_the_switch_leaves_no_file_of_a_companion_that_it_does_not_file(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its object went while the companion was written."""
    at(archive, EXAM)
    images = slices(2)
    key = key_object(archive, images[0])
    received(archive, *images, key)
    migrated(archive)
    there = files(archive, "cold")
    monkeypatch.setattr(companions, "wanted", lambda conn, one: False)
    assert str(switched(archive).stays) == "a fact changed"
    assert files(archive, "cold") == there
    assert companions_of(archive, key) == []
