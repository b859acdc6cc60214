"""The dates of studies follow their facts, whatever happens at the same time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from datetime import date
from functools import partial
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, delete, insert, select, text, update

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.identity.record import Record, to_json
from archive.index.correct import correct_patient, correct_study, facts_changed, move_studies
from archive.instance import CopyState, State
from archive.lifecycle.compute import (
    Due,
    compute_due,
    dose_reports_until,
    due_for_announcement,
    due_for_migration,
    due_for_purge,
    explain,
    originals_stay_days,
    policy_of,
)
from archive.lifecycle.facts import gather
from archive.lifecycle.holds import add_hold
from archive.schema import audit, instance, life_failure, location, patient, series, study
from tests.archive.lifecycle.studies import at, row_of, send, statements, uid_of

OpenWith = Callable[..., Archive]
SITES = [
    {"id": "ville", "name": "Cabinet de ville", "profile": "liberal", "aets": ["CT1"], "stations": ["IRM1"]},
    {"id": "hop", "name": "Clinique", "profile": "hospital", "aets": ["CT9"], "stations": ["IRM9"]},
]


@pytest.fixture
def open_with(settings: Settings) -> Iterator[OpenWith]:
    """Opens the archive with changed settings; more than once, as several processes do."""
    with ExitStack() as stack:

        def opening(process: str = "test", **changes: Any) -> Archive:
            values = {**settings.model_dump(exclude_unset=True), **changes}
            return stack.enter_context(open_archive(Settings.model_validate(values), process=process))

        yield opening


@pytest.fixture
def hospital(open_with: OpenWith) -> Archive:
    return open_with(site={"profile": "hospital"})


def dates(archive: Archive, name: str) -> tuple[str | None, str | None]:
    row = row_of(archive, name)
    return row.keep_until, row.online_until


def rules(archive: Archive, name: str) -> list[str]:
    return [reason["rule"] for reason in orjson.loads(row_of(archive, name).keep_reasons)]


def patient_pk(archive: Archive, name: str) -> int:
    return int(row_of(archive, name).patient_pk)


@pytest.mark.req("REQ-CDC-04", "REQ-CDC-76")
def test_dates_are_computed_once_and_again_when_an_image_comes(archive: Archive) -> None:
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    send(archive, "mr", "20210301", Modality="MR")
    assert row_of(archive, "ct").policy_version is None
    assert dates(archive, "ct") == (None, None)
    assert compute_due(archive) == 2
    assert dates(archive, "ct") == ("20260301", "20240301")
    assert dates(archive, "mr") == ("20270101", "20240301")
    assert row_of(archive, "ct").policy_version == policy_of(archive.settings).version
    assert compute_due(archive) == 0

    at(archive, "2022-06-01")
    send(archive, "ct", "20210301", series="2", SeriesDate="20220601")
    assert row_of(archive, "ct").policy_version is None, "kept until it is computed"
    assert row_of(archive, "ct").keep_until == "20260301", "what was known stays to be read"
    assert compute_due(archive) == 1
    assert dates(archive, "ct") == ("20270601", "20250601")


@pytest.mark.req("REQ-CDC-04")
@pytest.mark.parametrize("keyword", ["SeriesDate", "AcquisitionDate", "ContentDate", "PerformedProcedureStepStartDate"])
def test_every_date_of_acquisition_counts(archive: Archive, keyword: str) -> None:
    at(archive, "2021-03-05")
    send(archive, "ct", "20210301")
    send(archive, "ct", "20210301", series="2", **{keyword: "20210303"})
    send(archive, "ct", "20210301", series="2")
    compute_due(archive)
    assert dates(archive, "ct") == ("20260303", "20240303")


@pytest.mark.req("REQ-CDC-04")
def test_a_study_without_a_date_or_with_one_that_cannot_be_true_counts_from_its_reception(archive: Archive) -> None:
    at(archive, "2026-06-30T23:30:00+00:00")  # in Paris it is July
    send(archive, "none", "")
    send(archive, "future", "20990101")
    send(archive, "wrong", "20260101", StudyDate=None, SeriesDate="20200101")
    compute_due(archive)
    assert dates(archive, "none") == ("20310701", "20290701")
    assert dates(archive, "future") == ("20310701", "20290701")
    assert dates(archive, "wrong") == ("20310701", "20290701")


def test_an_old_exam_that_comes_now_is_not_announced_at_once(archive: Archive) -> None:
    """DD-25."""
    at(archive, "2026-01-05")
    send(archive, "old", "20100301")
    compute_due(archive)
    assert dates(archive, "old") == ("20260405", "20130301")
    assert rules(archive, "old")[0] == "recent_reception"
    with archive.reading() as conn:
        assert originals_stay_days(conn, archive.settings, row_of(archive, "old").pk) == 30


def test_originals_of_an_old_exam_stay_longer_where_the_site_wants_it(open_with: OpenWith) -> None:
    archive = open_with(retention={"min_online_days": 60})
    at(archive, "2026-01-05")
    send(archive, "old", "20100301")
    send(archive, "new", "20260105")
    with archive.reading() as conn:
        assert originals_stay_days(conn, archive.settings, row_of(archive, "old").pk) == 90
        assert originals_stay_days(conn, archive.settings, row_of(archive, "new").pk) == 30
        assert originals_stay_days(conn, archive.settings, 999) is None


@pytest.mark.req("REQ-CDC-05")
def test_a_hospital_keeps_children_and_whoever_comes_again(hospital: Archive) -> None:
    at(hospital, "2016-01-15")
    send(hospital, "child", "20160115", PatientBirthDate="20150610", Modality="MR")
    send(hospital, "unknown", "20160115", PatientBirthDate=None)
    send(hospital, "first", "20060301", PatientID="P", PatientBirthDate="19600101")
    compute_due(hospital)
    assert dates(hospital, "child")[0] == "20430610"
    assert dates(hospital, "unknown")[0] is None
    assert rules(hospital, "unknown")[0] == "birth_date_unknown"
    assert dates(hospital, "first")[0] == "20260301"

    at(hospital, "2018-02-02")
    send(hospital, "second", "20180202", PatientID="P", PatientBirthDate="19600101")
    assert row_of(hospital, "first").policy_version is None, "a visit is a fact of every study of the patient"
    compute_due(hospital)
    assert dates(hospital, "first") == ("20380202", "20090301")
    assert dates(hospital, "second")[0] == "20380202"


@pytest.mark.req("REQ-CDC-05")
def test_a_later_series_is_a_visit_too(hospital: Archive) -> None:
    at(hospital, "2018-02-02")
    send(hospital, "first", "20060301", PatientID="P", PatientBirthDate="19600101")
    send(hospital, "second", "20080202", PatientID="P", PatientBirthDate="19600101")
    compute_due(hospital)
    assert dates(hospital, "first")[0] == "20280202"
    step = {"PerformedProcedureStepStartDate": "20100909"}
    send(hospital, "second", "20080202", PatientID="P", PatientBirthDate="19600101", series="2", **step)
    compute_due(hospital)
    assert dates(hospital, "first")[0] == "20300909"


@pytest.mark.req("REQ-CDC-05")
def test_what_the_ris_says_of_a_patient_counts_before_what_images_say(hospital: Archive) -> None:
    at(hospital, "2016-01-15")
    send(hospital, "a", "20160115", PatientBirthDate="19600101")
    compute_due(hospital)
    assert dates(hospital, "a")[0] == "20360115"

    def said(record: Record) -> str | None:
        def write(conn: Connection) -> None:
            pk = patient_pk(hospital, "a")
            conn.execute(update(patient).where(patient.c.pk == pk).values(record=to_json(record)))
            correct_patient(conn, pk, {}, reason="COERCE", at=hospital.clock())

        hospital.commit.run(write)
        assert row_of(hospital, "a").policy_version is None
        assert compute_due(hospital) == 1
        return dates(hospital, "a")[0]

    assert said(Record(birth_date="2012")) == "20401231"
    assert said(Record(birth_date="20121002")) == "20401002"
    assert said(Record(birth_date="19600101", death_day="20170101", deceased="Y")) == "20360115"
    assert "death_10_years" in rules(hospital, "a")
    assert said(Record(birth_date="19600101", death_day="20170101", deceased="N")) == "20360115"
    assert "death_10_years" not in rules(hospital, "a")


@pytest.mark.req("REQ-CDC-05")
def test_a_merge_and_a_corrected_study_date_are_facts_of_all_studies_of_the_patient(hospital: Archive) -> None:
    at(hospital, "2026-01-05")
    send(hospital, "a", "20060301", PatientBirthDate="19600101")
    send(hospital, "b", "20080404", PatientBirthDate="19600101")
    compute_due(hospital)
    assert dates(hospital, "a")[0] == "20260405"
    loser, survivor = patient_pk(hospital, "b"), patient_pk(hospital, "a")
    hospital.commit.run(lambda conn: move_studies(conn, loser_pk=loser, survivor_pk=survivor))
    assert compute_due(hospital) == 2
    assert dates(hospital, "a")[0] == "20280404"

    corrected = {"00080020": {"vr": "DA", "Value": ["20100505"]}}
    pk = row_of(hospital, "b").pk
    hospital.commit.run(lambda conn: correct_study(conn, pk, corrected, reason="CORRECT", at=hospital.clock()))
    assert compute_due(hospital) == 2
    assert dates(hospital, "a")[0] == "20300505"


@pytest.mark.req("REQ-CDC-03", "REQ-CDC-04")
def test_the_site_of_the_exam_decides(open_with: OpenWith) -> None:
    archive = open_with(sites=SITES)
    at(archive, "2021-03-01")
    born = {"PatientBirthDate": "19600101"}
    send(archive, "ville", "20210301", aet="CT1", StationName="IRM9", InstitutionName="Clinique", **born)
    send(archive, "hop", "20210301", aet="CT9", StationName="IRM1", **born)
    send(archive, "station", "20210301", aet="OTHER", StationName="IRM9", InstitutionName="Cabinet de ville", **born)
    send(archive, "institution", "20210301", aet="OTHER", StationName="X", InstitutionName="CLINIQUE", **born)
    send(archive, "nobody", "20210301", aet="OTHER", **born)
    send(archive, "first", "20210301", aet="CT1", **born)
    send(archive, "first", "20210301", aet="CT9", series="2", **born)
    compute_due(archive)
    until = {name: dates(archive, name)[0] for name in ("ville", "hop", "station", "institution", "nobody", "first")}
    assert until == {
        "ville": "20260301",
        "hop": "20410301",
        "station": "20410301",
        "institution": "20410301",
        "nobody": "20260301",
        "first": "20260301",
    }


def test_another_policy_makes_every_date_anew(archive: Archive, open_with: OpenWith) -> None:
    at(archive, "2021-03-01")
    send(archive, "a", "20210301")
    send(archive, "b", "20210301")
    compute_due(archive)
    longer = open_with(retention={"keep_years": 7})
    with longer.reading() as conn:
        assert due_for_announcement(
            conn, policy_of(longer.settings), today=date(2099, 1, 1), real_now=longer.real_clock(), limit=9
        ) == [], "a date of another policy makes nothing due"  # fmt: skip
    assert compute_due(longer) == 2
    assert dates(longer, "a")[0] == "20280301"
    assert compute_due(longer) == 0


# -- lossy copies and dose reports -----------------------------------------------------------------------------------


def derive(archive: Archive, name: str) -> None:
    """Have a lossy copy of the study's one image in cold storage, as migration leaves it, its original gone."""

    def write(conn: Connection) -> None:
        row = row_of(archive, name)
        part = conn.execute(select(series).where(series.c.study_pk == row.pk)).one()
        original = conn.execute(select(instance).where(instance.c.series_pk == part.pk)).one()
        copy = {**part._mapping, "series_instance_uid": f"{part.series_instance_uid}.9", "created_at": archive.clock()}
        copy.pop("pk")
        series_pk = conn.execute(insert(series).values(copy).returning(series.c.pk)).scalar_one()
        made = {
            **original._mapping, "series_pk": series_pk, "sop_instance_uid": f"{original.sop_instance_uid}.9",
            "received_at": archive.clock(), "derived_from_pk": original.pk, "source": "derived",
        }  # fmt: skip
        made.pop("pk")
        pk = conn.execute(insert(instance).values(made).returning(instance.c.pk)).scalar_one()
        conn.execute(update(instance).where(instance.c.pk == original.pk).values(state=State.REPLACED))
        conn.execute(update(location).where(location.c.instance_pk == original.pk).values(instance_pk=pk, tier="cold"))
        facts_changed(conn, row.patient_pk)

    archive.commit.run(write)


