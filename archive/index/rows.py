"""What the statements of `archive.index.query` find, as rows of DICOM JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import Connection

from archive.dicom.attributes import Level
from archive.index.computed import COMPUTED_BY_TAG
from archive.index.statements import Form, keyed, prepared
from archive.schema.prepared import Rows

Row = dict[str, Any]  # DICOM JSON: eight hexadecimal digits to {"vr": …, "Value": […]}

PAGE = 200  # rows fetched at a time


def pages(conn: Connection, form: Form, values: dict[str, Any]) -> Iterator[Rows]:
    """What the statement of a form finds: by a server-side cursor where it may be much; a selective key finds few."""
    return prepared(form).pages(conn, values, size=PAGE, streamed=not form.selective)


class Reader:
    """Rows of a statement as DICOM JSON. The text of a parent is parsed once while its children follow each other."""

    def __init__(self, form: Form) -> None:
        self._first = 1 + len(form.parents)
        self._computed = _computed(form.computed)
        self._last: list[tuple[str, Row]] = [("", {})] * len(form.loads)

    def read(self, values: Any) -> Row:
        """A row from its values, as `archive.index.statements.statement` orders them."""
        row: Row = {}
        position = self._first
        for number, last in enumerate(self._last):
            text = values[position]
            if text != last[0]:
                last = self._last[number] = (text, orjson.loads(text))  # noqa: PLW2901 - the newest
            row.update(last[1])
            position += 1
        for key, vr, value_of in self._computed:
            value = value_of(values[position])
            row[key] = {"vr": vr, "Value": value} if value else {"vr": vr}
            position += 1
        return row


@lru_cache(maxsize=256)
def _computed(tags: tuple[int, ...]) -> tuple[tuple[str, str, Callable[[Any], list[Any]]], ...]:
    return tuple((one.key, one.vr, one.value) for one in (COMPUTED_BY_TAG[tag] for tag in tags))


class Above:
    """Computed attributes of the parents of rows: one statement for a page, and each parent once in a row of pages.

    `computed` names them, for each level in `form.parents`.
    """

    def __init__(self, conn: Connection, form: Form, computed: Mapping[Level, tuple[int, ...]]) -> None:
        self._conn = conn
        self._levels = [(position, level, computed[level]) for position, level in enumerate(form.parents, 1)]
        self._known: dict[Level, dict[int, Row]] = {level: {} for level in computed}
        self._quality = form.quality

    def add(self, page: list[tuple[Any, Row]]) -> None:
        """Complete the rows of a page, given with the values that they were read from."""
        for position, level, tags in self._levels:
            wanted = {values[position] for values, _ in page}
            known = {key: row for key, row in self._known[level].items() if key in wanted}
            missing = wanted - known.keys()
            if missing:
                found = by_key(self._conn, keyed(level, computed=tags, quality=self._quality), sorted(missing))
                known |= {key: row for key, (_, row) in found.items()}
            self._known[level] = known
            for values, row in page:
                row.update(known.get(values[position], {}))


def by_key(conn: Connection, form: Form, keys: list[int]) -> dict[int, tuple[Any, Row]]:
    """The rows of a form made by `keyed`, by their keys, with the values that they were read from."""
    read = Reader(form).read
    return {values[0]: (values, read(values)) for page in pages(conn, form, {"keys": keys}) for values in page}
