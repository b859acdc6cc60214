"""Rules by which what arrives is sent on (`dicom.forward`): which are about an instance, and why.

Evaluated when an instance is filed; what a rule wants is written in the instance's own transaction
(`archive.sending` takes it from there), so that a crash loses neither. Without rules nothing is done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import groupby

import orjson
from sqlalchemy import Connection, func, select

from archive.config import Settings
from archive.dicom.attributes import Level
from archive.dicom.header import Header
from archive.instance import CURRENT
from archive.schema import instance, sending, series, study
from archive.schema.upsert import insert
from archive.sections import Forward
from archive.sites import site_of

_MODALITY, _STATION, _INSTITUTION = "00080060", "00081010", "00080080"
_DESCRIPTION = "00081030"


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules ask of an instance. `calling_ae` is who sent it; "" when it came otherwise than over DICOM."""

    calling_ae: str
    modality: str
    station: str
    institution: str
    sop_class_uid: str
    study_description: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule makes of an instance, and why."""

    rule: Forward
    sends: bool
    why: str


def facts_of(header: Header, calling_ae: str) -> Facts:
    """The facts of an instance that arrives."""
    return facts(header.levels[Level.STUDY], header.levels[Level.SERIES], header.sop_class_uid, calling_ae)


def facts(study: dict[str, object], series: dict[str, object], sop_class_uid: str, calling_ae: str) -> Facts:
    """The same, from the DICOM JSON of a study and a series."""
    return Facts(
        calling_ae=calling_ae,
        modality=_text(series, _MODALITY),
        station=_text(series, _STATION),
        institution=_text(series, _INSTITUTION),
        sop_class_uid=sop_class_uid,
        study_description=_text(study, _DESCRIPTION),
    )


def _text(level: dict[str, object], key: str) -> str:
    element = level.get(key)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0] or "").strip() if values else ""


def judge(settings: Settings, rule: Forward, facts: Facts) -> Verdict:
    """Whether a rule sends such an instance, and why or why not."""
    peer = settings.dicom.peers[rule.to]
    if facts.calling_ae and facts.calling_ae == (peer.ae_title or rule.to):
        return Verdict(rule, False, f"it came from {facts.calling_ae} itself")
    when = rule.when
    met: list[str] = []
    for name, wanted, said in (
        ("Modality", when.modalities, facts.modality),
        ("calling AE title", when.calling_aets, facts.calling_ae),
        ("Station Name", when.stations, facts.station),
        ("SOP Class", when.sop_classes, facts.sop_class_uid),
    ):
        if wanted and said not in wanted:
            return Verdict(rule, False, f"{name} is {said or 'not known'}")
        met += [f"{name} is {said}"] if wanted else []
    if when.sites:
        source = f"network:{facts.calling_ae}" if facts.calling_ae else ""
        site = site_of(settings.all_sites, source=source, stations=[facts.station], institutions=[facts.institution]).id
        if site not in when.sites:
            return Verdict(rule, False, f"the site is {site}")
        met.append(f"the site is {site}")
    if when.study_description:
        if not _pattern(when.study_description).fullmatch(facts.study_description):
            return Verdict(rule, False, f"Study Description is not {when.study_description}")
        met.append(f"Study Description is {when.study_description}")
    return Verdict(rule, True, ", ".join(met) or "the rule takes everything")


@lru_cache(maxsize=256)
def _pattern(wild: str) -> re.Pattern[str]:
    """Without regard to case, as people write descriptions."""
    parts = ({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in wild)
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a rule makes of instances of one study."""

    study_instance_uid: str
    rule: str
    to: str
    sends: bool
    instances: int
    why: str


def foresee(
    conn: Connection, settings: Settings, *, study_uid: str | None = None, since: datetime | None = None
) -> Iterator[Foreseen]:
    """What the rules would do with what is held if it arrived now; of one study, or of what was received since then.
    Nothing is sent. Rules that are not enabled are tried too."""
    wanted = (
        select(
            study.c.study_instance_uid,
            study.c.attributes.label("study"),
            series.c.attributes.label("series"),
            instance.c.sop_class_uid,
            instance.c.source,
            func.count().label("instances"),
        )
        .select_from(study.join(series).join(instance))
        .where(instance.c.state.in_(sorted(CURRENT)))
        .group_by(study.c.pk, series.c.pk, instance.c.sop_class_uid, instance.c.source)
        .order_by(study.c.pk, series.c.pk)
    )
    if study_uid is not None:
        wanted = wanted.where(study.c.study_instance_uid == study_uid)
    if since is not None:
        wanted = wanted.where(instance.c.received_at >= since)
    for uid, rows in groupby(conn.execute(wanted), key=lambda row: row.study_instance_uid):
        found: dict[tuple[str, str, bool, str], int] = {}
        for row in rows:
            calling_ae = row.source.removeprefix("network:") if row.source.startswith("network:") else ""
            said = facts(orjson.loads(row.study), orjson.loads(row.series), row.sop_class_uid, calling_ae)
            for rule in settings.dicom.forward:
                verdict = judge(settings, rule, said)
                why = verdict.why if rule.enabled else f"not enabled; {verdict.why}"
                key = (rule.name, rule.to, verdict.sends and rule.enabled, why)
                found[key] = found.get(key, 0) + row.instances
        for (name, to, sends, why), instances in found.items():
            yield Foreseen(uid, name, to, sends, instances, why)


def wanted_by(settings: Settings, header: Header, calling_ae: str) -> tuple[str, ...]:
    """The names of the rules that send an instance on."""
    if not settings.dicom.forward:
        return ()
    said = facts_of(header, calling_ae)
    return tuple(rule.name for rule in settings.dicom.forward if rule.enabled and judge(settings, rule, said).sends)


def owe(conn: Connection, rules: Sequence[str], header: Header, *, at: datetime) -> None:
    """Write down that rules send an instance on, in the transaction that files it; once for each. `at` is real time."""
    if not rules:
        return
    row = {
        "study_instance_uid": header.study_instance_uid,
        "sop_instance_uid": header.sop_instance_uid,
        "state": "waiting",
        "at": at,
    }
    conn.execute(insert(conn, sending).on_conflict_do_nothing(), [{**row, "rule": rule} for rule in rules])
