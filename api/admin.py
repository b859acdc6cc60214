"""`/api/v1`: what is held, what waits, who did what (sheet 60 §4).

Lists are `{"items": […], "next": cursor or null}`.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api import auth, viewer
from api.answers import as_json, position
from api.openapi import description
from api.studies import Search, described, find_studies, kept, line, text
from archive import heartbeat, probing, repository, testbed, timekeeping, work_items
from archive.access import Action, Actor
from archive.audit.read import AuditPage, list_rows
from archive.audit.record import Event, record
from archive.clock import Simulation
from archive.core import Archive
from archive.errors import InvalidRequest
from archive.index.asked import audit_query
from archive.schema import REVISION
from archive.sites import is_imported
from archive.studies import Study

router = APIRouter(prefix="/api/v1", tags=["administration"], max_body_size=1 << 20)
openapi_router = APIRouter()

_MODALITY = 0x00080060

Limit = Annotated[int, Query(ge=1, le=1000, description="items at most")]
Cursor = Annotated[str | None, Query(description="`next` of the answer before")]


MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]
MayAudit = Annotated[Actor, Depends(auth.Right(Action.AUDIT))]
MaySystem = Annotated[Actor, Depends(auth.Right(Action.SYSTEM))]
Anybody = Annotated[Actor, Depends(auth.current_actor)]


class Credentials(BaseModel):
    """A person's account."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=256)
    password: str = Field(max_length=1024)


@router.post("/session")
async def log_in(request: Request, credentials: Credentials) -> Response:
    """Log in: sets the session cookie."""
    account, secret = await auth.log_in(request, credentials.name, credentials.password)
    response = as_json({"user": account.name, "roles": account.roles})
    auth.set_cookie(request, response, secret)
    return response


@router.get("/session")
def who_am_i(actor: Anybody) -> Response:
    """Who asks, and what they may do."""
    return as_json({"user": actor.user, "may": sorted(action.name.lower() for action in actor.may)})


@router.delete("/session", status_code=204)
def log_out(request: Request) -> Response:
    """Log out."""
    auth.log_out(request)
    response = Response(status_code=204)
    auth.clear_cookie(response)
    return response


