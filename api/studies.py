"""Searching studies for people and scripts: what the desk and `/api/v1/studies` have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from archive.access import Actor
from archive.audit.record import Outcome
from archive.commitment import Promise, promises
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.errors import Rejected
from archive.index.asked import audit_query
from archive.index.match import Key
from archive.index.query import Query, find
from archive.lifecycle.compute import announced, explain
from archive.lifecycle.holds import Hold, list_holds
from archive.policy import local_day
from archive.studies import Study, describe

_NAME, _ID, _ISSUER, _BIRTH_DATE, _SEX = 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040
_DATE, _TIME, _ACCESSION, _UID = 0x00080020, 0x00080030, 0x00080050, 0x0020000D
_DESCRIPTION, _REFERRING, _MODALITIES = 0x00081030, 0x00080090, 0x00080061
_SERIES, _INSTANCES, _AVAILABILITY = 0x00201206, 0x00201208, 0x00080056
_WANT = frozenset(
    {_NAME, _ID, _ISSUER, _BIRTH_DATE, _SEX, _DATE, _TIME, _ACCESSION, _UID, _DESCRIPTION, _REFERRING, _MODALITIES}
    | {_SERIES, _INSTANCES, _AVAILABILITY}
)


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for; an empty field asks for nothing. Dates are YYYYMMDD, both included."""

    name: str = ""
    patient_id: str = ""
    accession: str = ""
    date_from: str = ""
    date_to: str = ""
    modality: str = ""

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def keys(self) -> tuple[Key, ...]:
        """The same as matching keys of PS3.4 C.2.2.2."""
        keys = []
        if name := name_pattern(self.name):
            keys.append(Key(_NAME, "PN", name))
        for tag, vr, value in (
            (_ID, "LO", self.patient_id),
            (_ACCESSION, "SH", self.accession),
            (_MODALITIES, "CS", self.modality),
        ):
            if value.strip():
                keys.append(Key(tag, vr, value.strip()))
        if self.date_from or self.date_to:
            keys.append(Key(_DATE, "DA", f"{self.date_from}-{self.date_to}"))
        return tuple(keys)


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One study in a list, in Unicode; names as DICOM writes them, dates YYYYMMDD; "" where nothing is known."""

    study: str
    patient_id: str
    issuer: str
    patient_name: str
    birth_date: str
    sex: str
    study_date: str
    study_time: str
    accession: str
    description: str
    referring_physician: str
    modalities: tuple[str, ...]
    series: int
    instances: int
    availability: str


def name_pattern(typed: str) -> str:
    """What somebody typed, as a PN key: `dupont anne` finds DUPONT^Anne, `dup` every DUPONT.

    Whoever writes `^`, `*` or `?` knows DICOM and is taken at their word.
    """
    words = re.split(r"[\s,]+", typed.strip().replace("\\", " "))
    text = "*".join(word for word in words if word)
    if not text or set(typed) & set("*?^="):
        return typed.strip()
    return f"{text}*"


def find_studies(
    archive: Archive, search: Search, *, actor: Actor, limit: int, offset: int = 0
) -> tuple[list[StudyLine], bool]:
    """Studies that match, the newest first, and whether there are more. The query is audited (110112).

    Raises:
        InvalidQuery: a date or another value is none.
        IndexUnavailable: the database failed.
    """
    query = Query(Level.STUDY, search.keys(), _WANT, limit=limit + 1, offset=offset)
    parameters = {"query": {name: value for name, value in asdict(search).items() if value}}
    try:
        with archive.reading() as conn:
            rows = list(find(conn, query))
    except Rejected:
        audit_query(archive.commit, actor, parameters=parameters, outcome=Outcome.MINOR_FAILURE)
        raise
    audit_query(archive.commit, actor, parameters=parameters)
    return [line(row) for row in rows[:limit]], len(rows) > limit


def lines(archive: Archive, studies: Sequence[str]) -> list[StudyLine]:
    """The lines of these studies, for somebody who was shown them already (and audited).

    Raises:
        IndexUnavailable: the database failed.
    """
    if not studies:
        return []
    query = Query(Level.STUDY, (Key(_UID, "UI", "\\".join(studies)),), _WANT)
    with archive.reading() as conn:
        return [line(row) for row in find(conn, query)]


def described(archive: Archive, study: str, *, actor: Actor) -> Study | None:
    """What is held of one study; None when it is not known. That it was asked for is audited (110112).

    Raises:
        IndexUnavailable: the database failed.
    """
    uid = study[:64]
    with archive.reading() as conn:
        found = describe(conn, uid)
    patient = found.patient if found else None
    audit_query(archive.commit, actor, parameters={"query": {"study": uid}}, patient=patient, study=uid)
    return found


@dataclass(frozen=True, slots=True)
class Kept:
    """What becomes of a study: `keep_until` and `announced` as `/api/v1` gives them, the holds that stand, and to whom
    it was promised that it is kept."""

    keep_until: dict[str, Any]
    announced: dict[str, Any] | None
    holds: list[Hold]
    commitments: list[Promise]


def kept(archive: Archive, study: str) -> Kept:
    """The same, for somebody who was shown the study already (and audited).

    Raises:
        IndexUnavailable: the database failed.
    """
    with archive.reading() as conn:
        standing = list_holds(conn, study_instance_uid=study, today=local_day(archive.clock()))
        notice = announced(conn, study)
        promised = promises(conn, study)
    return Kept(explain(archive, study), notice, standing, promised)


def line(row: Mapping[str, Any]) -> StudyLine:
    """A study from the DICOM JSON of its attributes."""
    return StudyLine(
        study=text(row, _UID),
        patient_id=text(row, _ID),
        issuer=text(row, _ISSUER),
        patient_name=text(row, _NAME),
        birth_date=text(row, _BIRTH_DATE),
        sex=text(row, _SEX),
        study_date=text(row, _DATE),
        study_time=text(row, _TIME),
        accession=text(row, _ACCESSION),
        description=text(row, _DESCRIPTION),
        referring_physician=text(row, _REFERRING),
        modalities=tuple(str(value) for value in values(row, _MODALITIES)),
        series=int(text(row, _SERIES) or 0),
        instances=int(text(row, _INSTANCES) or 0),
        availability=text(row, _AVAILABILITY),
    )


def values(row: Mapping[str, Any], tag: int) -> list[Any]:
    """The values of an attribute in DICOM JSON; [] when it is absent or empty."""
    return [value for value in row.get(f"{tag:08X}", {}).get("Value", ()) if value is not None]


def text(row: Mapping[str, Any], tag: int) -> str:
    """The first value as text; of a name its first group that is not empty."""
    for value in values(row, tag)[:1]:
        if isinstance(value, Mapping):
            return str(next((group for group in value.values() if group), ""))
        return str(value)
    return ""
