"""Asking a patient demographics supplier who somebody is (PDQ consumer, ITI-21; REQ-HL7-93): for a person to compare.

What it says is shown and forgotten: nothing of it is kept or overwrites what is known here. The HL7 edge asks
(`hl7_listener.consumer`); whoever wants to know owes it a job, which is gone with its answer, or soon after whoever
owed it is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from archive import jobs
from archive.access import Actor
from archive.audit.record import Event, record
from archive.core import Archive
from archive.errors import InvalidRequest, NotFound
from archive.identity import patients
from archive.identity.acts import PatientKey

KIND = "hl7.pdq"
PATIENCE = 4  # times the patience for one answer: an answer may come in several pages
MOST_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of somebody; "" what is not. `birth_date` YYYY[MM[DD]], `sex` of HL7 table 0001; `*` in names
    stands for any text."""

    family: str = ""
    given: str = ""
    birth_date: str = ""
    sex: str = ""
    identifier: str = ""
    authority: str = ""  # of the identifier: namespace or OID

    def demand(self) -> None:
        """Raises InvalidRequest unless these say something, and nothing of more than 64 characters."""
        if not any((self.family, self.given, self.birth_date, self.identifier)):
            raise InvalidRequest("say a name, a birth date or an identifier")
        if any(len(value) > MOST_CHARACTERS for value in asdict(self).values()):
            raise InvalidRequest(f"values have {MOST_CHARACTERS} characters at most")


def is_on(archive: Archive) -> bool:
    """Whether there is somebody to ask."""
    return bool(archive.settings.hl7.supplier.host)


def demand_supplier(archive: Archive) -> None:
    """Raises NotFound when there is nobody to ask."""
    if not is_on(archive):
        raise NotFound("no supplier of demographics is configured: hl7.supplier.host")


def look_up(archive: Archive, traits: Traits, *, actor: Actor) -> dict[str, Any]:
    """Whom the supplier finds: `items`, and whether these are `complete`. Each has `here`: how the archive knows one of
    their identifiers. That it was asked is audited (110112, ITI-21).

    Raises:
        InvalidRequest: nothing is asked for.
        NotFound: there is nobody to ask.
        Busy: it does not answer in time, or refuses; nothing was changed.
    """
    demand_supplier(archive)
    traits.demand()
    forget_left(archive)
    found = jobs.ask(
        archive,
        KIND,
        {**asdict(traits), "once": True},
        seconds=_patience(archive),
        also=partial(audit_look_up, traits=traits, actor=actor),
        forget=True,
    )
    return {**found, "items": compared(archive, found.get("items", []))}


def forget_left(archive: Archive) -> None:
    """Delete questions and answers whose asker died while it waited."""
    jobs.forget_left(archive, KIND, seconds=_patience(archive))


def _patience(archive: Archive) -> float:
    return archive.settings.hl7.supplier.seconds * PATIENCE


def audit_look_up(conn: Connection, *, traits: Traits, actor: Actor) -> None:
    """The audit row of a query that leaves the house: who asked what."""
    asked = {name: value for name, value in asdict(traits).items() if value}
    record(conn, actor, Event.QUERY, "E", detail={"type": "ITI-21", "query": asked, "asked": "supplier"})


def compared(archive: Archive, items: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same, each with `here`: `known` by one of its identifiers as it is, `merged`, or "" not at all."""
    found = []
    with archive.reading() as conn:
        for one in items:
            keys = [PatientKey(it["value"], it["issuer"]) for it in one["identifiers"]]
            rows = [row for key in keys if (row := patients.find(conn, key)) is not None]
            merged = bool(rows) and all(row.merged_into_pk is not None for row in rows)
            found.append({**one, "here": "merged" if merged else "known" if rows else ""})
    return found
