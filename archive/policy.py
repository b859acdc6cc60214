"""How long a study is kept, and how long on site: the rules of sheet 00 §8. Pure: facts in, dates and reasons out.

The only place, with `archive.compliance`, where instants become days of Europe/Paris (law 6). A date that this module
gives is the first day on which something may happen. In doubt it keeps (law 7): what is unknown, or cannot be true,
never makes a date earlier. No result depends on the present day, so a date stays right until a fact changes.

Sources: annexe 5 of the UNCAM decision of 28/09/2011 (REQ-CDC-03 to 06), CSP R.1112-7 (REQ-CDC-05), circular 90/31 of
28/12/1990 for MRI (REQ-CDC-76), and the settings, which only add to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Literal
from zoneinfo import ZoneInfo

from archive.sections import KEEP_YEARS, OneSite, Retention

REVISION = 1  # raised whenever this module decides otherwise: every study is then computed anew
PARIS = ZoneInfo("Europe/Paris")

# Radiation dose reports outlive the images (IHE REM, RAD TF-1:22): X-Ray, radiopharmaceutical, patient, enhanced X-Ray.
DOSE_REPORTS = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{last}" for last in (67, 68, 73, 76))

VISIT_YEARS = 20  # CSP R.1112-7
MINORITY_YEARS = 28
DEATH_YEARS = 10
MRI_YEARS = 5  # after the year of the exam (circular 90/31, art. 10)

_FIRST_EXAM = date(1971, 1, 1)  # older than computed tomography: a value that fills a field, not a date
_OLDEST_YEARS = 110  # an older patient is a birth date that nobody knew
_AHEAD = timedelta(days=1)  # an exam in La Réunion is dated a day ahead of its reception in Paris


class Rule(StrEnum):
    """Why a study is kept. Stable: stored, and read by others."""

    LIBERAL = "liberal_5_years"
    HOSPITAL = "hospital_20_years"
    CONFIGURED = "configured_years"
    VISIT = "last_visit_20_years"
    MINOR = "until_28th_birthday"
    BIRTH_UNKNOWN = "birth_date_unknown"
    DEATH = "death_10_years"
    SUSPENDED = "hold_suspends"  # a hold stopped the clocks of R.1112-7 while it lasted
    MRI = "mri_5_years"
    DOSE = "dose_report"
    RECEPTION = "recent_reception"
    HOLD = "hold"


SOURCES = {
    Rule.LIBERAL: "Annexe 5 §3.1",
    Rule.HOSPITAL: "Annexe 5 §3.1",
    Rule.CONFIGURED: "retention.keep_years",
    Rule.VISIT: "CSP R.1112-7",
    Rule.MINOR: "CSP R.1112-7",
    Rule.BIRTH_UNKNOWN: "CSP R.1112-7",
    Rule.DEATH: "CSP R.1112-7",
    Rule.SUSPENDED: "CSP R.1112-7",
    Rule.MRI: "Circulaire 90/31 art. 10",
    Rule.DOSE: "retention.dose_years",
    Rule.RECEPTION: "retention.min_keep_days",
    Rule.HOLD: "hold",
}
BLOCKS = frozenset({Rule.HOLD, Rule.BIRTH_UNKNOWN})  # what a person can end
_FRENCH = {
    Rule.LIBERAL: "cabinet libéral : 5 ans",
    Rule.HOSPITAL: "établissement de santé : 20 ans",
    Rule.CONFIGURED: "durée plus longue choisie par le site",
    Rule.VISIT: "dernier passage du patient : 20 ans au moins",
    Rule.MINOR: "patient mineur : jusqu’à son 28e anniversaire",
    Rule.BIRTH_UNKNOWN: "date de naissance inconnue : conservé comme pour un mineur",
    Rule.DEATH: "décès du patient : 10 ans",
    Rule.SUSPENDED: "délais suspendus pendant une mise sous conservation",
    Rule.MRI: "IRM : les 5 années qui suivent celle de l’examen",
    Rule.DOSE: "compte rendu de dose de rayonnement",
    Rule.RECEPTION: "reçu récemment : délai après la réception",
    Rule.HOLD: "mise sous conservation",
}
_FRENCH_BASIS = {
    "exam": "examen",
    "series": "série plus récente",
    "reception": "réception",
    "visit": "dernier passage",
    "birth": "naissance",
    "death": "décès",
    "hold": "mise sous conservation",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that applies: since which day it counts, and the first day on which it lets go (None: not by itself)."""

    rule: Rule
    since: date | None
    until: date | None
    basis: str = ""  # what happened on `since`: exam, series, reception, visit, birth, death, hold

    @property
    def blocks(self) -> bool:
        return self.rule in BLOCKS

    def shape(self) -> dict[str, str | None]:
        """As stored and as `/api/v1` gives it."""
        return {
            "rule": str(self.rule),
            "since": None if self.since is None else self.since.isoformat(),
            "basis": self.basis,
            "until": None if self.until is None else self.until.isoformat(),
            "source": SOURCES[self.rule],
            "text": self.french(),
        }

    def french(self) -> str:
        """The same for a person."""
        said = _FRENCH[self.rule]
        if self.since is not None and self.basis:
            said += f" ({_FRENCH_BASIS[self.basis]} du {self.since:%d/%m/%Y})"
        return said if self.until is None else f"{said}, jusqu’au {self.until - timedelta(days=1):%d/%m/%Y} inclus"


