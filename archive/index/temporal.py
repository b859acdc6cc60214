"""Dates and times of matching keys: by meaning, not as text (PS3.4 C.2.2.2.1). Pure.

What is stored is read by `archive.dicom.keys`, strictly; the end of a range may be a day that no calendar has (31
February), or a time without its fraction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

_DATE = re.compile(r"(\d{4})(?:\.?)(\d{2})(?:\.?)(\d{2})")  # with dots: ACR-NEMA, to be read (PS3.5 6.2)
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")
_MOMENT = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(?:\.(\d{1,6}))?(?:([+-])(\d{2})(\d{2}))?")


def date_key(text: str) -> str | None:
    """A DA value as YYYYMMDD; None when it is not a date."""
    found = _DATE.fullmatch(text.strip(" \0"))
    if found is None or not ("01" <= found[2] <= "12" and "01" <= found[3] <= "31"):
        return None
    return found[1] + found[2] + found[3]


def time_key(text: str, *, last: bool = False) -> str | None:
    """A TM value as HHMMSS.FFFFFF, missing components zero; None when it is not a time.

    `last`: the end of a range, which a value without a fraction includes to the end of its second.
    """
    found = _TIME.fullmatch(text.strip(" \0"))
    if found is None:
        return None
    hour, minute, second, fraction = found.groups()
    minute, second = minute or "00", second or "00"
    if hour > "23" or minute > "59" or second > "60":
        return None
    fraction = "999999" if fraction is None and last else (fraction or "").ljust(6, "0")
    return f"{hour}{minute}{second}.{fraction}"


def moment(text: str, *, last: bool = False) -> datetime | None:
    """A DT value: aware when it has an offset, else naive; None when it is not one.

    Missing components are the first possible ones; with `last`, the end of a range, the last possible ones of the
    precision that was given (`2026` includes its December).
    """
    found = _MOMENT.fullmatch(text.strip(" \0"))
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
    try:
        start = datetime(  # noqa: DTZ001 - a DT without offset is a local time, and stays one
            int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), min(int(second or 0), 59),
            int((fraction or "0").ljust(6, "0")),
        )  # fmt: skip
        end = _end(start, month=month, day=day, hour=hour, minute=minute, fraction=fraction) if last else start
    except (ValueError, OverflowError):
        return None
    if sign is None:
        return end
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    if int(minutes) > 59 or offset > timedelta(hours=14):
        return None
    return end.replace(tzinfo=timezone(-offset if sign == "-" else offset))


def _end(
    start: datetime, *, month: str | None, day: str | None, hour: str | None, minute: str | None, fraction: str | None
) -> datetime:
    if month is None:
        following = start.replace(year=start.year + 1)
    elif day is None:
        following = (start.replace(day=28) + timedelta(days=4)).replace(day=1)
    elif hour is None:
        following = start + timedelta(days=1)
    elif minute is None:
        following = start + timedelta(hours=1)
    else:
        following = start + (timedelta(seconds=1) if fraction is None else timedelta(microseconds=1))
    return following - timedelta(microseconds=1)


def compare(a: datetime, b: datetime) -> int:
    """-1, 0 or 1. With offsets on both sides in UTC (REQ-DCM-45); else the local times as they are written."""
    if a.tzinfo is None or b.tzinfo is None:
        a, b = a.replace(tzinfo=None), b.replace(tzinfo=None)
    return (a > b) - (a < b)


def splits(text: str) -> Iterator[tuple[str, str]]:
    """Every way to read `text` as the two ends of a range; a DT has hyphens in its offsets too."""
    for position, letter in enumerate(text):
        if letter == "-":
            yield text[:position].strip(), text[position + 1 :].strip()
