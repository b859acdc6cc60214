"""Parameters of a FHIR search (R4 3.1.1), read: each value is taken by whoever understands it, the rest is told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from archive.errors import InvalidRequest

DEFAULT_COUNT, MOST = 50, 500
MAX_PARAMETERS = 500  # of one search, in the address and in the form
MAX_VALUES = 100  # of one parameter
_HERE = ("_format", "_pretty", "_count", "_cursor", "_summary", "_total")
_PREFIXED = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?(.+)", re.DOTALL)
_UNESCAPED = re.compile(r"(?<!\\),")
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Page:
    """What of an answer is given now. `total` None: nobody counted; `next` None: there is no more."""

    resources: list[dict[str, Any]]
    total: int | None
    next: int | None


@dataclass(frozen=True, slots=True)
class Token:
    """`system|value`: system None is any system, "" none at all; value "" is any value."""

    system: str | None
    value: str


@dataclass(frozen=True, slots=True)
class Span:
    """Days from `low` to before `high`; None is open. Times are UTC."""

    low: datetime | None = None
    high: datetime | None = None


class Search:
    """The parameters of one search. `used` are those that were understood, as they came."""

    def __init__(self, pairs: Iterable[tuple[str, str]], *, strict: bool = False) -> None:
        self._pairs = [(name, value) for name, value in pairs if value]
        self._strict = strict
        self._taken: set[str] = set(_HERE)
        times = Counter(name for name, _ in self._pairs)
        if len(self._pairs) > MAX_PARAMETERS or max(times.values(), default=0) > MAX_VALUES:
            raise InvalidRequest("too many parameters")
        given = dict(self._pairs)
        self.format = given.get("_format")
        self.summary = given.get("_summary", "false")
        self.cursor = _number("_cursor", given.get("_cursor", "0"), most=1 << 62)
        count = _number("_count", given.get("_count", str(DEFAULT_COUNT)), most=1 << 31)
        self.count = min(count, MOST)
        self.counts_only = count == 0 or self.summary == "count"
        if self.summary not in ("true", "false", "count"):
            raise InvalidRequest("_summary is true, false or count")

    @property
    def used(self) -> list[tuple[str, str]]:
        """In the order in which they came."""
        return [(name, value) for name, value in self._pairs if name in self._taken]

    @property
    def ignored(self) -> list[str]:
        """Names of those that nobody understood."""
        return sorted({name[:64] for name, _ in self._pairs if name not in self._taken})

    @property
    def asked(self) -> str:
        """All of them, for the audit."""
        return "&".join(f"{name}={value}" for name, value in self._pairs)

    def finish(self) -> None:
        """Everything was taken that can be. Raises InvalidRequest when the caller wants nothing ignored."""
        if self._strict and self.ignored:
            raise InvalidRequest(f"these parameters are not known here: {', '.join(self.ignored)}")

    def values(self, name: str) -> list[list[str]]:
        """Each occurrence of a parameter (all have to be met) and its choices."""
        self._taken.add(name)
        found = [
            [_plain(part) for part in _UNESCAPED.split(value) if part] for other, value in self._pairs if other == name
        ]
        if any(len(choices) > MAX_VALUES for choices in found):
            raise InvalidRequest(f"{name} has too many values")
        return [choices for choices in found if choices]

    def one(self, name: str) -> str | None:
        """The value of a parameter that may be given once. Raises InvalidRequest for more than one."""
        found = [value for choices in self.values(name) for value in choices]
        if len(found) > 1:
            raise InvalidRequest(f"{name} takes one value")
        return found[0] if found else None

    def strings(self, name: str) -> list[str]:
        """The patterns of a string parameter: from the beginning on, or as `:exact` and `:contains` say (3.1.1.4.8)."""
        found = []
        for modifier, pattern in (("", "{}*"), (":exact", "{}"), (":contains", "*{}*")):
            for choices in self.values(name + modifier):
                if len(choices) > 1:
                    raise InvalidRequest(f"{name} takes one value at a time")
                found.append(pattern.format(choices[0]))
        return found

    def tokens(self, name: str) -> list[list[Token]]:
        """Token parameters (3.1.1.4.10)."""
        return [[_token(value) for value in choices] for choices in self.values(name)]

    def codes(self, name: str) -> list[str] | None:
        """The codes of a token parameter that may be given once, whatever their system; None: it was not given."""
        found = self.tokens(name)
        if len(found) > 1:
            raise InvalidRequest(f"{name} is given once, its values separated by commas")
        return [one.value for one in found[0]] if found else None

    def span(self, name: str, *, days: bool) -> Span | None:
        """What date parameters leave, all taken together; None: there are none. `days`: times of day are refused.

        Raises InvalidRequest for a value that is no date, and for the prefixes ne, sa, eb, ap.
        """
        low: datetime | None = None
        high: datetime | None = None
        given = self.values(name)
        for choices in given:
            if len(choices) > 1:
                raise InvalidRequest(f"{name} takes one date at a time; give it twice for a range")
            span = _span(name, choices[0], days=days)
            low = max((one for one in (low, span.low) if one is not None), default=None)
            high = min((one for one in (high, span.high) if one is not None), default=None)
        return Span(low, high) if given else None


def reference(value: str, kind: str) -> str:
    """The logical id of a reference to a resource: `5`, `Patient/5`, or an absolute address that ends so."""
    return value.rpartition(f"{kind}/")[2]


def _span(name: str, text: str, *, days: bool) -> Span:
    found = _PREFIXED.fullmatch(text)
    assert found is not None
    prefix, value = found[1] or "eq", found[2]
    first, after = _bounds(name, value, days=days)
    if prefix == "eq":
        return Span(first, after)
    if prefix in ("ge", "gt"):
        return Span(first if prefix == "ge" else after, None)
    if prefix in ("le", "lt"):
        return Span(None, after if prefix == "le" else first)
    raise InvalidRequest(f"{name}: the prefixes are eq, ge, gt, le, lt")


def _bounds(name: str, value: str, *, days: bool) -> tuple[datetime, datetime]:
    """The first moment of a date or time, and the first one after it."""
    try:
        if _DATE.fullmatch(value):
            year, month, day = (*(int(part) for part in value.split("-")), 0, 0)[:3]
            first = date(year, month or 1, day or 1)
            if day:
                after = first + timedelta(days=1)
            elif month:
                after = date(year + month // 12, month % 12 + 1, 1)
            else:
                after = date(year + 1, 1, 1)
            return _midnight(first), _midnight(after)
        moment = datetime.fromisoformat(value.replace(" ", "+"))
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name}: this is no date") from None
    if days:
        raise InvalidRequest(f"{name} is asked by days")
    if moment.tzinfo is None:
        raise InvalidRequest(f"{name}: a time has its offset from UTC")
    moment = moment.astimezone(UTC)
    return moment, moment + (timedelta(seconds=1) if "." not in value else timedelta(microseconds=1))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _token(value: str) -> Token:
    system, bar, code = value.partition("|")
    return Token(system, code) if bar else Token(None, system)


def _plain(text: str) -> str:
    """A value with its escapes undone (3.1.1.4.0.1). A bar that was escaped stays one: no value here has any."""
    return re.sub(r"\\([,|$\\])", r"\1", text)


def _number(name: str, text: str, *, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise InvalidRequest(f"{name} is a number")
    return int(text)
