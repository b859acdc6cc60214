"""What can be asked for here: `OPTIONS` on any resource, and `GET` of the service itself (PS3.18 8.9, REQ-DCM-96).

One table; the test of capabilities holds it against the routes of the application. It tells nothing of anybody, and is
open to all: gateways look at it to know that the service lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept
from api.wado import INSTANCE, SERIES, STUDY, wish_of

WADL = "http://wadl.dev.java.net/2009/02"
_RELATED_DICOM = 'multipart/related; type="application/dicom"'
_RELATED_XML = 'multipart/related; type="application/dicom+xml"'
_RELATED_JSON = 'multipart/related; type="application/dicom+json"'
_OBJECTS = (_RELATED_DICOM, accept.DICOM)
_TAKEN_IN = (_RELATED_DICOM, _RELATED_JSON, _RELATED_XML, accept.DICOM)
_METADATA = (accept.JSON, _RELATED_XML)
_PICTURES = tuple(one.media_type for one in accept.RENDERED)
_ALL_PICTURES = tuple(accept.content_type(one) for one in accept.ALL_RENDERED)
_FRAMES = tuple(dict.fromkeys(("application/octet-stream", *accept.FRAME_MEDIA_TYPES.values())))
_SEARCH = ("includefield", "limit", "offset", "fuzzymatching", "emptyvaluematching", "multiplevaluematching", "strict")
_RENDER = ("window", "viewport", "quality", "annotation")


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a resource. `takes` and `gives` are media types; `parameters` those of the query."""

    name: str
    transaction: str  # of PS3.18, or ours
    gives: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def _search() -> Method:
    return Method("GET", "search", _METADATA, parameters=_SEARCH)


def _store() -> Method:
    return Method("POST", "store", tuple(one.media_type for one in accept.STORED), _TAKEN_IN)


def _delete() -> Method:
    return Method("DELETE", "delete", parameters=("code", "reason"))


RESOURCES: dict[str, tuple[Method, ...]] = {
    "/studies": (_search(), _store()),
    "/series": (_search(),),
    "/instances": (_search(),),
    STUDY: (Method("GET", "retrieveStudy", (_RELATED_DICOM,)), _store(), _delete()),
    SERIES: (Method("GET", "retrieveSeries", (_RELATED_DICOM,)), _delete()),
    INSTANCE: (Method("GET", "retrieveInstance", _OBJECTS), _delete()),
    f"{STUDY}/series": (_search(),),
    f"{STUDY}/instances": (_search(),),
    f"{SERIES}/instances": (_search(),),
    **{f"{path}/metadata": (Method("GET", "retrieveMetadata", _METADATA),) for path in (STUDY, SERIES, INSTANCE)},
    **{
        f"{path}/thumbnail": (Method("GET", "retrieveThumbnail", _PICTURES, parameters=("viewport",)),)
        for path in (STUDY, SERIES, INSTANCE, f"{INSTANCE}/frames/{{frame}}")
    },
    **{
        f"{path}/rendered": (Method("GET", "retrieveRendered", _PICTURES, parameters=_RENDER),)
        for path in (INSTANCE, f"{INSTANCE}/frames/{{frame}}")
    },
    **{
        f"{path}/rendered": (Method("GET", "retrieveRendered", _ALL_PICTURES, parameters=_RENDER),)
        for path in (STUDY, SERIES)
    },
    f"{INSTANCE}/frames/{{frames}}": (Method("GET", "retrieveFrames", _FRAMES),),
    f"{INSTANCE}/bulkdata/{{path}}": (Method("GET", "retrieveBulkdata", ("application/octet-stream",)),),
}


def describe(request: Request) -> Response:
    """The resources of the service, as WADL or as JSON."""
    chosen = wish_of(request).demand(accept.CAPABILITIES)
    base = f"{request.base_url}dicom-web"
    if request.method == "HEAD":
        return Response(None, 200, {"Content-Type": chosen.media_type})
    content = _json(base) if chosen is accept.CAPABILITIES[1] else _wadl(base)
    return Response(content, headers={"Content-Type": chosen.media_type, "Allow": "GET, HEAD, OPTIONS, POST, DELETE"})


def _json(base: str) -> bytes:
    resources = [
        {
            "path": path,
            "methods": [
                {
                    "name": one.name,
                    "id": one.transaction,
                    "accepts": list(one.takes),
                    "returns": list(one.gives),
                    "parameters": list(one.parameters),
                }
                for one in methods
            ],
        }
        for path, methods in RESOURCES.items()
    ]
    return orjson.dumps({"base": base, "resources": resources})


def _wadl(base: str) -> bytes:
    root = ET.Element("application", {"xmlns": WADL})
    resources = ET.SubElement(root, "resources", {"base": f"{base}/"})
    for path, methods in RESOURCES.items():
        resource = ET.SubElement(resources, "resource", {"path": path.lstrip("/")})
        for name in _names(path):
            ET.SubElement(resource, "param", {"name": name, "style": "template", "required": "true"})
        for one in methods:
            method = ET.SubElement(resource, "method", {"name": one.name, "id": one.transaction})
            asks = ET.SubElement(method, "request")
            for parameter in one.parameters:
                ET.SubElement(asks, "param", {"name": parameter, "style": "query"})
            for media_type in one.takes:
                ET.SubElement(asks, "representation", {"mediaType": media_type})
            answers = ET.SubElement(method, "response")
            for media_type in one.gives:
                ET.SubElement(answers, "representation", {"mediaType": media_type})
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _names(path: str) -> Iterator[str]:
    return (part.partition("}")[0] for part in path.split("{")[1:])


routes = [
    Route("/", describe, methods=["GET", "OPTIONS"]),
    *(Route(path.replace("{path}", "{path:path}"), describe, methods=["OPTIONS"]) for path in RESOURCES),
]
