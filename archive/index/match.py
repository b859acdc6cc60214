"""Matching of PS3.4 C.2.2.2, pure: a key as it was asked, made a criterion; and whether a value meets it.

`archive.index.conditions` turns the same criteria into SQL for the attributes that have a column. The rest is matched
here, row by row, against the DICOM JSON of the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple

from archive.dicom import keys
from archive.dicom.dictionary import holds_several
from archive.dicom.person_name import alternatives, fold, pattern
from archive.dicom.person_name import matches as name_matches
from archive.errors import InvalidQuery
from archive.index.temporal import compare, date_key, moment, splits, time_key

WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
NUMBER_VRS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
MULTIPLE_VALUE_VRS = frozenset({"AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"})  # PS3.4 C.2.2.2.8
LEADING_SPACES_COUNT = frozenset({"LT", "ST", "UT"})
MAX_CHARACTERS = 10_240  # of a key that is no list: an LT (PS3.5 6.2), and SQLite's limit of a pattern
MAX_VALUES = 200  # of a key that is a choice: SQLite nests no more than 1000 conditions
MAX_NUMBER = 2**31 - 1  # of an IS (PS3.5 6.2), and of the columns


class Key(NamedTuple):
    """One matching key as it was asked: decoded text, or the keys of a sequence's item.

    Several UIDs are joined by a backslash. An empty `value` without `items` matches everything. `empty`: it asks for
    what has no value (PS3.4 C.2.2.2.7). `any_of`: one of the values joined by a backslash will do, which no protocol
    asks for: what DICOM calls multiple value matching is several keys (`each_value`).
    """

    tag: int
    vr: str
    value: str = ""
    items: tuple[Key, ...] = ()
    empty: bool = False
    any_of: bool = False

    @property
    def name(self) -> str:
        """The attribute's name in DICOM JSON."""
        return f"{self.tag:08X}"


@dataclass(frozen=True, slots=True)
class Exact:
    """One of the values, letter by letter (single value, and list of UID)."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wild:
    """Text with `*` for any run of characters and `?` for any one (PS3.4 C.2.2.2.4)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Name:
    """A person name (REQ-DCM-33). ASCII without `=` asks the alphabetic group, other letters any group."""

    asked: str

    @property
    def anchored(self) -> bool:
        """Whether only the first group can match."""
        return self.asked.isascii() and "=" not in self.asked


@dataclass(frozen=True, slots=True)
class Number:
    """A number by its value."""

    value: Decimal


@dataclass(frozen=True, slots=True)
class Between:
    """DA as YYYYMMDD or TM as HHMMSS.FFFFFF, both ends included; None is open (PS3.4 C.2.2.2.5)."""

    vr: str
    low: str | None
    high: str | None


@dataclass(frozen=True, slots=True)
class During:
    """A DT from `low` to `high`, both included; None is open."""

    low: datetime | None
    high: datetime | None


@dataclass(frozen=True, slots=True)
class Empty:
    """No value at all."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of several criteria."""

    choices: tuple[Criterion, ...]


Criterion = Empty | AnyOf | Exact | Wild | Name | Number | Between | During


@lru_cache(maxsize=1024)
def criterion(key: Key) -> Criterion | None:
    """What a key that is no sequence asks for; None: everything matches (PS3.4 C.2.2.2.3).

    `*` alone matches everything in any VR, UI too (REQ-DCM-36).

    Raises:
        InvalidQuery: the value is none of its VR.
    """
    if key.empty:
        return Empty()
    if key.any_of and "\\" in key.value and key.vr != "UI" and key.vr not in LEADING_SPACES_COUNT:
        return _any_of(key)
    return _single(key)


def each_value(key: Key) -> tuple[Key, ...]:
    """The keys that a key with values joined by backslashes stands for, where multiple value matching was agreed upon
    (C-FIND: extended negotiation; QIDO-RS: `multiplevaluematching`): each has to be met (PS3.4 C.2.2.2.8: AND).

    Only an attribute that may have several values, of one of the VRs there, is asked so; a value with a wildcard, which
    the standard has not, is met as it would be alone. Within a sequence one item has to meet all.

    Raises:
        InvalidQuery: too many values.
    """
    if key.vr == "SQ":
        return (Key(key.tag, "SQ", items=tuple(one for inner in key.items for one in each_value(inner))),)
    if key.empty or "\\" not in key.value or key.vr not in MULTIPLE_VALUE_VRS or not holds_several(key.tag):
        return (key,)
    return tuple(Key(key.tag, key.vr, value) for value in dict.fromkeys(_split(key)) if value.strip(" \0"))


def _split(key: Key) -> list[str]:
    values = key.value.split("\\")
    if len(values) > MAX_VALUES:
        raise InvalidQuery("a key has too many values", tag=key.tag)
    return values