@dataclass(frozen=True, slots=True)
class Decision:
    """Until when a study is kept, and why; the latest reasons first."""

    keep_until: date | None  # the first day it may go; None: no day is known, it stays
    online_until: date  # the first day its images may leave the hot tier, or become lossy
    reasons: tuple[Reason, ...]

    @property
    def otherwise(self) -> date:
        """`keep_until` were it not for what blocks."""
        return max(reason.until for reason in self.reasons if reason.until is not None and not reason.blocks)


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """What is known of one series. Lossy copies made by the archive are no series of the exam."""

    modality: str
    dates: tuple[str, ...]  # every date of acquisition that its headers name, as DICOM writes them
    first_received: datetime


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold, of now or of the past: from the day it was placed to the day it ended or ends."""

    since: date
    until: date | None  # the first day without it; None: until somebody removes it
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the dates of a study depend on. Dates as text are DICOM or HL7 dates, perhaps partial; "" is unknown."""

    profile: Literal["liberal", "hospital"]
    site: str
    study_date: str
    series: tuple[SeriesFacts, ...]
    first_received: datetime
    last_received: datetime
    birth_date: str = ""
    death_date: str = ""
    last_visit: date | None = None  # of the patient, in any study
    holds: tuple[Hold, ...] = ()
    dose_only: bool = False  # nothing but radiation dose reports is left


