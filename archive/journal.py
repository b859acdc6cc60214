"""The journal of facts that no image carries (STYLE §4): what patients are called, who was merged into whom, holds,
what was replaced and purged.

A fact is a row in the transaction that makes it true, and one line of `facts/YYYY.jsonl` beside the files of the hot
tier, flushed before anybody is told. Power that fails in between leaves a row without its line; the next start appends
it. Index and journal can be lost one at a time: `minipacs rebuild-index` makes the index from files and journal alone,
`minipacs fsck --repair` the journal from the index.

Each fact tells the state of its subject after it, so a later line of the same kind and subject replaces an earlier one,
and reading a line twice changes nothing. `n` is the order of the lines, whatever process wrote them first. Each line
ends with the CRC-32 of what stands before it: a line that rotted is named, not believed (docs/storage.md).
"""

from __future__ import annotations

import fcntl
import os
import zlib
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

from archive.clock import monotonic
from archive.errors import StorageFailed
from archive.folders import flush_directory
from archive.schema import fact

log = structlog.get_logger(__name__)

_ADD = insert(fact).returning(fact.c.pk)
_MARK = update(fact).where(fact.c.pk.in_(bindparam("pks", expanding=True))).values(journaled=1)
_UNMARKED = select(fact).where(fact.c.journaled == 0).order_by(fact.c.pk)
_WAITING = select(fact.c.pk).where(fact.c.journaled == 2).limit(1)
_KNOWN = select(fact.c.pk).where(fact.c.pk.in_(bindparam("numbers", expanding=True)))
_BATCH = 500
_TAIL_BYTES = 1 << 16
_CRC = b',"crc":"'  # and eight hexadecimal digits, and the end of the line
DOUBT_SECONDS = 60  # a COMMIT whose result is unknown may come true this much later


class Kind(StrEnum):
    """What a fact is about; the subject is named behind."""

    PATIENT = "patient"  # identity key: record, tombstone, survivor
    ORDER = "order"  # accession number and step
    PERFORMED = "performed"  # SOP Instance UID of a performed procedure step: what was said of it, and whose it is
    STUDY = "study"  # Study Instance UID: its patient, its corrections
    VISIT = "visit"  # number and who assigned it: whose it is, its movements
    LINK = "link"  # two identity keys: whether they are linked
    HOLD = "hold"  # id of the hold
    DERIVED = "derived"  # SOP Instance UID of a lossy copy or companion: its original, its figures
    REPLACED = "replaced"  # Study Instance UID: originals that only their derived copies are left of
    PURGE = "purge"  # id of the purge: certificate, tombstones
    HELD = "held"  # SOP Instance UID: held back, and accepted or rejected by a person
    CONFLICT = "conflict"  # SOP Instance UID: which of several contents stands, by a person's word
    COMMITMENT = "commitment"  # transaction, peer and study: how many instances were promised
    REJECTION = "rejection"  # SOP Instance UID of a rejection note: what it rejects, what of it was revoked
    MANIFEST = "manifest"  # SOP Instance UID of a manifest: its study, its number, what it lists
    PROBE = "probe"  # id of a measurement: what was opened, and how long it took
    RESTORED = "restored"  # SOP Instance UID: its tombstone was lifted, or put back


