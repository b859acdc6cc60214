"""`/viewer/`: OHIF, as `make viewer` fetched it, on the terms of the desk: its session, our DICOMweb alone.

The page needs the right to see images. The files behind it are free software and hold nothing of a patient: they need
no log-in, and browsers keep them for ever, under addresses that change with their release.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import structlog
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from api import accept, auth
from api.french import ENVIRONMENT, VIEWER_VERSION
from api.layout import page_of
from archive.access import Action
from archive.contextual import Call, studies_called
from archive.errors import NotFound

log = structlog.get_logger(__name__)

LISTING = "viewer.json"  # what `minipacs.viewer` says of the folder, and wrote last
_TYPES = {
    ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".wasm": "application/wasm",
    ".woff2": "font/woff2", ".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon",
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", "": "text/plain; charset=utf-8",
}  # fmt: skip
COMPRESSED = frozenset({".js", ".css", ".wasm", ".svg"})  # with a copy beside it, `NAME.gz`
# All comes from here and goes nowhere else. Codecs are WebAssembly, styles are set by React, pictures made in memory.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{eval}; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:; img-src 'self' blob: data:; media-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; frame-src 'self' blob:; object-src 'self' blob:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_CALLED = {
    "study_uid": "studyInstanceUID",
    "accession_number": "accessionNumber",
    "patient_id": "PatientID",
    "issuer": "PatientIDIssuer",
}
_TOGETHER = {"cross-origin-embedder-policy": "require-corp"}  # with the opener policy: memory that workers share
_PAGE = {"content-security-policy": _POLICY.format(eval=""), **_TOGETHER}
# Of a bundle, only where it is a worker: that in which the codecs of JPEG 2000 and JPEG-LS make functions of text.
_BUNDLE = {"content-security-policy": _POLICY.format(eval=" 'unsafe-eval'"), **_TOGETHER}


@dataclass(frozen=True, slots=True)
class Viewer:
    """The viewer as it lies on the disk."""

    version: str
    release: str  # part of the addresses of what never changes
    script: str
    style: str
    files: dict[str, Path]  # by the name that a browser asks for: nothing of an address becomes a path (law 8)

    @property
    def root(self) -> str:
        return f"/viewer/{self.release}/"


def find(folder: Path) -> Viewer | None:
    """The viewer in a folder that `minipacs.viewer` made; None: there is none, or not one that can be used."""
    try:
        said: dict[str, Any] = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        names = {str(name) for name in said["files"]}
        known = {name: folder / name for name in names}
        found = Viewer(str(said["version"]), str(said["release"]), str(said["script"]), str(said["style"]), known)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.error("the viewer cannot be used", error=type(error).__name__)
        return None
    return found


def address_of(request: Request, study: str, *, series: str = "") -> str | None:
    """Where a study opens in the viewer, at one of its series if that is given; None: there is no viewer."""
    if _viewer_of(request) is None:
        return None
    wanted = {"StudyInstanceUIDs": study} | ({"initialSeriesInstanceUID": series} if series else {})
    return f"/viewer/?{urlencode(wanted)}"


def viewer_page(request: Request) -> Response:
    """The page of the viewer. `?StudyInstanceUIDs=` alone leads to these studies, without it there is OHIF's list."""
    auth.demand_right(request, Action.SEE)
    found = _viewer_of(request)
    if found is None:
        return page_of(request, "viewer-missing.html", 404)
    mode = str(request.path_params.get("mode", ""))
    if not mode and "StudyInstanceUIDs" in request.query_params:
        return RedirectResponse(f"/viewer/viewer?{request.url.query}", 307, _PAGE)
    html = ENVIRONMENT.get_template("viewer.html").render(viewer=found, config_version=VIEWER_VERSION)
    return Response(html, headers=_PAGE, media_type="text/html; charset=utf-8")


def viewer_called(request: Request) -> Response:
    """A contextual call (REQ-DRIM-09): leads to the exam that is meant, in the viewer. Values that are not known here
    (`idCDA`) are passed over."""
    actor = auth.demand_right(request, Action.SEE)
    said = {name: request.query_params.get(key, "").strip() for name, key in _CALLED.items()}
    found = studies_called(auth.archive_of(request), Call(**said), actor=actor)
    if _viewer_of(request) is None:
        return page_of(request, "viewer-missing.html", 404)
    return RedirectResponse(f"/viewer/viewer?{urlencode({'StudyInstanceUIDs': ','.join(found)})}", 303, _PAGE)


def viewer_file(request: Request) -> Response:
    """A file of the viewer, compressed where the browser takes that; it never changes."""
    found = _viewer_of(request)
    name = str(request.path_params["name"])
    path = found.files.get(name) if found is not None and request.path_params["release"] == found.release else None
    if path is None:
        raise NotFound("no such file of the viewer")
    kind = Path(name).suffix if "." in name else ""
    headers = {**_BUNDLE, "cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if kind in COMPRESSED and accept.takes_gzip(request.headers.get("accept-encoding", "")):
        headers["content-encoding"] = "gzip"
        path = path.with_name(f"{path.name}.gz")
    try:
        found_file = path.stat()
    except OSError as error:
        raise NotFound("this file of the viewer is not there") from error
    return FileResponse(path, headers=headers, media_type=_TYPES[kind], stat_result=found_file)


def _viewer_of(request: Request) -> Viewer | None:
    """Read anew whenever its listing is another file: `make viewer` may come after the start, and again."""
    state = request.app.state
    folder = auth.archive_of(request).settings.viewer_dir
    try:
        listing = (folder / LISTING).stat()
    except OSError:
        return None
    mark = (listing.st_ino, listing.st_mtime_ns, listing.st_size)
    known: tuple[object, Viewer | None] = getattr(state, "viewer", ((), None))
    if known[0] != mark:
        known = state.viewer = (mark, find(folder))
    return known[1]


routes = [
    Route("/viewer/{release:str}/{name:path}", viewer_file),
    Route("/viewer/open", viewer_called),
    Route("/viewer/{mode:str}", viewer_page),
    Route("/viewer/", viewer_page),
    Route("/viewer", viewer_page),
]
