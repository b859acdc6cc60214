"""A person settles what contradicts the record, and which of two contents stands under one UID (REQ-DCM-15, 19)."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import delete, select, update

from archive import retrieve
from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.attributes import Level
from archive.errors import Conflict, InvalidRequest
from archive.index.aside import restore_conflict
from archive.index.doses import reports_of
from archive.index.query import Query, find
from archive.index.references import key_images
from archive.ingest import Outcome, ingest
from archive.instance import State
from archive.lifecycle.compute import compute_due
from archive.lifecycle.guard import Blocker, keeps, terms
from archive.lifecycle.migrate import migrate
from archive.lifecycle.remove import finish_removals
from archive.policy import local_day
from archive.rebuild import rebuild
from archive.recovery import sweep, unfiled
from archive.schema import audit, fact, instance, location, quarantined, suspension, work_item
from archive.settling import settle
from archive.storage.part10 import Part10
from archive.work_items import How, list_items
from tests.archive.lifecycle.aging import STUDY, facts, files, instances, receive, slices, spoil, study_row
from tests.archive.lifecycle.studies import at
from tests.archive.test_rebuild import empty
from tests.builders import ct_slice, data_set, dose_report, key_object, new_uid, part10

__all__ = ["empty"]  # a fixture


def open_items(archive: Archive, kind: str) -> list[dict[str, Any]]:
    with archive.reading() as conn:
        return list_items(conn, kind=kind, state="open")


def settled(archive: Archive, actor: Actor, kind: str, how: How, *, number: int = 0) -> None:
    settle(archive, open_items(archive, kind)[number]["id"], how=how, reason="vérifié au téléphone", actor=actor)


def seen(archive: Archive) -> set[str]:
    with archive.reading() as conn:
        rows = find(conn, Query(Level.IMAGE, want=frozenset({0x00080018})))
        found = {row["00080018"]["Value"][0] for row in rows}
    assert found == {one.sop_instance_uid for one in retrieve.select(archive, instance_uids=sorted(instances(archive)))}
    return found


def told(archive: Archive) -> list[dict[str, Any]]:
    """What the audit says of settling."""
    with archive.reading() as conn:
        details = conn.execute(select(audit.c.detail).order_by(audit.c.time, audit.c.seq)).scalars()
        return [said for said in map(orjson.loads, details) if "work_item" in said]


def digest_of(ds: Dataset) -> str:
    return hashlib.sha256(data_set(ds)).hexdigest()


def aside(archive: Archive) -> list[tuple[str, int]]:
    with archive.reading() as conn:
        rows = conn.execute(select(quarantined.c.digest, quarantined.c.former).order_by(quarantined.c.pk))
        return [(row.digest, row.former) for row in rows]


def content(archive: Archive, uid: str) -> bytes:
    (one,) = retrieve.select(archive, instance_uids=[uid])
    assert one.stands()
    return Path(one.path).read_bytes()[one.data_set_offset :]


@pytest.fixture
def held(archive: Archive) -> list[Dataset]:
    """Two images of a study, two of it under another patient, and one under a third."""
    images = [ct_slice(number=number) for number in (1, 2)]
    wrong = [ct_slice(number=number, PatientID="IPP2") for number in (3, 4)]
    other = ct_slice(number=5, PatientID="IPP3")
    assert [receive(archive, ds) for ds in images] == [Outcome.STORED] * 2
    assert [receive(archive, ds) for ds in (*wrong, other)] == [Outcome.STORED_HELD] * 3
    return [*images, *wrong, other]


@pytest.fixture
def twice(archive: Archive) -> tuple[Dataset, Dataset]:
    """An image, and other content under its UID, set aside."""
    first = ct_slice()
    second = ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)
    assert (receive(archive, first), receive(archive, second)) == (Outcome.STORED, Outcome.QUARANTINED)
    return first, second


# -- held back ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("REQ-DCM-19")
def test_what_is_accepted_is_seen_under_the_study_in_which_it_is_filed(
    archive: Archive, actor: Actor, held: list[Dataset]
) -> None:
    first, second, third, fourth, fifth = [ds.SOPInstanceUID for ds in held]
    assert seen(archive) == {first, second}
    compute_due(archive)
    settled(archive, actor, "identity_conflict", How.ACCEPT)
    assert seen(archive) == {first, second, third, fourth}
    assert instances(archive)[fifth].state == State.HELD, "another item is about it"
    assert study_row(archive).policy_version is None
    assert len(open_items(archive, "identity_conflict")) == 1
    (said,) = told(archive)
    assert (said["as"], said["reason"], said["instances"]) == ("accept", "vérifié au téléphone", 2)
    assert content(archive, third) == data_set(held[2])
    again = ct_slice(number=6, PatientID="IPP2")
    assert receive(archive, again) is Outcome.STORED_HELD
    assert len(open_items(archive, "identity_conflict")) == 2, "its cause came up again"


@pytest.mark.req("REQ-DCM-19")
def test_a_series_of_another_study_is_accepted_where_it_is_filed(archive: Archive, actor: Actor) -> None:
    receive(archive, ct_slice())
    other = ct_slice(number=2, StudyInstanceUID=new_uid("other study"))
    assert receive(archive, other) is Outcome.STORED_HELD
    settled(archive, actor, "identity_conflict", How.ACCEPT)
    assert other.SOPInstanceUID in {one.sop_instance_uid for one in retrieve.select(archive, study_uids=[STUDY])}


@pytest.mark.req("REQ-DCM-19")
def test_what_is_rejected_stays_out_of_view_and_keeps_its_bytes(
    archive: Archive, actor: Actor, held: list[Dataset]
) -> None:
    def kept_by() -> Blocker | None:
        with archive.reading() as conn:
            known = terms(conn, study_row(archive).pk)
            assert known is not None
            return keeps(conn, known, on=local_day(archive.clock()))

    before = files(archive, "hot")
    settled(archive, actor, "identity_conflict", How.REJECT)
    assert kept_by() is Blocker.HELD_BACK, "another one still waits"
    settled(archive, actor, "identity_conflict", How.REJECT)
    assert kept_by() is None
    assert seen(archive) == {ds.SOPInstanceUID for ds in held[:2]}
    assert files(archive, "hot") == before
    assert receive(archive, held[2]) is Outcome.ALREADY_STORED
    assert open_items(archive, "identity_conflict") == []


def test_what_was_held_back_by_an_earlier_release_is_settled_with_its_study(
    archive: Archive, actor: Actor, held: list[Dataset]
) -> None:
    archive.commit.run(
        lambda conn: conn.execute(update(instance).where(instance.c.state == "held").values(held_for=""))
    )
    settled(archive, actor, "identity_conflict", How.ACCEPT)
    assert len(seen(archive)) == 5


@pytest.mark.parametrize(("kind", "how"), [("identity_conflict", "done"), ("identity_conflict", "keep")])
def test_what_holds_bytes_back_is_not_closed_without_saying_what_becomes_of_them(
    archive: Archive, actor: Actor, held: list[Dataset], kind: str, how: str
) -> None:
    with pytest.raises(InvalidRequest, match="accept, reject"):
        settle(archive, open_items(archive, kind)[0]["id"], how=how, reason="x", actor=actor)
    assert len(open_items(archive, kind)) == 2


# -- kept aside --------------------------------------------------------------------------------------------------------


@pytest.mark.req("REQ-DCM-15")
def test_the_first_is_kept_and_what_is_aside_goes(
    archive: Archive, actor: Actor, twice: tuple[Dataset, Dataset]
) -> None:
    first, second = twice
    assert len(files(archive, "hot")) == 2
    settled(archive, actor, "uid_conflict", How.KEEP)
    assert content(archive, first.SOPInstanceUID) == data_set(first)
    assert (len(files(archive, "hot")), aside(archive)) == (1, [])
    (said,) = told(archive)
    assert [one["digest"] for one in said["discarded"]] == [digest_of(second)]
    assert said["stands"] == digest_of(first)
    assert receive(archive, second) is Outcome.QUARANTINED
    assert len(open_items(archive, "uid_conflict")) == 1, "its cause came up again"


@pytest.mark.req("REQ-DCM-15")
def test_what_came_last_becomes_the_instance_and_the_first_is_kept_aside(
    archive: Archive, actor: Actor, twice: tuple[Dataset, Dataset]
) -> None:
    first, _ = twice
    third = ct_slice(number=10, SOPInstanceUID=first.SOPInstanceUID)
    assert receive(archive, third) is Outcome.QUARANTINED
    compute_due(archive)
    settled(archive, actor, "uid_conflict", How.REPLACE)
    assert content(archive, first.SOPInstanceUID) == data_set(third)
    row = instances(archive)[first.SOPInstanceUID]
    assert (row.digest, row.instance_number, row.state) == (digest_of(third), 10, State.STORED)
    assert aside(archive) == [(digest_of(first), 1)]
    assert len(files(archive, "hot")) == 2
    assert study_row(archive).policy_version is None
    assert receive(archive, third) is Outcome.ALREADY_STORED
    assert receive(archive, first) is Outcome.QUARANTINED
    assert open_items(archive, "uid_conflict") == [], "a person has said which one stands"
    assert receive(archive, ct_slice(number=11, SOPInstanceUID=first.SOPInstanceUID)) is Outcome.QUARANTINED
    settled(archive, actor, "uid_conflict", How.KEEP)
    assert aside(archive) == [(digest_of(first), 1)], "what was an instance is not discarded"


@pytest.mark.parametrize(
    "changes",
    [{"SeriesInstanceUID": new_uid("another series")}, {"PatientID": "IPP2"}],
    ids=["another series", "another patient"],
)
def test_what_is_of_another_series_or_patient_does_not_replace(
    archive: Archive, actor: Actor, changes: dict[str, str]
) -> None:
    first = ct_slice()
    receive(archive, first)
    receive(archive, ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID, **changes))
    with pytest.raises(Conflict, match="its sender"):
        settled(archive, actor, "uid_conflict", How.REPLACE)
    assert content(archive, first.SOPInstanceUID) == data_set(first)
    assert (len(open_items(archive, "uid_conflict")), told(archive)) == (1, [])


def test_an_image_in_grace_is_not_replaced(archive: Archive, actor: Actor) -> None:
    (first,) = slices(1)
    at(archive, "2026-01-05")
    receive(archive, first)
    at(archive, "2029-01-06")
    compute_due(archive)
    assert migrate(archive, study_row(archive).pk).derived == 1
    other = ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)
    assert receive(archive, other) is Outcome.QUARANTINED
    with pytest.raises(Conflict, match="cold storage"):
        settled(archive, actor, "uid_conflict", How.REPLACE)


def test_what_is_damaged_does_not_replace(archive: Archive, actor: Actor, twice: tuple[Dataset, Dataset]) -> None:
    with archive.reading() as conn:
        path = conn.execute(select(quarantined.c.path)).scalar_one()
    spoil(Path(archive.hot.path(path)))
    with pytest.raises(Conflict, match="damaged"):
        settled(archive, actor, "uid_conflict", How.REPLACE)


@pytest.mark.req("REQ-DCM-15")
def test_by_policy_what_comes_last_replaces_where_nothing_speaks_against_it(settings: Settings) -> None:
    policy = {"dicom": settings.dicom.model_copy(update={"uid_conflict": "replace"})}
    with open_archive(settings.model_copy(update=policy), process="test") as archive:
        first = ct_slice()
        second = ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)
        assert (receive(archive, first), receive(archive, second)) == (Outcome.STORED, Outcome.STORED)
        assert content(archive, first.SOPInstanceUID) == data_set(second)
        assert aside(archive) == [(digest_of(first), 1)]
        assert receive(archive, first) is Outcome.QUARANTINED, "a former content does not come back by itself"
        other = ct_slice(number=10, SOPInstanceUID=first.SOPInstanceUID, PatientID="IPP2")
        assert receive(archive, other) is Outcome.QUARANTINED
        assert content(archive, first.SOPInstanceUID) == data_set(second)
        assert len(open_items(archive, "uid_conflict")) == 1
        with archive.reading() as conn:
            details = [orjson.loads(one) for one in conn.execute(select(audit.c.detail)).scalars()]
        assert [one["stands"] for one in details if "stands" in one] == [digest_of(second)]
        nameless = ct_slice(number=11, SOPInstanceUID=first.SOPInstanceUID, Rows=None)
        assert receive(archive, nameless) is Outcome.WITHOUT_SIZE, "what stands now is said to break its class"


@pytest.mark.req("REQ-DCM-15")
def test_an_image_that_was_cut_short_waits_for_nobody_once_the_whole_one_stands(archive: Archive, actor: Actor) -> None:
    whole = ct_slice(rows=64, columns=64)
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(whole)[:-1000])
    assert ingest(archive, file.finish(), actor=actor) is Outcome.TRUNCATED
    assert receive(archive, whole) is Outcome.QUARANTINED
    settled(archive, actor, "uid_conflict", How.REPLACE)
    assert open_items(archive, "truncated") == []
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(whole)[:-500])
    assert ingest(archive, file.finish(), actor=actor) is Outcome.QUARANTINED
    settled(archive, actor, "uid_conflict", How.REPLACE)
    assert len(open_items(archive, "truncated")) == 1


@pytest.mark.req("REQ-DCM-15", "REQ-IHE-06", "REQ-IHE-07")
def test_what_a_document_says_goes_with_it_when_other_content_stands(archive: Archive, actor: Actor) -> None:
    images = [ct_slice(number=number) for number in (1, 2)]
    note, report = key_object(images[0]), dose_report((5.0, 100.0), total=100.0)
    other = key_object(images[1], SOPInstanceUID=note.SOPInstanceUID)
    of_another = dose_report((7.0, 200.0), (8.0, 300.0), total=500.0, SOPInstanceUID=report.SOPInstanceUID)
    for ds in (*images, note, report):
        assert receive(archive, ds) is Outcome.STORED
    for ds in (other, of_another):
        assert receive(archive, ds) is Outcome.QUARANTINED
        settled(archive, actor, "uid_conflict", How.REPLACE)
    with archive.reading() as conn:
        assert [one.sop_instance_uid for one in key_images(conn, STUDY)] == [images[1].SOPInstanceUID]
        (told_now,) = reports_of(conn, STUDY)
    assert (told_now.totals.dlp_mgycm, len(told_now.events)) == (500.0, 2)


@pytest.mark.req("REQ-DCM-15", "REQ-IHE-09")
def test_a_rejection_note_neither_replaces_nor_is_replaced(archive: Archive, actor: Actor) -> None:
    image = ct_slice()
    selection = key_object(image)
    rejection = ("113037", "Rejected for Patient Safety Reasons")
    note = key_object(image, title=rejection)
    receive(archive, image)
    for first, second in ((selection, key_object(image, title=rejection)), (note, key_object(image))):
        second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
        assert receive(archive, first) is Outcome.STORED
        assert receive(archive, second) is Outcome.QUARANTINED
        with pytest.raises(Conflict, match="rejection note"):
            settled(archive, actor, "uid_conflict", How.REPLACE)
        settled(archive, actor, "uid_conflict", How.KEEP)


def test_nothing_is_discarded_while_the_first_is_damaged(
    archive: Archive, actor: Actor, twice: tuple[Dataset, Dataset]
) -> None:
    first, second = twice
    archive.commit.run(lambda conn: conn.execute(update(location).values(state="damaged")))
    with pytest.raises(Conflict, match="no good copy"):
        settled(archive, actor, "uid_conflict", How.KEEP)
    settled(archive, actor, "uid_conflict", How.REPLACE)
    assert content(archive, first.SOPInstanceUID) == data_set(second)
    assert aside(archive) == [], "what is damaged is not kept"


def test_what_power_left_of_a_discarded_file_is_removed_by_the_next_tick(
    archive: Archive, actor: Actor, twice: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(type(archive.hot), "unlink", refuses)
        settled(archive, actor, "uid_conflict", How.KEEP)
    assert len(files(archive, "hot")) == 2
    assert list(unfiled(archive, archive.hot)) == []
    sweep(archive)
    assert (len(seen(archive)), open_items(archive, "uid_conflict")) == (1, [])
    finish_removals(archive)
    assert len(files(archive, "hot")) == 1


# -- from the journal --------------------------------------------------------------------------------------------------


def everything(archive: Archive) -> Any:
    with archive.reading() as conn:
        ours = (instance.c.sop_instance_uid, instance.c.state, instance.c.digest, instance.c.attributes)
        rows = sorted(tuple(row) for row in conn.execute(select(*ours)))
        held_for = sorted(str(one) for one in conn.execute(select(instance.c.held_for)).scalars())
        copies = sorted(tuple(row) for row in conn.execute(select(location.c.path, location.c.digest)))
        kept = sorted(tuple(row) for row in conn.execute(select(quarantined.c.path, quarantined.c.former)))
        waiting = sorted(
            tuple(row)
            for row in conn.execute(select(work_item.c.kind, work_item.c.subject).where(work_item.c.state == "open"))
        )
    return seen(archive), rows, held_for, copies, kept, waiting


@pytest.mark.req("REQ-DCM-15", "REQ-DCM-19")
def test_a_rebuilt_index_says_what_persons_have_settled(
    archive: Archive, empty: Settings, actor: Actor, held: list[Dataset]
) -> None:
    settled(archive, actor, "identity_conflict", How.ACCEPT)
    settled(archive, actor, "identity_conflict", How.REJECT)
    for number, how in enumerate((How.KEEP, How.REPLACE)):
        receive(archive, ct_slice(number=9, SOPInstanceUID=held[number].SOPInstanceUID))
        settled(archive, actor, "uid_conflict", how)
    receive(archive, ct_slice(number=12, SOPInstanceUID=held[0].SOPInstanceUID))  # waits
    before = everything(archive)
    archive.close()
    with open_archive(empty, process="rebuild") as again:
        assert rebuild(again, actor=actor).not_taken == []
        assert everything(again) == before
        begun = "rebuild-index has begun, and is not finished: run it again"
        again.commit.run(lambda conn: conn.execute(update(suspension).values(detail=begun)))
        again.commit.run(lambda conn: conn.execute(update(fact).values(journaled=2)))
        assert rebuild(again, actor=actor).not_taken == []
        assert everything(again) == before, "twice changes nothing"


@pytest.mark.parametrize("there", ["aside", "not there yet"])
def test_a_database_that_is_older_than_a_replacement_learns_of_it(
    archive: Archive, actor: Actor, twice: tuple[Dataset, Dataset], there: str
) -> None:
    first, second = twice
    tables = (instance, location, quarantined, work_item)
    with archive.reading() as conn:
        old = {table: [dict(row._mapping) for row in conn.execute(select(table))] for table in tables}
    settled(archive, actor, "uid_conflict", How.REPLACE)
    ((subject, body),) = facts(archive, "conflict")

    def back(conn: Any) -> None:
        for table in (location, quarantined, work_item):
            conn.execute(delete(table))
            if table is not quarantined or there == "aside":
                conn.execute(table.insert(), old[table])
        row = old[instance][0]
        conn.execute(update(instance).values({name: row[name] for name in row if name != "pk"}))

    archive.commit.run(back)
    archive.commit.run(lambda conn: restore_conflict(conn, subject, body, archive.clock()))
    if there == "not there yet":
        sweep(archive, older_than=timedelta(0), look_back=None)
    assert content(archive, first.SOPInstanceUID) == data_set(second)
    assert aside(archive) == [(digest_of(first), 1)]
    assert instances(archive)[first.SOPInstanceUID].digest == digest_of(second)
