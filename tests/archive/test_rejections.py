"""What rejection notes do to what they name, whichever door they come in by (IHE IOCM, sheet 30 §9)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import select, update

from archive import retrieve
from archive.access import PEER_MAY, Action, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.attributes import Level
from archive.errors import (
    Conflict,
    Gone,
    InvalidRequest,
    NotAllowed,
    NotFound,
    RejectedBefore,
    UnreadableInstance,
)
from archive.index.match import Key
from archive.index.query import Query, find
from archive.index.rows import Row
from archive.ingest import Outcome, ingest
from archive.instance import CopyState, State
from archive.journal import Kind
from archive.lifecycle.holds import add_hold, remove_hold
from archive.lifecycle.purged import list_purges
from archive.media import import_paths
from archive.notification import instances
from archive.rebuild import rebuild
from archive.rejecting import note_file, reject, rejections, revoke_note
from archive.schema import audit, instance, location, reference, rejection, study
from archive.settling import settle
from archive.storage.part10 import Part10
from archive.work_items import How, list_items
from migrations import upgrade
from retention.tick import tick
from tests.archive.lifecycle.aging import copy_of, migrated, old_study, received, states, switched
from tests.archive.lifecycle.aging import slices as passing
from tests.archive.lifecycle.studies import at
from tests.builders import ct_slice, key_object, new_uid, part10

QUALITY = ("113001", "Rejected for Quality Reasons")
SAFETY = ("113037", "Rejected for Patient Safety Reasons")
WORKLIST = ("113038", "Incorrect Modality Worklist Entry")
EXPIRED = ("113039", "Data Retention Policy Expired")
STUDY = new_uid("study")
CT1 = Actor("CT1", "127.0.0.1", Door.DICOM, PEER_MAY["store"])


def send(archive: Archive, ds: Dataset, *, actor: Actor = CT1) -> Outcome:
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(ds))
    return ingest(archive, file.finish(), actor=actor)


def slices(archive: Archive, count: int = 3, **changes: Any) -> list[Dataset]:
    made = [ct_slice(number=number, **changes) for number in range(1, count + 1)]
    for ds in made:
        assert send(archive, ds) is Outcome.STORED
    return made


def asked(archive: Archive, level: Level, *want: int, quality: bool = False, **keys: str) -> list[Row]:
    tags = {"study": 0x0020000D, "instance": 0x00080018}
    query = Query(
        level, tuple(Key(tags[name], "UI", uid) for name, uid in keys.items()), want=frozenset(want), quality=quality
    )
    with archive.reading() as conn:
        return list(find(conn, query))


def counted(archive: Archive, uid: str = STUDY) -> tuple[int, int]:
    """Series and instances of a study, as queries count them."""
    (row,) = asked(archive, Level.STUDY, 0x00201206, 0x00201208, study=uid)
    return row["00201206"]["Value"][0], row["00201208"]["Value"][0]


def given(archive: Archive, uid: str = STUDY, *, quality: bool = False) -> list[str]:
    return [one.sop_instance_uid for one in retrieve.select(archive, study_uids=[uid], quality=quality)]


def written(archive: Archive, action: str) -> list[dict[str, Any]]:
    with archive.reading() as conn:
        rows = conn.execute(select(audit).where(audit.c.event == "110103", audit.c.action == action)).all()
    return [{"study": row.study, "patient": row.patient, "user": row.user, **orjson.loads(row.detail)} for row in rows]


@pytest.mark.req("REQ-IHE-09", "REQ-DCM-42")
@pytest.mark.parametrize("title", [QUALITY, SAFETY, WORKLIST])
def test_of_three_images_one_is_rejected_two_are_counted_and_the_note_is_given(
    archive: Archive, title: tuple[str, str]
) -> None:
    bad, *good = slices(archive)
    assert counted(archive) == (1, 3)
    note = key_object(bad, title=title)
    assert send(archive, note) is Outcome.STORED
    assert counted(archive) == (2, 3)  # two images and the note, in a series of its own
    assert given(archive) == [*(ds.SOPInstanceUID for ds in good), note.SOPInstanceUID]
    assert asked(archive, Level.IMAGE, instance=bad.SOPInstanceUID) == []
    assert retrieve.why_gone(archive, study_uid=STUDY, instance_uid=bad.SOPInstanceUID) == "was rejected"
    (told,) = written(archive, "D")
    assert told == {
        "study": STUDY, "patient": "IPP1", "user": "CT1", "rejection": "rejected", "code": title[0],
        "note": note.SOPInstanceUID, "count": 1, "instances": [bad.SOPInstanceUID],
    }  # fmt: skip


@pytest.mark.req("REQ-IHE-09")
def test_whoever_judges_quality_sees_what_was_rejected_for_it_and_nothing_else(archive: Archive) -> None:
    blurred, dangerous, good = slices(archive)
    note, other = key_object(blurred, title=QUALITY), key_object(dangerous, title=SAFETY)
    send(archive, note)
    send(archive, other)
    notes = [note.SOPInstanceUID, other.SOPInstanceUID]
    assert given(archive, quality=True) == [blurred.SOPInstanceUID, good.SOPInstanceUID, *notes]
    (row,) = asked(archive, Level.IMAGE, 0x00080056, quality=True, instance=blurred.SOPInstanceUID)
    assert row["00080056"]["Value"] == ["ONLINE"]
    assert asked(archive, Level.IMAGE, quality=True, instance=dangerous.SOPInstanceUID) == []
    assert counted(archive) == (2, 3)


@pytest.mark.req("REQ-IHE-09", "REQ-DCM-15")
def test_what_was_rejected_for_good_is_not_taken_again(archive: Archive) -> None:
    unsafe, wrong, blurred = slices(archive)
    for ds, title in ((unsafe, SAFETY), (wrong, WORKLIST), (blurred, QUALITY)):
        send(archive, key_object(ds, title=title))
    before = sorted(archive.hot.root.rglob("*.dcm"))
    for ds, code in ((unsafe, "113037"), (wrong, "113038")):
        with pytest.raises(RejectedBefore) as refused:
            send(archive, ds)
        assert refused.value.code == code
        changed = ct_slice(number=9, SOPInstanceUID=ds.SOPInstanceUID)
        with pytest.raises(RejectedBefore):
            send(archive, changed)
    assert send(archive, blurred) is Outcome.ALREADY_STORED  # taken, and hidden as before
    assert blurred.SOPInstanceUID not in given(archive)
    assert sorted(archive.hot.root.rglob("*.dcm")) == before
    with archive.reading() as conn:
        refusals = conn.execute(select(audit).where(audit.c.event == "110104", audit.c.outcome == 8)).all()
    assert len(refusals) == 4


@pytest.mark.req("REQ-IHE-09")
def test_a_resend_of_what_was_rejected_for_quality_repairs_its_copy_and_stays_hidden(archive: Archive) -> None:
    (blurred,) = slices(archive, 1)
    send(archive, key_object(blurred, title=QUALITY))
    with archive.reading() as conn:
        path = conn.execute(
            select(location.c.path).join(instance).where(instance.c.sop_instance_uid == blurred.SOPInstanceUID)
        ).scalar_one()
    Path(archive.hot.path(path)).unlink()
    assert send(archive, blurred) is Outcome.REPAIRED
    assert blurred.SOPInstanceUID not in given(archive)
    (found,) = retrieve.select(archive, instance_uids=[blurred.SOPInstanceUID], quality=True)
    assert found.stands()


@pytest.mark.req("REQ-IHE-09")
def test_a_note_waits_thirty_days_for_what_has_not_come(archive: Archive) -> None:
    at(archive, "2026-01-05")
    (here,) = slices(archive, 1)
    late, too_late = ct_slice(number=2), ct_slice(number=3)
    send(archive, key_object(here, late, too_late, title=WORKLIST))
    assert here.SOPInstanceUID not in given(archive)
    at(archive, "2026-02-04")
    assert send(archive, late) is Outcome.STORED  # acknowledged, kept, hidden
    assert late.SOPInstanceUID not in given(archive)
    at(archive, "2026-02-05")
    assert send(archive, too_late) is Outcome.STORED
    assert too_late.SOPInstanceUID in given(archive)
    (note,) = rejections(archive, STUDY, actor=replace(CT1, may=frozenset({Action.REVIEW})))
    assert [one.applied for one in note.instances] == [True, True, False]


@pytest.mark.req("REQ-IHE-09")
def test_a_note_rejects_nothing_of_another_study_under_the_name_of_its_own(archive: Archive) -> None:
    (mine,) = slices(archive, 1)
    (other,) = slices(archive, 1, StudyInstanceUID=new_uid("other"), SeriesInstanceUID=new_uid("its series"))
    claimed = ct_slice(SOPInstanceUID=other.SOPInstanceUID)  # the evidence says: of the first study
    send(archive, key_object(mine, claimed, title=SAFETY))
    assert given(archive, new_uid("other")) == [other.SOPInstanceUID]
    send(archive, key_object(mine, other, title=SAFETY))  # the truth
    assert given(archive, new_uid("other")) == []


@pytest.mark.req("REQ-IHE-09")
def test_a_rejection_that_contradicts_the_record_is_held_back_and_hides_nothing(archive: Archive) -> None:
    (mine,) = slices(archive, 1)
    assert send(archive, key_object(mine, title=SAFETY, PatientID="SOMEBODY ELSE")) is Outcome.STORED_HELD
    assert given(archive) == [mine.SOPInstanceUID]


@pytest.mark.req("REQ-IHE-09")
def test_only_who_may_reject_may_store_a_rejection_note(archive: Archive) -> None:
    (mine,) = slices(archive, 1)
    secretary = Actor("sophie", "127.0.0.1", Door.DICOMWEB, frozenset({Action.STORE}))
    with pytest.raises(NotAllowed):
        send(archive, key_object(mine, title=SAFETY), actor=secretary)
    assert send(archive, key_object(mine), actor=secretary) is Outcome.STORED  # a selection is no rejection
    assert mine.SOPInstanceUID in given(archive)
    with archive.reading() as conn:
        assert conn.execute(select(audit.c.outcome).where(audit.c.user == "sophie", audit.c.action == "D")).all() == [
            (8,)
        ]
    assert not list(archive.hot.incoming_dir.iterdir())


@pytest.mark.req("REQ-IHE-09")
def test_a_rejection_whose_content_cannot_be_read_is_refused_and_not_taken_for_a_document(archive: Archive) -> None:
    (mine,) = slices(archive, 1)
    note = part10(key_object(mine, title=SAFETY))
    cut = note[: note.rindex(b"CONTAINS") - 20]
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(cut)
    with pytest.raises(UnreadableInstance):
        ingest(archive, file.finish(), actor=CT1)
    assert given(archive) == [mine.SOPInstanceUID]


@pytest.mark.req("REQ-IHE-09")
def test_a_rejection_is_revoked_by_somebody_who_says_why_or_by_rejecting_its_note(
    archive: Archive, actor: Actor
) -> None:
    first, second, third = slices(archive)
    one, two = key_object(first, second, title=QUALITY), key_object(second, third, title=WORKLIST)
    send(archive, one)
    send(archive, two)
    with pytest.raises(InvalidRequest):
        revoke_note(archive, one.SOPInstanceUID, reason=" ", actor=actor)
    with pytest.raises(NotAllowed):
        revoke_note(archive, one.SOPInstanceUID, reason="judged again", actor=replace(actor, may=frozenset()))
    revoke_note(archive, one.SOPInstanceUID, reason="judged again", actor=actor)
    assert given(archive) == [first.SOPInstanceUID, two.SOPInstanceUID]  # the second is rejected by another note too
    with pytest.raises(NotFound):
        revoke_note(archive, one.SOPInstanceUID, reason="judged again", actor=actor)
    last = key_object(two, title=WORKLIST)
    send(archive, last)
    assert given(archive) == [*(ds.SOPInstanceUID for ds in (first, second, third)), last.SOPInstanceUID]
    assert send(archive, third) is Outcome.ALREADY_STORED
    assert [(told["note"], told["rejection"]) for told in written(archive, "U")] == [
        (one.SOPInstanceUID, "revoked"),
        (two.SOPInstanceUID, "revoked"),
    ]


@pytest.mark.req("REQ-IHE-09")
def test_somebody_rejects_a_series_by_a_note_of_ours(archive: Archive, actor: Actor) -> None:
    slices(archive, 2)
    (scout,) = slices(archive, 1, SeriesInstanceUID=new_uid("scout"), SeriesNumber=2)
    made = reject(archive, STUDY, code="113001", reason="bougé", series=[scout.SeriesInstanceUID], actor=actor)
    assert [one.sop_instance_uid for one in made.instances] == [scout.SOPInstanceUID]
    assert counted(archive) == (2, 3)
    content = b"".join(note_file(archive, made.uid, actor=actor))
    assert "bougé".encode() in content
    for wish, error in (
        ({"code": "113039"}, InvalidRequest),
        ({"series": ["1.2.3"]}, NotFound),
        ({"instances": [made.uid]}, InvalidRequest),
        ({"instances": [scout.SOPInstanceUID]}, None),  # more than for its quality
    ):
        said = {"code": "113037", "reason": "bougé", "actor": actor, **wish}
        if error is None:
            reject(archive, STUDY, **said)
        else:
            with pytest.raises(error):
                reject(archive, STUDY, **said)
    everything = reject(archive, STUDY, code="113038", reason="mauvais patient", actor=actor)
    assert len(everything.instances) == 2
    with pytest.raises(Gone):
        reject(archive, STUDY, code="113038", reason="mauvais patient", actor=actor)


@pytest.mark.req("REQ-IHE-09")
def test_an_original_and_its_lossy_copy_are_rejected_together(archive: Archive, actor: Actor) -> None:
    originals = old_study(archive)
    note = key_object(originals[0], title=QUALITY)
    send(archive, note)  # who sent it still knows the original's UID
    assert len(given(archive)) == 3  # two copies, and the note
    assert sorted(map(len, states(archive).values())) == [2, 2, 3]  # unfit, replaced, stored
    assert send(archive, originals[0]) is Outcome.ALREADY_STORED
    revoke_note(archive, note.SOPInstanceUID, reason="judged again", actor=actor)
    assert len(given(archive)) == 3
    assert {state: len(found) for state, found in states(archive).items()} == {
        State.REPLACED: 3, State.STORED: 3, State.REJECTED: 1,  # the note that was revoked
    }  # fmt: skip


@pytest.mark.req("REQ-IHE-09")
def test_an_original_is_not_taken_again_when_its_lossy_copy_was_rejected(archive: Archive) -> None:
    original, *_ = old_study(archive)
    copy = copy_of(archive, original)
    send(archive, key_object(ct_slice(SOPInstanceUID=copy.sop_instance_uid), title=SAFETY))
    with pytest.raises(RejectedBefore):
        send(archive, original)
    assert retrieve.why_gone(archive, study_uid=STUDY, instance_uid=original.SOPInstanceUID) == "was rejected"


@pytest.mark.req("REQ-IHE-09")
def test_an_image_that_is_rejected_in_grace_stays_as_it_came(archive: Archive, actor: Actor) -> None:
    originals = received(archive, *passing())
    migrated(archive)
    note = key_object(originals[0], title=WORKLIST)
    send(archive, note)
    switched(archive)
    assert originals[0].SOPInstanceUID in states(archive)[State.REJECTED]
    revoke_note(archive, note.SOPInstanceUID, reason="judged again", actor=actor)
    (found,) = retrieve.select(archive, instance_uids=[originals[0].SOPInstanceUID])
    assert found.tier == "hot"
    assert found.stands()


def purged_on(archive: Archive, *days: str) -> int:
    for day in days:
        at(archive, day)
        tick(archive)
    with archive.reading() as conn:
        return len(list_purges(conn))


@pytest.mark.req("REQ-IHE-09")
def test_retention_removes_what_was_rejected_with_its_study_and_never_before(
    archive: Archive, actor: Actor, tmp_path: Path
) -> None:
    at(archive, "2026-01-05")
    bad, old, _ = slices(archive)
    send(archive, key_object(bad, title=SAFETY))
    outside = key_object(old, title=EXPIRED)
    send(archive, outside)
    assert outside.SOPInstanceUID not in given(archive)  # evidence, outside of queries
    assert b"".join(note_file(archive, outside.SOPInstanceUID, actor=actor))
    assert counted(archive) == (2, 2)
    with pytest.raises(Gone):
        send(archive, old)
    with pytest.raises(Conflict):
        revoke_note(archive, outside.SOPInstanceUID, reason="too early", actor=actor)
    assert purged_on(archive, "2026-06-01", "2030-12-01") == 0
    held = add_hold(archive, STUDY, reason="expertise", until=None, actor=actor)
    assert purged_on(archive, "2031-01-06", "2031-02-10") == 0
    remove_hold(archive, held.id, actor=actor)
    assert purged_on(archive, "2031-02-11", "2031-03-20") == 1
    with archive.reading() as conn:
        (purge,) = list_purges(conn)
        assert conn.execute(select(study.c.pk)).all() == conn.execute(select(reference.c.pk)).all() == []
    assert len(purge.certificate["instances"]) == 5
    (kept,) = purge.certificate["other_notes"]
    assert kept["sop_instance_uid"] == outside.SOPInstanceUID
    assert outside.SOPInstanceUID.encode() in Path(archive.hot.path(kept["path"])).read_bytes()
    with pytest.raises(Gone):
        send(archive, bad)
    brought = tmp_path / "bad.dcm"
    brought.write_bytes(part10(bad))
    (tmp_path / "old.dcm").write_bytes(part10(old))
    done = import_paths(archive, [brought, tmp_path / "old.dcm"], actor=actor, restore_purged="expertise")
    assert done.stored == 2
    assert given(archive) == [old.SOPInstanceUID]  # of retention it is lifted; what was dangerous stays hidden


@pytest.mark.req("REQ-IHE-09")
def test_what_a_note_of_retention_hid_is_brought_back_by_an_import_that_says_why(
    archive: Archive, actor: Actor, tmp_path: Path
) -> None:
    first, second, _ = slices(archive)
    note = key_object(first, second, title=EXPIRED)
    send(archive, note)
    path = tmp_path / "first.dcm"
    path.write_bytes(part10(first))
    assert import_paths(archive, [path], actor=actor).refused
    archive.commit.run(lambda conn: conn.execute(update(study).values(notify_at=None)))
    done = import_paths(archive, [path], actor=actor, restore_purged="expertise")
    with archive.reading() as conn:
        assert None not in conn.execute(select(study.c.notify_at)).scalars().all(), "peers are told of it"
    assert (done.already_stored, done.refused) == (1, [])
    assert first.SOPInstanceUID in given(archive)
    assert not {second.SOPInstanceUID, note.SOPInstanceUID} & set(given(archive))
    (told,) = written(archive, "C")
    assert (told["retention"], told["reason"]) == ("restore purged", "expertise")


@pytest.mark.req("REQ-IHE-09", "REQ-DCM-19")
def test_an_image_that_is_held_back_is_shown_to_nobody_for_being_rejected(archive: Archive, actor: Actor) -> None:
    (mine,) = slices(archive, 1)
    strange = ct_slice(number=2, PatientID="SOMEBODY ELSE")
    assert send(archive, strange) is Outcome.STORED_HELD
    note = key_object(mine, ct_slice(SOPInstanceUID=strange.SOPInstanceUID), title=QUALITY)
    send(archive, note)
    seen = [mine.SOPInstanceUID, note.SOPInstanceUID]
    assert given(archive, quality=True) == seen
    assert {one.sop_instance_uid for one in instances(archive, STUDY)} == set(seen)
    assert retrieve.why_gone(archive, study_uid=STUDY, instance_uid=strange.SOPInstanceUID) == ""
    with archive.reading() as conn:
        (item,) = list_items(conn, kind="identity_conflict", state="open")
    settle(archive, item["id"], how=How.ACCEPT, reason="the same person", actor=actor)
    assert given(archive) == [note.SOPInstanceUID]
    assert sorted(given(archive, quality=True)) == sorted([*seen, strange.SOPInstanceUID])


def test_an_image_that_is_held_back_stays_so_when_it_is_rejected_and_keeps_its_study(archive: Archive) -> None:
    at(archive, "2026-01-05")
    slices(archive, 1)
    strange = ct_slice(number=2, PatientID="SOMEBODY ELSE")
    assert send(archive, strange) is Outcome.STORED_HELD
    send(archive, key_object(ct_slice(SOPInstanceUID=strange.SOPInstanceUID), title=WORKLIST))
    assert purged_on(archive, "2031-01-06", "2031-02-10") == 0


@pytest.mark.req("REQ-IHE-09")
@pytest.mark.parametrize("journal", [True, False])
def test_an_index_made_anew_hides_what_was_rejected(
    settings: Settings, tmp_path: Path, actor: Actor, *, journal: bool
) -> None:
    with open_archive(settings, process="test") as archive:
        first, second, _ = slices(archive)
        one, two = key_object(first, title=SAFETY), key_object(second, title=QUALITY)
        send(archive, one)
        send(archive, two)
        if journal:
            revoke_note(archive, two.SOPInstanceUID, reason="judged again", actor=actor)
            facts = [(line.kind, line.subject) for line in archive.journal.read()]
            assert facts.count((Kind.REJECTION, two.SOPInstanceUID)) == 2
        before, answers = given(archive), counted(archive)
    if not journal:
        for path in tmp_path.rglob("facts/*.jsonl"):
            path.unlink()
    url = f"sqlite:///{tmp_path / 'again.sqlite3'}"
    upgrade(url)
    fresh = settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
    with open_archive(fresh, process="test") as archive:
        assert rebuild(archive, actor=actor).not_taken == []
        assert (sorted(given(archive)), counted(archive)) == (sorted(before), answers)
        with pytest.raises(RejectedBefore):
            send(archive, first)


@pytest.mark.req("REQ-IHE-09")
def test_what_a_lossy_copy_stands_for_is_hidden_again_in_an_index_made_anew(
    settings: Settings, tmp_path: Path, actor: Actor
) -> None:
    with open_archive(settings, process="test") as archive:
        originals = old_study(archive)
        send(archive, key_object(originals[0], title=SAFETY))
        before = given(archive)
        assert len(before) == 3
    url = f"sqlite:///{tmp_path / 'again.sqlite3'}"
    upgrade(url)
    fresh = settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
    with open_archive(fresh, process="test") as archive:
        assert rebuild(archive, actor=actor).not_taken == []
        assert sorted(given(archive)) == sorted(before)


@pytest.mark.req("REQ-IHE-09")
def test_a_note_that_comes_after_its_own_rejection_rejects_nothing(archive: Archive) -> None:
    (image,) = slices(archive, 1)
    wrong = key_object(image, title=SAFETY)
    send(archive, key_object(wrong, title=WORKLIST))
    assert send(archive, wrong) is Outcome.STORED
    assert image.SOPInstanceUID in given(archive)
    assert wrong.SOPInstanceUID not in given(archive)
    assert [told["rejection"] for told in written(archive, "U")] == ["revoked"]


def test_an_instance_that_arrives_beside_its_rejection_is_hidden(archive: Archive) -> None:
    """Both in one group: the note first, what it names behind it."""
    (here,) = slices(archive, 1)
    coming = ct_slice(number=2)
    send(archive, key_object(here, coming, title=SAFETY))
    assert send(archive, coming) is Outcome.STORED
    with archive.reading() as conn:
        applied = conn.execute(select(rejection.c.applied_at)).scalars().all()
    assert None not in applied
    assert timedelta(0) <= max(applied) - min(applied)
    with archive.engine.begin() as conn:  # its copy is lost: what is rejected is no reason to fall over
        conn.execute(update(location).values(state=CopyState.DAMAGED))
    assert len(given(archive)) == 1
