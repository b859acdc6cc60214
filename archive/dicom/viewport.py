"""What part of a picture is shown, how large and which way round (PS3.18 8.3.5.1.3; `region` of §9). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LEAST_PIXELS = 0.001  # of a region's width and height: what is left of a pixel would be enlarged beyond all numbers
ENLARGED_PIXELS = 1 << 24  # of a picture that is made larger than what it shows: 4096 x 4096


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a picture, `width` to the right of `left`, `height` below `top`; None reaches to the edge.

    In pixels, or as parts of the whole, 0 to 1. Negative widths and heights are those of a region that is shown the
    other way round.
    """

    left: float = 0.0
    top: float = 0.0
    width: float | None = None
    height: float | None = None
    parts: bool = False

    def box(self, columns: int, rows: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge, in pixels, of what is there of it in a picture of this size.

        Raises:
            InvalidRequest: nothing is.
        """
        across, down = (columns, rows) if self.parts else (1, 1)
        left, top = self.left * across, self.top * down
        right = columns if self.width is None else min(columns, left + abs(self.width) * across)
        bottom = rows if self.height is None else min(rows, top + abs(self.height) * down)
        if not (left >= 0 and top >= 0 and min(right - left, bottom - top) >= LEAST_PIXELS):
            raise InvalidRequest("no pixel of the image is in this region")
        return left, top, right, bottom


def fitted(picture: Picture, size: tuple[int, int] | None, region: Region | None, *, enlarge: bool) -> Picture:
    """The region of a picture, as large as fits in `size`, rows and columns, in its own proportions. Without `enlarge`
    never larger than it is.

    Raises:
        InvalidRequest: no pixel is in the region, or too many would be made of those that are.
    """
    from PIL.Image import Resampling, Transpose

    box = (region or Region()).box(picture.width, picture.height)
    width, height = box[2] - box[0], box[3] - box[1]
    rows, columns = size or (height, width)
    scale = min(columns / width, rows / height)
    if not enlarge:
        scale = min(scale, 1.0)
    made = max(1, round(width * scale)), max(1, round(height * scale))
    if scale > 1 and made[0] * made[1] > ENLARGED_PIXELS:
        raise InvalidRequest(f"a picture is enlarged to {ENLARGED_PIXELS} pixels at most")
    if made != picture.size or box != (0, 0, *picture.size):
        picture = picture.resize(made, Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if region is not None and (region.width or 0) < 0:
        picture = picture.transpose(Transpose.FLIP_LEFT_RIGHT)
    if region is not None and (region.height or 0) < 0:
        picture = picture.transpose(Transpose.FLIP_TOP_BOTTOM)
    return picture
