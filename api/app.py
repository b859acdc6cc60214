"""The application: DICOMweb, the JSON API, the desk, the probes. `create_app` wires them around one archive."""

from __future__ import annotations

from asyncio import Semaphore
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from anyio import CapacityLimiter, move_on_after
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    accept,
    admin,
    auth,
    bulkdata,
    capabilities,
    changes,
    dose,
    fhir,
    frames,
    hl7,
    keeping,
    key_images,
    layout,
    lookup,
    manifests,
    metadata,
    pages,
    patients,
    peers,
    probes,
    problems,
    purges,
    qido,
    rejections,
    removal,
    rendered,
    retention,
    stow,
    viewer,
    wado,
    wado_uri,
    work,
)
from api.at_once import AtOnce
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, InvalidRequest, NotAllowed, NotAuthenticated
from archive.probing import PROBE

log = structlog.get_logger(__name__)

INGEST_THREADS = 16
GZIP_BYTES = 1024  # JSON and XML below are not worth it
# Pixels do not get smaller; pages, where a search stands beside what it found, give nothing away by their length.
_NOT_GZIPPED = ("application/dicom", "application/octet-stream", "multipart/*", "image/*", "video/*", "text/*")
_CROSS_ORIGIN: dict[str, Any] = {  # what scripts of other origins may ask for, and read: never with our cookie
    "allow_methods": ("GET", "HEAD", "POST", "DELETE"),
    "allow_headers": (
        "Accept",
        "Authorization",
        "Content-Type",
        "If-None-Match",
        "If-Range",
        "KOS-SOPInstanceUID",
        "Range",
    ),
    "expose_headers": ("Accept-Ranges", "Content-Location", "Content-Range", "ETag", "Link", "Retry-After", "Warning"),
}
_NONE_ELSEWHERE: Any = {"tracing": False, "metrics": False, "logs": False}  # of FastAPI's own: ours are `/metrics`
BODY_SECONDS = 60.0  # of silence in the middle of a request's body
_MACHINES = ("/dicom-web", "/wado", "/api", "/healthz", "/readyz", "/metrics")  # answered with problems, not with pages
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
_HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": (
            "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        # not no-referrer: a browser would then send «Origin: null» with our own forms, which looks like another site
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-store",  # patient data, unless an answer says otherwise
    }.items()
]
_HTTPS = (b"strict-transport-security", b"max-age=31536000")


def create_app(archive: Archive) -> FastAPI:
    """The ASGI application of the API edge. It holds no state but the archive's."""
    app = FastAPI(
        title="minipacs", version="1", openapi_url=None, docs_url=None, redoc_url=None, telemetry=_NONE_ELSEWHERE
    )
    app.state.archive = archive
    app.state.metrics = probes.Metrics(archive)
    app.state.logins = CapacityLimiter(auth.LOGINS_AT_ONCE)
    app.state.ingest_pool = ThreadPoolExecutor(INGEST_THREADS, thread_name_prefix="stow")
    app.state.assembling = Semaphore(1)
    app.add_middleware(Gzip, minimum_size=GZIP_BYTES, compresslevel=1, exclude_content_types=_NOT_GZIPPED)
    if archive.reads_at_once:
        hot = [Route(f"/dicom-web{route.path}", route.endpoint) for route in frames.routes]
        app.add_middleware(AtOnce, routes=hot)
    if archive.settings.api.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=archive.settings.api.cors_origins, **_CROSS_ORIGIN)
    app.add_middleware(Shell, metrics=app.state.metrics)
    app.add_exception_handler(ArchiveError, _archive_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)

    app.router.routes.append(Mount("/static", StaticFiles(packages=[("api", "static")]), name="static"))
    searches = (route for route in qido.router.routes if isinstance(route, Route))
    modules = (wado, metadata, bulkdata, frames, rendered, stow, removal, capabilities)
    for route in (*searches, *(route for module in modules for route in module.routes)):
        app.router.add_route(f"/dicom-web{route.path}", route.endpoint, methods=sorted(route.methods or ()))
    app.router.add_route("/dicom-web", capabilities.describe, methods=["GET", "OPTIONS"])
    app.router.routes.extend(wado_uri.routes)
    app.include_router(admin.router)
    app.include_router(retention.router)
    app.include_router(purges.router)
    app.include_router(changes.router)
    app.include_router(admin.openapi_router)
    app.include_router(hl7.router)
    app.include_router(patients.router)
    app.include_router(lookup.router)
    app.include_router(lookup.desk)
    app.include_router(peers.router)
    app.include_router(peers.desk)
    app.include_router(rejections.router)
    app.include_router(key_images.router)
    app.include_router(manifests.router)
    app.include_router(dose.router)
    app.include_router(fhir.router)
    app.include_router(probes.router)
    app.include_router(pages.router)
    app.include_router(keeping.router)
    app.include_router(work.router)
    app.include_router(rejections.pages)
    app.router.routes.extend(viewer.routes)
    return app


