"""Values as the index compares them: the same rule for what is stored and for what is asked (PS3.4 C.2.2.2)."""

from __future__ import annotations

import datetime
import re
from functools import lru_cache

from archive.dicom.attributes import Match
from archive.dicom.person_name import fold

# Of a text key. PostgreSQL takes 2704 bytes in an index entry; the longest one is two keys, of up to four bytes a
# character, and a UID (the subject of a work item).
MAX_CHARACTERS = 300
_TIME = re.compile(r"(\d\d)(?:(:?)(\d\d)(?:\2(\d\d)(?:\.(\d{1,6}))?)?)?")
_INTEGER = re.compile(r"[+-]?\d{1,12}")


def normalise(text: str, match: Match) -> str | int | None:
    """The key of a value in Unicode, padding removed, several values joined by a backslash."""
    if match is Match.NAME:
        return fold(text)[:MAX_CHARACTERS]
    if match is Match.DATE:
        return date(text)
    if match is Match.TIME:
        return time(text)
    if match is Match.INTEGER:
        return integer(text)
    if "\\" in text:
        text = "\\".join(part.strip(" ") for part in text.split("\\"))
    return text.replace("\0", "")[:MAX_CHARACTERS]


@lru_cache(maxsize=1024)
def date(text: str) -> str | None:
    """`YYYYMMDD`, also from the old `YYYY.MM.DD`; None when it is no day of the calendar. The first of several."""
    day = text.split("\\", 1)[0].strip()
    if len(day) == 10 and day[4] == day[7] == ".":
        day = day.replace(".", "")
    if len(day) != 8 or not (day.isascii() and day.isdigit()):
        return None
    try:
        datetime.date(int(day[:4]), int(day[4:6]), int(day[6:]))
    except ValueError:
        return None
    return day


def time(text: str) -> str | None:
    """`HHMMSS.FFFFFF`, also from the old `HH:MM:SS`; what is left out is zero; None when it is no time."""
    found = _TIME.fullmatch(text.split("\\", 1)[0].strip())
    if found is None or not text.isascii():
        return None
    hours, _, minutes, seconds, fraction = found.groups()
    minutes, seconds, fraction = minutes or "00", seconds or "00", fraction or ""
    if hours > "23" or minutes > "59" or seconds > "60":  # 60: a leap second
        return None
    return f"{hours}{minutes}{seconds}.{fraction:0<6}"


def integer(text: str) -> int | None:
    """A number that a column of 32 bits holds, else None. The first of several."""
    number = text.split("\\", 1)[0].strip()
    if not (number.isascii() and _INTEGER.fullmatch(number)):
        return None
    value = int(number)
    return value if -(1 << 31) <= value < 1 << 31 else None
