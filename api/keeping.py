"""The desk's pages on keeping: what leaves when, holds, what was purged and its certificates, suspended removal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import auth
from api.layout import page_of
from api.studies import StudyLine, kept, lines
from archive.access import Action, Actor
from archive.core import Archive
from archive.errors import InvalidRequest
from archive.index.asked import audit_query
from archive.lifecycle.approvals import NEEDED, approve
from archive.lifecycle.holds import add_hold, holds, remove_hold
from archive.lifecycle.preview import Action as Step
from archive.lifecycle.preview import Item, preview
from archive.lifecycle.purged import latest_purges
from archive.lifecycle.suspension import resume, suspensions
from archive.policy import local_day

router = APIRouter(include_in_schema=False, max_body_size=64 << 10)

STUDIES = 50  # of a preview, on one page
STEPS = {
    Step.MIGRATE: "passe en archive froide",
    Step.ANNOUNCE: "destruction annoncée",
    Step.PURGE: "détruite",
    Step.BLOCKED: "empêché",
}
_SUSPENDED = {
    "clock": "l’horloge du serveur a fait un saut",
    "rebuilt": "l’index a été reconstruit",
}

Foreseer = Annotated[Actor, Depends(auth.Right(Action.FORESEE))]
Holder = Annotated[Actor, Depends(auth.Right(Action.HOLD))]
Decider = Annotated[Actor, Depends(auth.Right(Action.RETENTION))]
Reason = Annotated[str, Form(max_length=500)]


@dataclass(frozen=True, slots=True)
class Leaving:
    """One line of the list: what happens to a study, on which day, and why."""

    line: StudyLine | None
    item: Item
    step: str


@router.get("/conservation")
def keeping(
    request: Request,
    actor: Foreseer,
    le: Annotated[str, Query(max_length=10)] = "",
    apres: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """What leaves until a day, what is on hold, what was purged, and whether removal is suspended."""
    archive = auth.archive_of(request)
    today = local_day(archive.clock())
    message, day = "", today
    if le:
        try:
            day = date.fromisoformat(le)
        except ValueError:
            message = "Cette date n’existe pas."
    audit_query(archive.commit, actor, parameters={"query": {"retention_preview": day.isoformat()}})
    found = list(islice(preview(archive, on=day, after=apres), STUDIES + 1))
    items = [item for _, some in found[:STUDIES] for item in some]
    with archive.reading() as conn:
        suspended = suspensions(conn)
        purges = latest_purges(conn, limit=200) if Action.PURGES in actor.may else []
    standing = holds(archive, limit=200, actor=actor)
    known = _known(
        archive, [*(item.study_instance_uid for item in items), *(one.study_instance_uid for one in standing)]
    )
    return page_of(
        request,
        "keeping.html",
        400 if message else 200,
        message=message,
        today=today,
        day=day,
        leaving=[Leaving(known.get(item.study_instance_uid), item, STEPS[item.action]) for item in items],
        next=f"/conservation?le={day}&apres={found[STUDIES - 1][0]}" if len(found) > STUDIES else None,
        suspended=[(_SUSPENDED.get(one.kind, one.kind), one.since) for one in suspended],
        holds=[(one, known.get(one.study_instance_uid)) for one in standing],
        purges=purges,
        two_person=archive.settings.retention.purge_approval == "two-person",
        needed=NEEDED,
        may_hold=Action.HOLD in actor.may,
        may_decide=Action.RETENTION in actor.may,
    )


@router.post("/conservation/reprise")
def resume_removal(request: Request, actor: Decider, raison: Reason) -> Response:
    """Confirm that removal may go on."""
    resume(auth.archive_of(request), reason=raison, actor=actor)
    return RedirectResponse("/conservation", 303)


@router.post("/etudes/{study}/conservation")
def keep(
    request: Request, study: str, actor: Holder, raison: Reason, jusque: Annotated[str, Form(max_length=10)] = ""
) -> Response:
    """Put a study on hold."""
    try:
        until = date.fromisoformat(jusque) if jusque else None
    except ValueError:
        raise InvalidRequest("this date does not exist") from None
    add_hold(auth.archive_of(request), study, reason=raison, until=until, actor=actor)
    return RedirectResponse(f"/etudes/{quote(study)}#conservation", 303)


@router.post("/conservation/mises/{hold}/fin")
def let_go(request: Request, hold: str, actor: Holder) -> Response:
    """End a hold."""
    ended = remove_hold(auth.archive_of(request), hold, actor=actor)
    return RedirectResponse(f"/etudes/{quote(ended.study_instance_uid)}#conservation", 303)


@router.post("/etudes/{study}/accord")
def agree(request: Request, study: str, actor: Decider, raison: Reason) -> Response:
    """Approve the announced purge of a study."""
    approve(auth.archive_of(request), study, reason=raison, actor=actor)
    return RedirectResponse("/conservation", 303)


def life_of(archive: Archive, study: str, actor: Actor) -> dict[str, Any]:
    """What the page of a study says of its life: until when it is kept and why, and what holds it."""
    life = kept(archive, study)
    until, notice = life.keep_until["date"], life.announced
    return {
        "purge_on": date.fromisoformat(notice["purge_on"]) if notice else None,
        "keep_until": date.fromisoformat(until) if until else None,
        "reasons": [reason["text"] for reason in life.keep_until["reasons"]],
        "holds": life.holds,
        "may_hold": Action.HOLD in actor.may,
    }


def _known(archive: Archive, studies: Iterable[str]) -> dict[str, StudyLine]:
    return {one.study: one for one in lines(archive, list(dict.fromkeys(studies)))}
