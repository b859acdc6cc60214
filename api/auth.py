"""Who is asking: a bearer token or the session cookie of the desk, both at every door (sheet 60 §4).

What is refused is audited before it is answered (law 4): `audit_refusal`, called by the one place that answers errors.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response

from archive import accounts
from archive.access import Action, Actor, Door, demand
from archive.audit.record import Event, EventType, refused
from archive.core import Archive
from archive.errors import Busy, NotAllowed, NotAuthenticated

COOKIE = "minipacs_session"
LOGINS_AT_ONCE = 2
LOGINS_WAITING = 20
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_QIDO = re.compile(
    r"/dicom-web/(studies|series|instances|studies/[^/]+/(series|instances)|studies/[^/]+/series/[^/]+/instances)"
)


def archive_of(request: Request) -> Archive:
    """The archive that the application serves."""
    archive = request.app.state.archive
    assert isinstance(archive, Archive)
    return archive


def source_of(request: Request) -> str:
    """The caller's network address."""
    return request.client.host if request.client else ""


def door_of(request: Request) -> Door:
    """Where the caller came in."""
    path: str = request.scope["path"]
    if path.startswith(("/dicom-web", "/wado")):
        return Door.DICOMWEB
    if path.startswith("/fhir"):
        return Door.FHIR
    return Door.API if path.startswith("/api") else Door.DESK


def current_actor(request: Request) -> Actor:
    """Who is asking. May look into the database: call it in a worker thread, or as a dependency.

    Raises:
        NotAuthenticated: no credentials, or wrong, expired or revoked ones.
        NotAllowed: a session is used by a page of another site.
    """
    known = getattr(request.state, "actor", None)
    if isinstance(known, Actor):
        return known
    archive = archive_of(request)
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise NotAuthenticated("send «Authorization: Bearer TOKEN»")
        actor = accounts.actor_of_token(archive, secret.strip(), source=source_of(request), door=door_of(request))
    else:
        secret = request.cookies.get(COOKIE, "")
        if not secret:
            raise NotAuthenticated("log in, or send «Authorization: Bearer TOKEN»")
        actor = accounts.actor_of_session(archive, secret, source=source_of(request), door=door_of(request))
        request.state.actor = actor
        demand_same_origin(request)
    request.state.actor = actor
    return actor


def demand_right(request: Request, action: Action) -> Actor:
    """Who is asking, once it is sure that they may do `action`. Raises NotAuthenticated or NotAllowed."""
    actor = current_actor(request)
    demand(actor, action)
    return actor


class Right:
    """A dependency: whoever asks may do this, and is handed on."""

    def __init__(self, action: Action) -> None:
        self._action = action

    def __call__(self, request: Request) -> Actor:
        return demand_right(request, self._action)


def demand_same_origin(request: Request) -> None:
    """Refuse a change that the page of another site asks a browser for (CSRF).

    Browsers say where a change comes from: Sec-Fetch-Site, else Origin. What says neither is no browser, and a
    SameSite cookie does not travel from elsewhere.
    """
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        same = site in ("same-origin", "none")
    elif origin is not None:
        same = urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
    else:
        same = True
    if not same:
        raise NotAllowed("this change comes from a page of another site")


def set_cookie(request: Request, response: Response, secret: str) -> None:
    """Hand the secret of a session to the browser, for this browser window and site alone."""
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=secure, path="/")


