"""`/api/v1`: who somebody is, what was ordered, and settling what waits for a person (sheet 60 §4)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from api.answers import as_json
from archive.access import Action, Actor
from archive.identity import patients, shown, visits
from archive.index.asked import audit_query
from archive.settling import MAX_REASON, settle
from archive.workflow import orders

router = APIRouter(prefix="/api/v1", tags=["identity"], max_body_size=1 << 16)

MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]
MaySettle = Annotated[Actor, Depends(auth.Right(Action.SETTLE))]
HOW = (
    "done, accepted or unfounded; of an identity_conflict accept or reject, of a uid_conflict keep or replace "
    "(docs/identity.md)"
)
Number = Annotated[int, Path(ge=0, lt=1 << 63)]


@router.get("/patients")
def look_up_patient(
    request: Request,
    actor: MayFind,
    *,
    identifier: Annotated[str, Query(min_length=1, max_length=64)],
    authority: Annotated[str, Query(max_length=64, description="namespace or OID; else the assumed one")] = "",
) -> Response:
    """The state of an identifier, of one that was merged away too. `{"exists": false}` when unknown."""
    archive = auth.archive_of(request)
    key = shown.key_of(archive.authorities, identifier, authority)
    with archive.reading() as conn:
        found = shown.described(conn, key)
    asked = {"query": {"identifier": identifier, "authority": authority}}
    audit_query(archive.commit, actor, parameters=asked, patient=key.cx)
    return as_json(found)


@router.get("/patients/{patient}/history")
def patient_history(request: Request, patient: Number, actor: MayFind) -> Response:
    """Every revision of a patient's record, the first one first; `patient` is the `id` of a look-up."""
    archive = auth.archive_of(request)
    with archive.reading() as conn:
        items = patients.history(conn, patient)
        name = patients.name_of(conn, patient)
    audit_query(archive.commit, actor, parameters={"query": {"patient": patient, "of": "history"}}, patient=name)
    return as_json({"items": items, "next": None})


@router.get("/orders")
def look_up_order(
    request: Request, actor: MayFind, *, accession: Annotated[str, Query(min_length=1, max_length=64)]
) -> Response:
    """The order with an accession number: its first step, and all in `steps`. `{"exists": false}` when unknown."""
    archive = auth.archive_of(request)
    with archive.reading() as conn:
        steps = orders.described(conn, accession)
    audit_query(archive.commit, actor, parameters={"query": {"accession": accession}})
    answer: dict[str, Any] = {"exists": True, **steps[0], "steps": steps} if steps else {"exists": False}
    return as_json(answer)


@router.get("/visits")
def look_up_visit(
    request: Request,
    actor: MayFind,
    *,
    number: Annotated[str, Query(min_length=1, max_length=64, description="PV1-19, where there is none PID-18")],
    authority: Annotated[str, Query(max_length=64, description="namespace or OID; else whoever assigned it")] = "",
) -> Response:
    """The visit with a number, and its movements. `{"exists": false}` when unknown."""
    archive = auth.archive_of(request)
    issuer = shown.key_of(archive.authorities, number, authority).issuer if authority else None
    with archive.reading() as conn:
        found = visits.described(conn, number, issuer)
    audit_query(archive.commit, actor, parameters={"query": {"visit": number, "authority": authority}})
    return as_json(found)


class Settlement(BaseModel):
    """How a person settles a work item, and why."""

    model_config = ConfigDict(extra="forbid")
    how: str = Field(alias="as", max_length=32, description=HOW)
    reason: str = Field(max_length=MAX_REASON)


@router.post("/work-items/{item}/settle")
def settle_work_item(request: Request, item: Number, settlement: Settlement, actor: MaySettle) -> Response:
    """Settle a work item, and close it. 409: it is closed already, or what is kept aside cannot stand for the first."""
    settle(auth.archive_of(request), item, how=settlement.how, reason=settlement.reason, actor=actor)
    return as_json({"id": item, "state": "closed", "as": settlement.how, "reason": settlement.reason.strip()})
