"""A picture of a frame, for people: modality and VOI transformation (PS3.3 C.7.6.16.2, C.11), then JPEG or PNG.

A rendered picture is not an instance; loss is allowed here and nowhere else on the way out (REQ-DCM-80).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from archive.dicom.pixels import frame as decode
from archive.dicom.pixels import read_header
from archive.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    from pydicom.dataset import Dataset

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}
MAX_PIXELS = 1 << 27  # of one frame: more is a slide, and its levels are for that


def render(
    path: str,
    *,
    frame: int = 1,
    window: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    media_type: str = "image/jpeg",
    quality: int = 90,
) -> bytes:
    """The picture of a frame (from 1) of a stored file.

    `window` is centre and width in modality units, else the header's, else all values; `size` the rows and columns that
    the picture has to fit in (never enlarged); `quality` of JPEG, 1 to 100.

    Raises:
        Unsupported: an object without pixels, a codec or a pixel format that cannot be shown.
    """
    from PIL import Image

    ds = read_header(path)
    rows, columns = ds.get("Rows"), ds.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Unsupported("this instance has no picture")
    if rows * columns > MAX_PIXELS:
        raise Unsupported("this frame is too large to be rendered whole")
    decoded = decode(path, ds, frame, rgb=True)
    values = decoded.values
    if decoded.photometric_interpretation == "PALETTE COLOR":
        picture = Image.fromarray(_palette(values, ds))
    elif values.ndim == 3 and values.shape[-1] == 3:
        picture = Image.fromarray(_eight_bits(values, ds))
    elif values.ndim == 2:
        grey = _grey(values, ds, window, frame)
        picture = Image.fromarray(255 - grey if decoded.photometric_interpretation == "MONOCHROME1" else grey)
    else:
        raise Unsupported(f"pixels of {values.shape[-1]} samples cannot be shown")
    if size is not None:
        picture.thumbnail((max(1, size[1]), max(1, size[0])), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    if media_type == "image/png":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _grey(
    values: np.ndarray[Any, Any], ds: Dataset, window: tuple[float, float] | None, frame: int
) -> np.ndarray[Any, Any]:
    """Stored values to 0…255 through rescale and window (PS3.3 C.11.2.1.2, LINEAR)."""
    import numpy as np

    slope, intercept = _rescale(ds, frame)
    modality = values.astype(np.float32) * slope + intercept
    centre, width = window or _window(ds, frame) or _all_values(modality, ds, slope, intercept)
    width = max(width, 1.0)
    if width == 1.0:
        bright: np.ndarray[Any, Any] = (modality > centre - 0.5).astype(np.uint8) * 255
        return bright
    scaled = ((modality - (centre - 0.5)) / (width - 1) + 0.5) * 255
    grey: np.ndarray[Any, Any] = np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8)
    return grey


def _all_values(modality: np.ndarray[Any, Any], ds: Dataset, slope: float, intercept: float) -> tuple[float, float]:
    """A window over what is there, without the padding around it."""
    import numpy as np

    shown = modality[np.isfinite(modality)]
    padding = ds.get("PixelPaddingValue")
    if isinstance(padding, int):
        inside = shown[shown != padding * slope + intercept]
        shown = inside if inside.size else shown
    if not shown.size:
        return 0.0, 1.0
    low, high = float(shown.min()), float(shown.max())
    return (low + high) / 2 + 0.5, high - low + 1


def _rescale(ds: Dataset, frame: int) -> tuple[float, float]:
    item = _functional_group(ds, "PixelValueTransformationSequence", frame)
    source = item if item is not None else ds
    slope, intercept = _number(source, "RescaleSlope"), _number(source, "RescaleIntercept")
    return (1.0 if slope in (None, 0.0) else float(slope or 1.0)), intercept or 0.0


def _window(ds: Dataset, frame: int) -> tuple[float, float] | None:
    item = _functional_group(ds, "FrameVOILUTSequence", frame)
    source = item if item is not None else ds
    centre, width = _number(source, "WindowCenter"), _number(source, "WindowWidth")
    return None if centre is None or width is None or width < 1 else (centre, width)


def _functional_group(ds: Dataset, keyword: str, frame: int) -> Dataset | None:
    """The item of a functional group macro that holds for a frame (PS3.3 C.7.6.16), or None."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for groups in (per_frame[frame - 1 : frame], shared[:1]):
        for group in groups:
            items = group.get(keyword)
            if items:
                found: Dataset = items[0]
                return found
    return None


def _number(ds: Dataset, keyword: str) -> float | None:
    """The first value of a decimal string, or None when there is none that is a number."""
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return None
        first = value if isinstance(value, int | float) else (value[0] if len(value) else None)
        return None if first is None else float(first)
    except (TypeError, ValueError, IndexError):
        return None


def _eight_bits(values: np.ndarray[Any, Any], ds: Dataset) -> np.ndarray[Any, Any]:
    import numpy as np

    bits = int(ds.get("BitsStored") or 8)
    return values.astype(np.uint8) if bits <= 8 else (values >> (bits - 8)).astype(np.uint8)


def _palette(values: np.ndarray[Any, Any], ds: Dataset) -> np.ndarray[Any, Any]:
    """Indices to RGB (PS3.3 C.7.6.3.1.5)."""
    from pydicom.pixels.processing import apply_color_lut

    try:
        coloured = apply_color_lut(values, ds)
    except Exception as error:
        raise Unsupported(f"the palette cannot be applied: {type(error).__name__}") from error
    import numpy as np

    top = coloured[..., :3]
    return top if top.dtype == np.uint8 else (top >> 8).astype(np.uint8)
