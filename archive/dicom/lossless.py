"""Pixels in a compressed transfer syntax that loses nothing, on the way out (REQ-DCM-41, sheet 10 §2.2).

What an encoder makes is decoded again and compared before it leaves: no value differs, or it is not sent. Nothing lossy
is here (REQ-DCM-80). Imports of codecs are inside: they cost up to a second, and most processes never encode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from archive.dicom import pixels, syntaxes
from archive.dicom.frames import Frames, Image
from archive.errors import NotAcceptable

if TYPE_CHECKING:
    import numpy as np

JPEG_LS: Final = f"{syntaxes.JPEG}80"
JPEG_2000: Final = f"{syntaxes.JPEG}90"
JPEG_SV1: Final = f"{syntaxes.JPEG}70"
SYNTAXES: Final = (JPEG_LS, JPEG_2000, JPEG_SV1, syntaxes.RLE)  # smallest and quickest first
_PLUGINS = {JPEG_LS: "pyjpegls", JPEG_2000: "pylibjpeg", syntaxes.RLE: "pylibjpeg"}


def planar_configuration(transfer_syntax_uid: str) -> int:
    """How the samples of colours lie: by plane in RLE, else by pixel (PS3.5 §8.2, Annex G)."""
    return 1 if transfer_syntax_uid == syntaxes.RLE else 0


def encode_frame(frames: Frames, number: int, transfer_syntax_uid: str) -> bytes:
    """One stored frame, numbered from 1, compressed; its colours mean what its data set says.

    Raises:
        NotAcceptable: as `encode`; also for chrominance that is stored halved, which no data set would say any more.
        Unsupported, NotFound, UnreadableInstance, OSError: as `pixels.decode`.
    """
    decoded = pixels.decode(frames, number)
    if not frames.image.encapsulated and decoded.photometric_interpretation != frames.image.photometric:
        raise NotAcceptable("pixels whose chrominance is halved")
    return encode(decoded.values, frames.image, transfer_syntax_uid, photometric=decoded.photometric_interpretation)


def encode(values: np.ndarray[Any, Any], image: Image, transfer_syntax_uid: str, *, photometric: str) -> bytes:
    """One frame, rows x columns (x samples) of stored values, as a fragment of even length.

    `image` says what the values are; `photometric` what its colours mean, no transform is applied.

    Raises:
        NotAcceptable: values that the codec does not take, or does not give back as they were.
    """
    samples = 1 if values.ndim == 2 else values.shape[2]
    if image.tag != 0x7FE00010 or image.bits_allocated not in (8, 16) or samples not in (1, 3):
        raise NotAcceptable("pixels that no lossless codec takes")
    made = replace(
        image,
        planar=planar_configuration(transfer_syntax_uid),
        photometric=photometric,
        encapsulated=True,
        samples=samples,
    )
    try:
        encoded = _encoded(values, made, transfer_syntax_uid)
        again = pixels.decode_one(encoded, made, transfer_syntax_uid).values
    except BaseException as error:
        if not pixels.is_failure(error):
            raise
        raise NotAcceptable(f"a frame cannot be encoded without loss: {type(error).__name__}") from error
    if again.dtype != values.dtype or again.shape != values.shape or again.tobytes() != values.tobytes():
        raise NotAcceptable("a frame does not decode to what it was")
    return encoded + b"\0" * (len(encoded) % 2)


def _encoded(values: np.ndarray[Any, Any], image: Image, transfer_syntax_uid: str) -> bytes:
    if transfer_syntax_uid == JPEG_SV1:
        from archive.dicom import jpeg_lossless

        return jpeg_lossless.encode(values, bits_stored=image.bits_stored)
    from pydicom.pixels.encoders.base import get_encoder
    from pydicom.uid import UID

    options: dict[str, Any] = {
        "number_of_frames": 1,
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "bits_allocated": image.bits_allocated,
        # run lengths know no depth: what lies above Bits Stored is kept
        "bits_stored": image.bits_allocated if transfer_syntax_uid == syntaxes.RLE else image.bits_stored,
        "pixel_representation": int(image.signed),
        "photometric_interpretation": image.photometric,
        "use_mct": False,
    }
    if image.samples > 1:
        options["planar_configuration"] = 0  # of the values that are given
    encoder = get_encoder(UID(transfer_syntax_uid))
    return bytes(encoder.encode(values, encoding_plugin=_PLUGINS[transfer_syntax_uid], **options))
