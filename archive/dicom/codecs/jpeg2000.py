"""JPEG 2000 irreversible (ISO 15444-1, transfer syntax 1.2.840.10008.1.2.4.91, PS3.5 A.4.4), by OpenJPEG.

It carries sign and depth of the values, so that nothing is shifted or clipped. The library holds the GIL while it
works: encode in a process that answers nobody. About 20 ms to encode 512 x 512 values of 16 bits, 20 ms to decode them.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, cast

from archive.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np

TRANSFER_SYNTAX_UID: Final = "1.2.840.10008.1.2.4.91"
METHOD: Final = "ISO_15444_1"  # Lossy Image Compression Method (0028,2114), PS3.3 C.7.6.1.1.5.1
MAX_BITS_STORED: Final = 16
LEAST_SIDE: Final = 32  # five halvings: the library always makes six resolutions
_RGB, _GREY = 1, 2


@lru_cache
def library() -> str:
    """The encoder and its version, as kept with what it made."""
    from openjpeg.utils import get_openjpeg_version

    numbers = ".".join(str(number) for number in get_openjpeg_version())
    return f"pylibjpeg-openjpeg {version('pylibjpeg-openjpeg')} (OpenJPEG {numbers})"


def photometric_interpretation(original: str) -> str:
    """Of what `encode` makes: RGB goes through the irreversible colour transform (PS3.3 C.7.6.3.1.2)."""
    return "YBR_ICT" if original == "RGB" else original


def encode(values: np.ndarray[Any, Any], *, bits_stored: int, ratio: float) -> bytes:
    """One frame, rows x columns (x 3 samples, RGB), as a codestream.

    `ratio` is that of DICOM: bytes of the frame as it is allocated by bytes of the codestream. OpenJPEG counts the bits
    that are stored, so it is asked for less: the same number of bytes, hence less loss.

    Raises:
        Unsupported: values that the codec does not take, or that it fails on.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2 or not 2 <= bits_stored <= MAX_BITS_STORED:
        raise Unsupported("JPEG 2000 is given whole numbers of at most 16 bits")
    if values.ndim == 3 and (values.shape[2] != 3 or values.dtype != "u1"):
        raise Unsupported("JPEG 2000 is given grey values, or colours of 8 bits")
    if min(values.shape[:2]) < LEAST_SIDE:
        raise Unsupported(f"a frame with a side below {LEAST_SIDE} pixels")
    import numpy as np
    from openjpeg.utils import encode_array

    asked = max(1.0, ratio * bits_stored / (8 * values.dtype.itemsize))
    try:
        return bytes(
            encode_array(
                np.ascontiguousarray(values),
                bits_stored=bits_stored,
                photometric_interpretation=_RGB if values.ndim == 3 else _GREY,
                compression_ratios=[asked],
            )
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise Unsupported(f"the frame cannot be encoded: {type(error).__name__}") from error


def decode(codestream: bytes, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a reader gets back, in the type and shape of the frame that was encoded.

    Raises:
        Unsupported: it cannot be decoded, or to something else than that.
    """
    from openjpeg.utils import decode as openjpeg_decode

    try:
        decoded = openjpeg_decode(codestream, j2k_format=0)
    except (RuntimeError, ValueError, TypeError) as error:
        raise Unsupported(f"the frame cannot be decoded again: {type(error).__name__}") from error
    # eight bits stored in sixteen come back as eight
    if decoded.shape != like.shape or decoded.dtype.kind != like.dtype.kind or decoded.itemsize > like.itemsize:
        raise Unsupported("the frame decodes to another size or type")
    return cast("np.ndarray[Any, Any]", decoded.astype(like.dtype, copy=False))
