"""Pictures for people: /rendered of an instance and of a frame (PS3.18 10.4, Table 8.3.5-1)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth
from api.wado import INSTANCE, begin, selected, wish_of
from archive.access import Action
from archive.dicom import pixels
from archive.dicom.render import render
from archive.errors import InvalidRequest, NotAcceptable, NotFound, Unsupported

MOST_PIXELS = 16384  # of a side of a viewport


def retrieve_rendered(request: Request) -> Response:
    """The instance's first frame, or the frame of the address, as JPEG or PNG.

    `window=centre,width[,function]`, `viewport=width,height` (never enlarged) and `quality=1…100` are understood.
    """
    actor = auth.demand_right(request, Action.SEE)
    one = selected(request)
    chosen = wish_of(request).demand(accept.RENDERED)
    frame = _number(str(request.path_params.get("frame", "1")), "frame", 1, 1 << 31)
    window, size, quality = _window(request), _viewport(request), request.query_params.get("quality", "90")
    try:
        picture = render(
            one.path,
            frame=frame,
            window=window,
            size=size,
            media_type=chosen.media_type,
            quality=_number(quality, "quality", 1, 100),
        )
    except Unsupported as error:
        if frame > pixels.count(pixels.read_header(one.path)):
            raise NotFound(f"there is no frame {frame}") from error
        raise NotAcceptable(f"this instance has no rendered form: {error}") from error
    access = begin(request, [one], actor)
    access.count(one, len(picture))
    return Response(picture, headers={"Content-Type": chosen.media_type})


def _window(request: Request) -> tuple[float, float] | None:
    text = request.query_params.get("window")
    if text is None:
        return None
    centre, _, rest = text.partition(",")
    width, _, function = rest.partition(",")
    try:
        window = float(centre), float(width)
    except ValueError:
        window = 0.0, 0.0
    if not (1 <= window[1] < 1e9 and -1e9 < window[0] < 1e9):
        raise InvalidRequest("window is centre,width[,function]; the width is 1 or more")
    if function.lower() not in ("", "linear"):
        raise InvalidRequest("of the window functions, linear is there")
    return window


def _viewport(request: Request) -> tuple[int, int] | None:
    """Rows and columns to fit in."""
    text = request.query_params.get("viewport")
    if text is None:
        return None
    width, _, height = text.partition(",")
    return _number(height, "viewport", 1, MOST_PIXELS), _number(width, "viewport", 1, MOST_PIXELS)


def _number(text: str, name: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} is not a number from {least} to {most}")
    return int(text)


routes = [
    Route(f"{INSTANCE}/rendered", retrieve_rendered),
    Route(f"{INSTANCE}/frames/{{frame}}/rendered", retrieve_rendered),
]