def test_lossy_copies_that_the_archive_made_are_no_later_series(archive: Archive) -> None:
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    at(archive, "2024-03-02")
    derive(archive, "ct")
    compute_due(archive)
    assert dates(archive, "ct") == ("20260301", None), "and nothing is left that could leave the hot tier"
    assert rules(archive, "ct") == ["liberal_5_years"]


def test_dose_reports_are_kept_for_themselves_once_the_images_are_gone(archive: Archive) -> None:
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    send(archive, "ct", "20210301", series="2", Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67")
    compute_due(archive)
    pk = row_of(archive, "ct").pk
    assert dates(archive, "ct")[0] == "20260301"
    with archive.reading() as conn:
        assert dose_reports_until(conn, archive.settings, pk) == date(2041, 3, 1)

    def purge_images(conn: Connection) -> None:
        images = instance.c.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
        conn.execute(update(instance).where(images).values(state=State.PURGING))
        facts_changed(conn, patient_pk(archive, "ct"))

    archive.commit.run(purge_images)
    compute_due(archive)
    assert dates(archive, "ct")[0] == "20410301"


# -- races -----------------------------------------------------------------------------------------------------------


class Slow:
    """A write of another process that stands still before its COMMIT."""

    def __init__(self, archive: Archive, name: str, day: str, **changes: Any) -> None:
        self.written = threading.Event()
        self.go_on = threading.Event()
        run = archive.commit.run

        def stopping(write: Callable[[Connection], Any], **more: Any) -> Any:
            def both(conn: Connection) -> Any:
                result = write(conn)
                self.written.set()
                assert self.go_on.wait(60)
                return result

            return run(both, **more)

        object.__setattr__(archive.commit, "run", stopping)
        self._pool = ThreadPoolExecutor(1)
        self._sent = self._pool.submit(send, archive, name, day, **changes)
        assert self.written.wait(60)

    def commit(self) -> None:
        self.go_on.set()
        self._sent.result(60)
        self._pool.shutdown()


def computed(archive: Archive) -> None:
    """Compute until nothing is left to."""
    with archive.reading() as conn:
        stale = select(study.c.pk).where(study.c.policy_version.is_(None))
        while conn.execute(stale).first() is not None:
            conn.rollback()
            compute_due(archive)


@pytest.mark.parametrize("computed_before", [False, True], ids=["not computed yet", "computed before"])
def test_an_image_that_is_being_committed_is_never_overlooked(open_with: OpenWith, computed_before: bool) -> None:
    archive, other = open_with(), open_with("other")
    for one in (archive, other):
        at(one, "2022-06-01")
    send(archive, "ct", "20210301")
    if computed_before:
        compute_due(archive)
        facts_changed_of(archive, "ct")
    image = Slow(other, "ct", "20210301", ContentDate="20220505")  # of a series that is there
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(compute_due, archive)
        wait([computing], timeout=1)  # PostgreSQL passes the study over; SQLite waits for the one writer
        image.commit()
        computing.result(60)
    computed(archive)
    assert dates(archive, "ct") == ("20270505", "20250505")


def facts_changed_of(archive: Archive, name: str) -> None:
    pk = patient_pk(archive, name)
    archive.commit.run(lambda conn: facts_changed(conn, pk))


def test_an_image_that_comes_while_dates_are_computed_finds_them_and_forgets_them(open_with: OpenWith) -> None:
    archive, other = open_with(), open_with("other")
    for one in (archive, other):
        at(one, "2022-06-01")
    send(archive, "ct", "20210301")
    gathered, go_on = threading.Event(), threading.Event()

    def slowly(conn: Connection, run: Callable[[Connection], Any]) -> Any:
        result = run(conn)
        gathered.set()
        assert go_on.wait(60)
        return result

    run = archive.commit.run
    object.__setattr__(archive.commit, "run", lambda write: run(partial(slowly, run=write)))
    with ThreadPoolExecutor(2) as pool:
        computing = pool.submit(compute_due, archive)
        assert gathered.wait(60)
        sending = pool.submit(send, other, "ct", "20210301", ContentDate="20220505")
        assert wait([sending], timeout=1).not_done, "the image waits for the dates"
        go_on.set()
        computing.result(60)
        sending.result(60)
    assert row_of(archive, "ct").policy_version is None
    object.__setattr__(archive.commit, "run", run)
    computed(archive)
    assert dates(archive, "ct")[0] == "20270505"


@pytest.mark.parametrize("known", [True, False], ids=["a study is known", "only the patient is known"])
def test_a_visit_that_is_being_committed_is_never_overlooked(open_with: OpenWith, known: bool) -> None:
    hospital = {"site": {"profile": "hospital"}}
    archive, other = open_with(**hospital), open_with("other", **hospital)
    for one in (archive, other):
        at(one, "2018-02-02")
    born = {"PatientID": "P", "PatientBirthDate": "19600101"}
    send(archive, "first", "20060301", **born)
    if not known:  # then no row of an earlier study is there to meet at
        send(archive, "elsewhere", "20060301", PatientBirthDate="19600101")
        loser, survivor = patient_pk(archive, "first"), patient_pk(archive, "elsewhere")
        archive.commit.run(lambda conn: move_studies(conn, loser_pk=loser, survivor_pk=survivor))
    compute_due(archive)
    visit = Slow(other, "second", "20180202", **born)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(send, archive, "third", "20070101", **born)  # neither sees the other
        wait([third], timeout=1)
        computing = pool.submit(compute_due, archive)
        wait([computing], timeout=1)
        visit.commit()
        third.result(60)
        computing.result(60)
    computed(archive)
    names = ("first", "second", "third") if known else ("second", "third")
    assert {name: dates(archive, name)[0] for name in names} == dict.fromkeys(names, "20380202")


# -- announced, and due ----------------------------------------------------------------------------------------------


def announce(archive: Archive, name: str, purge_on: str) -> None:
    values = {"announced_at": archive.clock(), "purge_on": purge_on}
    uid = uid_of(name)
    archive.commit.run(lambda conn: conn.execute(update(study).where(study.c.study_instance_uid == uid).values(values)))


def test_an_announcement_is_withdrawn_when_the_date_moves_and_stays_when_it_does_not(archive: Archive) -> None:
    at(archive, "2021-03-01")
    send(archive, "moves", "20210301")
    send(archive, "stays", "20210301")
    compute_due(archive)
    at(archive, "2026-03-02")
    for name in ("moves", "stays"):
        announce(archive, name, "20260401")
    send(archive, "moves", "20210301", series="2", SeriesDate="20260302")
    facts_changed_of(archive, "stays")
    compute_due(archive)
    moved, stayed = row_of(archive, "moves"), row_of(archive, "stays")
    assert (moved.announced_at, moved.purge_on, moved.keep_until) == (None, None, "20310302")
    assert (stayed.announced_at is not None, stayed.purge_on, stayed.keep_until) == (True, "20260401", "20260301")
    with archive.reading() as conn:
        rows = conn.execute(select(audit.c.study, audit.c.detail).where(audit.c.detail.contains("withdrawn"))).all()
    assert [row.study for row in rows] == [uid_of("moves")]


def due(archive: Archive, which: Callable[..., list[Due]], today: str, limit: int = 10) -> list[tuple[str, str]]:
    with archive.reading() as conn:
        found = which(
            conn, policy_of(archive.settings), today=date.fromisoformat(today), real_now=archive.real_clock(),
            limit=limit,
        )  # fmt: skip
        names = dict(conn.execute(select(study.c.pk, study.c.patient_pk)).all())  # type: ignore[arg-type]
        ids = dict(conn.execute(select(patient.c.pk, patient.c.patient_id)).all())  # type: ignore[arg-type]
    return [(ids[names[one.pk]].removeprefix("P-"), one.day) for one in found]


@pytest.mark.req("REQ-CDC-06")
def test_what_is_due_for_migration(archive: Archive, actor: Actor) -> None:
    at(archive, "2021-03-01")
    for name, day in (("b", "20210228"), ("a", "20210101"), ("young", "20210301")):
        send(archive, name, day)
    assert due(archive, due_for_migration, "2030-01-01") == [], "unknown keeps"
    compute_due(archive)
    assert due(archive, due_for_migration, "2023-12-31") == []
    assert due(archive, due_for_migration, "2024-01-01") == [("a", "20240101")]
    assert due(archive, due_for_migration, "2024-02-29") == [("a", "20240101"), ("b", "20240228")]
    assert due(archive, due_for_migration, "2024-02-29", limit=1) == [("a", "20240101")]

    for name in ("held", "grace", "cold", "failed", "lost"):
        send(archive, name, "20210101")
    add_hold(archive, uid_of("held"), reason="expertise", until=date(2024, 2, 29), actor=actor)

    def write(conn: Connection) -> None:
        pks = {name: row_of(archive, name).pk for name in ("grace", "cold", "failed", "lost")}
        conn.execute(update(study).where(study.c.pk == pks["grace"]).values(grace_until=archive.clock()))
        mine = select(instance.c.pk).join_from(instance, series)
        cold = mine.where(series.c.study_pk == pks["cold"])
        conn.execute(update(location).where(location.c.instance_pk.in_(cold)).values(tier="cold"))
        lost = mine.where(series.c.study_pk == pks["lost"])
        conn.execute(update(location).where(location.c.instance_pk.in_(lost)).values(state=CopyState.PURGING))
        conn.execute(
            insert(life_failure).values(
                study_pk=pks["failed"], step="migrate", attempts=1, retry_at=archive.real_clock().replace(year=2999),
                error="x",
            )
        )  # fmt: skip

    archive.commit.run(write)
    compute_due(archive)
    assert due(archive, due_for_migration, "2024-02-29") == [("a", "20240101"), ("b", "20240228")]
    later = [name for name, _ in due(archive, due_for_migration, "2024-03-01")]
    assert later == ["a", "held", "b", "young"], "the hold is over"
    archive.commit.run(lambda conn: conn.execute(delete(life_failure)))
    assert "failed" in [name for name, _ in due(archive, due_for_migration, "2024-03-01")]


def test_what_is_due_for_announcement_and_for_purge(archive: Archive, actor: Actor) -> None:
    at(archive, "2021-03-01")
    for name in ("a", "b", "held"):
        send(archive, name, "20210301")
    at(archive, "2021-03-02")
    send(archive, "later", "20210302")
    add_hold(archive, uid_of("held"), reason="expertise", until=None, actor=actor)
    compute_due(archive)
    assert due(archive, due_for_announcement, "2026-02-28") == []
    assert due(archive, due_for_announcement, "2026-03-01") == [("a", "20260301"), ("b", "20260301")]
    announce(archive, "a", "20260331")
    assert due(archive, due_for_announcement, "2026-03-01") == [("b", "20260301")]
    assert due(archive, due_for_purge, "2026-03-30") == []
    assert due(archive, due_for_purge, "2026-03-31") == [("a", "20260331")]
    at(archive, "2026-03-31")
    facts_changed_of(archive, "a")
    assert due(archive, due_for_purge, "2026-03-31") == [], "unknown keeps"
    compute_due(archive)
    assert due(archive, due_for_purge, "2026-03-31") == [("a", "20260331")]


@pytest.mark.parametrize(
    "station", ["CT\0X", "CT\0\0", "a\\\\u0000b", "\\\0\\"], ids=["inside", "twice", "none", "escaped"]
)
def test_nul_characters_in_a_value_keep_no_study_from_its_dates(archive: Archive, station: str) -> None:
    """Some equipment pads with them; JSON has them as \\u0000, which PostgreSQL makes no text of."""
    send(archive, "padded", "20260105", AcquisitionDate="20260211")
    said = {"00081010": {"vr": "SH", "Value": [station]}, "00080021": {"vr": "DA", "Value": ["20260310"]}}
    archive.commit.run(lambda conn: conn.execute(update(series).values(attributes=orjson.dumps(said).decode())))
    assert compute_due(archive) == 1
    assert row_of(archive, "padded").online_until == "20290310"


def test_a_study_that_cannot_be_computed_is_kept_and_keeps_no_other_from_its_dates(archive: Archive) -> None:
    for name in ("bad", "good", "fine"):
        send(archive, name, "20260105")
    broken = update(patient).where(patient.c.patient_id == "P-bad").values(attributes="{")
    archive.commit.run(lambda conn: conn.execute(broken))
    assert compute_due(archive) == 2
    assert [row_of(archive, name).policy_version is None for name in ("bad", "good", "fine")] == [True, False, False]


def test_dates_are_explained_from_the_facts_of_this_moment(archive: Archive) -> None:
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    said = explain(archive, uid_of("ct"))
    assert said["date"] == "2026-03-01", "no tick is waited for"
    assert [reason["source"] for reason in said["reasons"]] == ["Annexe 5 §3.1"]
    assert explain(archive, "1.2.3") == {"date": None, "reasons": []}


# -- how much work it is ---------------------------------------------------------------------------------------------


def test_facts_take_as_many_statements_for_many_studies_as_for_one(archive: Archive) -> None:
    at(archive, "2021-03-01")
    for number in range(12):
        for image in range(3):
            send(archive, f"s{number}", "20210301", series=str(image % 2))
    with archive.reading() as conn:
        pks = list(conn.execute(select(study.c.pk).order_by(study.c.pk)).scalars())
        with statements(archive) as one:
            gather(conn, archive.settings, pks[:1])
        with statements(archive) as many:
            assert [known.pk for known in gather(conn, archive.settings, pks)] == pks
    assert len(one) == len(many) == 5
    with statements(archive) as said:
        assert compute_due(archive, batch=5) == 12
    assert sum(sql.startswith("SELECT series.pk") for sql in said) == 3, "batches of five"
    assert compute_due(archive) == 0


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # PostgreSQL plans by statistics
def test_facts_and_what_is_due_are_found_in_the_right_indexes(archive: Archive) -> None:
    at(archive, "2021-03-01")
    send(archive, "ct", "20210301")
    asked = {"today": date(2026, 1, 1), "real_now": archive.real_clock(), "limit": 10}
    with statements(archive) as said:
        compute_due(archive)
        with archive.reading() as conn:
            for which in (due_for_migration, due_for_announcement, due_for_purge):
                which(conn, policy_of(archive.settings), **asked)
    selects = [sql for sql in said if sql.startswith("SELECT") and "study" in sql]
    assert len(selects) > 8
    with archive.engine.connect() as conn:
        for sql in selects:
            plan = [row[3] for row in conn.execute(text("EXPLAIN QUERY PLAN " + sql.replace("?", "'1'")))]
            wrong = [step for step in plan if re.search(r"^SCAN (study|series|instance)|tier=|derived_from_pk=", step)]
            assert not wrong, (sql, wrong)