async def _archive_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ArchiveError)
    if isinstance(error, NotAuthenticated | NotAllowed):
        try:
            await run_in_threadpool(auth.audit_refusal, request, error)
        except ArchiveError as unavailable:  # the refusal cannot be written down: that is the answer (law 4)
            error = unavailable
    user = getattr(getattr(request.state, "actor", None), "user", "")
    problems.note(error, method=request.method, route=auth.resource_of(request.scope), user=user)
    return _answer(request, problems.of_archive(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, problems.of_http(error))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, problems.of_validation(error))


def _answer(request: Request, problem: problems.Problem) -> Response:
    if request.url.path.startswith("/fhir"):
        return fhir.outcome_of(problem)
    if request.url.path.startswith(_MACHINES):
        return problem.response()
    return layout.problem_page(request, problem)


def _complete_host(scope: Scope) -> None:
    """Add our port to a Host header that has none, so that the addresses in answers lead back here.

    dicomweb-client leaves it out. Behind a reverse proxy, which says so, the header stands as it is.
    """
    if any(name == b"host" and b":" in value.rpartition(b"]")[2] for name, value in scope["headers"]):
        return
    headers = dict(scope["headers"])
    host, server = headers.get(b"host", b""), scope.get("server")
    usual = {"http": 80, "https": 443}[scope["scheme"]]
    if not host or not server or not server[1] or server[1] == usual or any(name in headers for name in _FORWARDED):
        return
    complete = host + b":" + str(server[1]).encode()
    scope["headers"] = [(name, complete if name == b"host" else value) for name, value in scope["headers"]]


def _holds_nul(scope: Scope) -> bool:
    """Whether something in the address stands for U+0000, which no value of ours has and no database takes."""
    return "\0" in scope["path"] or b"%00" in scope["query_string"]


def _in_time(receive: Receive) -> Receive:
    """The same, but whoever is silent for too long in the middle of a body counts as gone: what it holds, a file
    and a connection, is let go."""
    awaited = True

    async def receive_in_time() -> Message:
        nonlocal awaited
        if not awaited:
            return await receive()  # the end of the connection, however late
        message: Message = {"type": "http.disconnect"}
        with move_on_after(BODY_SECONDS):
            message = await receive()
        awaited = message["type"] == "http.request" and message.get("more_body", False)
        return message

    return receive_in_time


class Gzip(GZipMiddleware):
    """Starlette's looks for the word alone, `gzip;q=0` included: what `accept.takes_gzip` makes of the header stands in
    its place from here on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            others = [field for field in scope["headers"] if field[0] != b"accept-encoding"]
            said = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")
            coding = b"gzip" if accept.takes_gzip(said.decode("latin-1")) else b"identity"
            scope["headers"] = [*others, (b"accept-encoding", coding)]
        await super().__call__(scope, receive, send)


class Shell:
    """What goes around every request: headers, figures, and the answer to a bug."""

    def __init__(self, app: ASGIApp, metrics: probes.Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _complete_host(scope)
        status = 0
        started = monotonic()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = list(message.get("headers", ()))
                said = {name.lower() for name, _ in headers}
                if scope["path"].startswith("/static/") and b"cache-control" not in said:
                    headers.append((b"cache-control", b"public, max-age=3600"))
                    said.add(b"cache-control")
                headers += [field for field in _HEADERS if field[0] not in said]
                if scope["scheme"] == "https" and _HTTPS[0] not in said:
                    headers.append(_HTTPS)
            await send(message)

        try:
            if _holds_nul(scope):
                response = _answer(Request(scope), problems.of_archive(InvalidRequest("the address holds a NUL")))
                await response(scope, receive, send_with_headers)
                return
            await self._app(scope, _in_time(receive), send_with_headers)
        except Exception:
            log.exception("a request failed", method=scope["method"], resource=auth.resource_of(scope))
            if not status:  # else the connection is cut, so that a part is not taken for the whole
                response = _answer(Request(scope), problems.of_bug())
                await response(scope, receive, send_with_headers)
        finally:
            if scope.get("state", {}).get("actor") is not PROBE:  # these are no requests of anybody
                self._metrics.count(scope["method"], auth.resource_of(scope), status, monotonic() - started)