def _single(key: Key) -> Criterion | None:  # noqa: PLR0911 - one answer for each kind of VR
    text = key.value.rstrip(" \0")
    if key.vr not in LEADING_SPACES_COUNT:
        text = text.lstrip(" ")
    if not text.strip("*"):
        return None
    if len(text) > MAX_CHARACTERS and key.vr != "UI":
        raise InvalidQuery("a key is too long", tag=key.tag)
    if "\0" in text:
        raise InvalidQuery("a key has a NUL inside its value", tag=key.tag)
    if key.vr == "UI":
        uids = tuple(dict.fromkeys(uid.strip(" \0") for uid in text.split("\\") if uid.strip(" \0")))
        return None if "*" in uids or not uids else Exact(uids)
    if key.vr == "PN":
        asked = fold(text)
        return None if not asked.strip("*^=") else Name(asked)
    if key.vr in ("DA", "TM"):
        return _window(key, text)
    if key.vr == "DT":
        return _moments(key, text)
    if key.vr in NUMBER_VRS:
        number = _number(text)
        if number is None:
            raise InvalidQuery("the key is not a number", tag=key.tag)
        return Number(number)
    if key.vr in WILDCARD_VRS and ("*" in text or "?" in text):
        return Wild(text)
    return Exact((text,))


def _any_of(key: Key) -> Criterion | None:
    choices = []
    for value in _split(key):
        choice = _single(key._replace(value=value))
        if choice is None:
            return None
        choices.append(choice)
    exact = [choice.values for choice in choices if isinstance(choice, Exact)]
    if len(exact) == len(choices):
        return Exact(tuple(dict.fromkeys(value for values in exact for value in values)))
    return AnyOf(tuple(choices))


def _window(key: Key, text: str) -> Between:
    convert = date_key if key.vr == "DA" else time_key
    if single := convert(text):
        return Between(key.vr, single, single)
    low, hyphen, high = text.partition("-")
    lowest = convert(low) if low.strip() else None
    end = high.strip()
    highest = None if not end else date_key(end) if key.vr == "DA" else time_key(end, last=True)
    misread = (low.strip() and lowest is None) or (end and highest is None)
    if not hyphen or misread or (lowest is None and highest is None):
        raise InvalidQuery(f"the key is no {'date' if key.vr == 'DA' else 'time'} and no range of them", tag=key.tag)
    return Between(key.vr, lowest, highest)


def _moments(key: Key, text: str) -> During:
    single = moment(text)
    if single is not None:
        return During(single, single)
    for low, high in splits(text):
        lowest, highest = moment(low), moment(high, last=True)
        if (lowest or not low) and (highest or not high) and (lowest or highest):
            return During(lowest, highest)
    raise InvalidQuery("the key is no date-time and no range of them", tag=key.tag)


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip(" \0"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def accepts(asked: Criterion, vr: str, values: Iterable[Any]) -> bool:
    """Whether one of an attribute's values, as in DICOM JSON, meets the criterion."""
    if isinstance(asked, AnyOf):
        values = list(values)
        return any(accepts(choice, vr, values) for choice in asked.choices)
    if isinstance(asked, Empty):
        return not any(value not in (None, "", {}) for value in values)
    return any(_meets(asked, vr, value) for value in values if value is not None)


def _meets(asked: Criterion, vr: str, value: Any) -> bool:  # noqa: PLR0911 - one answer for each kind of criterion
    if isinstance(asked, Name):
        return name_meets(asked, name_key(value))
    text = str(value).rstrip(" \0")
    if isinstance(asked, Exact):
        return (text if vr in LEADING_SPACES_COUNT else text.lstrip(" ")) in asked.values
    if isinstance(asked, Wild):
        return pattern(asked.pattern).fullmatch(text if vr in LEADING_SPACES_COUNT else text.lstrip(" ")) is not None
    if isinstance(asked, Number):
        return _number(text) == asked.value
    if isinstance(asked, Between):
        found = keys.date(text) if asked.vr == "DA" else keys.time(text)
        return found is not None and (asked.low or "") <= found and (asked.high is None or found <= asked.high)
    at = moment(text)
    if at is None or not isinstance(asked, During):
        return False
    return (asked.low is None or compare(asked.low, at) <= 0) and (asked.high is None or compare(at, asked.high) <= 0)


def name_key(value: Any) -> str:
    """A PN value of DICOM JSON, folded, its groups joined by `=`."""
    if isinstance(value, Mapping):
        groups = (str(value.get(group) or "") for group in ("Alphabetic", "Ideographic", "Phonetic"))
        return fold("=".join(groups))
    return fold(str(value))


def name_meets(asked: Name, folded: str) -> bool:
    """Whether a folded name meets the criterion."""
    if not asked.anchored:
        return name_matches(folded, asked.asked)
    first = re.split(r"[=\\]", folded, maxsplit=1)[0]
    return any(pattern(one).fullmatch(first) is not None for one in alternatives(asked.asked))


def row_meets(asked: Iterable[Key], row: Mapping[str, Any]) -> bool:
    """Whether a data set in DICOM JSON meets all keys; a sequence does when one of its items does (C.2.2.2.6)."""
    return all(_key_meets(key, row.get(key.name)) for key in asked)


def _key_meets(key: Key, element: Mapping[str, Any] | None) -> bool:
    values = (element or {}).get("Value") or ()
    if key.vr == "SQ":
        asked = tuple(inner for inner in key.items if is_asking(inner))
        return not asked or any(row_meets(asked, item) for item in values if isinstance(item, Mapping))
    wanted = criterion(key)
    return wanted is None or accepts(wanted, key.vr, values)


def is_asking(key: Key) -> bool:
    """Whether the key restricts anything. Raises InvalidQuery as `criterion` does."""
    if key.vr == "SQ":
        asking = [is_asking(inner) for inner in key.items]  # all are looked at: a bad one is an error
        return any(asking)
    return criterion(key) is not None
