"""`/api/v1/peers` and `/api/v1/jobs`, and the desk's form to send a study: what leaves for peers, and how far it is.

Sending images away is `export media` in sheet 60 §5; peers and jobs are the administrator's, who sees no images: a job
is shown without anything of a patient. Whoever may send, or see how the archive works, may look at both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import auth
from api.answers import as_json, position
from archive import jobs, sending
from archive.access import Action, Actor, demand
from archive.core import Archive
from archive.errors import Busy, NotFound
from archive.index.asked import audit_query

router = APIRouter(prefix="/api/v1", tags=["peers"], max_body_size=1 << 20)
desk = APIRouter(include_in_schema=False, max_body_size=64 << 10)

ECHO_SECONDS = 30.0
_SHOWN_FAILURES = 1000
_SHOWN_JOBS = 5  # on the page of a study
_STATES = {
    "due": "en attente",
    "leased": "en cours",
    "done": "terminé",
    "dead": "abandonné",
}


def _looking(request: Request) -> Actor:
    actor = auth.current_actor(request)
    if not actor.may & {Action.EXPORT, Action.SYSTEM}:
        demand(actor, Action.ADMINISTER)
    return actor


Looking = Annotated[Actor, Depends(_looking)]
Sending = Annotated[Actor, Depends(auth.Right(Action.EXPORT))]
Administrator = Annotated[Actor, Depends(auth.Right(Action.ADMINISTER))]
JobId = Annotated[int, Path(ge=1, lt=1 << 63)]


class ToSend(BaseModel):
    """What to send: what satisfies all of what is given."""

    model_config = ConfigDict(extra="forbid")
    study: str = Field("", max_length=64, description="Study Instance UID")
    series: list[Annotated[str, Field(max_length=64)]] = Field([], max_length=1000)
    instances: list[Annotated[str, Field(max_length=64)]] = Field([], max_length=5000)


@router.get("/peers")
def peers(request: Request, actor: Looking) -> Response:
    """The peers of the settings."""
    known = auth.archive_of(request).settings.dicom.peers
    items = [
        {
            "name": name,
            "ae_title": peer.ae_title or name,
            "host": peer.host,
            "port": peer.port,
            "may": peer.may,
        }
        for name, peer in known.items()
    ]
    return as_json({"items": items, "next": None})


@router.post("/peers/{name}/echo")
def echo(request: Request, name: str, actor: Administrator) -> Response:
    """Have a C-ECHO sent to a peer, and wait for what it says: `ok`, or the reason. 503: no DICOM process took it."""
    archive = auth.archive_of(request)
    peer = sending.peer_named(archive, name)
    answer: dict[str, Any] = {"peer": name, "ok": False, "status": None, "reason": None}
    asked = {"ae_title": peer.ae_title or name, "once": True}
    id = archive.commit.run(lambda conn: jobs.put(conn, "dicom.echo", asked, at=archive.real_clock()))
    done = jobs.wait(archive, id, seconds=ECHO_SECONDS)
    if done.state == "done" and done.result is not None:
        status = int(done.result["status"])
        return as_json({**answer, "ok": status == 0, "status": f"{status:04X}"})
    if done.state == "dead":
        return as_json({**answer, "reason": done.error})
    archive.commit.run(lambda conn: jobs.cancel(conn, id, by="time", at=archive.real_clock()))
    raise Busy("no DICOM process took it, or it takes too long")


@router.post("/peers/{name}/send", status_code=202)
def send(request: Request, name: str, wanted: ToSend, actor: Sending) -> Response:
    """Send to a peer: 202 with the number of the job, `/api/v1/jobs/{job}` says how far it is."""
    job, instances = sending.ask(
        auth.archive_of(request),
        name,
        actor=actor,
        study_uids=[wanted.study] if wanted.study else [],
        series_uids=wanted.series,
        instance_uids=wanted.instances,
    )
    return as_json({"job": job, "instances": instances}, 202)


@router.get("/jobs")
def list_(
    request: Request,
    actor: Looking,
    *,
    kind: str | None = None,
    state: Literal["due", "leased", "done", "dead"] | None = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="items at most")] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the answer before")] = None,
) -> Response:
    """Work that is owed, the latest first; `state=dead` is what was given up."""
    archive = auth.archive_of(request)
    audit_query(archive.commit, actor, parameters={"query": {"jobs": kind or "all", "state": state or "all"}})
    with archive.reading() as conn:
        found = jobs.list_jobs(conn, kind=kind, state=state, before=position(cursor), limit=limit + 1)
    items = sending.described(archive, found[:limit])
    return as_json({"items": items, "next": str(items[-1]["id"]) if len(found) > limit else None})


@router.get("/jobs/{job}")
def one(request: Request, job: JobId, actor: Looking) -> Response:
    """One job; of a sending, what the peer did not take, and why."""
    archive = auth.archive_of(request)
    audit_query(archive.commit, actor, parameters={"query": {"job": job}})
    with archive.reading() as conn:
        found = jobs.find(conn, job)
        failures = sending.failures(conn, job, limit=_SHOWN_FAILURES)
    if found is None:
        raise NotFound("no such job")
    (said,) = sending.described(archive, [found])
    return as_json({**said, **({"failures": failures} if found.kind == sending.KIND else {})})


@router.post("/jobs/{job}/retry")
def retry(request: Request, job: JobId, actor: Administrator) -> Response:
    """Have a job done that was given up, or now instead of later. 409: it is being done, or is done."""
    sending.retry(auth.archive_of(request), job, actor=actor)
    return as_json({"id": job, "state": "due"})


@router.post("/jobs/{job}/cancel")
def cancel(request: Request, job: JobId, actor: Administrator) -> Response:
    """Give a job up. 409: it is over."""
    sending.cancel(auth.archive_of(request), job, actor=actor)
    return as_json({"id": job, "state": "dead"})


def sending_of(archive: Archive, study: str, actor: Actor) -> dict[str, Any]:
    """What the page of a study says of sending it: to whom it can be sent, what was sent last."""
    known = archive.settings.dicom.peers
    found = sending.described(archive, sending.jobs_of(archive, study, limit=_SHOWN_JOBS))
    may_send = Action.EXPORT in actor.may
    return {
        "peers": [name for name, peer in known.items() if peer.host and peer.port is not None] if may_send else [],
        "jobs": [{**job, "said": _STATES.get(job["state"], job["state"])} for job in found],
    }


@desk.post("/etudes/{study}/envoi")
def send_study(request: Request, study: str, actor: Sending, vers: Annotated[str, Form(max_length=64)]) -> Response:
    """Send a study to a peer."""
    sending.ask(auth.archive_of(request), vers, actor=actor, study_uids=[study])
    return RedirectResponse(f"/etudes/{quote(study)}#envoi", 303)
