"""A picture of a frame, for people: modality and VOI transformation (PS3.3 C.7.6.16.2, C.11), then JPEG or PNG.

A rendered picture is not an instance; loss is allowed here and nowhere else on the way out (REQ-DCM-80).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from archive.dicom.lettering import Words, burnt
from archive.dicom.pixels import frame as decode
from archive.dicom.pixels import read_header
from archive.dicom.viewport import Region, fitted
from archive.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture
    from pydicom.dataset import Dataset

MAX_PIXELS = 1 << 27  # of one frame: more is a slide, and its levels are for that
MAX_JPEG_SIDE = 65500  # pixels; what libjpeg writes at most


def render(
    path: str,
    *,
    frame: int = 1,
    window: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    region: Region | None = None,
    enlarge: bool = False,
    said: Words | None = None,
    media_type: str = "image/jpeg",
    quality: int = 90,
) -> bytes:
    """The picture of a frame (from 1) of a stored file: a header that makes no sense makes no picture.

    `window` is centre and width in modality units, else the header's, else all values; `region` what is shown of it;
    `size` the rows and columns that this has to fit in, with `enlarge` to fill; `said` what is burnt in at the end;
    `quality` of JPEG, 1 to 100.

    Raises:
        InvalidRequest: there is nothing in the region, or too much would be made of it.
        Unsupported: an object without pixels, a codec or a pixel format that cannot be shown, a side too long for JPEG.
    """
    from pydicom.errors import BytesLengthException

    no_sense = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, NotImplementedError)
    ds = read_header(path)
    try:
        picture = _picture(path, ds, frame, window)
    except (*no_sense, BytesLengthException) as error:
        raise Unsupported(f"the header makes no picture: {type(error).__name__}") from error
    picture = fitted(picture, size, region, enlarge=enlarge)
    if said is not None:
        picture = burnt(picture, said)
    out = io.BytesIO()
    if media_type == "image/png":
        picture.save(out, "PNG", compress_level=1)
    elif max(picture.size) > MAX_JPEG_SIDE:
        raise Unsupported(f"a JPEG has at most {MAX_JPEG_SIDE} pixels a side; a PNG may have more")
    else:
        picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _picture(path: str, ds: Dataset, frame: int, window: tuple[float, float] | None) -> Picture:
    from PIL import Image

    rows, columns = ds.get("Rows"), ds.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Unsupported("this instance has no picture")
    if rows * columns > MAX_PIXELS:
        raise Unsupported("this frame is too large to be rendered whole")
    decoded = decode(path, ds, frame, rgb=True)
    values = decoded.values
    if decoded.photometric_interpretation == "PALETTE COLOR":
        return Image.fromarray(_palette(values, ds))
    if values.ndim == 3 and values.shape[-1] == 3:
        return Image.fromarray(_eight_bits(values, ds))
    if values.ndim == 2:
        grey = _grey(values, ds, window, frame)
        return Image.fromarray(255 - grey if decoded.photometric_interpretation == "MONOCHROME1" else grey)
    raise Unsupported(f"pixels of {values.shape[-1]} samples cannot be shown")


def _grey(
    values: np.ndarray[Any, Any], ds: Dataset, window: tuple[float, float] | None, frame: int
) -> np.ndarray[Any, Any]:
    """Stored values to 0…255: modality transformation, then the asked or the header's VOI transformation, else all."""
    import numpy as np

    transformed = _functional_group(ds, "PixelValueTransformationSequence", frame)
    modality = _modality(values, ds if transformed is None else transformed)
    shown = _functional_group(ds, "FrameVOILUTSequence", frame)
    voi = ds if shown is None else shown
    asked = window or _window(voi)
    if asked is not None:
        function = "LINEAR" if window else str(voi.get("VOILUTFunction") or "LINEAR")
        scaled = _windowed(modality, *asked, function)
    elif voi.get("VOILUTSequence"):
        scaled = _looked_up(modality, voi.VOILUTSequence[0])
    else:
        low, high = _all_values(modality, values, ds)
        scaled = (modality - low) / (high - low) if high > low else np.zeros_like(modality)
    grey: np.ndarray[Any, Any] = np.clip(np.nan_to_num(scaled) * 255, 0, 255).astype(np.uint8)
    return grey


def _modality(values: np.ndarray[Any, Any], source: Dataset) -> np.ndarray[Any, Any]:
    """PS3.3 C.11.1: a table, or slope and intercept."""
    import numpy as np

    if source.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        table = apply_modality_lut(values, source)
        return np.asarray(table, np.float32)
    slope, intercept = _number(source, "RescaleSlope") or 1.0, _number(source, "RescaleIntercept") or 0.0
    return values.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _windowed(modality: np.ndarray[Any, Any], centre: float, width: float, function: str) -> np.ndarray[Any, Any]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3: 0 to 1, and beyond."""
    import numpy as np

    scaled: np.ndarray[Any, Any]
    if function == "SIGMOID":
        scaled = 1 / (1 + np.exp(np.clip(-4 * (modality - centre) / width, -80, 80)))
    elif function == "LINEAR_EXACT":
        scaled = (modality - centre) / width + 0.5
    elif width <= 1:
        scaled = (modality > centre - 0.5).astype(np.float32)
    else:
        scaled = (modality - (centre - 0.5)) / (width - 1) + 0.5
    return scaled


def _looked_up(modality: np.ndarray[Any, Any], item: Dataset) -> np.ndarray[Any, Any]:
    """VOI LUT (PS3.3 C.11.2.1.1): 0 to 1."""
    import numpy as np

    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    raw = item.LUTData
    table = np.frombuffer(raw, "<u2") if isinstance(raw, bytes) else np.asarray(raw, "u2")
    entries = min(entries or 65536, table.size)
    places = np.clip(np.rint(modality) - first, 0, entries - 1).astype(np.int64)
    looked_up: np.ndarray[Any, Any] = table[places].astype(np.float32) / ((1 << bits) - 1)
    return looked_up


def _all_values(modality: np.ndarray[Any, Any], values: np.ndarray[Any, Any], ds: Dataset) -> tuple[float, float]:
    """The least and the greatest of what is there, without the padding around it."""
    import numpy as np

    there = np.isfinite(modality)
    padding = ds.get("PixelPaddingValue")
    if isinstance(padding, int) and (there & (values != padding)).any():
        there &= values != padding
    shown = modality[there]
    return (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)


def _window(source: Dataset) -> tuple[float, float] | None:
    centre, width = _number(source, "WindowCenter"), _number(source, "WindowWidth")
    exact = source.get("VOILUTFunction") in ("LINEAR_EXACT", "SIGMOID")
    return None if centre is None or width is None or width < (1e-9 if exact else 1) else (centre, width)


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
