"""`/api/v1/holds` and `/api/v1/retention/preview`: what somebody forbids to go, and what will leave when."""

from __future__ import annotations

from datetime import date
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from api.answers import as_json, position
from archive.access import Action, Actor
from archive.index.asked import audit_query
from archive.lifecycle.holds import add_hold, holds, remove_hold
from archive.lifecycle.preview import preview
from archive.policy import local_day

router = APIRouter(prefix="/api/v1", tags=["retention"], max_body_size=1 << 20)

MayHold = Annotated[Actor, Depends(auth.Right(Action.HOLD))]
MayForesee = Annotated[Actor, Depends(auth.Right(Action.FORESEE))]

Limit = Annotated[int, Query(ge=1, le=1000, description="items at most; of a preview: studies")]
Cursor = Annotated[str | None, Query(max_length=36, description="`next` of the answer before")]


class NewHold(BaseModel):
    """What is to be kept, why, and up to which day (included)."""

    model_config = ConfigDict(extra="forbid")
    study: str = Field(min_length=1, max_length=64, description="Study Instance UID")
    reason: str = Field(max_length=500)
    until: date | None = Field(None, description="its last day; else until it is removed")


@router.post("/holds", status_code=201)
def place_hold(request: Request, wanted: NewHold, actor: MayHold) -> Response:
    """Forbid that a study goes, or becomes lossy. 404: no such study. 410: it was purged."""
    archive = auth.archive_of(request)
    placed = add_hold(archive, wanted.study, reason=wanted.reason, until=wanted.until, actor=actor)
    return as_json(placed.shape(), 201)


@router.get("/holds")
def list_holds(
    request: Request,
    actor: MayForesee,
    *,
    study: Annotated[str | None, Query(max_length=64, description="Study Instance UID")] = None,
    all: Annotated[bool, Query(description="those that ended, too")] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Holds, the oldest first."""
    found = holds(
        auth.archive_of(request),
        study_instance_uid=study,
        everything=all,
        after=cursor or "",
        limit=limit + 1,
        actor=actor,
    )
    more = len(found) > limit
    items = [one.shape() for one in found[:limit]]
    return as_json({"items": items, "next": items[-1]["id"] if more else None})


@router.delete("/holds/{id}", status_code=204)
def end_hold(request: Request, id: str, actor: MayHold) -> Response:
    """End a hold. 404: there is none, or it is removed already."""
    remove_hold(auth.archive_of(request), id, actor=actor)
    return Response(status_code=204)


@router.get("/retention/preview")
def foretell(
    request: Request,
    actor: MayForesee,
    *,
    on: Annotated[date | None, Query(description="the day; default today")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """What leaves the hot tier, is announced or purged up to this day, and what is kept from it (`blocked`)."""
    archive = auth.archive_of(request)
    day = on or local_day(archive.clock())
    audit_query(archive.commit, actor, parameters={"query": {"retention_preview": day.isoformat()}})
    found = list(islice(preview(archive, on=day, after=position(cursor)), limit + 1))
    items: list[dict[str, Any]] = [item.shape() for _, some in found[:limit] for item in some]
    return as_json(
        {"on": day.isoformat(), "items": items, "next": str(found[limit - 1][0]) if len(found) > limit else None}
    )
