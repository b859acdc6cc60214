"""Data sets without bulk data as they leave: DICOM JSON, or one document of the Native DICOM Model for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from starlette.responses import Response

from api import accept, multipart
from archive.dicom import xml


def documents(found: list[Any], form: accept.Representation) -> Response:
    """These data sets, all in memory, in one of the forms of `accept.METADATA`."""
    if form.media_type == accept.JSON:
        return Response(orjson.dumps(found), media_type=accept.JSON)
    boundary = multipart.new_boundary()
    body = b"".join(parts(found, boundary))
    return Response(body, headers={"Content-Type": multipart.related_type(accept.XML, boundary)})


def parts(found: Iterable[Mapping[str, Any]], boundary: str) -> Iterator[multipart.Bytes]:
    """A multipart body of one XML document for each data set."""
    documents = (multipart.Part(accept.XML, iter((xml.written(one),))) for one in found)
    return multipart.flat(multipart.related(documents, boundary))
