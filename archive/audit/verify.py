"""Checking the audit chains, in the database or in an export (REQ-SEC-04).

What is found: a row that was changed in any column but `pk`, added, moved or removed; a lost tail; a chain that is
gone, with its head or without, as long as one of the next four opened chains is there. What only a signature outside
the database can find is somebody who rewrites everything to the end.

An export is JSON Lines in UTF-8: one header, a line for each chain, a line for each row in the order of chain and
seq, and a trailer with counts and the SHA-256 of all lines before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Column, ColumnElement, Connection, LargeBinary, Table, cast, func, select, text, type_coerce
from sqlalchemy.exc import DBAPIError

from archive.audit.chain import HASHED, genesis, row_hash, time_text
from archive.clock import Clock
from archive.schema import audit, audit_chain

FORMAT = "minipacs audit 1"
_PAGE = 1000
_NUMBERS = frozenset({"pk", "seq", "outcome", "rows"})
_TIMES = frozenset({"time", "opened_at"})

Value = str | int | None
Line = dict[str, Value]


@dataclass(frozen=True, slots=True)
class RowName:
    """Which row: its number in the database, or None for a row that is not there; its chain and place."""

    pk: int | None
    chain: str
    seq: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. `row` and `reason` tell the first fault; `rows` is how many were checked before it."""

    ok: bool
    row: RowName | None
    reason: str
    rows: int

    def as_json(self) -> dict[str, object]:
        """`{ok, row, reason}` of sheet 60 §2, and the count."""
        return asdict(self)


