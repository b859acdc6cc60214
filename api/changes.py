"""`/api/v1/changes`: the feed of what became of studies, for whoever keeps a copy or an index of their own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from api.answers import as_json
from archive.access import Action, Actor
from archive.changes import MOST, changes

router = APIRouter(prefix="/api/v1", tags=["changes"])

MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]


@router.get("/changes")
def list_changes(
    request: Request,
    actor: MayFind,
    *,
    since: Annotated[int, Query(ge=0, le=1 << 60, description="`last` of the answer before; 0 from the beginning")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 100,
    feed: Annotated[str, Query(max_length=64, description="`feed` of the answer before: 409 when it is another")] = "",
) -> Response:
    """Changes after `since`, in their order: kinds stored, updated, rejected, corrected, purged. Ask again from `last`,
    at once unless `done`."""
    page = changes(auth.archive_of(request), since=since, limit=limit, feed=feed or None, actor=actor)
    return as_json(
        {"feed": page.feed, "changes": [one.shape() for one in page.changes], "last": page.last, "done": page.done}
    )
