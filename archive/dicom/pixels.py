"""Decoding pixels, with the decoder named for each syntax: what decodes must not depend on what else is installed.

Imports of codecs are inside: they cost up to a second, and most processes never decode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    from pydicom.dataset import Dataset

_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG = "1.2.840.10008.1.2.4."
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED}
# pyjpegls and pylibjpeg are exact; gdcm reads what modalities write as JPEG (docs/decisions: dependencies).
_PLUGINS = {
    "1.2.840.10008.1.2.5": "pylibjpeg",
    **{_JPEG + number: "gdcm" for number in ("50", "51", "57", "70")},
    **{_JPEG + number: "pyjpegls" for number in ("80", "81")},
    **{_JPEG + number: "pylibjpeg" for number in ("90", "91", "201", "202", "203")},
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame: rows x columns (x samples) of stored values, and what its colours mean."""

    values: np.ndarray[Any, Any]
    photometric_interpretation: str


def can_decode(transfer_syntax_uid: str) -> bool:
    """Whether pixels in this syntax can be decoded here."""
    return transfer_syntax_uid in _NATIVE or transfer_syntax_uid in _PLUGINS


def read_header(path: str) -> Dataset:
    """The data set of a stored file up to its pixels. Raises Unsupported when pydicom cannot read it."""
    from pydicom import dcmread

    try:
        return dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise Unsupported(f"the header cannot be read: {type(error).__name__}") from error


def frame(path: str, ds: Dataset, number: int, *, rgb: bool) -> Frame:
    """One frame, numbered from 1, of a stored file whose header is `ds`; only its bytes are read when they can be told.

    `rgb`: turn YBR into RGB, for showing; else values as the codec gives them (RGB for the JPEG 2000 transforms).

    Raises:
        Unsupported: a syntax without a decoder, no such frame, no pixels, or pixels that cannot be decoded.
    """
    from pydicom import dcmread
    from pydicom.pixels.utils import pixel_array

    syntax = str(ds.file_meta.TransferSyntaxUID)
    if not can_decode(syntax):
        raise Unsupported(f"pixels in transfer syntax {syntax} cannot be decoded here")
    if not 1 <= number <= count(ds):
        raise Unsupported(f"there is no frame {number}: the instance has {count(ds)}")
    try:
        source = (
            dcmread(path) if syntax == _DEFLATED else path
        )  # nothing in a deflated file can be told before its time
        values = pixel_array(source, index=number - 1, raw=not rgb, decoding_plugin=_PLUGINS.get(syntax, ""))
    except Exception as error:
        raise Unsupported(f"frame {number} cannot be decoded: {type(error).__name__}") from error
    photometric = str(ds.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric in ("YBR_RCT", "YBR_ICT") or (rgb and photometric.startswith("YBR")):
        photometric = "RGB"
    return Frame(values, photometric)


def count(ds: Dataset) -> int:
    """Number of Frames, 1 when it is not said or not a number."""
    try:
        return max(1, int(ds.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def frames(path: str, ds: Dataset) -> Iterator[Frame]:
    """Every frame in order, as the codec gives it."""
    for number in range(1, count(ds) + 1):
        yield frame(path, ds, number, rgb=False)
