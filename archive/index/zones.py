"""Dates and times as somebody in another time zone says them: timezone query adjustment (PS3.4 C.2.2.2.5). Pure.

What is kept says its zone by Timezone Offset From UTC (0008,0201); without it, it is that of the practice. Whoever asks
in a zone of their own means the moment: dates and times that belong together are turned into that zone, midnight
included, and compared there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

from archive.dicom import keys
from archive.index.match import Between
from archive.policy import PARIS

OFFSET = 0x00080201
PAIRS = (  # date, time
    (0x00080020, 0x00080030),  # study
    (0x00080021, 0x00080031),  # series
    (0x00080023, 0x00080033),  # content
    (0x00400244, 0x00400245),  # performed procedure step
)
DATES = frozenset(date for date, _ in PAIRS)
_OFFSET = re.compile(r"([+-])(0\d|1[0-4])([0-5]\d)")
Row = Mapping[str, Any]


def zone_of(text: str) -> timezone | None:
    """A value of (0008,0201), `+0200`; None when it is none."""
    found = _OFFSET.fullmatch(text.strip(" \0"))
    if found is None:
        return None
    minutes = 60 * int(found[2]) + int(found[3])
    return timezone(timedelta(minutes=-minutes if found[1] == "-" else minutes))


def turned(row: Row, zone: timezone) -> dict[str, Any]:
    """A row with the dates and times that belong together in `zone`, and saying so. A date without time stays."""
    own: tzinfo = zone_of(str(_first(row, OFFSET) or "")) or PARIS
    result = dict(row)
    for date, time in PAIRS:
        day, hour = keys.date(str(_first(row, date) or "")), keys.time(str(_first(row, time) or ""))
        if day is None or hour is None or hour[4:6] == "60":  # a leap second is no moment that Python knows
            continue
        try:
            moment = datetime.strptime(day + hour, "%Y%m%d%H%M%S.%f").replace(tzinfo=own).astimezone(zone)
        except (OverflowError, ValueError):
            continue
        result[f"{date:08X}"] = {"vr": "DA", "Value": [f"{moment:%Y%m%d}"]}
        result[f"{time:08X}"] = {"vr": "TM", "Value": [f"{moment:%H%M%S.%f}".removesuffix(".000000")]}
    seconds = int((zone.utcoffset(None) or timedelta()).total_seconds())
    sign, minutes = "-" if seconds < 0 else "+", abs(seconds) // 60
    result[f"{OFFSET:08X}"] = {"vr": "SH", "Value": [f"{sign}{minutes // 60:02}{minutes % 60:02}"]}
    return result


def widened(days: Between) -> Between:
    """The days that any zone may make of these."""
    return Between("DA", _moved(days.low, -1), _moved(days.high, 1))


def _moved(day: str | None, by: int) -> str | None:
    known = keys.date(day or "")
    if known is None:  # open, or the 31st of a shorter month: no bound then
        return None
    try:
        return f"{datetime.strptime(known, '%Y%m%d').replace(tzinfo=UTC) + timedelta(days=by):%Y%m%d}"
    except OverflowError:
        return None


def within(row: Row, date: int, time: int, days: Between, times: Between) -> bool:
    """Whether date and time lie in one interval, from the first day's time to the last day's (PS3.4 C.2.2.2.5.4)."""
    day, hour = keys.date(str(_first(row, date) or "")), keys.time(str(_first(row, time) or ""))
    if day is None or hour is None:
        return False
    after = days.low is None or (day, hour) >= (days.low, times.low or "")
    return after and (days.high is None or (day, hour) <= (days.high, times.high or "~"))


def _first(row: Row, tag: int) -> Any:
    return next(iter((row.get(f"{tag:08X}") or {}).get("Value") or ()), None)