@router.get("/studies")
def studies(
    request: Request,
    actor: MayFind,
    *,
    patient_name: str = "",
    patient_id: str = "",
    accession: str = "",
    modality: str = "",
    study_date_from: Annotated[date | None, Query(description="included")] = None,
    study_date_to: Annotated[date | None, Query(description="included")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Studies, the newest first. `patient_name` finds `DUPONT^Anne` by `dupont`, `dupont anne` or `dup*^a*`."""
    search = Search(
        name=patient_name,
        patient_id=patient_id,
        accession=accession,
        modality=modality,
        date_from=f"{study_date_from:%Y%m%d}" if study_date_from else "",
        date_to=f"{study_date_to:%Y%m%d}" if study_date_to else "",
    )
    offset = position(cursor)
    found, more = find_studies(auth.archive_of(request), search, actor=actor, limit=limit, offset=offset)
    return as_json({"items": [asdict(one) for one in found], "next": str(offset + limit) if more else None})


@router.get("/studies/{study}")
def study(request: Request, study: str, actor: MayFind) -> Response:
    """What is held of one study: each copy, its digest and its last check. `{"exists": false}` when unknown."""
    archive = auth.archive_of(request)
    found = described(archive, study, actor=actor)
    if found is None:
        return as_json({"exists": False})
    return as_json({**_study(archive, found), **_life(archive, study), "viewer": viewer.address_of(request, study)})


def _life(archive: Archive, study: str) -> dict[str, Any]:
    """Until when it is kept, who forbids that it goes, and to whom it was promised (storage commitment)."""
    life = kept(archive, study)
    held = [one.shape() for one in life.holds]
    promised = [asdict(one) for one in life.commitments]
    return {"keep_until": life.keep_until, "announced": life.announced, "holds": held, "commitments": promised}


def _study(archive: Archive, found: Study) -> dict[str, Any]:
    known = asdict(line(found.attributes))
    sharing = archive.settings.sharing
    return {
        "exists": True,
        "origin": "DRIM" if any(is_imported(sharing, one.source) for one in found.instances) else None,
        **known,
        "modalities": sorted({found_in for part in found.series if (found_in := text(part.attributes, _MODALITY))}),
        "series": [
            {
                "series_instance_uid": part.series_instance_uid,
                "modality": text(part.attributes, _MODALITY),
                "instances": len(part.instances),
            }
            for part in found.series
        ],
        "instances": len(found.instances),
        "tier": found.tier,
        "availability": found.availability,
        "received_at": found.received_at,
        "copies": [
            {
                "series_instance_uid": part.series_instance_uid,
                "sop_instance_uid": one.sop_instance_uid,
                "sop_class_uid": one.sop_class_uid,
                "received_at": one.received_at,
                "source": one.source,
                **asdict(copy),
            }
            for part in found.series
            for one in part.instances
            for copy in one.copies
        ],
    }


@router.get("/work-items")
def work(
    request: Request,
    actor: MayFind,
    *,
    kind: str | None = None,
    state: Literal["open", "closed"] | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """What waits for a person, in the order it came up."""
    archive = auth.archive_of(request)
    with archive.reading() as conn:
        items = work_items.list_items(conn, kind=kind, state=state, after=position(cursor), limit=limit + 1)
    audit_query(archive.commit, actor, parameters={"query": {"work_items": kind or "all", "state": state or "all"}})
    more = len(items) > limit
    return as_json({"items": items[:limit], "next": str(items[limit - 1]["id"]) if more else None})


@router.get("/audit")
def audit(
    request: Request,
    actor: MayAudit,
    *,
    patient: str | None = None,
    user: str | None = None,
    study: str | None = None,
    since: Annotated[str | None, Query(alias="from", description="ISO 8601 date or time, included")] = None,
    until: Annotated[str | None, Query(alias="to", description="ISO 8601; a date with the whole of its day")] = None,
    event: Annotated[str | None, Query(description="code of DCM, as 110104")] = None,
    action: Literal["C", "R", "U", "D", "E"] | None = None,
    outcome: Annotated[int | None, Query(ge=0, le=12, description="0, 4, 8 or 12")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Who did what, the latest first. Reading it is an entry of its own (110101), written before the answer."""
    archive = auth.archive_of(request)
    asked = {name: value for name, value in request.query_params.items() if name not in ("limit", "cursor")}
    start, end = _instant(since), _instant(until, last=True)
    page: AuditPage
    with archive.reading() as conn:
        page = list_rows(
            conn, patient=patient, user=user, study=study, since=start, until=end, event=event, action=action,
            outcome=outcome, limit=limit, after=cursor,
        )  # fmt: skip
    archive.commit.run(
        lambda conn: record(
            conn, actor, Event.AUDIT_LOG_USED, "R", patient=patient, study=study, detail={"query": asked}
        )
    )
    return as_json({"items": page.items, "next": page.next})


@router.get("/system")
def system(request: Request, actor: MaySystem) -> Response:
    """The version, the clock and how far it is off, the processes that live, the free space, the audit repository."""
    archive = auth.archive_of(request)
    settings = archive.settings
    with archive.reading() as conn:
        processes = heartbeat.alive(conn, at=archive.real_clock())
        compared = timekeeping.last(conn) if settings.time.servers else None
        told = repository.state(conn) if settings.audit.repository.host else None
        measured = probing.summary(conn, now=archive.real_clock())
    return as_json(
        {
            "product": "minipacs",
            "version": version("minipacs"),
            "schema": REVISION,
            "test_mode": settings.test_mode,
            "clock": {
                "now": archive.clock(),
                "simulated": archive.time.simulated,
                "compared": compared and compared.shape(),
            },
            "audit_repository": told and told.shape(),
            "site": {"name": settings.site.name, "finess": settings.site.finess, "profile": settings.site.profile},
            "dicom": {
                "ae_title": settings.dicom.ae_title,
                "host": settings.dicom.host,
                "port": settings.dicom.port if settings.dicom_in_clear else None,
                "tls_port": settings.dicom.tls_port if settings.tls.on else None,
            },
            "immediate_access": measured,
            "storage": {"hot": {"free_bytes": archive.hot.free_bytes()}},
            "processes": [
                {
                    "edge": one.edge,
                    "host": one.host,
                    "pid": one.pid,
                    "started_at": one.started_at,
                    "beat_at": one.beat_at,
                    "listening": one.listening,
                }
                for one in processes
            ],
        }
    )


@router.get("/probes")
def probes(request: Request, actor: MaySystem, *, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """How soon images were there, as the archive measured it itself, the latest first; `/system` sums it up."""
    archive, offset = auth.archive_of(request), position(cursor)
    with archive.reading() as conn:
        found = probing.list_probes(conn, offset=offset, limit=limit + 1)
    items = [{**asdict(one), "within": one.within} for one in found[:limit]]
    return as_json({"items": items, "next": str(offset + limit) if len(found) > limit else None})


class ClockMove(BaseModel):
    """One of: where to put the clock, how far to move it on (`3y1d`), or to let it go."""

    model_config = ConfigDict(extra="forbid")
    now: AwareDatetime | None = None
    advance: str | None = Field(None, max_length=64)
    release: Literal[True] | None = None


@router.get("/testbed/clock")
def read_clock(request: Request, actor: Anybody) -> Response:
    """Where the clock of the test bed is. 404 outside `test_mode`."""
    archive = auth.archive_of(request)
    return as_json(_clock(request, testbed.read_clock(archive)))


@router.put("/testbed/clock")
def move_clock(request: Request, move: ClockMove, actor: Anybody) -> Response:
    """Move the clock of every process; answers when all follow. 404 outside `test_mode`."""
    archive = auth.archive_of(request)
    testbed.read_clock(archive)  # 404 comes before 403
    auth.demand_right(request, Action.TESTBED)
    if sum(value is not None for value in (move.now, move.advance, move.release)) != 1:
        raise InvalidRequest('give exactly one of "now", "advance" and "release"')
    if move.now is not None:
        moved = testbed.set_clock(archive, move.now, actor=actor)
    elif move.advance is not None:
        moved = testbed.advance(archive, move.advance, actor=actor)
    else:
        moved = testbed.release(archive, actor=actor)
    return as_json(_clock(request, moved))


def _clock(request: Request, simulation: Simulation) -> dict[str, Any]:
    now = auth.archive_of(request).real_clock() + simulation.offset()
    return {"now": now, "simulated": simulation.shown is not None, "generation": simulation.generation}


@openapi_router.get("/api/openapi.json", include_in_schema=False)
def openapi(request: Request, actor: Anybody) -> Response:
    """The description of this API."""
    return as_json(description(request.app))


def _instant(text: str | None, *, last: bool = False) -> datetime | None:
    """A date or a time of day of ISO 8601; without offset UTC. `last`: a date means the end of its day."""
    if not text:
        return None
    try:
        if len(text) == 10:
            day = datetime.combine(date.fromisoformat(text), time(), UTC)
            return day + timedelta(days=1) if last else day
        found = datetime.fromisoformat(text.replace(" ", "+"))
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("«from» and «to» are dates or times of ISO 8601") from None
