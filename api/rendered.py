"""Pictures for people (PS3.18 10.4, Table 8.3.5-1): `/rendered` and `/thumbnail` at each level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.looks import Look, look_of, number, thumbnail_of, warning_of
from api.wado import (
    INSTANCE,
    SERIES,
    STUDY,
    address_of,
    begin,
    chosen,
    head,
    no_copy,
    selected,
    service_address,
    wish_of,
)
from archive.access import Action, Actor
from archive.dicom import pixels
from archive.dicom.lettering import words
from archive.dicom.render import render
from archive.errors import InvalidRequest, NotAcceptable, NotFound, UnreadableInstance, Unsupported
from archive.retrieve import Stored
from archive.series_metadata import told_of

THUMBNAIL_PIXELS = 200  # of a side, unless a viewport is given
TRIED = 16  # instances of a series that are looked at for a picture of it


def retrieve_rendered(request: Request) -> Response:
    """The instance's first frame, or the frame of the address, as JPEG or PNG.

    `window=centre,width[,function]`, `viewport=vw,vh[,sx,sy,sw,sh]`, `quality=1…100` and
    `annotation=patient,technique` are understood.
    """
    actor = auth.demand_right(request, Action.SEE)
    one = selected(request)
    return picture(
        request,
        one,
        actor,
        media_type=wish_of(request).demand(accept.RENDERED).media_type,
        frame=_frame(request) or 1,
        look=look_of(request),
    )


def retrieve_all_rendered(request: Request) -> Response:
    """The first frame of each instance of a study or series, each a part; what has no picture is left out.
    206 when copies are missing."""
    actor = auth.demand_right(request, Action.SEE)
    found, missing = chosen(request)
    media_type = wish_of(request).demand(accept.ALL_RENDERED).media_type
    look = look_of(request)
    pictures = _pictures(request, found, media_type, look)
    first = next(pictures, None)  # before anything is said: there may be none
    if not found:
        raise no_copy()
    if first is None:
        raise NotAcceptable("there is no picture of this: no image that a decoder takes")
    boundary = multipart.new_boundary()
    headers = {"Content-Type": multipart.related_type(media_type, boundary), **_warning(request, look)}
    status = 206 if missing else 200
    if request.method == "HEAD":
        return head(status, headers)
    access = begin(request, [*found, *missing], actor)
    for one in missing:
        access.failed(one)

    def parts() -> Iterator[multipart.Part]:
        for one, made in chain([first], pictures):
            access.count(one, len(made))
            yield multipart.Part(media_type, iter((made,)), f"{address_of(request, one)}/rendered")

    return multipart.Stream(multipart.related(parts(), boundary), status, headers)


def _pictures(request: Request, found: Sequence[Stored], media_type: str, look: Look) -> Iterator[tuple[Stored, bytes]]:
    for one in found:
        if one.pixel_offset is not None:
            with suppress(Unsupported, InvalidRequest):  # no picture, or none of this region
                yield one, _made(request, one, media_type, 1, look)


def _made(request: Request, one: Stored, media_type: str, frame: int, look: Look) -> bytes:
    """Raises Unsupported, InvalidRequest as `render`."""
    said = None
    if look.annotation:
        told = orjson.loads(told_of(auth.archive_of(request), one, service_address(request)))
        said = words(told, look.annotation, frame=frame)
    return render(
        one.path,
        frame=frame,
        window=look.window,
        size=look.size,
        region=look.region,
        enlarge=look.enlarge,
        said=said,
        media_type=media_type,
        quality=look.quality,
    )


def _warning(request: Request, look: Look) -> dict[str, str]:
    warning = warning_of(look)
    return {"Warning": f'299 {service_address(request)}: "{warning}"'} if warning else {}


def retrieve_thumbnail(request: Request) -> Response:
    """A small picture of a study, a series, an instance or a frame, without anything written into it (REQ-DCM-99).

    A study is shown by the middle of its first series with pictures, a series by its middle image, an instance by its
    middle frame. `viewport=width,height` says how small.
    """
    actor = auth.demand_right(request, Action.SEE)
    found, _ = chosen(request)
    if not found:
        raise no_copy()
    media_type = wish_of(request).demand(accept.RENDERED).media_type
    look = thumbnail_of(request, THUMBNAIL_PIXELS)
    frame = _frame(request)
    for one in _middle_first(found):
        if frame is None:
            count = frames_of(one)
            if not count:
                continue
        try:
            return picture(
                request,
                one,
                actor,
                media_type=media_type,
                frame=frame or (count + 1) // 2,
                look=look,
            )
        except NotAcceptable:
            if len(found) == 1:
                raise
    raise NotAcceptable("there is no picture of this: no image that a decoder takes")


def _middle_first(found: Sequence[Stored]) -> list[Stored]:
    """Of each series its images, from the middle on; the first series first. Those of no pixels are left out, and what
    is far down the list: it is not all read for a thumbnail."""
    by_series: dict[str, list[Stored]] = {}
    for one in found:
        if one.pixel_offset is not None or len(found) == 1:
            by_series.setdefault(one.series_instance_uid, []).append(one)
    order: list[Stored] = []
    for some in by_series.values():
        middle = len(some) // 2
        order += [some[middle], *some[middle + 1 : middle + 4], *some[:middle][-3:]]
    return order[:TRIED]


def frames_of(one: Stored) -> int:
    """How many frames it has; 0 when that cannot be known."""
    try:
        return pixels.count(pixels.read_header(one.path))
    except (Unsupported, UnreadableInstance):
        return 0


def picture(
    request: Request,
    one: Stored,
    actor: Actor,
    *,
    media_type: str,
    frame: int,
    look: Look,
) -> Response:
    """A frame of an instance as a picture (`archive.dicom.render`).

    Raises:
        NotFound: there is no such frame.
        NotAcceptable: it has no picture.
        InvalidRequest: it has nothing in the region that is asked for.
    """
    tag = conditional.tag_of(request, [one], media_type, frame, look)
    if conditional.is_known(request, tag):
        begin(request, [one], actor)
        return conditional.not_modified(tag)
    try:
        made = _made(request, one, media_type, frame, look)
    except Unsupported as error:
        if 0 < frames_of(one) < frame:
            raise NotFound(f"there is no frame {frame}") from error
        raise NotAcceptable(f"this instance has no rendered form: {error}") from error
    headers = {
        "Content-Type": media_type,
        "Content-Length": str(len(made)),
        **conditional.headers(tag),
        **_warning(request, look),
    }
    if request.method == "HEAD":
        return head(200, headers)
    access = begin(request, [one], actor)
    access.count(one, len(made))
    return Response(made, headers=headers)


def _frame(request: Request) -> int | None:
    text = request.path_params.get("frame")
    return None if text is None else number(str(text), "frame", 1, 1 << 31)


routes = [
    *(Route(f"{path}/rendered", retrieve_all_rendered) for path in (STUDY, SERIES)),
    Route(f"{INSTANCE}/rendered", retrieve_rendered),
    Route(f"{INSTANCE}/frames/{{frame}}/rendered", retrieve_rendered),
    *(Route(f"{path}/thumbnail", retrieve_thumbnail) for path in (STUDY, SERIES, INSTANCE)),
    Route(f"{INSTANCE}/frames/{{frame}}/thumbnail", retrieve_thumbnail),
]
