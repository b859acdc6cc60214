"""`/api/v1`: radiation dose, of one study and of all exams of a time, as JSON and CSV (IHE REM)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from api import auth, multipart
from api.answers import as_json, given_as, position
from archive.access import Action, Actor
from archive.core import Archive
from archive.dicom.dose import FIGURES, Dose
from archive.index.asked import audit_query
from archive.index.doses import Report, list_reports, reports_of

router = APIRouter(prefix="/api/v1", tags=["dose"])

MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]
_PAGE = 200  # reports of a CSV that are read at a time
_OF_REPORT = (
    "study_date", "accession", "description", "patient_id", "issuer", "birth_date", "sex", "study_instance_uid",
    "sop_instance_uid",
)  # fmt: skip
COLUMNS = (*_OF_REPORT, "template", "events", *FIGURES, "device_uid", "device")


@router.get("/studies/{study}/dose")
def dose_of_study(request: Request, study: str, actor: MayFind) -> Response:
    """The dose reports of a study: totals and irradiation events. An empty list when there is none."""
    archive, uid = auth.archive_of(request), study[:64]
    with archive.reading() as conn:
        found = reports_of(conn, uid)
    audit_query(archive.commit, actor, parameters={"query": {"dose": uid}}, study=uid)
    return as_json({"items": [_shape(one) for one in found], "next": None})


@router.get("/dose", responses=given_as("application/json", "text/csv"))
def doses(
    request: Request,
    actor: MayFind,
    *,
    since: Annotated[date | None, Query(alias="from", description="first day of the exams")] = None,
    until: Annotated[date | None, Query(alias="to", description="last day of the exams")] = None,
    modality: Annotated[str, Query(max_length=16, description="of the study, as CT")] = "",
    format: Literal["json", "csv"] = "json",
    limit: Annotated[int, Query(ge=1, le=1000, description="items at most; a CSV has all")] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the answer before")] = None,
) -> Response:
    """Dose reports with their totals, in the order in which they came."""
    archive = auth.archive_of(request)
    days = {"since": f"{since:%Y%m%d}" if since else "", "until": f"{until:%Y%m%d}" if until else ""}
    audit_query(archive.commit, actor, parameters={"query": {"dose": {**days, "modality": modality}}})
    if format == "csv":
        headers = {"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": 'attachment; filename="doses.csv"'}
        return multipart.Stream(_csv(archive, **days, modality=modality), headers=headers)
    with archive.reading() as conn:
        found = list_reports(conn, **days, modality=modality, after=position(cursor), limit=limit + 1)
    items = [_shape(one, events=False) for one in found[:limit]]
    return as_json({"items": items, "next": str(found[limit - 1].number) if len(found) > limit else None})


def _csv(archive: Archive, *, since: str, until: str, modality: str) -> Iterator[bytes]:
    """A line for each report (RFC 4180), in pages: each of one state of the index."""
    yield _line(COLUMNS)
    after = 0
    while True:
        with archive.reading() as conn:
            found = list_reports(conn, since=since, until=until, modality=modality, after=after, limit=_PAGE)
        if not found:
            return
        after = found[-1].number
        for one in found:
            values = asdict(one.totals)
            values |= {name: getattr(one, name) for name in _OF_REPORT}
            values["events"] = len(one.events)
            yield _line([_cell(values[name]) for name in COLUMNS])


def _line(cells: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue().encode()


def _cell(value: object) -> str:
    """As text that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _shape(one: Report, *, events: bool = True) -> dict[str, Any]:
    said = {name: getattr(one, name) for name in (*_OF_REPORT, "sop_class_uid", "series_instance_uid")}
    totals = asdict(one.totals)
    device = {"uid": totals["device_uid"], "name": totals["device"]}
    figures = {name: totals[name] for name in FIGURES}
    shape = {
        **said,
        "template": totals["template"],
        "device": device,
        "totals": figures,
        "event_count": len(one.events),
    }
    return {**shape, "events": [_event(event) for event in one.events]} if events else shape


def _event(event: Dose) -> dict[str, Any]:
    names = ("number", "event_uid", "at", "label", *FIGURES, "device_uid", "device")
    return {name: getattr(event, name) for name in names}
