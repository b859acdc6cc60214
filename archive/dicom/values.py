"""Encoded values into the values of the DICOM JSON Model (PS3.18 Annex F.2). Malformed ones survive as text."""

from __future__ import annotations

import math
import re
import struct
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from archive.dicom.charset import decode

TEXT_OF_CHARSET: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
ONE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
TEXT: Final = TEXT_OF_CHARSET | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"}
NUMBERS: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
# bytes that turn round together with the byte order
_UNITS = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
_KEEPS_LEADING = frozenset({"LT", "ST", "UT", "UC"})  # leading spaces are significant (PS3.5 §6.2)
_SAFE_INTEGER = 1 << 53  # beyond, a JSON number is not exact everywhere
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def text(raw: bytes, vr: str, charsets: tuple[str, ...], *, fallback: str) -> str:
    """The characters of a value without padding; several values stay joined by a backslash."""
    if vr in TEXT_OF_CHARSET:
        decoded = decode(raw, charsets, person_name=vr == "PN", fallback=fallback)
    else:
        decoded = raw.decode("ascii") if raw.isascii() else decode(raw, (), fallback=fallback)
    return decoded.rstrip(" \0") if vr in _KEEPS_LEADING else decoded.strip(" \0")


def of_text(value: str, vr: str) -> list[Any]:
    """The values of a text VR: [] when it is empty, None for an empty one among several."""
    if not value:
        return []
    if vr in ONE_VALUE:
        return [value]
    parts = value.split("\\")
    if len(parts) > 1:
        parts = [part.rstrip(" \0") if vr == "UC" else part.strip(" \0") for part in parts]
    if vr == "PN":
        return [_person_name(part) for part in parts]
    if vr == "IS":
        return [_integer(part) if part else None for part in parts]
    if vr == "DS":
        return [_decimal(part) if part else None for part in parts]
    return [part or None for part in parts]


def of_numbers(raw: bytes, vr: str, *, little: bool) -> list[Any] | None:
    """The values of a binary number; None when the length does not fit the VR."""
    if vr == "AT":
        if len(raw) % 4:
            return None
        halves = struct.unpack(f"{'<' if little else '>'}{len(raw) // 2}H", raw)
        return [f"{halves[i]:04X}{halves[i + 1]:04X}" for i in range(0, len(halves), 2)]
    code = NUMBERS[vr]
    size = struct.calcsize(f"<{code}")
    if len(raw) % size:
        return None
    values = struct.unpack(f"{'<' if little else '>'}{len(raw) // size}{code}", raw)
    if code in "fd":
        return [_finite(value) for value in values]
    if code in "Qq":
        return [value if abs(value) <= _SAFE_INTEGER else str(value) for value in values]
    return list(values)


def unit(vr: str) -> int:
    """How many bytes of a value turn round together with the byte order."""
    return _UNITS.get(vr, 1)


def little_endian(raw: bytes, vr: str, *, little: bool) -> bytes:
    """A value in little endian. A rest that is no whole number, which no valid value has, stays as it is."""
    size = _UNITS.get(vr, 1)
    if little or size == 1:
        return raw
    turned = bytearray(raw)
    whole = len(raw) // size * size
    for place in range(size):
        turned[place:whole:size] = raw[size - 1 - place : whole : size]
    return bytes(turned)


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _person_name(value: str) -> dict[str, str] | None:
    if not value:
        return None
    groups = [group.strip(" \0") for group in value.split("=")]
    return {name: group for name, group in zip(_GROUPS, groups, strict=False) if group} or None


def _integer(value: str) -> int | str:
    if _INTEGER.fullmatch(value):
        number = int(value)
        if abs(number) <= _SAFE_INTEGER:
            return number
    return value


@lru_cache(maxsize=4096)
def _decimal(value: str) -> int | float | str:
    """The number that is written; the text itself where no double is exactly that, or it is no number."""
    if not _DECIMAL.fullmatch(value):
        return value
    if _INTEGER.fullmatch(value):
        return _integer(value)
    number = float(value)
    if not math.isfinite(number):
        return value
    # fifteen digits survive a double: what fits a DS (16 characters) needs no look
    short = len(value) <= 16 and "e" not in value.lower()
    return number if short or Decimal(repr(number)) == Decimal(value) else value
