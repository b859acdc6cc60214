"""Errors as RFC 9457 problems: the one table from `archive.errors` to HTTP.

The title and detail are for a person and name no patient. A bug answers 500 and tells nothing; its traceback is in
the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from archive import errors
from archive.errors import ArchiveError, Gone, NotAuthenticated, StillKept, Unavailable

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10
_LEVELS = ("studies", "series", "instances")

STATUS: dict[type[ArchiveError], int] = {
    errors.ArchiveError: 500,
    errors.Rejected: 400,
    errors.Unavailable: 503,
    errors.UnreadableInstance: 400,
    errors.UidMismatch: 400,
    errors.InvalidQuery: 400,
    errors.InvalidRequest: 400,
    errors.NotAuthenticated: 401,
    errors.NotAllowed: 403,
    errors.NotFound: 404,
    errors.NotAcceptable: 406,
    errors.Conflict: 409,
    errors.StillKept: 409,
    errors.IdentifierInUse: 409,
    errors.MergedAway: 409,
    errors.InsNotQualified: 409,
    errors.Gone: 410,
    errors.AttributeRefused: 400,
    errors.RejectedBefore: 409,
    errors.TooLarge: 413,
    errors.Unsupported: 415,
    errors.StorageFull: 507,
    errors.StorageFailed: 503,
    errors.IndexUnavailable: 503,
    errors.Busy: 503,
    errors.CommitInDoubt: 503,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What an answer says about an error."""

    status: int
    kind: str  # the last word of the problem's type
    title: str
    detail: str
    headers: dict[str, str]
    facts: dict[str, Any]

    def response(self) -> Response:
        """The problem as application/problem+json."""
        body = {
            "type": f"urn:minipacs:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            **({"detail": self.detail} if self.detail else {}),
            **self.facts,
        }
        return Response(
            orjson.dumps(body),
            self.status,
            media_type="application/problem+json",
            headers=self.headers,
        )


def of_archive(error: ArchiveError) -> Problem:
    """The problem that an error of the archive is."""
    status = STATUS[type(error)]
    headers: dict[str, str] = {}
    facts: dict[str, Any] = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_SECONDS)
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="minipacs"'
    if isinstance(error, StillKept):
        facts |= {"keep_until": error.until, "reasons": error.reasons}
    if isinstance(error, Gone) and error.alternate:
        facts["alternate"] = error.alternate
    if isinstance(error, Gone) and error.place:  # REQ-DCM-84
        place = "".join(f"/{level}/{uid}" for level, uid in zip(_LEVELS, error.place, strict=False))
        headers["Link"] = f'</dicom-web{place}>; rel="alternate"'
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__)
    return Problem(status, words.replace(" ", "-").lower(), words.capitalize(), str(error), headers, facts)


def of_http(error: HTTPException) -> Problem:
    """The problem of an unknown address (404), a wrong method (405)…"""
    phrase = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != phrase else ""
    kind = re.sub(r"\W+", "-", phrase).lower()
    return Problem(error.status_code, kind, phrase, detail, dict(error.headers or {}), {})


def of_validation(error: RequestValidationError) -> Problem:
    """The problem of parameters or a body of the wrong shape. Names the places, repeats no value."""
    places = [
        {"place": ".".join(str(step) for step in one["loc"]), "problem": str(one["msg"])} for one in error.errors()
    ]
    return Problem(400, "invalid-request", "Invalid request", "", {}, {"errors": places})


def of_bug() -> Problem:
    """What a caller learns of a bug: that there is one."""
    return Problem(500, "internal-error", "Internal error", "", {}, {})


def note(error: ArchiveError, *, method: str, route: str, user: str) -> None:
    """Log an error of the archive, once, at this edge."""
    level = log.error if isinstance(error, Unavailable) else log.warning
    level(
        "request refused",
        error=type(error).__name__,
        detail=str(error) if isinstance(error, Unavailable) else None,
        method=method,
        route=route,
        user=user,
    )
