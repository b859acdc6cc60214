"""Decoding pixels, with the decoder named for each syntax: what decodes must not depend on what else is installed.

Decoded values are those that were stored, all allocated bits of them: overlays in unused bits are part of an image that
is to be given or compared without loss. Only for showing are they masked, and colours turned into RGB.

Imports of codecs are inside: they cost up to a second, and most processes never decode.
"""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archive.dicom.file_meta import data_set_offset
from archive.dicom.frame_index import opened
from archive.dicom.frames import Frames, Image
from archive.dicom.syntaxes import JPEG, NATIVE, RLE
from archive.errors import NotFound, UnreadableInstance, Unsupported

if TYPE_CHECKING:
    import numpy as np
    from pydicom.dataset import Dataset

# pyjpegls and pylibjpeg are exact; gdcm reads what modalities write as JPEG (docs/decisions: dependencies).
_PLUGINS = {
    RLE: "pylibjpeg",
    **{JPEG + number: "gdcm" for number in ("50", "51", "57", "70")},
    **{JPEG + number: "pyjpegls" for number in ("80", "81")},
    **{JPEG + number: "pylibjpeg" for number in ("90", "91", "201", "202", "203")},
}
MAX_FRAME_BYTES = 1 << 30  # decoded
_FLOATS = {0x7FE00008: "f4", 0x7FE00009: "f8"}


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame: rows x columns (x samples) of stored values, and what its colours mean."""

    values: np.ndarray[Any, Any]
    photometric_interpretation: str


def can_decode(transfer_syntax_uid: str) -> bool:
    """Whether pixels in this syntax can be decoded here."""
    return transfer_syntax_uid in NATIVE or transfer_syntax_uid in _PLUGINS


def decode(frames: Frames, number: int, *, rgb: bool = False) -> Frame:
    """One frame, numbered from 1.

    The values have the size and sign that Bits Allocated and Pixel Representation say (single bits: 0 and 1), samples
    last. `rgb`: for showing: YBR turned into RGB, unused bits masked.

    Raises:
        Unsupported: a syntax without a decoder, or pixels that cannot be decoded.
        NotFound: no such frame.
        UnreadableInstance, OSError: the file cannot be followed, or read.
    """
    syntax, image = frames.transfer_syntax_uid, frames.image
    if not can_decode(syntax) or (image.encapsulated and syntax in NATIVE):
        raise Unsupported(f"pixels in transfer syntax {syntax} cannot be decoded here")
    if image.frame_bits > 8 * MAX_FRAME_BYTES:
        raise Unsupported("frames that are too large to be decoded")
    try:
        return decode_one(frames.read(number), image, syntax, rgb=rgb)
    except Unsupported as error:
        raise Unsupported(f"frame {number}: {error}") from error


def decode_one(raw: bytes, image: Image, syntax: str, *, rgb: bool = False) -> Frame:
    """The bytes of one frame of an image, as `decode`. Raises Unsupported when they cannot be decoded."""
    if image.encapsulated and _announced(raw) not in (None, (image.rows, image.columns)):
        raise Unsupported("the encoded frame has another size than the image")
    try:
        decoded = _encapsulated(raw, image, syntax, rgb) if image.encapsulated else _native(raw, image, rgb)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise Unsupported(f"it cannot be decoded: {type(error).__name__}") from error
    return Frame(_shown(decoded.values, image), decoded.photometric_interpretation) if rgb else decoded


def is_failure(error: BaseException) -> bool:
    """Whether a codec failed, be it by a panic in Rust, which is no Exception."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def _announced(raw: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG family codestream says it has: what its decoder would allocate."""
    if raw.startswith(b"\xff\x4f\xff\x51") and len(raw) >= 24:  # JPEG 2000: SIZ
        right, bottom, left, top = struct.unpack_from(">4I", raw, 8)
        return bottom - top, right - left
    at = 2
    while raw.startswith(b"\xff\xd8") and at + 9 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # SOF
            rows, columns = struct.unpack_from(">HH", raw, at + 5)
            return rows, columns
        # fill bytes, and markers without a length
        at += 1 if marker == 0xFF else 2 if 0xD0 <= marker <= 0xD9 else 2 + struct.unpack_from(">H", raw, at + 2)[0]
    return None


