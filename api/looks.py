"""How a picture is to look, as the query of a request says it (PS3.18 8.3.5.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import Request

from archive.dicom.lettering import known
from archive.dicom.viewport import Region
from archive.errors import InvalidRequest

MOST_PIXELS = 16384  # of a side of a viewport
SHOWN = 20  # annotations that a warning names
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Look:
    """What of a frame is shown, how large, how bright, and with which words."""

    window: tuple[float, float] | None = None  # centre and width in modality units
    size: tuple[int, int] | None = None  # rows and columns to fit in
    region: Region | None = None
    enlarge: bool = False  # to fill the size
    quality: int = 90
    annotation: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()  # annotations that were asked for and are not known here


def look_of(request: Request) -> Look:
    """`window`, `viewport`, `quality` and `annotation` of a rendered resource. Raises InvalidRequest."""
    query = request.query_params
    viewport = query.get("viewport")
    annotation, not_done = known(query.get("annotation", "").split(","))
    return Look(
        window=_window(query.get("window")),
        size=None if viewport is None else _size(viewport),
        region=None if viewport is None else _region(viewport),
        enlarge=True,
        quality=number(query.get("quality", "90"), "quality", 1, 100),
        annotation=annotation,
        not_done=not_done,
    )


def thumbnail_of(request: Request, pixels: int) -> Look:
    """A small picture, of which `viewport` says how small; nothing is written into it (REQ-DCM-99)."""
    viewport = request.query_params.get("viewport")
    if viewport is None:
        return Look(size=(pixels, pixels), quality=80)
    if viewport.count(",") > 1:
        raise InvalidRequest("the viewport of a thumbnail is width,height")
    return Look(size=_size(viewport), quality=80)


def warning_of(look: Look) -> str | None:
    """What a Warning says of it; None: all is done that was asked for."""
    if not look.not_done:
        return None
    names = ", ".join(re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:64] for name in look.not_done[:SHOWN])
    return f"The following annotation values are not supported: {names}"


def _window(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    centre, _, rest = text.partition(",")
    width, _, function = rest.partition(",")
    window = window_of(centre, width)
    if function.lower() not in ("", "linear"):
        raise InvalidRequest("of the window functions, linear is there")
    return window


def window_of(centre: str, width: str) -> tuple[float, float]:
    """Centre and width in modality units. Raises InvalidRequest."""
    try:
        window = float(centre), float(width)
    except ValueError:
        window = 0.0, 0.0
    if not (1 <= window[1] < 1e9 and -1e9 < window[0] < 1e9):
        raise InvalidRequest("a window is centre,width[,function]; the width is 1 or more")
    return window


def _size(viewport: str) -> tuple[int, int]:
    """Rows and columns to fit in: `vw,vh` of `vw,vh[,sx,sy,sw,sh]`."""
    width, height, *_ = (*viewport.split(","), "")
    return number(height, "viewport", 1, MOST_PIXELS), number(width, "viewport", 1, MOST_PIXELS)


def _region(viewport: str) -> Region | None:
    """`sx,sy,sw,sh`, each of which may be left out; None: the whole image. Of `sx` and `sy` the absolute values
    count, a negative `sw` or `sh` turns the image round."""
    texts = viewport.split(",")[2:]
    if not texts:
        return None
    if len(texts) > 4 or any(text and not _DECIMAL.fullmatch(text) for text in texts):
        raise InvalidRequest("a viewport is vw,vh or vw,vh,sx,sy,sw,sh in pixels")
    left, top, width, height = (float(text) if text else None for text in [*texts, "", "", ""][:4])
    if width == 0 or height == 0:
        raise InvalidRequest("a region of an image is wider and higher than nothing")
    return Region(abs(left or 0.0), abs(top or 0.0), width, height)


def region_of(text: str) -> Region:
    """`region=x1,y1,x2,y2` of WADO-URI: two corners, as parts of the image from 0 to 1. Raises InvalidRequest."""
    texts = text.split(",")
    if len(texts) == 4 and all(_DECIMAL.fullmatch(one) for one in texts):
        left, top, right, bottom = (float(one) for one in texts)
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return Region(left, top, right - left, bottom - top, parts=True)
    raise InvalidRequest("a region is x1,y1,x2,y2: its corners, as parts of the image from 0.0 to 1.0")


def number(text: str, name: str, least: int, most: int) -> int:
    """A parameter that is a number within bounds. Raises InvalidRequest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} is not a number from {least} to {most}")
    return int(text)
