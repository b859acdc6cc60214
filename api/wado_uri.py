"""WADO-URI: `GET /wado?requestType=WADO&…`, one instance or a picture of it (PS3.18 §9, REQ-DCM-95)."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, looks, rendered
from api.looks import Look
from api.wado import alone, selected
from archive.access import Action
from archive.dicom.header import is_legal_uid
from archive.dicom.lettering import known
from archive.errors import InvalidRequest
from archive.retrieve import Stored

_UIDS = {"study": "studyUID", "series": "seriesUID", "instance": "objectUID"}
_NOT_HERE = ("anonymize", "presentationUID", "presentationSeriesUID", "charset")
_OF_PICTURES = (
    "frameNumber", "rows", "columns", "windowCenter", "windowWidth", "imageQuality", "annotation", "region"
)  # fmt: skip
_FORMS = (accept.Representation(accept.DICOM), *accept.RENDERED)


def retrieve_object(request: Request) -> Response:
    """One instance as application/dicom, or its picture (or that of `frameNumber`) as image/jpeg or image/png.

    Without `contentType` an image of one frame comes as a picture, everything else as DICOM (PS3.18 Table 8.7.4-1).
    What is asked for and not done here (`anonymize`, `presentationUID`…) is refused: nobody is to take what came
    for it.
    """
    actor = auth.demand_right(request, Action.SEE)
    asked = _parameters(request)
    one = selected(request, _place(asked))
    kind = _kind(asked, one)
    if kind in (choice.media_type for choice in accept.RENDERED):
        if "transferSyntax" in asked:
            raise InvalidRequest("transferSyntax goes with contentType=application/dicom")
        return rendered.picture(
            request,
            one,
            actor,
            media_type=kind,
            frame=looks.number(asked.get("frameNumber", "1"), "frameNumber", 1, 1 << 31),
            look=_look(asked),
        )
    for name in _OF_PICTURES:
        if name in asked:
            raise InvalidRequest(f"{name} goes with the contentType of a picture")
    syntax = asked.get("transferSyntax")
    wish = accept.Wish((), (accept.Range(accept.DICOM, False, syntax, 1.0),))
    return alone(request, one, actor, wish)


def _parameters(request: Request) -> dict[str, str]:
    """Raises InvalidRequest for one that is given twice, is missing, or is not done here (400)."""
    asked: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in asked:
            raise InvalidRequest(f"the parameter {name[:40]!r} is given twice")
        asked[name] = value
    if asked.get("requestType") != "WADO":
        raise InvalidRequest("requestType=WADO is missing")
    for name in _NOT_HERE:
        if name in asked:
            raise InvalidRequest(f"the parameter {name} is not supported here")
    return asked


def _place(asked: Mapping[str, str]) -> dict[str, str]:
    place = {level: asked.get(name, "") for level, name in _UIDS.items()}
    for level, uid in place.items():
        if not is_legal_uid(uid):
            raise InvalidRequest(f"{_UIDS[level]} is missing or is not a UID")
    return place


def _kind(asked: Mapping[str, str], one: Stored) -> str:
    """The media type of the answer. Raises NotAcceptable when none of those that are asked for is there (406)."""
    header = asked.get("contentType")
    if header:
        return accept.Wish((), accept.parse(header)).demand(_FORMS).media_type
    if any(name in asked for name in _OF_PICTURES):
        return accept.RENDERED[0].media_type
    if "transferSyntax" in asked or one.pixel_offset is None or rendered.frames_of(one) != 1:
        return accept.DICOM
    return accept.RENDERED[0].media_type


def _look(asked: Mapping[str, str]) -> Look:
    """Rows and columns are bounds, to which only a region of an image is enlarged."""
    annotation, not_done = known(asked.get("annotation", "").split(","))
    if not_done:
        raise InvalidRequest("an annotation is patient, technique, or both with a comma between")
    region = looks.region_of(asked["region"]) if "region" in asked else None
    size = _size(asked)
    return Look(
        window=_window(asked),
        size=size,
        region=region,
        enlarge=region is not None and size is not None,
        quality=looks.number(asked.get("imageQuality", "90"), "imageQuality", 1, 100),
        annotation=annotation,
    )


def _window(asked: Mapping[str, str]) -> tuple[float, float] | None:
    centre, width = asked.get("windowCenter"), asked.get("windowWidth")
    if centre is None and width is None:
        return None
    if centre is None or width is None:
        raise InvalidRequest("windowCenter and windowWidth go together")
    return looks.window_of(centre, width)


def _size(asked: Mapping[str, str]) -> tuple[int, int] | None:
    """Rows and columns to fit in; one alone leaves the other free."""
    if "rows" not in asked and "columns" not in asked:
        return None
    most = looks.MOST_PIXELS
    rows = looks.number(asked.get("rows", str(most)), "rows", 1, most)
    return rows, looks.number(asked.get("columns", str(most)), "columns", 1, most)


routes = [Route("/wado", retrieve_object)]