@dataclass(frozen=True)
class Policy:
    """The settings that the dates depend on."""

    retention: Retention
    sites: tuple[OneSite, ...]

    @cached_property
    def version(self) -> str:
        """Sixteen characters; others as soon as anything has changed that a date depends on."""
        said = self.retention
        values = (said.immediate_years, said.keep_years, said.dose_years, said.min_keep_days)
        sites = [(one.id, one.name, one.profile, one.aets, one.stations) for one in self.sites]
        text = json.dumps([REVISION, KEEP_YEARS, values, sites], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def keep_years(self, profile: str) -> int:
        """Never below the floor of the profile."""
        return max(self.retention.keep_years or 0, KEEP_YEARS[profile])


def decide(facts: Facts, policy: Policy) -> Decision:
    """Until when the study is kept (sheet 00 §8): the latest of all rules that apply."""
    exam, basis = exam_day(facts)
    reasons = [*_by_profile(facts, policy, exam, basis), *_by_content(facts, policy, exam, basis)]
    received = local_day(facts.last_received)
    reception = add_days(received, policy.retention.min_keep_days)
    online = add_years(exam, policy.retention.immediate_years)
    if received >= online or reception > max(reason.until or date.min for reason in reasons):  # DD-25
        reasons.append(Reason(Rule.RECEPTION, received, reception, "reception"))
    reasons.extend(Reason(Rule.HOLD, hold.since, hold.until, "hold") for hold in facts.holds if not hold.removed)
    reasons.sort(key=lambda reason: reason.until or date.max, reverse=True)
    dates = [reason.until for reason in reasons]
    known = [day for day in dates if day is not None]
    return Decision(max(known) if len(known) == len(dates) else None, online, tuple(reasons))


def exam_day(facts: Facts) -> tuple[date, str]:
    """The day that everything counts from, and what it is: `exam`, `series` (a later one), or `reception`.

    Study Date, unless it is absent, or cannot be true: then the first reception (DD-22). A later series counts from
    its own date, or from its reception where its date cannot be true, or where it has none and came on a later day.
    """
    first = local_day(facts.first_received)
    found: list[tuple[date, str]] = []
    studied = whole_day(facts.study_date)
    born = span(facts.birth_date)
    if studied is not None and _sound(studied, first):
        found.append((studied, "exam"))
    if not found or (born is not None and found[0][0] < born[0]):
        found.append((first, "reception"))
    for one in facts.series:
        received = local_day(one.first_received)
        days = [day for text in one.dates if (day := whole_day(text)) is not None]
        sound = [day for day in days if _sound(day, received)]
        found.extend((day, "series") for day in sound)
        if any(day > received + _AHEAD for day in days) or (not sound and received > first):
            found.append((received, "reception"))
    latest = max(day for day, _ in found)
    return latest, next(basis for day, basis in found if day == latest)


def _sound(day: date, received: date) -> bool:
    """Whether an exam of that day can have been received on the other one."""
    return _FIRST_EXAM <= day <= received + _AHEAD


def _by_profile(facts: Facts, policy: Policy, exam: date, basis: str) -> Iterable[Reason]:
    """The time of keeping of the exam's site; for hospitals also R.1112-7 (DD-02)."""
    years = policy.keep_years(facts.profile)
    floor = KEEP_YEARS[facts.profile]
    hospital = facts.profile == "hospital"
    yield Reason(Rule.HOSPITAL if hospital else Rule.LIBERAL, exam, add_years(exam, floor), basis)
    if years > floor:
        yield Reason(Rule.CONFIGURED, exam, add_years(exam, years), basis)
    if not hospital:
        return
    clocks = list(_by_person(facts, exam, years=max(years, VISIT_YEARS)))
    yield from clocks
    stopped = _days_of([hold for hold in facts.holds if hold.until is not None])
    if stopped:
        end = max(reason.until for reason in clocks if reason.until is not None)
        yield Reason(Rule.SUSPENDED, min(hold.since for hold in facts.holds), add_days(end, stopped), "hold")


def _by_person(facts: Facts, exam: date, *, years: int) -> Iterable[Reason]:
    """CSP R.1112-7: last visit, 28th birthday, death."""
    visit = max(exam, facts.last_visit or exam)
    yield Reason(Rule.VISIT, visit, add_years(visit, years), "visit")
    born = _birth(facts, exam)
    if born is None:
        yield Reason(Rule.BIRTH_UNKNOWN, None, None, "birth")  # a minor today, and tomorrow (rule 6)
    elif add_years(born, MINORITY_YEARS) > add_years(visit, years):
        yield Reason(Rule.MINOR, born, add_years(born, MINORITY_YEARS), "birth")
    died = span(facts.death_date)
    if died is not None and died[0] < add_years(visit, DEATH_YEARS):
        yield Reason(Rule.DEATH, died[1], add_years(died[1], DEATH_YEARS), "death")


def _birth(facts: Facts, exam: date) -> date | None:
    """The last day on which the patient can have been born; None when that is not known."""
    born = span(facts.birth_date)
    if born is None or born[0] > local_day(facts.first_received) or add_years(born[1], _OLDEST_YEARS) < exam:
        return None
    return born[1]


def _by_content(facts: Facts, policy: Policy, exam: date, basis: str) -> Iterable[Reason]:
    if any(one.modality == "MR" for one in facts.series):
        yield Reason(Rule.MRI, exam, _year(exam.year + 1 + MRI_YEARS), basis)
    if facts.dose_only:
        yield Reason(Rule.DOSE, exam, dose_until(facts, policy), basis)


def dose_until(facts: Facts, policy: Policy) -> date:
    """The first day on which the radiation dose reports of a study may go, whatever becomes of its images."""
    return add_years(exam_day(facts)[0], policy.retention.dose_years)


def grace_days(facts: Facts, policy: Policy) -> int:
    """How many days the originals stay beside their verified lossy copies; longer for a study that was old when it
    was received (DD-25)."""
    online = add_years(exam_day(facts)[0], policy.retention.immediate_years)
    late = online <= local_day(facts.last_received)
    return policy.retention.originals_grace_days + (policy.retention.min_online_days if late else 0)


def _days_of(holds: Sequence[Hold]) -> int:
    """The days that at least one of these holds covered; each has an end."""
    days, covered = 0, date.min
    for hold in sorted(holds, key=lambda one: one.since):
        end = hold.until or hold.since
        days += max(0, (end - max(hold.since, covered)).days)
        covered = max(covered, end)
    return days


def local_day(instant: datetime) -> date:
    """The day of an aware instant in Europe/Paris."""
    return instant.astimezone(PARIS).date()


def local_time(instant: datetime) -> datetime:
    """An aware instant by the clock of the practice: for dates and times that objects, pages and papers carry."""
    return instant.astimezone(PARIS)


def add_years(day: date, years: int) -> date:
    """The same day, years later; 29 February counts to 1 March where there is none, never earlier."""
    if day.year + years > date.max.year:
        return date.max
    try:
        return day.replace(year=day.year + years)
    except ValueError:
        return date(day.year + years, 3, 1)


def add_days(day: date, days: int) -> date:
    """Days later; the end of the calendar at most."""
    return day + timedelta(days=min(days, (date.max - day).days))


def _year(year: int) -> date:
    return date(year, 1, 1) if year <= date.max.year else date.max


def sound_day(text: str, received: datetime) -> date | None:
    """The day of an exam that was received then; None when the text names none, or one that cannot be true."""
    day = whole_day(text)
    return day if day is not None and _sound(day, local_day(received)) else None


def whole_day(text: str) -> date | None:
    """The day that a DICOM date names; None when it names none."""
    found = span(text)
    return found[0] if found is not None and found[0] == found[1] else None


def span(text: str) -> tuple[date, date] | None:
    """The first and the last day that a date can mean: `19700101`, `197001`, `1970`, with zeros for what is unknown,
    a time behind it or separators in it. None when it is no date."""
    digits = text.strip().replace("-", "").replace(".", "").replace("/", "")[:8]
    if not (digits.isascii() and digits.isdigit()) or len(digits) not in (4, 6, 8):
        return None
    year, month, day = int(digits[:4]), int(digits[4:6] or 0), int(digits[6:] or 0)
    try:
        if not month:
            return (date(year, 1, 1), date(year, 12, 31)) if not day else None
        if not day:
            after = _year(year + 1) if month == 12 else date(year, month + 1, 1)
            return date(year, month, 1), after - timedelta(days=1)
        return date(year, month, day), date(year, month, day)
    except ValueError:
        return None
