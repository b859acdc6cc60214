"""Do two data sets say the same? (REQ-DCM-15)

Other bytes under one SOP Instance UID are often the same image: sent again in another lossless syntax, with other
padding, another character set, implicit instead of explicit VRs. Before a sender is accused of a conflict, elements
are compared by meaning and pixels decoded. In doubt the answer is no: then both are kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from archive.dicom import pixels
from archive.dicom.charset import decode
from archive.errors import Unsupported

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = structlog.get_logger(__name__)

# Pixels are compared decoded; these say how they, and text, were encoded.
_ENCODING = {
    0x00080005,  # Specific Character Set: values are compared as text
    0x00280004,  # Photometric Interpretation: compared after decoding
    0x00280006,  # Planar Configuration
    0x7FE00001,  # Extended Offset Table
    0x7FE00002,  # its lengths
    0x7FE00010,  # Pixel Data
    0xFFFCFFFC,  # Data Set Trailing Padding
}
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Copy:
    """A stored file, and the syntax of its data set."""

    path: str
    transfer_syntax_uid: str


def same_meaning(one: Copy, other: Copy) -> bool:
    """Whether two stored files hold the same object. False in any doubt; never raises for bad content.

    Memory is that of two headers and two decoded frames.
    """
    try:
        first, second = pixels.read_header(one.path), pixels.read_header(other.path)
        return _normal(first) == _normal(second) and _same_pixels(one, first, other, second)
    except (Unsupported, OSError):
        return False
    except Exception as error:  # what pydicom raises on damaged values is not ours to list
        log.warning("two objects under one UID cannot be compared", error=type(error).__name__)
        return False


def _same_pixels(one: Copy, first: Dataset, other: Copy, second: Dataset) -> bool:
    import numpy as np

    has = [_has_pixels(copy.path, ds) for copy, ds in ((one, first), (other, second))]
    if has == [False, False]:
        return True
    if has != [True, True] or pixels.count(first) != pixels.count(second):
        return False
    return all(
        a.photometric_interpretation == b.photometric_interpretation and np.array_equal(a.values, b.values)
        for a, b in zip(pixels.frames(one.path, first), pixels.frames(other.path, second), strict=True)
    )


def _has_pixels(path: str, ds: Dataset) -> bool:
    """Whether there is anything behind the header. Float pixels count: they cannot be decoded here, so in doubt no."""
    from pydicom import dcmread

    if "Rows" in ds or "NumberOfFrames" in ds:
        return True
    whole = dcmread(path, defer_size=1024, specific_tags=[0x7FE00010, 0x7FE00008, 0x7FE00009])
    return any(tag in whole for tag in (0x7FE00010, 0x7FE00008, 0x7FE00009))


def _normal(ds: Dataset, depth: int = 0, around: tuple[str, ...] = ()) -> dict[int, Any]:
    """Values by tag, freed from their encoding."""
    if depth > _MAX_DEPTH:
        raise Unsupported("sequences are nested too deep")
    charsets = _terms(ds.get("SpecificCharacterSet")) or around
    found: dict[int, Any] = {}
    for element in ds:
        tag = int(element.tag)
        if tag in _ENCODING or tag & 0xFFFF == 0 or tag >> 16 == 0x0002:
            continue
        if element.VR == "SQ":
            found[tag] = [_normal(item, depth + 1, charsets) for item in element.value]
        else:
            found[tag] = _value(element.VR, element.value, charsets)
    return found


def _value(vr: str, value: Any, charsets: tuple[str, ...]) -> bytes:
    """A value as bytes that do not depend on VR encoding, padding, byte order or character set."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        text = decode(_unpadded(value), charsets) if vr == "UN" else ""
        return text.encode() if text.isprintable() and text else _unpadded(value)
    if vr in _NUMBERS:
        many = value if isinstance(value, list) or hasattr(value, "__iter__") else [value]
        return _unpadded(b"".join(struct.pack("<" + _NUMBERS[vr], number) for number in many))
    if vr == "AT":
        many = value if hasattr(value, "__iter__") else [value]
        return _unpadded(b"".join(struct.pack("<HH", int(tag) >> 16, int(tag) & 0xFFFF) for tag in many))
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return _text(value)
    return b"\\".join(_text(one) for one in value)


def _terms(value: Any) -> tuple[str, ...]:
    """The defined terms of a Specific Character Set as pydicom gives it."""
    return tuple(map(str, value)) if value and not isinstance(value, str) else ((value,) if value else ())


def _unpadded(raw: bytes) -> bytes:
    """Without the one byte that makes a length even; numbers too, so that they compare with VR UN."""
    return raw[:-1] if raw.endswith((b"\0", b" ")) else raw


def _text(value: Any) -> bytes:
    original = getattr(value, "original_string", None)
    return str(original if original else value).strip(" \0").encode()
