"""`/api/v1/retention`: a tick now, approvals, the end of a suspension; what was purged, and its certificates."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from api.answers import as_json, given_as, position
from archive.access import Action, Actor
from archive.core import Archive
from archive.index.asked import audit_query
from archive.lifecycle.approvals import NEEDED, approve
from archive.lifecycle.certificate import pdf
from archive.lifecycle.purged import Purge, find_purge, list_purges
from archive.lifecycle.runs import ask_run
from archive.lifecycle.suspension import resume

router = APIRouter(prefix="/api/v1/retention", tags=["retention"], max_body_size=1 << 20)

RUN_SECONDS = 280.0  # for a tick that somebody waits for

MayDecide = Annotated[Actor, Depends(auth.Right(Action.RETENTION))]
MaySeePurges = Annotated[Actor, Depends(auth.Right(Action.PURGES))]


class Approval(BaseModel):
    """A person's approval of an announced purge."""

    model_config = ConfigDict(extra="forbid")
    study: str = Field(min_length=1, max_length=64, description="Study Instance UID")
    reason: str = Field(max_length=500)


class Confirmation(BaseModel):
    """What a person has looked at before removal goes on."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(max_length=500)


@router.post("/run")
def run(request: Request, actor: MayDecide) -> Response:
    """Run a tick now, and wait for what it did. 503: no retention process answers in time."""
    return as_json(ask_run(auth.archive_of(request), actor=actor, seconds=RUN_SECONDS))


@router.post("/approve")
def approve_purge(request: Request, approval: Approval, actor: MayDecide) -> Response:
    """Approve an announced purge; whoever approves twice counts once. 409: it is not announced."""
    count = approve(auth.archive_of(request), approval.study, reason=approval.reason, actor=actor)
    return as_json({"study": approval.study, "approvals": count, "needed": NEEDED})


@router.post("/resume")
def resume_removal(request: Request, confirmation: Confirmation, actor: MayDecide) -> Response:
    """Lift what suspends removal: a fault of the clock, an index that was made anew."""
    lifted = resume(auth.archive_of(request), reason=confirmation.reason, actor=actor)
    return as_json({"lifted": [{"kind": one.kind, "detail": one.detail, "since": one.since} for one in lifted]})


@router.get("/purges")
def purges(
    request: Request,
    actor: MaySeePurges,
    *,
    study: Annotated[str | None, Query(max_length=64, description="Study Instance UID")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="items at most")] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the answer before")] = None,
) -> Response:
    """What was purged, the oldest first."""
    archive = auth.archive_of(request)
    with archive.reading() as conn:
        found = list_purges(conn, study=study, after=position(cursor), limit=limit + 1)
    audit_query(archive.commit, actor, parameters={"query": {"purges": study or "all"}}, study=study)
    more = len(found) > limit
    items = [one.shape() for one in found[:limit]]
    return as_json({"items": items, "next": str(found[limit - 1].number) if more else None})


@router.get("/purges/{purge}")
def one_purge(request: Request, purge: str, actor: MaySeePurges) -> Response:
    """One purge, with its certificate."""
    found = _seen(auth.archive_of(request), purge, actor)
    return as_json({**found.shape(), "certificate": found.certificate})


@router.get("/purges/{purge}/certificate", responses=given_as("application/json", "application/pdf"))
def certificate(
    request: Request, purge: str, actor: MaySeePurges, *, format: Literal["json", "pdf"] = "json"
) -> Response:
    """The certificate of destruction."""
    found = _seen(auth.archive_of(request), purge, actor)
    if format == "json":
        return as_json(found.certificate)
    headers = {"content-disposition": f'attachment; filename="destruction-{found.id}.pdf"'}
    return Response(pdf(found.certificate), media_type="application/pdf", headers=headers)


def _seen(archive: Archive, id: str, actor: Actor) -> Purge:
    """The purge; that it was looked at is in the audit."""
    with archive.reading() as conn:
        found = find_purge(conn, id)
    audit_query(
        archive.commit, actor, parameters={"query": {"purge": found.id}},
        patient=found.patient or None, study=found.study_instance_uid,
    )  # fmt: skip
    return found
