"""JPEG lossless, process 14 with selection value 1 (ISO 10918-1 Annex H, transfer syntax 1.2.840.10008.1.2.4.70).

Our own encoder because the one in reach, GDCM's, ends the process on some images. About 35 ms for 512 x 512 values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]

# Lengths of the codes of the 17 categories of difference, the most frequent first; the code of ones alone stays unused.
_LENGTHS = (2, *[3] * 5, *range(4, 15))
_AT_ONCE = 1 << 20  # samples
_END = b"\xff\xd9"


def encode(values: Values, *, bits_stored: int) -> bytes:
    """One frame of rows x columns (x samples) of 8 or 16 bits, as a codestream.

    It knows no sign: what is signed goes in with all the bits of its container. Fewer than 8 bits go in as 8, which
    every decoder takes.

    Raises:
        ValueError: there are bits above `bits_stored`.
    """
    container = values.dtype.itemsize * 8
    raw = values.view(f"<u{values.dtype.itemsize}").astype(np.int32)
    depth = container if values.dtype.kind == "i" else max(8, bits_stored)
    if int(raw.max()) >> depth:
        raise ValueError("a value has more bits than the image says")
    planes = raw.reshape(raw.shape[0], raw.shape[1], -1)
    differences = _differences(planes, depth).ravel()
    categories = _categories(differences)
    lengths, codes, symbols = _table(np.bincount(categories, minlength=17))
    counts = np.bincount(lengths, minlength=17)[1:17].astype(np.uint8).tobytes()
    rows, columns, samples = planes.shape
    head = b"\xff\xd8\xff\xc3" + struct.pack(">HBHHB", 8 + 3 * samples, depth, rows, columns, samples)
    head += b"".join(bytes((number, 0x11, 0)) for number in range(1, samples + 1))
    head += b"\xff\xc4" + struct.pack(">HB", 19 + 17, 0) + counts + bytes(symbols)
    head += b"\xff\xda" + struct.pack(">HB", 6 + 2 * samples, samples)
    head += b"".join(bytes((number, 0)) for number in range(1, samples + 1)) + b"\1\0\0"
    return head + b"".join(_scan(differences, categories, lengths, codes)) + _END


def _differences(planes: Values, depth: int) -> Values:
    """Each sample without its left neighbour, the first of a row without the one above (H.1.2.1), modulo 2^16."""
    predicted = np.empty_like(planes)
    predicted[:, 1:] = planes[:, :-1]
    predicted[1:, 0] = planes[:-1, 0]
    predicted[0, 0] = 1 << (depth - 1)
    difference = (planes - predicted) & 0xFFFF
    return np.where(difference > 0x8000, difference - 0x10000, difference)


def _categories(differences: Values) -> Values:
    """How many bits a difference needs (table H.2)."""
    return np.searchsorted(1 << np.arange(17), np.abs(differences), side="right")


def _table(frequencies: Values) -> tuple[Values, Values, list[int]]:
    """Length and code of each category, and the categories in the order of their codes (Annex C)."""
    symbols = [int(one) for one in np.argsort(-frequencies, kind="stable")]
    lengths, codes = np.zeros(17, np.int64), np.zeros(17, np.int64)
    code, last = 0, _LENGTHS[0]
    for symbol, length in zip(symbols, _LENGTHS, strict=True):
        code <<= length - last
        lengths[symbol], codes[symbol], last = length, code, length
        code += 1
    return lengths, codes, symbols


def _scan(differences: Values, categories: Values, lengths: Values, codes: Values) -> Iterator[bytes]:
    """The entropy-coded bits: code, then the difference in as many bits as its category says (F.1.2.1)."""
    carried, position = 0, 0  # the word that is not full yet, and its bits
    for start in range(0, len(differences), _AT_ONCE):
        difference = differences[start : start + _AT_ONCE].astype(np.int64)
        category = categories[start : start + _AT_ONCE]
        extra = np.where(category == 16, 0, category)  # 32768 is the only one of its category
        appended = (difference - (difference < 0)) & ((1 << extra) - 1)
        length = lengths[category] + extra
        ends = position + np.cumsum(length)
        starts = ends - length
        window = ((codes[category] << extra) | appended).astype(np.uint64) << (64 - length - starts % 32).astype(
            np.uint64
        )
        place, size = starts // 32, int(ends[-1]) // 32 + 2
        # sums of bits that do not overlap, below 2^32: exact in a double
        words = np.bincount(place, (window >> np.uint64(32)).astype(float), size)
        words += np.bincount(place + 1, (window & np.uint64(0xFFFFFFFF)).astype(float), size)
        words[0] += carried
        full, position = divmod(int(ends[-1]), 32)
        carried = int(words[full])
        yield words[:full].astype(">u4").tobytes().replace(b"\xff", b"\xff\0")
    count = (position + 7) // 8
    last = carried | ((1 << (32 - position)) - 1)  # filled with ones (F.1.2.3)
    yield last.to_bytes(4, "big")[:count].replace(b"\xff", b"\xff\0")
