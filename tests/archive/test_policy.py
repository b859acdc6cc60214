"""Every rule and date of sheet 00 §8 as a table; then what holds whatever the facts are."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.config import Settings
from archive.policy import (
    DOSE_REPORTS,
    SOURCES,
    Decision,
    Facts,
    Hold,
    Policy,
    Rule,
    SeriesFacts,
    add_years,
    decide,
    dose_until,
    exam_day,
    grace_days,
    local_day,
    span,
)
from archive.sections import QUALITY


@cache
def policy(**retention: Any) -> Policy:
    settings = Settings.model_validate({"retention": retention})
    return Policy(settings.retention, settings.all_sites)


def noon(day: str) -> datetime:
    return datetime.fromisoformat(f"{day}T12:00:00+00:00")


def exam(day: str, *, modality: str = "CT", profile: str = "liberal", received: str = "", **more: Any) -> Facts:
    """An exam of `day` (ISO), received on that day at noon unless `received` says otherwise."""
    at = noon(received or day)
    parts = (SeriesFacts(modality, (day.replace("-", ""),), at),)
    facts = Facts(
        profile=profile,  # type: ignore[arg-type]
        site="main",
        study_date=day.replace("-", ""),
        series=parts,
        first_received=at,
        last_received=at,
    )
    return replace(facts, **more)


HOSPITAL = {"profile": "hospital", "birth_date": "19600101"}
UNTIL = [
    # liberal: five years from the exam
    ("a CT of a practice", exam("2021-03-01"), "2026-03-01"),
    ("29 February counts to 1 March", exam("2024-02-29"), "2029-03-01"),
    ("31 December", exam("2021-12-31"), "2026-12-31"),
    ("the last day of summer time", exam("2021-10-31"), "2026-10-31"),
    ("the first day of summer time", exam("2021-03-28"), "2026-03-28"),
    ("a child in a practice", exam("2021-03-01", birth_date="20150610"), "2026-03-01"),
    ("nobody knows the birth date, in a practice", exam("2021-03-01", birth_date=""), "2026-03-01"),
    ("a later visit, in a practice", exam("2021-03-01", last_visit=date(2025, 1, 1)), "2026-03-01"),
    # MRI: the five years that follow the exam's year
    ("an MRI of a practice", exam("2021-03-01", modality="MR"), "2027-01-01"),
    ("an MRI of 2026 until 31/12/2031", exam("2026-07-14", modality="MR"), "2032-01-01"),
    ("an MRI of 31 December", exam("2026-12-31", modality="MR"), "2032-01-01"),
    ("an MRI of 1 January", exam("2027-01-01", modality="MR"), "2033-01-01"),
    # hospitals: twenty years, and CSP R.1112-7
    ("a CT of a hospital", exam("2006-03-01", **HOSPITAL), "2026-03-01"),
    ("an MRI of a hospital", exam("2006-03-01", modality="MR", **HOSPITAL), "2026-03-01"),
    ("29 February of a hospital", exam("2004-02-29", **HOSPITAL), "2024-02-29"),
    ("29 February of a hospital, 2100 has none", exam("2080-02-29", profile="hospital", birth_date="2000"),
     "2100-03-01"),
    ("a child", exam("2016-01-15", modality="MR", profile="hospital", birth_date="20150610"), "2043-06-10"),
    ("born on 29 February", exam("2020-05-05", profile="hospital", birth_date="20200229"), "2048-02-29"),
    ("twenty years end after the 28th birthday", exam("2026-05-05", profile="hospital", birth_date="20100101"),
     "2046-05-05"),
    ("a later visit", exam("2006-03-01", last_visit=date(2010, 6, 1), **HOSPITAL), "2030-06-01"),
    ("a visit before", exam("2006-03-01", last_visit=date(2001, 6, 1), **HOSPITAL), "2026-03-01"),
    ("dead soon after", exam("2006-03-01", death_date="20070101", **HOSPITAL), "2026-03-01"),
    ("dead long after the exam, soon after the last visit",
     exam("2006-03-01", last_visit=date(2006, 9, 1), death_date="20160831", **HOSPITAL), "2026-09-01"),
    ("a child that died",
     exam("2016-01-15", profile="hospital", birth_date="20150610", death_date="20170101"), "2043-06-10"),
    # birth dates that are not whole
    ("only the year of birth", exam("2016-01-15", profile="hospital", birth_date="2015"), "2043-12-31"),
    ("only the month of birth", exam("2016-01-15", profile="hospital", birth_date="201502"), "2043-02-28"),
    ("zeros for what is unknown", exam("2016-01-15", profile="hospital", birth_date="20150000"), "2043-12-31"),
    ("nobody knows the birth date", exam("2006-03-01", profile="hospital"), None),
    ("no date at all", exam("2006-03-01", profile="hospital", birth_date="UNKNOWN"), None),
    ("born after the image came", exam("2006-03-01", profile="hospital", birth_date="20260101"), None),
    ("a hundred and fifteen years old", exam("2016-03-01", profile="hospital", birth_date="19000101"), None),
    # the day of the exam
    ("no study date", exam("2021-03-01", study_date="", series=()), "2026-03-01"),
    ("no study date, an older series", exam("2021-03-01", received="2021-06-01", study_date=""), "2026-06-01"),
    ("a study date in the future", exam("2021-03-01", study_date="20990101", series=()), "2026-03-01"),
    ("a study date that is none", exam("2021-03-01", study_date="20211399", series=()), "2026-03-01"),
    ("a study date that fills the field", exam("2021-03-01", study_date="19000101", series=()), "2026-03-01"),
    ("an exam before the patient was born",
     exam("2021-03-01", study_date="20000101", series=(), birth_date="20100101"), "2026-03-01"),
    ("an exam in La Réunion, received in Paris the day before",
     exam("2021-03-02", received="2021-03-01"), "2026-03-02"),
    # hold
    ("a hold without end", exam("2021-03-01", holds=(Hold(date(2022, 1, 1), None),)), None),
    ("a hold that ends after", exam("2021-03-01", holds=(Hold(date(2022, 1, 1), date(2030, 1, 2)),)), "2030-01-02"),
    ("a hold that ends before", exam("2021-03-01", holds=(Hold(date(2022, 1, 1), date(2023, 1, 2)),)), "2026-03-01"),
    ("a hold that was removed, in a practice",
     exam("2021-03-01", holds=(Hold(date(2022, 1, 1), date(2025, 1, 1), removed=True),)), "2026-03-01"),
    ("a hold that was removed stopped the clock of the hospital",
     exam("2006-03-01", holds=(Hold(date(2010, 1, 1), date(2010, 1, 31), removed=True),), **HOSPITAL), "2026-03-31"),
    ("two holds at once stop it once",
     exam("2006-03-01", holds=(Hold(date(2010, 1, 1), date(2010, 1, 31), removed=True),
                               Hold(date(2010, 1, 11), date(2010, 1, 21), removed=True)), **HOSPITAL), "2026-03-31"),
    ("a hold placed and removed within a day",
     exam("2006-03-01", holds=(Hold(date(2010, 1, 1), date(2010, 1, 1), removed=True),), **HOSPITAL), "2026-03-01"),
    # received late (DD-25)
    ("an old exam that came today", exam("2010-03-01", received="2026-01-05"), "2026-04-05"),
    ("an exam that came at the end", exam("2021-03-01", received="2026-01-05"), "2026-04-05"),
    ("an exam that came in time", exam("2021-03-01", received="2022-01-05"), "2026-03-01"),
    # dose reports
    ("nothing but dose reports is left", exam("2021-03-01", modality="SR", dose_only=True), "2041-03-01"),
]  # fmt: skip


@pytest.mark.req("REQ-CDC-03", "REQ-CDC-04", "REQ-CDC-05", "REQ-CDC-76")
@pytest.mark.parametrize(("facts", "until"), [row[1:] for row in UNTIL], ids=[row[0] for row in UNTIL])
def test_a_study_is_kept_until(facts: Facts, until: str | None) -> None:
    decision = decide(facts, policy())
    assert decision.keep_until == (None if until is None else date.fromisoformat(until))
    assert decision.reasons, "without a reason nothing goes"


@pytest.mark.req("REQ-CDC-04")
def test_a_later_series_starts_the_count_again() -> None:
    first = exam("2021-03-01")
    later = SeriesFacts("CT", ("20220601", ""), noon("2022-06-01"))
    assert decide(replace(first, series=(*first.series, later)), policy()).keep_until == date(2027, 6, 1)
    assert exam_day(replace(first, series=(*first.series, later))) == (date(2022, 6, 1), "series")


@pytest.mark.parametrize(
    ("dates", "received", "until"),
    [
        ((), "2021-03-01", "2026-03-01"),  # it came with the others
        ((), "2021-09-09", "2026-09-09"),  # it came later, and nobody knows when it was made
        (("20990101",), "2021-09-09", "2026-09-09"),  # cannot be true
        (("20990101", "20210501"), "2021-09-09", "2026-09-09"),
        (("20210301",), "2024-09-09", "2026-03-01"),  # made with the others, sent late
        (("20210301", "20210822"), "2024-09-09", "2026-08-22"),
    ],
)
def test_a_series_counts_from_its_date_or_else_its_reception(dates: tuple[str, ...], received: str, until: str) -> None:
    first = exam("2021-03-01")
    later = SeriesFacts("CT", dates, noon(received))
    facts = replace(first, series=(*first.series, later))
    assert decide(facts, policy()).keep_until == date.fromisoformat(until)


@pytest.mark.req("REQ-CDC-06")
@pytest.mark.parametrize(
    ("facts", "online"),
    [
        (exam("2026-01-05"), "2029-01-05"),
        (exam("2024-02-29"), "2027-03-01"),
        (exam("2024-02-29", study_date="20990101", series=()), "2027-03-01"),
        (exam("2010-03-01", received="2026-01-05"), "2013-03-01"),
        (exam("2026-01-05", **HOSPITAL), "2029-01-05"),
        (exam("2026-01-05", series=(SeriesFacts("CT", ("20270303",), noon("2027-03-03")),)), "2030-03-03"),
    ],
)
def test_images_stay_online_for_three_years_from_the_exam(facts: Facts, online: str) -> None:
    assert decide(facts, policy()).online_until == date.fromisoformat(online)


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        ("2026-01-05T22:59:59+00:00", "2026-01-05"),
        ("2026-01-05T23:00:00+00:00", "2026-01-06"),  # winter: an hour
        ("2026-06-30T21:59:59+00:00", "2026-06-30"),
        ("2026-06-30T22:00:00+00:00", "2026-07-01"),  # summer: two
        ("2026-06-30T23:30:00+00:00", "2026-07-01"),
        ("2026-03-28T23:30:00+00:00", "2026-03-29"),  # the night in which summer time begins
        ("2026-10-24T22:30:00+00:00", "2026-10-25"),  # and the one in which it ends
        ("2026-10-25T22:59:00+00:00", "2026-10-25"),
    ],
)
def test_days_are_those_of_paris(instant: str, day: str) -> None:
    at = datetime.fromisoformat(instant)
    assert local_day(at) == date.fromisoformat(day)
    facts = replace(exam("2021-03-01", study_date="", series=()), first_received=at, last_received=at)
    assert exam_day(facts) == (date.fromisoformat(day), "reception")


@pytest.mark.req("REQ-CDC-03", "REQ-CDC-04")
def test_more_years_than_the_law_asks_for_are_the_sites_choice() -> None:
    longer = policy(keep_years=25)
    assert decide(exam("2021-03-01"), longer).keep_until == date(2046, 3, 1)
    assert decide(exam("2021-03-01", **HOSPITAL), longer).keep_until == date(2046, 3, 1)
    assert decide(exam("2021-03-01", last_visit=date(2022, 1, 1), **HOSPITAL), longer).keep_until == date(2047, 1, 1)
    rules = [reason.rule for reason in decide(exam("2021-03-01"), longer).reasons]
    assert rules == [Rule.CONFIGURED, Rule.LIBERAL]
    assert decide(exam("2021-03-01"), policy(immediate_years=4)).online_until == date(2025, 3, 1)


def test_years_beyond_the_calendar_are_its_end() -> None:
    assert decide(exam("2021-03-01"), policy(keep_years=99999)).keep_until == date.max


def test_originals_of_late_comers_stay_longer_where_the_site_wants_it() -> None:
    wanted = policy(min_online_days=60)
    assert grace_days(exam("2021-03-01"), wanted) == 30
    assert grace_days(exam("2021-03-01", received="2024-02-29"), wanted) == 30
    assert grace_days(exam("2021-03-01", received="2024-03-01"), wanted) == 90
    assert grace_days(exam("2010-03-01", received="2026-01-05"), policy()) == 30


def test_the_time_after_reception_is_the_sites_choice() -> None:
    late = exam("2010-03-01", received="2026-01-05")
    assert decide(late, policy(min_keep_days=365)).keep_until == date(2027, 1, 5)
    assert decide(late, policy(min_keep_days=0)).keep_until == date(2026, 1, 5)
    shown = {reason.rule: reason for reason in decide(late, policy()).reasons}
    assert shown[Rule.RECEPTION].shape() == {
        "rule": "recent_reception",
        "since": "2026-01-05",
        "basis": "reception",
        "until": "2026-04-05",
        "source": "retention.min_keep_days",
        "text": "reçu récemment : délai après la réception (réception du 05/01/2026), jusqu’au 04/04/2026 inclus",
    }


def test_dose_reports_outlive_the_images() -> None:
    facts = exam("2021-03-01")
    assert decide(facts, policy()).keep_until == date(2026, 3, 1)
    assert dose_until(facts, policy()) == date(2041, 3, 1)
    assert dose_until(facts, policy(dose_years=30)) == date(2051, 3, 1)
    assert "1.2.840.10008.5.1.4.1.1.88.67" in DOSE_REPORTS


def test_reasons_name_their_rule_day_and_source_the_decisive_one_first() -> None:
    shapes = [reason.shape() for reason in decide(exam("2021-03-01", modality="MR"), policy()).reasons]
    assert shapes == [
        {
            "rule": "mri_5_years", "since": "2021-03-01", "basis": "exam", "until": "2027-01-01",
            "source": "Circulaire 90/31 art. 10",
            "text": "IRM : les 5 années qui suivent celle de l’examen (examen du 01/03/2021), "
            "jusqu’au 31/12/2026 inclus",
        },
        {
            "rule": "liberal_5_years", "since": "2021-03-01", "basis": "exam", "until": "2026-03-01",
            "source": "Annexe 5 §3.1",
            "text": "cabinet libéral : 5 ans (examen du 01/03/2021), jusqu’au 28/02/2026 inclus",
        },
    ]  # fmt: skip


def test_every_rule_has_a_source_and_words() -> None:
    facts = exam(
        "2021-03-01", modality="MR", profile="hospital", death_date="2022", dose_only=True, received="2026-01-05",
        holds=(Hold(date(2023, 1, 1), None), Hold(date(2022, 1, 1), date(2022, 2, 1), removed=True)),
    )  # fmt: skip
    minor = replace(facts, birth_date="20200101", profile="hospital")
    chosen = (policy(keep_years=30), policy(), policy())
    decisions = [decide(one, by) for one, by in zip((facts, minor, exam("2021-03-01")), chosen, strict=True)]
    seen = {reason.rule for one in decisions for reason in one.reasons}
    assert seen == set(Rule)
    for reason in (reason for one in decisions for reason in one.reasons):
        assert SOURCES[reason.rule] and len(reason.french()) > 10


@pytest.mark.parametrize(
    "change",
    [
        {"retention": {"immediate_years": 4}},
        {"retention": {"keep_years": 6}},
        {"retention": {"dose_years": 21}},
        {"retention": {"min_keep_days": 91}},
        {"site": {"profile": "hospital"}},
        {"site": {"name": "Centre"}},
        {"sites": [{"id": "a", "aets": ["CT1"]}]},
        {"sites": [{"id": "a", "stations": ["CT1"]}]},
    ],
)
def test_the_version_changes_with_whatever_a_date_depends_on(change: dict[str, Any]) -> None:
    def version(values: dict[str, Any]) -> str:
        settings = Settings.model_validate(values)
        return Policy(settings.retention, settings.all_sites).version

    assert version(change) != version({})
    assert len(version(change)) == 16


def test_the_version_stays_when_nothing_changes_that_a_date_depends_on() -> None:
    assert policy(purge_cap=5, tick_seconds=7, purge_notice_days=60).version == policy().version


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("19700101", ("1970-01-01", "1970-01-01")),
        ("1970.01.01", ("1970-01-01", "1970-01-01")),
        ("19700101120000+0100", ("1970-01-01", "1970-01-01")),
        ("197012", ("1970-12-01", "1970-12-31")),
        ("198002", ("1980-02-01", "1980-02-29")),
        ("1970", ("1970-01-01", "1970-12-31")),
        ("19701200", ("1970-12-01", "1970-12-31")),
        ("19700000", ("1970-01-01", "1970-12-31")),
        *((text, None) for text in ("", "X", "19700015", "19701301", "19700231", "197", "19700", "00000000", "٢٠٢٠")),
    ],
)
def test_a_date_spans_what_it_can_mean(text: str, days: tuple[str, str] | None) -> None:
    assert span(text) == (None if days is None else tuple(map(date.fromisoformat, days)))


def test_the_page_has_every_rule_and_the_defaults_of_the_gate() -> None:
    page = (Path(__file__).parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
    assert {rule for rule in Rule if f"| `{rule}` |" in page} == set(Rule)
    rows = re.findall(r"^\| ([A-Z]{2}) \| (.+) \|$", page, re.M)
    assert rows == [
        (name, f"{one.codec} | {one.ratio:g} | {one.min_psnr_db:g} | {one.min_ssim:g} | {one.max_error}")
        for name, one in QUALITY.items()
    ]


# -- whatever the facts are -----------------------------------------------------------------------------------------

DAYS = st.dates(date(1990, 1, 1), date(2060, 12, 31))
INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2060, 12, 31), timezones=st.just(UTC))
TEXTS = st.one_of(
    DAYS.map(lambda day: f"{day:%Y%m%d}"),
    DAYS.map(lambda day: f"{day:%Y%m}"),
    DAYS.map(lambda day: f"{day:%Y}"),
    st.sampled_from(["", "99999999", "00000000", "19000101", "20991231", "abc", "10000101"]),
)
SERIES = st.builds(
    SeriesFacts,
    modality=st.sampled_from(["CT", "MR", "SR", ""]),
    dates=st.lists(TEXTS, max_size=3).map(tuple),
    first_received=INSTANTS,
)
ENDED = st.builds(
    lambda since, days, removed: Hold(since, since + timedelta(days=days), removed),
    DAYS, st.integers(0, 5000), st.booleans(),
)  # fmt: skip
HOLDS = st.one_of(ENDED, st.builds(Hold, DAYS, st.none()))


@st.composite
def facts_of_any_kind(draw: st.DrawFn) -> Facts:
    received = sorted([draw(INSTANTS), draw(INSTANTS)])
    parts = [
        replace(one, first_received=min(max(one.first_received, received[0]), received[1]))
        for one in draw(st.lists(SERIES, max_size=3))
    ]
    return Facts(
        profile=draw(st.sampled_from(["liberal", "hospital"])),
        site="main",
        study_date=draw(TEXTS),
        series=tuple(parts),
        first_received=received[0],
        last_received=received[1],
        birth_date=draw(TEXTS),
        death_date=draw(TEXTS),
        last_visit=draw(st.none() | DAYS),
        holds=tuple(draw(st.lists(HOLDS, max_size=2))),
        dose_only=draw(st.booleans()),
    )


ANY = facts_of_any_kind()
POLICIES = st.builds(
    lambda years, immediate, days: policy(keep_years=years, immediate_years=immediate, min_keep_days=days),
    st.none() | st.integers(20, 60),
    st.integers(3, 10),
    st.integers(0, 400),
)


def no_shorter(later: Decision, earlier: Decision) -> bool:
    if later.online_until < earlier.online_until:
        return False
    return later.keep_until is None or (earlier.keep_until is not None and later.keep_until >= earlier.keep_until)


@given(ANY, POLICIES)
def test_no_study_goes_before_any_single_rule_lets_it(facts: Facts, chosen: Policy) -> None:
    decision = decide(facts, chosen)
    day, _ = exam_day(facts)
    years = 20 if facts.profile == "hospital" else 5
    kept = decision.keep_until or date.max
    assert kept >= add_years(day, years)
    assert kept >= local_day(facts.last_received) + timedelta(days=chosen.retention.min_keep_days)
    assert all(kept >= (hold.until or date.max) for hold in facts.holds if not hold.removed)
    if any(one.modality == "MR" for one in facts.series):
        assert kept >= date(day.year + 6, 1, 1)
    if facts.profile == "hospital":
        assert kept >= add_years(facts.last_visit or day, 20)
        born = span(facts.birth_date)
        assert kept >= (date.max if born is None else add_years(born[1], 28))
    assert decision.online_until >= add_years(day, 3)
    assert decision.keep_until == (
        None
        if any(reason.until is None for reason in decision.reasons)
        else max(reason.until for reason in decision.reasons if reason.until)
    )


@given(ANY)
def test_the_exam_is_never_dated_before_what_is_credible(facts: Facts) -> None:
    """Study Date where it can be true, and the first reception where it cannot."""
    day, _ = exam_day(facts)
    first = local_day(facts.first_received)
    said = span(facts.study_date)
    if said is not None and said[0] == said[1] and date(1971, 1, 1) <= said[0] <= first:
        assert day >= said[0]
    else:
        assert day >= first


@given(ANY, POLICIES, HOLDS)
def test_a_hold_never_shortens(facts: Facts, chosen: Policy, hold: Hold) -> None:
    assert no_shorter(decide(replace(facts, holds=(*facts.holds, hold)), chosen), decide(facts, chosen))


@given(ANY, POLICIES, SERIES)
def test_a_further_series_never_shortens(facts: Facts, chosen: Policy, one: SeriesFacts) -> None:
    first = facts.first_received
    one = replace(one, first_received=max(one.first_received, first))
    last = max(facts.last_received, one.first_received)
    more = replace(facts, series=(*facts.series, one), last_received=last)
    assert no_shorter(decide(more, chosen), decide(facts, chosen))


@given(ANY, POLICIES, DAYS)
def test_a_later_visit_never_shortens(facts: Facts, chosen: Policy, visit: date) -> None:
    later = replace(facts, last_visit=max(visit, facts.last_visit or visit))
    assert no_shorter(decide(later, chosen), decide(facts, chosen))


@given(ANY, POLICIES)
def test_a_hospital_keeps_at_least_as_long_as_a_practice(facts: Facts, chosen: Policy) -> None:
    assert no_shorter(
        decide(replace(facts, profile="hospital"), chosen), decide(replace(facts, profile="liberal"), chosen)
    )


@given(ANY, POLICIES)
def test_a_longer_policy_never_shortens(facts: Facts, chosen: Policy) -> None:
    said = chosen.retention
    longer = policy(
        keep_years=(said.keep_years or 20) + 1,
        immediate_years=said.immediate_years + 1,
        min_keep_days=said.min_keep_days + 1,
    )
    assert no_shorter(decide(facts, longer), decide(facts, chosen))


@given(ANY, POLICIES)
def test_without_what_blocks_there_is_a_day(facts: Facts, chosen: Policy) -> None:
    decision = decide(facts, chosen)
    assert decision.keep_until is None or decision.otherwise <= decision.keep_until