@dataclass(frozen=True, slots=True)
class Fact:
    """One line."""

    n: int
    at: datetime
    kind: str
    subject: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not what was written."""

    file: str
    line: int


def note(conn: Connection, kind: Kind, subject: str, body: Mapping[str, Any], *, at: datetime) -> None:
    """Record a fact, inside a write of `archive.commit`, after the rows it tells of are locked or changed.

    `body` is what JSON can hold, and tells the whole state of the subject.

    Raises:
        RuntimeError: `conn` is not the connection of a running `commit.run` or `commit.later`, or is in a savepoint.
        StorageFailed: the database is older than the journal (a backup was restored): first the journal is applied.
    """
    journal = conn.info.get("journal")
    if not isinstance(journal, FactJournal):
        raise RuntimeError("facts are recorded inside archive.commit.run or .later, with its connection (law 4)")
    if conn.in_nested_transaction():
        raise RuntimeError("a savepoint could be rolled back without its fact: record it outside")
    if journal.ahead:
        raise StorageFailed(
            "the database is older than the journal of facts: «minipacs serve» brings it up to date, and after a "
            "loss of the database «minipacs rebuild-index»"
        )
    text = orjson.dumps(dict(body)).decode()
    values = {"at": at, "kind": str(kind), "subject": subject, "body": text, "journaled": 0}
    n = conn.execute(_ADD, values).scalar_one()
    journal.add(Fact(n, at, str(kind), subject, dict(body)))


class FactJournal:
    """The file, for one process; several append to it, one at a time. Touched by the commit thread alone, once
    `open_archive` has completed it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ahead = False  # it knows facts that the database does not: see archive.rebuild.catch_up
        self.behind = False  # rows may stand whose lines do not: what they say is not to be confirmed
        self._pending: list[Fact] = []
        self._owed: list[Fact] = []  # of earlier transactions
        self._doubt_since: float | None = None
        self._durable: set[Path] = set()  # files whose names this process has flushed

    def prepare(self) -> None:
        """Make the folder, durably. Never later: where a volume is gone, its mount point is no place for facts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        flush_directory(str(self.folder.parent))

    def add(self, one: Fact) -> None:
        """A fact of the present transaction."""
        self._pending.append(one)

    def forget(self) -> None:
        """The transaction was rolled back."""
        self._pending.clear()
        self._owed.clear()

    def doubt(self) -> None:
        """Nobody knows whether the transaction was committed: its facts are looked for in the rows from now on."""
        self._doubt_since = monotonic()
        self.behind = True

    def recall(self, conn: Connection) -> None:
        """Before a COMMIT: after a doubt, the facts of others that still have no line go with those of this one."""
        if self._doubt_since is not None:
            mine = {one.n for one in self._pending}
            self._owed = [one for one in unwritten(conn) if one.n not in mine]

    def append(self) -> Callable[[Connection], object] | None:
        """Append the facts of the transaction that was committed; returns the write that says so in their rows.

        Raises OSError: they are not appended. Those that were owed from before raise nothing: their callers have been
        told, and they are tried again with each COMMIT, and at the next start.
        """
        pending, self._pending = self._pending, []
        owed, self._owed = self._owed, []
        try:
            if owed or pending:
                self.write(owed + pending)
        except OSError as error:
            self.doubt()
            if pending:
                raise
            log.error("the journal of facts cannot be completed", facts=len(owed), error=error.strerror)
            return None
        self.behind = False
        if self._doubt_since is not None and monotonic() - self._doubt_since > DOUBT_SECONDS:
            self._doubt_since = None
        return partial(_mark, pks=[one.n for one in owed + pending]) if owed or pending else None

    def write(self, facts: list[Fact]) -> None:
        """Append lines, and flush them. Raises OSError."""
        by_year: dict[int, list[Fact]] = {}
        for one in facts:
            by_year.setdefault(one.at.year, []).append(one)
        for year, some in sorted(by_year.items()):
            self._write(self.folder / f"{year:04}.jsonl", b"".join(map(line_of, some)))

    def _write(self, path: Path, lines: bytes) -> None:
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
        if path not in self._durable:  # whoever made it may not have come to this
            flush_directory(str(self.folder))
            self._durable.add(path)

    def lines(self) -> Iterator[Fact | BadLine]:
        """Every line, as the files have them: nearly in the order of `n`, some twice. Raises OSError."""
        for path in self._files():
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield fact_of(line) or BadLine(path.name, number)

    def read(self) -> list[Fact]:
        """Every fact once, in the order in which they became true; bad lines are passed over. All in memory: for
        journals of the size of a test, or of a look by hand. Raises OSError."""
        found = {one.n: one for one in self.lines() if isinstance(one, Fact)}
        return [found[n] for n in sorted(found)]

    def newest(self) -> list[int]:
        """The numbers of the last lines of each file. Raises OSError."""
        return [one.n for path in self._files() for one in _tail(path)]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.jsonl")) if self.folder.is_dir() else []


def unwritten(conn: Connection) -> list[Fact]:
    """The first facts whose rows do not say that they are in the journal; some hundreds at most."""
    rows = conn.execute(_UNMARKED.limit(_BATCH))
    return [Fact(row.pk, row.at, row.kind, row.subject, orjson.loads(row.body)) for row in rows]


def unknown(conn: Connection, numbers: list[int]) -> set[int]:
    """Those of these facts that the database does not have."""
    missing = set(numbers)
    for start in range(0, len(numbers), _BATCH):
        missing.difference_update(conn.execute(_KNOWN, {"numbers": numbers[start : start + _BATCH]}).scalars())
    return missing


def is_waiting(conn: Connection) -> bool:
    """Facts were read from the journal, and are not applied yet."""
    return conn.execute(_WAITING).first() is not None


def complete(journal: FactJournal, facts: list[Fact]) -> Callable[[Connection], object]:
    """Append what `unwritten` found; returns the write that says so. A fact that is there already comes twice, which
    changes nothing. Raises OSError."""
    journal.write(facts)
    return partial(_mark, pks=[one.n for one in facts])


def _mark(conn: Connection, *, pks: list[int]) -> None:
    for start in range(0, len(pks), _BATCH):
        conn.execute(_MARK, {"pks": pks[start : start + _BATCH]})


def forget_lines(conn: Connection, *, pks: list[int]) -> None:
    """These facts have no line any more: they are to be appended again."""
    for start in range(0, len(pks), _BATCH):
        conn.execute(_MARK.values(journaled=0), {"pks": pks[start : start + _BATCH]})


def line_of(one: Fact) -> bytes:
    """The line that says a fact."""
    said = orjson.dumps({"n": one.n, "at": one.at, "kind": one.kind, "subject": one.subject, "body": one.body})[:-1]
    return b'%b%b%08x"}\n' % (said, _CRC, zlib.crc32(said))


def fact_of(line: bytes) -> Fact | None:
    """The fact that a line says; None: it is torn, or not what was written."""
    said, found, crc = line.rstrip(b"\n").rpartition(_CRC)
    if not found or crc != b'%08x"}' % zlib.crc32(said):
        return None
    read = orjson.loads(said + b"}")
    return Fact(read["n"], datetime.fromisoformat(read["at"]), read["kind"], read["subject"], read["body"])


def _tail(path: Path) -> list[Fact]:
    """The last facts of a file: at least one, when it has one."""
    size = path.stat().st_size
    length = _TAIL_BYTES
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - length))
            read = file.read(length)
            found = [one for line in read.split(b"\n") if (one := fact_of(line)) is not None]
            if found or length >= size:
                return found
            length *= 8
