"""FHIR R4, read-only, at `/fhir` (sheet 60 §4): answers, errors and bundles in its words; the resources are beside it.

A search is audited before it is answered (law 4), with what was asked and nothing of the answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Annotated, Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from api import auth, fhir_audit, fhir_capability, fhir_imaging, fhir_patient
from api.fhir_search import Page, Search
from api.problems import Problem
from archive.access import Action, Actor
from archive.core import Archive
from archive.errors import InvalidRequest, NotAcceptable

MEDIA_TYPE = "application/fhir+json"
_JSON = ("json", "application/json", "application/fhir+json", "text/json")
_ISSUES = {  # http://hl7.org/fhir/issue-type
    400: "invalid", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 406: "not-supported",
    409: "conflict", 410: "deleted", 413: "too-long", 415: "not-supported", 503: "transient", 507: "no-store",
}  # fmt: skip

router = APIRouter(prefix="/fhir", include_in_schema=False, max_body_size=1 << 16)


async def _asked(request: Request) -> Search:
    """The parameters of a search, in the address and, of a POST, in the form."""
    pairs = list(request.query_params.multi_items())
    if request.method == "POST":
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("", "application/x-www-form-urlencoded"):
            raise InvalidRequest("a search by POST is a form (application/x-www-form-urlencoded)")
        form = await request.form()
        pairs += [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    return Search(pairs, strict="handling=strict" in request.headers.get("prefer", "").replace(" ", ""))


Asked = Annotated[Search, Depends(_asked)]
MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]
MayAudit = Annotated[Actor, Depends(auth.Right(Action.AUDIT))]
Anybody = Annotated[Actor, Depends(auth.current_actor)]


@router.get("/metadata")
def fhir_metadata(request: Request, actor: Anybody) -> Response:
    """What this server does (CapabilityStatement)."""
    _demand_json(request, request.query_params.get("_format"))
    return _response(fhir_capability.statement(auth.archive_of(request), _base(request)))


@router.get("/Patient")
@router.post("/Patient/_search")
def fhir_patients(request: Request, actor: MayFind, asked: Asked) -> Response:
    """PDQm: patients by demographics (ITI-78)."""
    return _bundle(request, "Patient", asked, fhir_patient.search, actor)


@router.get("/Patient/{patient}")
def fhir_patient_read(request: Request, patient: Annotated[str, Path(max_length=64)], actor: MayFind) -> Response:
    """One patient (ITI-78, 3.78.4.3)."""
    _demand_json(request, request.query_params.get("_format"))
    return _response(fhir_patient.read(auth.archive_of(request), patient, actor=actor))


@router.get("/ImagingStudy")
@router.post("/ImagingStudy/_search")
def fhir_studies(request: Request, actor: MayFind, asked: Asked) -> Response:
    """Studies, their series and instances."""
    return _bundle(request, "ImagingStudy", asked, fhir_imaging.search, actor, dicomweb=_dicomweb(request))


@router.get("/ImagingStudy/{study}")
def fhir_study_read(request: Request, study: Annotated[str, Path(max_length=64)], actor: MayFind) -> Response:
    """One study, by its Study Instance UID."""
    _demand_json(request, request.query_params.get("_format"))
    archive = auth.archive_of(request)
    return _response(fhir_imaging.read(archive, study, actor=actor, dicomweb=_dicomweb(request)))


@router.get("/AuditEvent")
@router.post("/AuditEvent/_search")
def fhir_audit_events(request: Request, actor: MayAudit, asked: Asked) -> Response:
    """Who did what, the latest first (ITI-81). Reading it is an entry of its own."""
    return _bundle(request, "AuditEvent", asked, fhir_audit.search, actor)


@router.get("/AuditEvent/{entry}")
def fhir_audit_event_read(request: Request, entry: Annotated[str, Path(max_length=64)], actor: MayAudit) -> Response:
    """One entry of the audit."""
    _demand_json(request, request.query_params.get("_format"))
    return _response(fhir_audit.read(auth.archive_of(request), entry, actor=actor))


def outcome_of(problem: Problem) -> Response:
    """A problem as an OperationOutcome; a bug tells nothing of itself."""
    issue = {"severity": "error", "code": _ISSUES.get(problem.status, "exception")}
    places = "; ".join(f"{one['place']}: {one['problem']}" for one in problem.facts.get("errors", ()))
    if said := problem.detail or places or problem.title:
        issue["diagnostics"] = said
    return _response({"resourceType": "OperationOutcome", "issue": [issue]}, problem.status, problem.headers)


def _bundle(
    request: Request,
    kind: str,
    asked: Search,
    search: Callable[..., Page],
    actor: Actor,
    **more: Any,
) -> Response:
    """The searchset of a search. What was not understood is not in `self`, and is said in an entry of its own."""
    archive: Archive = auth.archive_of(request)
    _demand_json(request, asked.format)
    page = search(archive, asked, actor=actor, **more)
    base = _base(request)
    links = [{"relation": "self", "url": _address(base, kind, asked.used)}]
    if page.next is not None:
        following = [pair for pair in asked.used if pair[0] != "_cursor"]
        links.append({"relation": "next", "url": _address(base, kind, [*following, ("_cursor", str(page.next))])})
    entries: list[dict[str, Any]] = [
        {"fullUrl": f"{base}/{kind}/{one['id']}", "resource": one, "search": {"mode": "match"}}
        for one in page.resources
    ]
    if asked.ignored:
        issue = {"severity": "warning", "code": "not-supported", "diagnostics": f"ignored: {', '.join(asked.ignored)}"}
        outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
        entries.append({"resource": outcome, "search": {"mode": "outcome"}})
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": f"{archive.clock():%Y-%m-%dT%H:%M:%SZ}"},
        "type": "searchset",
        "total": page.total,
        "link": links,
        "entry": entries,
    }
    return _response({name: value for name, value in bundle.items() if value not in (None, [])})


def _address(base: str, kind: str, pairs: Iterable[tuple[str, str]]) -> str:
    query = urlencode(list(pairs))
    return f"{base}/{kind}?{query}" if query else f"{base}/{kind}"


def _base(request: Request) -> str:
    return f"{request.base_url}fhir"


def _dicomweb(request: Request) -> str:
    return f"{request.base_url}dicom-web"


def _demand_json(request: Request, wanted: str | None) -> None:
    """Raises NotAcceptable when the caller takes no JSON: `_format` comes before the header (FHIR 3.1.0.1.11)."""
    if wanted:
        # a plus of an address that was not escaped arrives as a space
        if wanted.partition(";")[0].strip().lower().replace(" ", "+") not in _JSON:
            raise NotAcceptable(f"resources are given as {MEDIA_TYPE}")
        return
    ranges = [one.partition(";")[0].strip().lower() for one in request.headers.get("accept", "").split(",")]
    taken = {"", "*/*", "application/*", "text/*", *_JSON}
    if not any(one in taken for one in ranges) and not any("html" in one for one in ranges):
        raise NotAcceptable(f"resources are given as {MEDIA_TYPE}")


def _response(resource: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(resource), status, media_type=f"{MEDIA_TYPE}; charset=utf-8", headers=headers)