class _Broken(Exception):
    def __init__(self, reason: str, row: RowName | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.row = row


def verify(conn: Connection) -> Verdict:
    """Check every row of every chain. Memory does not grow with the rows.

    Works beside a running server: on PostgreSQL a fresh `conn` is given one snapshot for the whole check.
    """
    _snapshot(conn)
    check = _Check()
    return check.run(_heads(conn), _rows(conn))


def verify_file(path: Path) -> Verdict:
    """Check an export, without server or database. Raises OSError when it cannot be read."""
    check = _Check()
    with path.open("rb") as file:
        reader = _Export(file)
        return check.run(reader.heads(), reader.rows())


def export(conn: Connection, file: BinaryIO, time: Clock) -> int:
    """Write all chains as JSON Lines; returns the number of rows. `conn` as for `verify`.

    A row that was spoilt is written as far as it can be read, and marked, so that the export does not verify either.
    """
    _snapshot(conn)
    digest = hashlib.sha256()
    counts = {"chain": 0, "row": 0}

    def put(line: dict[str, object]) -> None:
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        digest.update(data)
        file.write(data)

    put({"format": FORMAT, "exported_at": time_text(time.now())})
    for kind, lines in (("chain", _heads(conn)), ("row", _rows(conn))):
        for line in lines:
            put({kind: line})
            counts[kind] += 1
    put({"end": {"chains": counts["chain"], "rows": counts["row"], "sha256": digest.hexdigest()}})
    return counts["row"]


class _Check:
    """Walks through heads, then rows by chain and seq."""

    def __init__(self) -> None:
        self._heads: dict[str, Line] = {}
        self._named: dict[str, dict[int, tuple[str, str]]] = {}  # chain → rows → its head then, and who says so
        self._unseen: set[str] = set()
        self._count = 0
        self._doubt: _Broken | None = None  # told only if nothing else is wrong: the witness may be the liar
        # the chain at hand
        self._head: Line | None = None
        self._seq = 0
        self._previous = ""
        self._last: RowName | None = None

    def run(self, heads: Iterable[Line], rows: Iterable[Line]) -> Verdict:
        try:
            for head in heads:
                self._take_head(head)
            self._unseen = set(self._heads)
            for row in rows:
                self._take_row(row)
                self._count += 1
            self._end_chain()
            self._end()
        except _Broken as broken:
            return Verdict(ok=False, row=broken.row, reason=broken.reason, rows=self._count)
        except DBAPIError as error:
            return Verdict(
                ok=False, row=self._last, reason=f"the database cannot be read: {error.orig}", rows=self._count
            )
        return Verdict(ok=True, row=None, reason="", rows=self._count)

    def _take_head(self, head: Line) -> None:
        chain = str(head["chain"])
        name = RowName(None, chain, None)
        if "unreadable" in head:
            raise _Broken(f"the head of chain {chain} is not readable", name)
        self._heads[chain] = head
        try:
            for followed, rows, hashed in json.loads(str(head["follows"])):
                self._named.setdefault(str(followed), {}).setdefault(int(rows), (str(hashed), chain))
        except (ValueError, TypeError) as error:
            raise _Broken(f"the head of chain {chain} was altered: it names no chains before it", name) from error

    def _take_row(self, row: Line) -> None:
        pk = row["pk"] if isinstance(row["pk"], int) else None
        seq = row["seq"] if isinstance(row["seq"], int) else None
        name = RowName(pk, str(row["chain"]), seq)
        if "unreadable" in row:
            raise _Broken("the row was altered: it is not readable", name)
        if self._head is None or row["chain"] != self._head["chain"]:
            self._end_chain()
            self._begin_chain(name)
        if seq != self._seq:
            missing = RowName(None, name.chain, self._seq)
            raise _Broken(f"the row is missing: after it comes row {seq} of its chain (pk {pk})", missing)
        if row["hash"] != row_hash(row):
            raise _Broken("the row was altered: its content does not have its hash", name)
        if row["previous"] != self._previous:
            if self._last is None:
                raise _Broken("the first row does not follow from the head of its chain: one of both was altered", name)
            raise _Broken(f"the row was replaced: row {seq} does not follow from it (pk {pk})", self._last)
        self._seq += 1
        self._previous = str(row["hash"])
        self._last = name
        self._compare(name.chain)

    def _begin_chain(self, name: RowName) -> None:
        head = self._heads.get(name.chain)
        if head is None:
            raise _Broken("the row belongs to a chain that has no head: the row was altered, or the head removed", name)
        self._unseen.discard(name.chain)
        self._head = head
        self._seq = 0
        self._last = None
        self._previous = _genesis(head)
        self._compare(name.chain)

    def _compare(self, chain: str) -> None:
        """With what later chains say that this one was at this length."""
        hashed, witness = self._named.get(chain, {}).pop(self._seq, ("", ""))
        if hashed and hashed != self._previous:
            name = self._last or RowName(None, chain, None)
            self._suspect(f"the row is not the one that chain {witness} saw: the chain was rewritten", name)

    def _end_chain(self) -> None:
        head = self._head
        if head is None:
            return
        chain, self._head = str(head["chain"]), None
        rows = head["rows"]
        if not isinstance(rows, int):
            raise _Broken(f"the head of chain {chain} was altered: it counts no rows", RowName(None, chain, None))
        if self._seq < rows:
            missing = RowName(None, chain, self._seq)
            raise _Broken(f"the end of the chain is missing, from this row on: its head counts {rows} rows", missing)
        if self._seq > rows or head["head"] != self._previous:
            raise _Broken("the head of the chain does not stand at its last row: one of both was altered", self._last)
        self._missed(chain)

    def _missed(self, chain: str) -> None:
        """After the chain's last row: whatever a later chain saw beyond it is lost."""
        for rows, (_, witness) in sorted(self._named.pop(chain, {}).items()):
            self._suspect(
                f"the end of the chain is missing: it had {rows} rows when chain {witness} was opened",
                RowName(None, chain, self._seq),
            )

    def _suspect(self, reason: str, name: RowName) -> None:
        if self._doubt is None:
            self._doubt = _Broken(reason, name)

    def _end(self) -> None:
        for chain in sorted(self._unseen):
            head = self._heads[chain]
            if head["rows"] != 0 or head["head"] != _genesis(head):
                raise _Broken(
                    f"all rows of the chain are missing: its head counts {head['rows']}", RowName(None, chain, 0)
                )
            self._missed(chain)
        for gone, seen in sorted(self._named.items()):
            witness = min(witness for _, witness in seen.values())
            self._suspect(f"the chain is missing: chain {witness} was opened after it", RowName(None, gone, None))
        if self._doubt is not None:
            raise self._doubt


def _genesis(head: Line) -> str:
    chain, opened_at, process, follows = (str(head[column]) for column in ("chain", "opened_at", "process", "follows"))
    return genesis(chain, opened_at=opened_at, process=process, follows=follows)


def _snapshot(conn: Connection) -> None:
    """One view of heads and rows; SQLite gives it to any transaction."""
    if conn.dialect.name == "postgresql" and not conn.in_transaction():
        conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


def _heads(conn: Connection) -> Iterator[Line]:
    return _lines(conn, audit_chain, audit_chain.c.opened_at, audit_chain.c.chain)


def _rows(conn: Connection) -> Iterator[Line]:
    return _lines(conn, audit, audit.c.chain, audit.c.seq)


def _raw(conn: Connection, column: Column[object]) -> ColumnElement[Any]:
    """A column as it lies: a spoilt value must come out as a finding, not as an error of the driver.

    SQLite keeps anything in any column, so its values are read as bytes; PostgreSQL has types, and only times may be
    beyond what Python holds.
    """
    if conn.dialect.name == "sqlite":
        return type_coerce(cast(column, LargeBinary), LargeBinary).label(column.name)
    if column.name in _TIMES:
        return func.to_char(func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"').label(column.name)
    return column


def _lines(conn: Connection, table: Table, *order: Column[object]) -> Iterator[Line]:
    statement = select(*(_raw(conn, column) for column in table.columns)).order_by(*order)
    for row in conn.execute(statement, execution_options={"yield_per": _PAGE}).mappings():
        line: Line = {}
        spoilt: list[str] = []
        for column, value in row.items():
            try:
                line[str(column)] = _value(str(column), value)
            except ValueError:
                line[str(column)] = repr(value)
                spoilt.append(str(column))
        if spoilt:
            line["unreadable"] = " ".join(spoilt)
        yield line


def _value(column: str, value: object) -> Value:
    """The canonical form of a stored value. Raises ValueError when there is none."""
    if value is None or isinstance(value, str | int):
        return value
    if not isinstance(value, bytes):
        raise ValueError("no value of an audit row")
    string = value.decode()
    if column in _NUMBERS:
        number = int(string)
        if str(number) != string:
            raise ValueError("not a plain number")
        return number
    if column in _TIMES:
        return string.replace(" ", "T") + "Z"  # as SQLAlchemy writes it on SQLite, with microseconds
    return string


class _Export:
    """The lines of an export, read once from start to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._number = 0
        self._counts = {"chain": 0, "row": 0}
        self._first_row: Line | None = None
        self._end: dict[str, object] | None = None

    def heads(self) -> Iterator[Line]:
        header = self._next()
        if header is None or header.get("format") != FORMAT:
            raise _Broken(f"this is no export of the audit: its first line does not say {FORMAT!r}")
        while True:
            kind, line = self._record()
            if kind != "chain":
                self._first_row = line
                return
            yield line

    def rows(self) -> Iterator[Line]:
        line = self._first_row
        while line is not None and self._end is None:
            yield line
            kind, line = self._record()
            if kind == "chain":
                raise _Broken(f"line {self._number}: the lines are not in order")
        self._finish()

    def _record(self) -> tuple[str, Line]:
        before = self._digest.hexdigest()
        line = self._next()
        if line is None:
            raise _Broken(f"the export is not whole: it ends after line {self._number} without its trailer")
        if len(line) == 1:
            ((kind, content),) = line.items()
            if isinstance(content, dict):
                if kind == "end":
                    self._end = {**content, "digest": before}
                    return kind, {}
                plain = all(value is None or isinstance(value, str | int) for value in content.values())
                if plain and kind in self._counts and _columns(kind) <= content.keys():
                    self._counts[kind] += 1
                    return kind, content
        raise _Broken(f"line {self._number} is not one of an export")

    def _finish(self) -> None:
        end = self._end
        if end is None or self._next() is not None:
            raise _Broken(f"line {self._number}: the trailer is not at the end")
        if (end.get("chains"), end.get("rows")) != (self._counts["chain"], self._counts["row"]):
            raise _Broken("the export is not whole: its trailer counts other lines")
        if end.get("sha256") != end["digest"]:
            raise _Broken("the file was changed after its export: its digest differs")

    def _next(self) -> dict[str, object] | None:
        data = self._file.readline()
        if not data:
            return None
        self._number += 1
        self._digest.update(data)
        try:
            line = json.loads(data)
        except ValueError as error:
            raise _Broken(f"line {self._number} was altered: it is not JSON") from error
        if not isinstance(line, dict):
            raise _Broken(f"line {self._number} was altered: it is not an object")
        return line


def _columns(kind: str) -> set[str]:
    if kind == "chain":
        return {column.name for column in audit_chain.columns}
    return {"pk", "hash", *HASHED}
