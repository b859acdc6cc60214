"""Transfer syntaxes by UID (PS3.6 Table A-1), and what a UID alone says of one. Their only home.

How their elements are written is `archive.dicom.elements.encoding_of`; what decodes them is `archive.dicom.pixels`.
"""

from __future__ import annotations

from typing import Final

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
DEFLATED_LE: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE: Final = "1.2.840.10008.1.2.2"  # retired
RLE: Final = "1.2.840.10008.1.2.5"
JPEG: Final = "1.2.840.10008.1.2.4."  # the family: JPEG, JPEG-LS, JPEG 2000, JPIP, video, JPEG XL, HTJ2K

# Pixels are not encapsulated.
NATIVE: Final = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE})
VIDEO: Final = frozenset(  # MPEG-2, H.264, HEVC, with their fragmentable forms
    f"{JPEG}{number}{form}" for number in range(100, 109) for form in ("", ".1")
)
# The syntax says that something may have been lost; whether it was, only the data set says.
LOSSY: Final = VIDEO | {f"{JPEG}{number}" for number in (50, 51, 81, 91, 93, 111, 112, 203)}