def clear_cookie(response: Response) -> None:
    """Have the browser forget the session."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


async def log_in(request: Request, name: str, password: str) -> tuple[accounts.Account, str]:
    """Check a name and a password, open a session: the account, and the secret for `set_cookie`.

    Those who log in wait in a line of their own, of bounded length, so that guessing delays nobody who works.

    Raises:
        NotAuthenticated: wrong; audited already.
        NotAllowed: the form of another site was sent here.
        Busy: too many are logging in.
    """
    demand_same_origin(request)
    line: CapacityLimiter = request.app.state.logins
    if line.statistics().tasks_waiting >= LOGINS_WAITING:
        raise Busy("too many are logging in at this moment")
    request.state.audited = True  # by `accounts.authenticate`
    return await to_thread.run_sync(_authenticate, request, name, password, limiter=line)


def _authenticate(request: Request, name: str, password: str) -> tuple[accounts.Account, str]:
    archive = archive_of(request)
    account = accounts.authenticate(archive, name, password, source=source_of(request), door=door_of(request))
    return account, accounts.create_session(archive, account)


def log_out(request: Request) -> None:
    """End the session of the cookie, if there is one. Raises NotAllowed for another site's page."""
    demand_same_origin(request)
    secret = request.cookies.get(COOKIE, "")
    if secret:
        accounts.end_session(archive_of(request), secret, source=source_of(request), door=door_of(request))


@dataclass(frozen=True, slots=True)
class _Attempt:
    event: Event
    action: str
    type: str | None = None


_ATTEMPTS = [  # elsewhere, by method and address: the first that matches its beginning, as a success is audited
    (re.compile(pattern), _Attempt(event, action))
    for pattern, event, action in (
        ("GET /api/v1/studies/[^/]+/manifest", Event.EXPORT, "R"),
        ("POST /api/v1/studies/[^/]+/reject", Event.INSTANCES_ACCESSED, "D"),
        ("DELETE /api/v1/rejections/", Event.INSTANCES_ACCESSED, "D"),
        ("GET /api/v1/rejections/", Event.INSTANCES_TRANSFERRED, "R"),
        ("POST /api/v1/work-items", Event.PATIENT_RECORD, "U"),
        ("[A-Z]+ (/api/v1/audit|/fhir/AuditEvent)", Event.AUDIT_LOG_USED, "R"),
        ("[A-Z]+ /api/v1/(studies|work-items|patients|orders|visits|changes|dose|probes)", Event.QUERY, "E"),
        ("[A-Z]+ /fhir/(Patient|ImagingStudy)", Event.QUERY, "E"),
    )
]
_CHANGES = {  # over DICOMweb
    "POST": _Attempt(Event.INSTANCES_TRANSFERRED, "C"),
    "DELETE": _Attempt(Event.INSTANCES_ACCESSED, "D"),
}


def audit_refusal(request: Request, error: NotAuthenticated | NotAllowed) -> None:
    """Commit the audit row of a refusal; the answer follows (law 4). Raises Unavailable when it cannot be written."""
    if getattr(request.state, "audited", False):
        return
    actor = getattr(request.state, "actor", None)
    if isinstance(actor, Actor):
        attempt = _attempted(request)
    else:
        actor = Actor(user="anonymous", source=source_of(request), door=door_of(request), may=frozenset())
        attempt = _Attempt(Event.USER_AUTHENTICATION, "E", EventType.LOGIN)
    study = request.path_params.get("study")
    refused(
        archive_of(request).commit,
        actor,
        attempt.event,
        attempt.action,
        reason=str(error),
        study=str(study)[:64] if study else None,
        detail={
            "method": request.method,
            "resource": resource_of(request.scope),
            **({"type": attempt.type} if attempt.type else {}),
        },
    )


def resource_of(scope: MutableMapping[str, Any]) -> str:
    """What was asked for, without anything that the caller wrote: the name of the endpoint."""
    return str(getattr(scope.get("endpoint"), "__name__", "unknown"))


def _attempted(request: Request) -> _Attempt:
    """What a known caller was about to do, in the words of sheet 40 §2."""
    path = request.url.path.rstrip("/")
    if path.startswith(("/dicom-web", "/wado")):
        retrieval = _Attempt(Event.QUERY, "E") if _QIDO.fullmatch(path) else _Attempt(Event.INSTANCES_TRANSFERRED, "R")
        return _CHANGES.get(request.method, retrieval)
    for pattern, attempt in _ATTEMPTS:
        if pattern.match(f"{request.method} {path}"):
            return attempt
    if door_of(request) is Door.DESK:
        return _Attempt(Event.QUERY, "E")
    return _Attempt(Event.SECURITY_ALERT, "E", EventType.RESTRICTED_FUNCTION)
