"""The journal of facts that no image carries (STYLE §4): what patients are called, who was merged into whom, holds,
what was replaced and purged.

A fact is a row in the transaction that makes it true, and one line of `facts/YYYY.jsonl` beside the files of the hot
tier, flushed before anybody is told. Power that fails in between leaves a row without its line; the next start appends
it. Index and journal can be lost one at a time: `minipacs rebuild-index` makes the index from files and journal alone.

Each fact tells the state of its subject after it, so a later line of the same kind and subject replaces an earlier one,
and reading a line twice changes nothing. `n` is the order of the lines, whatever process wrote them first.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, bindparam, insert, select, update

from archive.commit import flush_directory
from archive.schema import fact

log = structlog.get_logger(__name__)

_ADD = insert(fact).returning(fact.c.pk)
_MARK = update(fact).where(fact.c.pk.in_(bindparam("pks", expanding=True))).values(journaled=1)
_UNMARKED = select(fact).where(fact.c.journaled == 0).order_by(fact.c.pk)
_BATCH = 500


class Kind(StrEnum):
    """What a fact is about; the subject is named behind."""

    PATIENT = "patient"  # identity key: record, tombstone, survivor
    ORDER = "order"  # accession number and step
    STUDY = "study"  # Study Instance UID: its patient, its corrections
    HOLD = "hold"  # id of the hold
    DERIVED = "derived"  # SOP Instance UID of a lossy copy: its original, its figures
    REPLACED = "replaced"  # Study Instance UID: originals that only their derived copies are left of
    PURGE = "purge"  # id of the purge: certificate, tombstones
    RESTORED = "restored"  # id of a purge: tombstones that were lifted


@dataclass(frozen=True, slots=True)
class Fact:
    """One line."""

    n: int
    at: datetime
    kind: str
    subject: str
    body: dict[str, Any]


def note(conn: Connection, kind: Kind, subject: str, body: Mapping[str, Any], *, at: datetime) -> None:
    """Record a fact, inside a write of `archive.commit`, after the rows it tells of are locked or changed.

    `body` is what JSON can hold, and tells the whole state of the subject.

    Raises:
        RuntimeError: `conn` is not the connection of a running `commit.run` or `commit.later`.
    """
    journal = conn.info.get("journal")
    if not isinstance(journal, FactJournal):
        raise RuntimeError("facts are recorded inside archive.commit.run or .later, with its connection (law 4)")
    text = orjson.dumps(dict(body)).decode()
    values = {"at": at, "kind": str(kind), "subject": subject, "body": text, "journaled": 0}
    n = conn.execute(_ADD, values).scalar_one()
    journal.add(Fact(n, at, str(kind), subject, dict(body)))


class FactJournal:
    """The file, for one process; several append to it, one at a time. Touched by the commit thread alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[Fact] = []

    def add(self, one: Fact) -> None:
        """A fact of the present transaction."""
        self._pending.append(one)

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._pending.clear()

    def append(self) -> Callable[[Connection], object] | None:
        """Append the facts of the transaction that was committed; returns the write that says so in their rows."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        self.write(pending)
        return partial(_mark, pks=[one.n for one in pending])

    def write(self, facts: list[Fact]) -> None:
        """Append lines, and flush them. Raises OSError."""
        by_year: dict[int, list[Fact]] = {}
        for one in facts:
            by_year.setdefault(one.at.year, []).append(one)
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            flush_directory(str(self.folder.parent))
        for year, some in sorted(by_year.items()):
            self._write(self.folder / f"{year:04}.jsonl", b"".join(map(_line, some)))

    def _write(self, path: Path, lines: bytes) -> None:
        new = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":  # power failed inside a line
                lines = b"\n" + lines
            while lines:
                lines = lines[os.write(fd, lines) :]
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if new:
            flush_directory(str(self.folder))

    def read(self) -> Iterator[Fact]:
        """Every fact once, in the order in which they became true. A line that power cut off is passed over.

        Raises:
            OSError: a file cannot be read.
        """
        found: dict[int, Fact] = {}
        for path in sorted(self.folder.glob("[0-9]*.jsonl")) if self.folder.is_dir() else ():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    one = _fact(line)
                    if one is not None:
                        found[one.n] = one
                    elif line.strip():
                        log.error("a line of the journal of facts cannot be read", file=path.name, line=number)
        yield from (found[n] for n in sorted(found))


def unwritten(conn: Connection) -> list[Fact]:
    """Facts whose rows do not say that they are in the journal."""
    return [Fact(row.pk, row.at, row.kind, row.subject, orjson.loads(row.body)) for row in conn.execute(_UNMARKED)]


def complete(journal: FactJournal, facts: list[Fact]) -> Callable[[Connection], object]:
    """Append what `unwritten` found; returns the write that says so. A fact that is there already comes twice, which
    changes nothing. Raises OSError."""
    journal.write(facts)
    return partial(_mark, pks=[one.n for one in facts])


def _mark(conn: Connection, *, pks: list[int]) -> None:
    for start in range(0, len(pks), _BATCH):
        conn.execute(_MARK, {"pks": pks[start : start + _BATCH]})


def _line(one: Fact) -> bytes:
    line = {"n": one.n, "at": one.at, "kind": one.kind, "subject": one.subject, "body": one.body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _fact(line: bytes) -> Fact | None:
    try:
        read = orjson.loads(line)
        at = datetime.fromisoformat(read["at"])
        return Fact(int(read["n"]), at, str(read["kind"]), str(read["subject"]), dict(read["body"]))
    except (ValueError, TypeError, KeyError):
        return None
