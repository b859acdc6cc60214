"""What the RIS or a person says of a patient or a study, put over what came with the images (REQ-DCM-70).

Files never change (law 3). The index gives the corrected attributes to queries; `corrections` keeps them for every way
out: JSON `{"at": …, "reason": "COERCE" or "CORRECT", "attributes": DICOM JSON}`. An element without `Value` is one that
is to leave empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, bindparam, select, update

from archive.dicom.attributes import ATTRIBUTES, Level, Match
from archive.dicom.keys import normalise
from archive.index.match import name_key
from archive.schema import patient, study
from archive.schema.prepared import Prepared

Reason = Literal["COERCE", "CORRECT"]  # Reason for the Attribute Modification (0400,0565)

_TABLES = {Level.PATIENT: patient, Level.STUDY: study}
_FIXED = frozenset({"patient_id", "issuer", "study_instance_uid"})  # columns that name the row: never corrected here
_FORGET = Prepared(update(study).where(study.c.patient_pk == bindparam("of_patient_pk")).values(policy_version=None))


def correct_patient(conn: Connection, pk: int, attributes: Mapping[str, Any], *, reason: Reason, at: datetime) -> None:
    """Say what the patient's attributes are, as DICOM JSON: all that are known, not a difference to the last time."""
    _correct(conn, Level.PATIENT, pk, attributes, reason=reason, at=at)
    facts_changed(conn, pk)


def correct_study(conn: Connection, pk: int, attributes: Mapping[str, Any], *, reason: Reason, at: datetime) -> None:
    """The same of a study. No attributes: it leaves as it came."""
    _correct(conn, Level.STUDY, pk, attributes, reason=reason, at=at)
    # the others of its patient too: hospitals count from the last visit
    facts_changed(conn, conn.execute(select(study.c.patient_pk).where(study.c.pk == pk)).scalar_one())


def move_studies(conn: Connection, *, loser_pk: int, survivor_pk: int) -> list[str]:
    """Every study of the loser becomes the survivor's; returns their UIDs."""
    mine = study.c.patient_pk == loser_pk
    uids = list(conn.execute(select(study.c.study_instance_uid).where(mine).order_by(study.c.pk)).scalars())
    conn.execute(update(study).where(mine).values(patient_pk=survivor_pk))
    facts_changed(conn, survivor_pk)
    return uids


def facts_changed(conn: Connection, patient_pk: int) -> None:
    """Something that retention depends on: the patient's studies are kept until it is computed anew (sheet 00 §8)."""
    _FORGET.run(conn, {"of_patient_pk": patient_pk})


def _correct(
    conn: Connection, level: Level, pk: int, attributes: Mapping[str, Any], *, reason: Reason, at: datetime
) -> None:
    table = _TABLES[level]
    row = conn.execute(select(table.c.attributes, table.c.received_attributes).where(table.c.pk == pk)).one()
    received = row.received_attributes or row.attributes
    merged = {**orjson.loads(received), **attributes}
    shown = {key: merged[key] for key in sorted(merged)}
    corrections = {"at": at, "reason": reason, "attributes": dict(attributes)}
    conn.execute(
        update(table)
        .where(table.c.pk == pk)
        .values(
            received_attributes=received,
            attributes=orjson.dumps(shown).decode(),
            corrections=orjson.dumps(corrections).decode() if attributes else None,
            **_columns(level, shown),
        )
    )


def _columns(level: Level, shown: Mapping[str, Any]) -> dict[str, str | int | None]:
    """The normalised keys of a level's attributes."""
    found: dict[str, str | int | None] = {}
    for attribute in ATTRIBUTES:
        if attribute.level is not level or attribute.column is None or attribute.column in _FIXED:
            continue
        values = (shown.get(attribute.key) or {}).get("Value") or ()
        if attribute.match is Match.NAME:
            found[attribute.column] = "\\".join(name_key(value) for value in values)
        else:
            found[attribute.column] = normalise("\\".join(str(value) for value in values), attribute.match)
    return found
