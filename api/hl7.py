"""`/api/v1/hl7/messages`: the journal of HL7 messages, and their bytes for those who may know of patients."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from api.answers import as_json, given_as, position
from archive import messages
from archive.access import Action, Actor
from archive.audit.record import Event, record
from archive.index.asked import audit_query
from archive.messages import State

router = APIRouter(prefix="/api/v1/hl7", tags=["administration"], max_body_size=1 << 20)

MaySystem = Annotated[Actor, Depends(auth.Right(Action.SYSTEM))]
MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]


@router.get("/messages")
def hl7_messages(
    request: Request,
    actor: MaySystem,
    *,
    state: State | None = None,
    sender: Annotated[str | None, Query(max_length=255, description="MSH-3|MSH-4")] = None,
    control_id: Annotated[str | None, Query(max_length=255, description="MSH-10")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="items at most")] = 100,
    cursor: Annotated[str | None, Query(description="`next` of the answer before")] = None,
) -> Response:
    """What came over HL7 and what was answered, the latest first. Nothing of the content."""
    archive = auth.archive_of(request)
    before = None if cursor is None else position(cursor)
    with archive.reading() as conn:
        found = messages.list_messages(
            conn, state=state, sender=sender, control_id=control_id, before=before, limit=limit + 1
        )
    asked = {"hl7_messages": state or "all", "sender": sender, "control_id": control_id}
    audit_query(archive.commit, actor, parameters={"query": {name: value for name, value in asked.items() if value}})
    following = str(found[limit - 1]["id"]) if len(found) > limit else None
    return as_json({"items": found[:limit], "next": following})


@router.get("/messages/{message}/raw", responses=given_as("application/hl7-v2"))
def hl7_message(
    request: Request, message: Annotated[int, Path(ge=1, lt=1 << 62, description="its `id`")], actor: MayFind
) -> Response:
    """A message as it came, byte for byte. Reading it is an entry of the audit, written before the answer."""
    archive = auth.archive_of(request)
    with archive.reading() as conn:
        found = messages.stored(conn, message)
    archive.commit.run(lambda conn: record(conn, actor, Event.PATIENT_RECORD, "R", detail={"hl7_message": found.pk}))
    return Response(found.raw, media_type="application/hl7-v2")
