"""WADO-RS bulk data: the values that metadata only point at (PS3.18 10.4.1.1.5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.wado import INSTANCE, address_of, begin, counted, head, read, selected, wish_of
from archive.access import Action
from archive.dicom.bulk import bulk_data, bulk_frames, bulk_length
from archive.errors import InvalidRequest, NotAcceptable, NotFound, Unsupported
from archive.outgoing import outgoing
from archive.retrieve import Stored

_BULK_PATH = re.compile(r"[0-9A-Fa-f]{8}(/[0-9]{1,9}/[0-9A-Fa-f]{8}){0,32}", re.ASCII)


def retrieve_bulk_data(request: Request) -> Response:
    """One value that the metadata only point at, as octets in little endian (PS3.18 10.4.1.1.5)."""
    actor = auth.demand_right(request, Action.SEE)
    one = selected(request)
    path = str(request.path_params["path"]).upper()
    if not _BULK_PATH.fullmatch(path):
        raise InvalidRequest("the address names no element")
    changes = outgoing(auth.archive_of(request), one).changes
    if changes is not None and int(path[:8], 16) in changes.attributes:
        raise NotFound("this value was corrected: the metadata have it")  # REQ-DCM-70: at no door as it was
    stored = one.transfer_syntax_uid
    where: Any = {"data_set_offset": one.data_set_offset, "transfer_syntax_uid": stored}
    length = 0
    try:
        length = bulk_length(one.path, path, **where)
        octets: Iterator[bytes] | None = read(bulk_data(one.path, path, **where))
        offers: tuple[accept.Representation, ...] = accept.BULK_DATA
        encoded: Iterator[bytes] = iter(())
    except Unsupported as error:
        octets = None
        encoded = _encoded_frames(one, path, error)
        offers = accept.of_frames(stored, decodable=False, lossy=True, single=False)
    chosen = wish_of(request).demand(offers)
    kind = accept.part_type(chosen)
    boundary = multipart.new_boundary()
    whole = multipart.related_type(chosen.media_type, boundary) if chosen.multipart else kind
    tag = conditional.tag_of(request, [one], chosen, path, weak=chosen.multipart)
    if conditional.is_known(request, tag):
        begin(request, [one], actor)
        return conditional.not_modified(tag)
    headers = {"Content-Type": whole, **conditional.headers(tag)}
    status = 200
    if octets is not None and not chosen.multipart:
        asked = conditional.range_of(request, tag, length)
        status, more = conditional.span(asked, length)
        headers |= more
        if asked is not None:
            start, end = asked
            octets = read(bulk_data(one.path, path, **where, start=start, end=end))
    if request.method == "HEAD":
        return head(status, headers)
    access = begin(request, [one], actor)
    address = f"{address_of(request, one)}/bulkdata/{path}"
    if octets is None:
        frames = counted(encoded, access, one)
        body = multipart.related((multipart.Part(kind, iter((frame,)), address) for frame in frames), boundary)
    else:
        body = counted(octets, access, one)
        if chosen.multipart:
            body = multipart.related([multipart.Part(kind, body, address)], boundary)
    return multipart.Stream(body, status, headers)


def _encoded_frames(one: Stored, path: str, why: Unsupported) -> Iterator[bytes]:
    try:
        return bulk_frames(
            one.path, path, data_set_offset=one.data_set_offset, transfer_syntax_uid=one.transfer_syntax_uid
        )
    except (NotFound, Unsupported):
        raise NotAcceptable(f"this value cannot be given: {why}") from None


routes = [Route(f"{INSTANCE}/bulkdata/{{path:path}}", retrieve_bulk_data)]
