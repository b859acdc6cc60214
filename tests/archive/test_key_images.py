"""Key images: what notes select, found both ways, across lossy copies, merges, rejections and a new index (IHE KIN)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from sqlalchemy import select

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.index.references import KeyImage, key_images, notes_of
from archive.ingest import Outcome
from archive.rebuild import rebuild
from archive.retrieve import select as select_images
from archive.schema import instance, reference
from migrations import upgrade
from retention.tick import tick
from tests.archive.lifecycle.aging import copy_of, old_study
from tests.archive.lifecycle.studies import at
from tests.archive.test_rejections import SAFETY, STUDY, send, slices
from tests.builders import ct_slice, key_object, new_uid

FOR_REFERRER = ("113002", "For Referring Provider")


def found(archive: Archive, uid: str = STUDY) -> list[KeyImage]:
    with archive.reading() as conn:
        return key_images(conn, uid)


def noted(archive: Archive, uid: str) -> list[str]:
    with archive.reading() as conn:
        return [note.sop_instance_uid for image in notes_of(conn, uid) for note, _, _ in image.notes]


def uids(images: list[KeyImage]) -> list[str]:
    return [image.sop_instance_uid for image in images]


def keyed(ds: Dataset, number: int) -> Dataset:
    """The item of a note that names its image number `number`."""
    item: Dataset = ds.ContentSequence[number].ReferencedSOPSequence[0]
    return item


@pytest.mark.req("REQ-IHE-06")
def test_a_note_on_two_of_ten_images_gives_two_key_images_with_its_title(archive: Archive) -> None:
    images = slices(archive, 10)
    note = key_object(images[2], images[7], title=FOR_REFERRER)
    assert send(archive, note) is Outcome.STORED
    two = found(archive)
    assert uids(two) == [images[2].SOPInstanceUID, images[7].SOPInstanceUID]
    for image in two:
        ((said, frames, view),) = image.notes
        assert (said.title, frames, view) == (("113002", "DCM", "For Referring Provider"), "", "")
        assert (said.sop_instance_uid, said.content_date, said.content_time) == (
            note.SOPInstanceUID, "20260105", "113000",
        )  # fmt: skip
        assert image.current == (image.sop_instance_uid, images[0].SeriesInstanceUID)
    assert noted(archive, images[7].SOPInstanceUID) == [note.SOPInstanceUID]
    assert noted(archive, images[0].SOPInstanceUID) == []


@pytest.mark.req("REQ-IHE-06", "REQ-DCM-84")
def test_references_to_originals_stay_and_name_what_stands_for_them(archive: Archive) -> None:
    originals = old_study(archive)
    note = key_object(originals[0])
    send(archive, note)
    (image,) = found(archive)
    copy = copy_of(archive, originals[0]).sop_instance_uid
    assert image.sop_instance_uid == originals[0].SOPInstanceUID
    assert image.current is not None and image.current[0] == copy
    assert len(found(archive)) == 1
    companion = ct_slice(SOPInstanceUID=copy, SeriesInstanceUID=image.current[1])
    send(archive, key_object(companion))  # who knows the copy may name it: it is the same image
    assert [len(one.notes) for one in found(archive)] == [2]
    send(archive, key_object(companion, title=SAFETY))
    assert found(archive) == []


@pytest.mark.req("REQ-IHE-06", "REQ-DCM-84")
def test_notes_are_found_by_either_form_of_an_image(archive: Archive) -> None:
    originals = old_study(archive)
    note = key_object(originals[0])
    send(archive, note)
    copy = copy_of(archive, originals[0]).sop_instance_uid
    assert noted(archive, copy) == noted(archive, originals[0].SOPInstanceUID) == [note.SOPInstanceUID]


@pytest.mark.req("REQ-IHE-06")
def test_a_note_names_images_of_other_studies_frames_and_the_view_to_show_them_in(archive: Archive) -> None:
    (mine,) = slices(archive, 1)
    other = ct_slice(StudyInstanceUID=new_uid("other"), SeriesInstanceUID=new_uid("its series"))
    note = key_object(mine, other)
    state = ct_slice(
        SOPClassUID=GrayscaleSoftcopyPresentationStateStorage, Modality="PR", SeriesInstanceUID=new_uid("views"),
        PixelData=None,
    )  # fmt: skip
    send(archive, state)
    view = Dataset()
    view.ReferencedSOPClassUID = GrayscaleSoftcopyPresentationStateStorage
    view.ReferencedSOPInstanceUID = state.SOPInstanceUID
    keyed(note, 0).ReferencedSOPSequence = [view]
    keyed(note, 1).ReferencedFrameNumber = [2, 5]
    assert send(archive, note) is Outcome.STORED
    (image,) = found(archive)
    assert [(frames, shown) for _, frames, shown in image.notes] == [("", state.SOPInstanceUID)]
    (served,) = select_images(archive, instance_uids=[state.SOPInstanceUID])
    assert served.stands()
    (elsewhere,) = found(archive, new_uid("other"))
    assert elsewhere.current is None  # it has not come
    assert [(said.study_instance_uid, frames) for said, frames, _ in elsewhere.notes] == [(STUDY, "2,5")]
    send(archive, other)
    (elsewhere,) = found(archive, new_uid("other"))
    assert elsewhere.current == (other.SOPInstanceUID, other.SeriesInstanceUID)


@pytest.mark.req("REQ-IHE-06", "REQ-IHE-09")
def test_neither_rejections_nor_manifests_nor_what_was_rejected_are_key_images(archive: Archive) -> None:
    first, second, third = slices(archive)
    selection = key_object(first, second)
    send(archive, selection)
    send(archive, key_object(third, title=("113030", "Manifest")))
    send(archive, key_object(first, title=SAFETY))
    assert uids(found(archive)) == [second.SOPInstanceUID]
    assert noted(archive, first.SOPInstanceUID) == []
    send(archive, key_object(selection, title=SAFETY))
    assert found(archive) == []


@pytest.mark.req("REQ-IHE-06")
def test_key_images_are_there_in_an_index_made_anew_and_go_with_their_study(
    settings: Settings, tmp_path: Path, actor: Actor
) -> None:
    with open_archive(settings, process="test") as archive:
        at(archive, "2026-01-05")
        images = slices(archive)
        send(archive, key_object(images[1]))
        before = uids(found(archive))
    url = f"sqlite:///{tmp_path / 'again.sqlite3'}"
    upgrade(url)
    fresh = settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
    with open_archive(fresh, process="test") as archive:
        assert rebuild(archive, actor=actor).not_taken == []
        assert uids(found(archive)) == before == [images[1].SOPInstanceUID]
    with open_archive(settings, process="test") as archive:
        for day in ("2031-01-06", "2031-02-10"):
            at(archive, day)
            tick(archive)
        with archive.reading() as conn:
            assert conn.execute(select(reference.c.pk)).all() == []


@pytest.mark.req("REQ-IHE-06", "REQ-DCM-87")
def test_a_companion_says_nothing_twice_not_even_in_an_index_made_anew(
    settings: Settings, tmp_path: Path, actor: Actor
) -> None:
    with open_archive(settings, process="test") as archive:
        originals = old_study(archive)
        send(archive, note := key_object(originals[0]))
        tick(archive)
        with archive.reading() as conn:
            derived = instance.c.derived_from_pk.is_not(None)
            wanted = select(instance.c.pk).where(instance.c.sop_class_uid == note.SOPClassUID, derived)
            assert len(conn.execute(wanted).all()) == 1
        before = found(archive)
    url = f"sqlite:///{tmp_path / 'again.sqlite3'}"
    upgrade(url)
    fresh = settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
    with open_archive(fresh, process="test") as archive:
        assert rebuild(archive, actor=actor).not_taken == []
        assert found(archive) == before
        assert noted(archive, originals[0].SOPInstanceUID) == [note.SOPInstanceUID]
