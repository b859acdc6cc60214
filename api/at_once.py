"""Answers that need no waiting are given in the event loop, ahead of what goes around others: a viewer asks for
hundreds of frames, and handing each to a worker thread and back costs more than to answer it.

The endpoint is the same, and so is every rule in it. It is tried where nobody may wait (`archive.waiting`); what would
have to wait, and what is refused, goes the ordinary way, as if nothing had been tried.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from archive import waiting
from archive.errors import ArchiveError


class AtOnce:
    """These routes, tried before `app`. Their endpoints are functions that change nothing but by audited access; their
    answers are not compressed."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and (answer := self._tried(scope)) is not None:
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _tried(self, scope: Scope) -> Response | None:
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope["endpoint"] = route.endpoint
                trial = {**scope, **found, "state": dict(scope.get("state", ()))}
                try:
                    with waiting.forbidden():
                        answer: Response = route.endpoint(Request(trial))
                except (waiting.WouldWait, ArchiveError, HTTPException):
                    return None
                return answer
        return None
