"""WADO-RS metadata: everything but bulk data, as DICOM JSON (PS3.18 10.4.1.1.2, Annex F, REQ-DCM-90, REQ-DCM-96), or
as XML (PS3.19 Annex A.1), a part for each instance.

Of studies and series they lie ready (`archive.series_metadata`); they leave compressed where that is accepted, with an
entity tag, and not at all to whoever has them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.documents import parts
from api.wado import INSTANCE, SERIES, STUDY, begin, chosen, counted, head, no_copy, service_address, wish_of
from archive.access import Action
from archive.series_metadata import tag, told, told_of

_QUICK = 1  # a few times larger than the best, in a tenth of its time
_GZIP = 31  # what zlib calls a gzip wrapper around its largest window


def retrieve_metadata(request: Request) -> Response:
    """Of a study, of a series, or of one instance."""
    actor = auth.demand_right(request, Action.SEE)
    standing, missing = chosen(request)
    archive = auth.archive_of(request)
    form = wish_of(request).demand(accept.METADATA)
    as_xml, boundary = form.media_type == accept.XML, multipart.new_boundary()
    headers = {"Content-Type": multipart.related_type(accept.XML, boundary) if as_xml else form.media_type}
    service = service_address(request)
    if not missing:
        # weak: compressed or not, it is the same
        headers |= conditional.headers(f'W/"{tag(archive, standing, service)}{"-xml" * as_xml}"')
    headers["Vary"] = "Accept, Accept-Encoding, Authorization, Cookie"
    if not standing:
        raise no_copy()
    if "ETag" in headers and conditional.is_known(request, headers["ETag"]):
        begin(request, standing, actor)
        return Response(None, 304, headers)
    status = 206 if missing else 200
    if request.method == "HEAD":
        return head(status, headers)
    access = begin(request, [*standing, *missing], actor)
    for one in missing:
        access.failed(one)
    pieces: Iterator[multipart.Bytes]
    if as_xml:
        pieces = parts((orjson.loads(told_of(archive, one, service)) for one in standing), boundary)
    elif "instance" in request.path_params:
        pieces = iter((b"[", told_of(archive, standing[0], service), b"]"))
    else:
        pieces = told(archive, standing, service)
    if accept.takes_gzip(request.headers.get("accept-encoding", "")):
        headers["Content-Encoding"] = "gzip"
        pieces = _compressed(pieces)
    pieces = counted(pieces, access, *standing)
    return multipart.Stream(pieces, status, headers)


def _compressed(pieces: Iterator[multipart.Bytes]) -> Iterator[multipart.Bytes]:
    deflater = zlib.compressobj(_QUICK, wbits=_GZIP)
    for piece in pieces:
        yield deflater.compress(piece)
    yield deflater.flush()


routes = [Route(f"{path}/metadata", retrieve_metadata) for path in (STUDY, SERIES, INSTANCE)]
