"""The modality worklist: each open step of an order as an item, found by its keys (PS3.4 Annex K, REQ-DCM-52).

Dates, stations, modalities, numbers and patients are looked for in indexed columns, so the cost follows the day's work
and not the orders of all years; the few rows that remain are matched whole, by the rules of `archive.index.match`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from archive.dicom.attributes import BY_KEYWORD
from archive.errors import IndexUnavailable
from archive.index.aliases import survivors
from archive.index.conditions import Parameters, Shape, build, condition, off_index, text_condition
from archive.index.match import Between, Exact, Key, Wild, accepts, criterion, row_meets
from archive.schema import imaging_order, patient
from archive.workflow.item import (
    ACCESSION_NUMBER,
    BIRTH_DATE,
    ISSUER,
    MODALITY,
    PATIENT_ID,
    PATIENT_NAME,
    PRIORITY,
    PROCEDURE_DESCRIPTION,
    PROCEDURE_ID,
    SEX,
    START_DATE,
    START_TIME,
    STATION_AE,
    STATION_NAME,
    STEP,
    STEP_ID,
    STEP_STATUS,
    STUDY_UID,
    TERMS,
    Row,
    item_of,
)
from archive.workflow.steps import IN_WORKLIST, Status

PAGE = 200  # rows fetched at a time
# One value has to match, although VR and service know no lists: some modalities ask for two stations at once.
_LISTED = frozenset({STATION_AE, MODALITY, STEP_STATUS})
_PLAIN = {ACCESSION_NUMBER: "accession_number", STUDY_UID: "study_instance_uid"}
_PLAIN_OF_REQUEST = {
    "accession_number": ACCESSION_NUMBER,
    "study_uid": STUDY_UID,
    "requested_procedure_id": PROCEDURE_ID,
    "description": PROCEDURE_DESCRIPTION,
    "priority": PRIORITY,
    "patient_id": PATIENT_ID,
    "issuer": ISSUER,
    "patient_name": PATIENT_NAME,
    "birth_date": BIRTH_DATE,
    "sex": SEX,
}
_PLAIN_OF_STEP = {
    "step_id": STEP_ID,
    "start_date": START_DATE,
    "start_time": START_TIME,
    "modality": MODALITY,
    "station_name": STATION_NAME,
    "status": STEP_STATUS,
}
_COLUMNS = (
    *(imaging_order.c[name] for name in ("accession_number", "step_id", "study_instance_uid", "status", "record")),
    patient.c.attributes,
)


@dataclass(frozen=True, slots=True)
class Query:
    """What to find. `keys` must all match; those of the step are the items of Scheduled Procedure Step Sequence.

    `stations` are the AE titles of the site and what each performs: a step that names no station is offered to them
    (`archive.workflow.item`). `limit` None is all.
    """

    keys: tuple[Key, ...] = ()
    stations: Mapping[str, frozenset[str]] = field(default_factory=dict)
    limit: int | None = None


def find(conn: Connection, query: Query) -> Iterator[Row]:
    """The items that match, as DICOM JSON, in the order in which their steps are to start.

    Unless the status is asked for, only steps that nobody has begun. Dates and times are one interval, as PS3.4 Table
    K.6-1 has it.

    Raises:
        InvalidQuery: a key's value is none of its VR.
        IndexUnavailable: the database failed.
    """
    step = next((key.items for key in query.keys if key.tag == STEP), ())
    others = tuple(key for key in query.keys if key.tag != STEP)
    parameters = Parameters()
    try:
        where, others = _of_request(conn, others, parameters)
        found, step = _of_step(step, parameters)
        # an accession number, a study or a patient is found by itself; else the day's work is
        where += [off_index(shape) for shape in found] if where else found
        statement = (
            select(*_COLUMNS)
            .join(patient, patient.c.pk == imaging_order.c.patient_pk)
            .where(*(build(shape) for shape in where))
            .order_by(imaging_order.c.start_date, imaging_order.c.start_time, imaging_order.c.pk)
        )
        options = {"stream_results": True, "max_row_buffer": PAGE}
        result = conn.execute(statement, parameters.values, execution_options=options)
        try:
            count = 0
            for row in result:
                item = item_of(row, query.stations)
                if not row_meets(others, item) or not _step_meets(step, item):
                    continue
                yield item
                count += 1
                if count == query.limit:
                    return
        finally:
            result.close()
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error


def _of_request(conn: Connection, keys: tuple[Key, ...], parameters: Parameters) -> tuple[list[Shape], tuple[Key, ...]]:
    """What narrows orders down by keys outside the step, and the keys that rows are still to be matched with."""
    where: list[Shape] = []
    asked = {key.tag: criterion(key) for key in keys if key.vr != "SQ"}
    identifier, issuer = asked.get(PATIENT_ID), asked.get(ISSUER)
    if isinstance(identifier, Exact):
        issued = lambda written: issuer is None or accepts(issuer, "LO", [written])  # noqa: E731
        pks = survivors(conn, identifier.values, issued=issued)
        if pks is not None:  # an identifier that was merged away stands for whoever survived
            where.append(("in", "patient.pk", parameters.add(pks)))
            keys = tuple(key for key in keys if key.tag not in (PATIENT_ID, ISSUER))
        else:
            where.append(text_condition("patient.patient_id", identifier, parameters))
    elif isinstance(identifier, Wild):
        where.append(text_condition("patient.patient_id", identifier, parameters))
    name = asked.get(PATIENT_NAME)
    if name is not None:
        shape, _ = condition(BY_KEYWORD["PatientName"], name, parameters)
        where += [shape] if shape else []
    for key in keys:
        wanted = asked.get(key.tag)
        if key.tag in _PLAIN and wanted is not None:
            where.append(text_condition(f"imaging_order.{_PLAIN[key.tag]}", wanted, parameters))
    return where, keys


def _of_step(keys: tuple[Key, ...], parameters: Parameters) -> tuple[list[Shape], tuple[Key, ...]]:
    """The same of keys of the step: status always narrows, and date and time are settled by the index."""
    where: list[Shape] = [_status(next((key for key in keys if key.tag == STEP_STATUS), None), parameters)]
    by_tag = {key.tag: key for key in keys}
    days, times = (criterion(by_tag[tag]) if tag in by_tag else None for tag in (START_DATE, START_TIME))
    if isinstance(days, Between) and isinstance(times, Between):
        where += _interval(days, times, parameters)
    elif isinstance(days, Between):
        where.append(text_condition("imaging_order.start_date", days, parameters))
    elif isinstance(times, Between):
        where.append(text_condition("imaging_order.start_time", times, parameters))
    for tag, column in ((MODALITY, "modality"), (STATION_AE, "station_ae")):
        if tag not in by_tag:
            continue
        values = tuple(one.value.strip() for one in _alternatives(by_tag[tag]))
        if any(not value.strip("*") or "?" in value or "*" in value for value in values):
            continue
        choices: list[Shape] = [("in", f"imaging_order.{column}", parameters.add(list(values)))]
        if tag == STATION_AE:  # several, or none of its own: the rows are looked at
            choices += [("eq", "imaging_order.station_ae", parameters.add(""))]
            choices += [("like", "imaging_order.station_ae", parameters.add("%\\%"))]
        where.append(("or", *choices))
    return where, tuple(key for key in keys if key.tag not in (START_DATE, START_TIME))


def _status(key: Key | None, parameters: Parameters) -> Shape:
    """Steps that nobody has begun, unless the request says which."""
    statuses = sorted(IN_WORKLIST)
    if key is not None and key.value.strip():
        wanted = [criterion(one) for one in _alternatives(key)]
        statuses = [one for one in Status if any(said is None or accepts(said, "CS", [TERMS[one]]) for said in wanted)]
    return ("in", "imaging_order.status", parameters.add([str(one) for one in statuses]))


def _interval(days: Between, times: Between, parameters: Parameters) -> list[Shape]:
    """From the first day's time to the last day's (PS3.4 Table K.6-1)."""
    columns = ("imaging_order.start_date", "imaging_order.start_time")
    if days.low == days.high or times.low == times.high:  # one day, or one moment of several days
        return [text_condition(column, one, parameters) for column, one in zip(columns, (days, times), strict=True)]
    ends: list[Shape] = []
    for operator, day, at in (("ge", days.low, times.low), ("le", days.high, times.high)):
        if day is not None and at is not None:
            ends.append((f"row_{operator}", columns, (parameters.add(day), parameters.add(at))))
        elif day is not None:
            ends.append((operator, columns[0], parameters.add(day)))
    return ends


def _alternatives(key: Key) -> tuple[Key, ...]:
    if key.tag not in _LISTED or "\\" not in key.value:
        return (key,)
    return tuple(key._replace(value=one) for one in key.value.split("\\") if one.strip())


def _step_meets(keys: tuple[Key, ...], item: Row) -> bool:
    (step,) = item[f"{STEP:08X}"]["Value"]
    return all(any(row_meets((one,), step) for one in _alternatives(key)) for key in keys)


def listed(
    conn: Connection,
    *,
    date: str = "",
    modality: str = "",
    station: str = "",
    accession: str = "",
    status: str = "",
    stations: Mapping[str, frozenset[str]],
    limit: int,
) -> list[dict[str, Any]]:
    """Items as people and scripts read them (`minipacs mwl list`); `status` "all" is any. Raises as `find`."""
    of_step = (
        Key(START_DATE, "DA", date),
        Key(MODALITY, "CS", modality),
        Key(STATION_AE, "AE", station),
        Key(STEP_STATUS, "CS", "*" if status == "all" else status),
    )
    keys = (Key(ACCESSION_NUMBER, "SH", accession), Key(STEP, "SQ", items=of_step))
    return [_plain(item) for item in find(conn, Query(keys, stations=stations, limit=limit))]


def _plain(item: Row) -> dict[str, Any]:
    (step,) = item[f"{STEP:08X}"]["Value"]
    plain = {name: _text(item, tag) for name, tag in _PLAIN_OF_REQUEST.items()}
    plain |= {name: _text(step, tag) for name, tag in _PLAIN_OF_STEP.items()}
    return {**plain, "station_aes": step.get(f"{STATION_AE:08X}", {}).get("Value", [])}


def _text(attributes: Mapping[str, Any], tag: int) -> str:
    value = next(iter(attributes.get(f"{tag:08X}", {}).get("Value") or ()), "")
    return str(value.get("Alphabetic", "")) if isinstance(value, Mapping) else str(value)