def _encapsulated(raw: bytes, image: Image, syntax: str, rgb: bool) -> Frame:
    import numpy as np
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    options: dict[str, Any] = {
        "number_of_frames": 1,
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "bits_allocated": image.bits_allocated,
        "bits_stored": image.bits_stored,
        "pixel_representation": image.signed,
        "photometric_interpretation": image.photometric,
        "pixel_keyword": "PixelData",
    }
    if image.samples > 1:
        options["planar_configuration"] = image.planar
    if image.bits_allocated == 8 and _PLUGINS[syntax] == "gdcm":
        options["bits_stored"] = 8  # with fewer the library ends the process; they are not cut off here
    if not syntax.startswith((JPEG + "8", JPEG + "9", JPEG + "20")):
        options["correct_unused_bits"] = False  # those of the codecs that hold no sign are corrected always
    values, properties = get_decoder(UID(syntax)).as_array(
        encapsulate([raw], has_bot=False), index=0, raw=not rgb, decoding_plugin=_PLUGINS[syntax], **options
    )
    container = np.dtype(f"<{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
    if container.itemsize < values.dtype.itemsize:
        raise ValueError("decoded values do not fit the bits allocated")
    return Frame(values.astype(container, copy=False), str(properties["photometric_interpretation"]))


def _native(raw: bytes, image: Image, rgb: bool) -> Frame:
    import numpy as np

    rows, columns, samples = image.rows, image.columns, image.samples
    if image.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(raw, "u1"), bitorder="little")[: rows * columns * samples]
        return Frame(bits.reshape((rows, columns) if samples == 1 else (rows, columns, samples)), image.photometric)
    kind = _FLOATS.get(image.tag) or f"{'i' if image.signed else 'u'}{image.bits_allocated // 8}"
    values = np.frombuffer(raw, "<" + kind)
    photometric = image.photometric
    if samples > 1:
        if photometric == "YBR_FULL_422":  # two pixels as Y Y Cb Cr
            pairs = values.reshape(-1, 4)
            pixels = np.stack([pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]], axis=1)
            values, photometric = pixels.reshape(rows, columns, 3), "YBR_FULL"
        elif image.planar == 1:
            values = values.reshape(samples, rows, columns).transpose(1, 2, 0)
        else:
            values = values.reshape(rows, columns, samples)
        if rgb and photometric == "YBR_FULL":
            from pydicom.pixels.processing import convert_color_space

            values, photometric = convert_color_space(values, "YBR_FULL", "RGB"), "RGB"
        return Frame(values, photometric)
    return Frame(values.reshape(rows, columns), photometric)


def _shown(values: np.ndarray[Any, Any], image: Image) -> np.ndarray[Any, Any]:
    """Without what may lie in the bits above Bits Stored."""
    unused = image.bits_allocated - image.bits_stored
    if not 0 < unused < image.bits_allocated or image.tag in _FLOATS or image.bits_allocated == 1:
        return values
    return (values << unused) >> unused


def opened_file(path: str, transfer_syntax_uid: str) -> AbstractContextManager[Frames]:
    """The frames of a stored PS3.10 file, see `archive.dicom.frame_index.opened`."""
    return opened(path, data_set_offset=data_set_offset(path), transfer_syntax_uid=transfer_syntax_uid)


def read_header(path: str) -> Dataset:
    """The data set of a stored file up to its pixels. Raises Unsupported when pydicom cannot read it."""
    from pydicom import dcmread

    try:
        return dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise Unsupported(f"the header cannot be read: {type(error).__name__}") from error


def frame(path: str, ds: Dataset, number: int, *, rgb: bool) -> Frame:
    """One frame, numbered from 1, of a stored file whose header is `ds`, see `decode`.

    Raises:
        Unsupported: as `decode`; also when there are no pixels, or no such frame.
    """
    try:
        with opened_file(path, str(ds.file_meta.TransferSyntaxUID)) as frames:
            return decode(frames, number, rgb=rgb)
    except (NotFound, UnreadableInstance) as error:
        raise Unsupported(str(error)) from error


def count(ds: Dataset) -> int:
    """Number of Frames, 1 when it is not said or not a number."""
    try:
        return max(1, int(ds.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1
