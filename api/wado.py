"""WADO-RS: studies, series and instances, their metadata and their bulk data (PS3.18 10.4, REQ-DCM-90).

What can be given as it lies is streamed as it lies, a mebibyte at a time. Nothing leaves before the opening row of the
access is committed (law 4); nothing is ever given with a new loss (REQ-DCM-41).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api import accept, auth, multipart
from archive.access import Action, Actor
from archive.dicom.bulk import bulk_data
from archive.dicom.json import metadata
from archive.dicom.transcode import targets, transcode
from archive.errors import InvalidRequest, NotFound, StorageFailed, UnreadableInstance
from archive.retrieve import Access, Stored, open_access, select

log = structlog.get_logger(__name__)

_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
_BULK_PATH = re.compile(r"[0-9A-Fa-f]{8}(/[0-9]{1,9}/[0-9A-Fa-f]{8}){0,32}", re.ASCII)


def uid_of(request: Request, name: str) -> str:
    """A UID of the address. Raises InvalidRequest when it is none (400)."""
    uid = str(request.path_params[name])
    if not _UID.fullmatch(uid):
        raise InvalidRequest(f"the {name} of the address is not a UID")
    return uid


def selected(request: Request) -> list[Stored]:
    """The current instances that the address means. Raises NotFound when there is none."""
    given = {name: [uid_of(request, name)] for name in ("study", "series", "instance") if name in request.path_params}
    found = select(
        auth.archive_of(request),
        study_uids=given["study"],
        series_uids=given.get("series", ()),
        instance_uids=given.get("instance", ()),
    )
    if not found:
        raise NotFound(f"no such {list(given)[-1]}")
    return found


def wish_of(request: Request) -> accept.Wish:
    """What the request accepts."""
    return accept.wish(",".join(request.headers.getlist("accept")), request.url.query)


def address_of(request: Request, one: Stored) -> str:
    """The address of an instance, absolute."""
    return (
        f"{request.base_url}dicom-web/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
        f"/instances/{one.sop_instance_uid}"
    )


def begin(request: Request, stored: Sequence[Stored], actor: Actor) -> Access:
    """Commit that these instances are handed over; then bytes may leave."""
    return open_access(auth.archive_of(request), stored, actor=actor)


def retrieve(request: Request) -> Response:
    """The instances of a study, of a series, or one: application/dicom in a syntax that is accepted."""
    actor = auth.demand_right(request, Action.SEE)
    found = selected(request)
    wish = wish_of(request)
    single = "instance" in request.path_params
    plan: list[tuple[Stored, accept.Representation]] = []
    offers: tuple[accept.Representation, ...] = ()
    missing: list[Stored] = []
    for one in found:
        if not is_there(one):
            missing.append(one)
            continue
        offers = _offers(one, single=single)
        chosen = wish.choose(offers)
        if chosen is not None:
            plan.append((one, chosen))
    if not plan and len(missing) == len(found):
        raise StorageFailed("no good copy is left of what was asked for: see «minipacs verify»")
    if not plan:
        raise accept.not_acceptable(offers)
    status = 200 if len(plan) == len(found) else 206
    if missing:
        log.error("copies are missing", study=found[0].study_instance_uid, instances=len(missing))
    if not plan[0][1].multipart:
        return _alone(request, actor, *plan[0])
    boundary = multipart.new_boundary()
    syntaxes = {chosen.transfer_syntax for _, chosen in plan}
    common = f"; transfer-syntax={syntaxes.pop()}" if len(syntaxes) == 1 else ""
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}{common}'}
    if request.method == "HEAD":
        return Response(None, status, headers)
    access = begin(request, [*(one for one, _ in plan), *missing], actor)
    for one in missing:
        access.failed(one)
    parts = (
        multipart.Part(accept.content_type(accept.Representation(accept.DICOM, chosen.transfer_syntax)),
                       _bytes_of(one, chosen.transfer_syntax or "", access), address_of(request, one))
        for one, chosen in plan
    )  # fmt: skip
    return StreamingResponse(multipart.in_threads(multipart.related(parts, boundary)), status, headers)


def _alone(request: Request, actor: Actor, one: Stored, chosen: accept.Representation) -> Response:
    headers = {"Content-Type": accept.content_type(chosen)}
    if chosen.transfer_syntax == one.transfer_syntax_uid:
        headers["Content-Length"] = str(one.file_bytes)
    if request.method == "HEAD":
        return Response(None, 200, headers)
    access = begin(request, [one], actor)
    pieces = _bytes_of(one, chosen.transfer_syntax or "", access)
    return StreamingResponse(multipart.in_threads(pieces), 200, headers)


def is_there(one: Stored) -> bool:
    """Whether a good copy lies where the index says, as long as it was stored."""
    if not one.path:
        return False
    try:
        return os.stat(one.path).st_size == one.file_bytes
    except OSError:
        return False


def _offers(one: Stored, *, single: bool) -> tuple[accept.Representation, ...]:
    stored = one.transfer_syntax_uid
    syntaxes = (stored, *targets(stored))
    as_default = accept.EXPLICIT_LE
    if accept.EXPLICIT_LE not in syntaxes or stored in accept.LOSSY:
        as_default = stored
    return accept.of_objects(stored, syntaxes, as_default=as_default, single=single)


def _bytes_of(one: Stored, syntax: str, access: Access) -> Iterator[bytes]:
    """The PS3.10 file of an instance, in its own syntax as it lies, else transcoded without loss."""
    sent = 0
    pieces = file_pieces(one) if syntax == one.transfer_syntax_uid else transcode(one.path, syntax)
    for piece in pieces:
        sent += len(piece)
        yield piece
    access.count(one, sent)


def file_pieces(one: Stored) -> Iterator[bytes]:
    """The file of an instance as it lies."""
    fd = one.open()
    try:
        at = 0
        while piece := os.pread(fd, multipart.PIECE_BYTES, at):
            at += len(piece)
            yield piece
    except OSError as error:
        raise StorageFailed(f"the copy cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if at != one.file_bytes:
        raise StorageFailed("the copy is not as long as it was stored")


def retrieve_metadata(request: Request) -> Response:
    """Everything but bulk data, as DICOM JSON (PS3.18 Annex F)."""
    actor = auth.demand_right(request, Action.SEE)
    found = selected(request)
    chosen = wish_of(request).demand(accept.METADATA)
    headers = {"Content-Type": chosen.media_type}
    if request.method == "HEAD":
        return Response(None, 200, headers)
    missing = [one for one in found if not is_there(one)]
    if len(missing) == len(found):
        raise StorageFailed("no good copy is left of what was asked for: see «minipacs verify»")
    begin(request, found, actor)
    pieces = _metadata(request, found)
    return StreamingResponse(multipart.in_threads(pieces), 206 if missing else 200, headers)


def _metadata(request: Request, found: Sequence[Stored]) -> Iterator[bytes]:
    separator = b"["
    for one in found:
        if is_there(one):
            yield separator + orjson.dumps(_metadata_of(request, one))
            separator = b","
    yield b"]"


def _metadata_of(request: Request, one: Stored) -> dict[str, object]:
    address = address_of(request, one)
    try:
        return metadata(
            one.path,
            data_set_offset=one.data_set_offset,
            transfer_syntax_uid=one.transfer_syntax_uid,
            bulk_uri=lambda path: f"{address}/bulkdata/{path}",
        )
    except UnreadableInstance:  # it is there and can be had; of its elements only these are known
        log.warning("the metadata of an instance cannot be read", sop_instance_uid=one.sop_instance_uid)
        known = {
            "00080016": one.sop_class_uid,
            "00080018": one.sop_instance_uid,
            "0020000D": one.study_instance_uid,
            "0020000E": one.series_instance_uid,
        }
        return {key: {"vr": "UI", "Value": [uid]} for key, uid in known.items()}
    except OSError as error:
        raise StorageFailed(f"the copy cannot be read: {error.strerror}") from error


def retrieve_bulk_data(request: Request) -> Response:
    """One value that the metadata only point at, as octets in little endian (PS3.18 10.4.1.1.5)."""
    actor = auth.demand_right(request, Action.SEE)
    one = selected(request)[0]
    path = str(request.path_params["path"]).upper()
    if not _BULK_PATH.fullmatch(path):
        raise InvalidRequest("the address names no element")
    raise NotFound(f"no such element {actor}{one}{bulk_data}")


STUDY = "/studies/{study}"
SERIES = f"{STUDY}/series/{{series}}"
INSTANCE = f"{SERIES}/instances/{{instance}}"
routes = [
    *(Route(path, retrieve) for path in (STUDY, SERIES, INSTANCE)),
    *(Route(f"{path}/metadata", retrieve_metadata) for path in (STUDY, SERIES, INSTANCE)),
    Route(f"{INSTANCE}/bulkdata/{{path:path}}", retrieve_bulk_data),
]
