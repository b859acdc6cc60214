"""Group commit: one thread per process does every write, many writes in one transaction.

`GroupCommit.run` returns when the write is durable. The callers flush the folders that they touched, sharing flushes;
then the thread runs the writes that wait, COMMITs once, and releases them (law 1). If a write fails, all roll back and
each runs again alone: a bad write fails alone, a lost race heals, and so does a deadlock, some times over. So a write
only touches its `conn` and is safe to run more than once. Facts that no image carries are appended to their journal
between COMMIT and release.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import sleep
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from archive import waiting
from archive.clock import monotonic
from archive.errors import ArchiveError, Busy, CommitInDoubt, IndexUnavailable, StorageFailed, StorageFull
from archive.folders import FolderFlushes, flush_directory

log = structlog.get_logger(__name__)
T = TypeVar("T")

BATCH = 64  # writes in one transaction at most, so that the first caller does not wait for the last
JOIN_SECONDS = 0.002  # a transaction begins so much later at most, that callers may join who are flushing their folders
DEADLOCK_PAUSES = (0.01, 0.03, 0.1, 0.3)  # seconds before a write that lost a race goes again
_ROLLED_BACK = frozenset({"40P01", "40001"})  # deadlock detected, serialization failure (PostgreSQL, appendix A)
LATER_SECONDS = 0.5  # a write that nobody waits for is committed within this (law 4: within a second)
LATER_BATCH = 256  # so many of them are committed at once


class Ledger(Protocol):
    """Rows that belong to whatever commits: the audit chain."""

    def flush(self, conn: Connection) -> None:
        """Write what was recorded since the last settlement; the COMMIT follows."""

    def settle(self, *, committed: bool) -> None:
        """The transaction ended."""


class Journal(Protocol):
    """Facts that have to be in a file too before anybody is told of them."""

    def recall(self, conn: Connection) -> None:
        """The COMMIT follows: take up what an earlier one left in doubt."""

    def append(self) -> Callable[[Connection], object] | None:
        """Append what the transaction that was just committed recorded, flushed; what then has to be written, later.

        Raises OSError.
        """

    def forget(self) -> None:
        """The transaction was rolled back."""

    def doubt(self) -> None:
        """Nobody knows whether the transaction was committed."""


class _Write:
    """A write, and what became of it once `ended` can be acquired."""

    __slots__ = ("awaited", "ended", "error", "result", "run")

    def __init__(self, run: Callable[[Connection], Any], *, awaited: bool = True) -> None:
        self.run = run
        self.awaited = awaited
        self.result: Any = None
        self.error: Exception | None = None
        self.ended = threading.Lock()  # the caller waits for it: the cheapest of what wakes a thread
        self.ended.acquire()


_WAKE = _Write(lambda conn: None, awaited=False)  # there are writes that nobody awaits


class GroupCommit:
    """The one writer of this process."""

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        *,
        journal: Journal | None = None,
        flush: Callable[[str], None] = flush_directory,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._journal = journal
        self._folders = FolderFlushes(flush)
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        # The thread is not woken for each of them: _WAKE tells it of the first.
        self._unawaited: deque[_Write] = deque()
        self._conn: Connection | None = None
        self._coming = 0  # callers that are flushing their folders
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="commit", daemon=True)
        self._thread.start()

    def run(self, write: Callable[[Connection], T], *, directories: Iterable[str] = ()) -> T:
        """Flush `directories`, run `write(conn)` in a transaction, COMMIT; then return its result.

        Raises whatever `write` raised (nothing was written), Unavailable, or WouldWait where nobody may wait.
        """
        waiting.demand()
        handed_in = None
        with self._closing:
            self._coming += 1
        try:
            for directory in dict.fromkeys(directories):
                self._folders.flush(directory)
            handed_in = _Write(write)
        except OSError as error:
            raise StorageFailed(f"a folder cannot be flushed: {error.strerror}") from error
        finally:
            self._hand_in(handed_in)
        handed_in.ended.acquire()
        if handed_in.error is not None:
            raise handed_in.error
        result: T = handed_in.result
        return result

    def later(self, write: Callable[[Connection], object]) -> None:
        """Have `write(conn)` committed within a second; a failure is logged, for nobody waits."""
        with self._closing:
            if self._closed:
                raise Busy("the archive is stopping")
            self._unawaited.append(_Write(write, awaited=False))
            if len(self._unawaited) in (1, LATER_BATCH):  # under the lock: one caller at a time
                self._queue.put(_WAKE)

    def close(self) -> None:
        """Finish what was handed in, then stop. Safe to call twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _hand_in(self, write: _Write | None) -> None:
        """A caller is there that was coming; None: it is not, its folders failed."""
        with self._closing:
            self._coming -= 1
            if write is None:
                return
            if self._closed:
                raise Busy("the archive is stopping")
            self._queue.put(write)

    def _work(self) -> None:
        try:
            stopping = False
            while not stopping:
                batch, stopping = self._collect()
                if batch:
                    self._commit(batch)
            if left := self._take_unawaited():  # what the last transaction still wanted to be written
                self._commit(left)
            self._disconnect()
        except BaseException:
            # Nobody would ever be released, nothing ever written: better to die, and be started again.
            log.critical("the commit thread broke down", exc_info=True)
            os._exit(70)

    def _collect(self) -> tuple[list[_Write], bool]:
        """Wait for a write, then take what else is there, or about to be. Writes that nobody awaits give others time to
        join."""
        write = self._queue.get()
        leaving = monotonic() + LATER_SECONDS
        awaited: list[_Write] = []
        with contextlib.suppress(queue.Empty):
            while write is _WAKE and len(self._unawaited) < LATER_BATCH and (patience := leaving - monotonic()) > 0:
                write = self._queue.get(timeout=patience)
            leaving = monotonic() + JOIN_SECONDS
            while write is not None:
                if write is not _WAKE:
                    awaited.append(write)
                if len(awaited) == BATCH:
                    break
                write = self._next(leaving)
        return self._take_unawaited() + awaited, write is None

    def _next(self, leaving: float) -> _Write | None:
        """The next write; while a caller is flushing its folders, until `leaving`. Raises queue.Empty."""
        if self._coming and (patience := leaving - monotonic()) > 0:
            return self._queue.get(timeout=patience)
        return self._queue.get_nowait()

    def _take_unawaited(self) -> list[_Write]:
        """All of them, to the last: whoever adds one to none wakes the thread."""
        taken: list[_Write] = []
        while self._unawaited:
            taken.append(self._unawaited.popleft())
        return taken

    def _commit(self, batch: list[_Write]) -> None:
        try:
            self._transaction(batch)
        except CommitInDoubt as error:
            self._fail(batch, error)
            return
        except Exception as error:
            if _never_began(error) or (len(batch) == 1 and not _may_heal(error)):
                self._fail(batch, error)
                return
            for write in batch:
                try:
                    self._alone(write)
                except Exception as alone:
                    self._fail([write], alone)
                else:
                    self._release([write])
            return
        self._release(batch)

    def _alone(self, write: _Write) -> None:
        """One write in a transaction of its own. PostgreSQL ends one of those that wait for each other: that one was
        rolled back and may go again, while others of other processes go on deadlocking."""
        for pause in (*DEADLOCK_PAUSES, None):
            try:
                self._transaction([write])
            except DBAPIError as error:
                if pause is None or getattr(error.orig, "sqlstate", None) not in _ROLLED_BACK:
                    raise
                sleep(pause)
            else:
                return

    def _release(self, batch: list[_Write]) -> None:
        for write in batch:
            write.ended.release()

    def _fail(self, batch: list[_Write], error: Exception) -> None:
        said = _translate(error)
        for write in batch:
            if write.awaited:
                write.error = said
                write.ended.release()
            else:
                log.error("a write that nobody awaits failed", error=type(error).__name__, detail=str(said))

    def _transaction(self, batch: list[_Write]) -> None:
        conn = self._connection()
        try:
            with contextlib.ExitStack() as undo:
                undo.callback(self._undo, conn)
                for write in batch:
                    write.result = write.run(conn)
                self._ledger.flush(conn)
                if self._journal is not None:
                    self._journal.recall(conn)
                undo.pop_all()
            try:
                conn.commit()
            except SQLAlchemyError as error:
                self._undo(conn)
                if _disk_full(error):
                    raise
                self._disconnect()  # a connection that was made anew behind our back would know neither of the two
                if self._journal is not None:
                    self._journal.doubt()
                raise CommitInDoubt("the result of COMMIT is unknown") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                self._disconnect()
            raise
        self._ledger.settle(committed=True)
        if self._journal is not None:
            self._append(self._journal)

    def _append(self, journal: Journal) -> None:
        try:
            mark = journal.append()
        except OSError as error:  # the rows stand: the next COMMIT, or the next start, completes the journal
            raise CommitInDoubt(f"the journal of facts cannot be written: {error.strerror}") from error
        except Exception as error:  # a bug, after a COMMIT: nothing may run a second time
            raise CommitInDoubt("the journal of facts cannot be written") from error
        if mark is not None:
            self._unawaited.append(_Write(mark, awaited=False))
            self._queue.put(_WAKE)

    def _connection(self) -> Connection:
        if self._conn is None:
            try:
                self._conn = self._engine.connect().execution_options(minipacs_write=True)
                self._conn.detach()  # for ever: the pool's are to read with
            except SQLAlchemyError as error:
                raise IndexUnavailable("the database cannot be reached") from error
            self._conn.info["ledger"] = self._ledger
            self._conn.info["journal"] = self._journal
        return self._conn

    def _undo(self, conn: Connection) -> None:
        self._ledger.settle(committed=False)
        if self._journal is not None:
            self._journal.forget()
        begun = conn.in_transaction()
        try:
            conn.rollback()
        except SQLAlchemyError:
            self._disconnect()
        if not begun:  # SQLAlchemy believes for ever that a BEGIN which failed is still under way, and begins no other
            self._disconnect()

    def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(SQLAlchemyError):
                conn.close()


def _may_heal(error: Exception) -> bool:
    """A lost race (somebody else inserted the same study), a deadlock, a lost connection."""
    return isinstance(error, IntegrityError | DBAPIError | IndexUnavailable)


def _never_began(error: Exception) -> bool:
    """Whether another process held SQLite's one writer for as long as patience lasts: it does for the others too."""
    code = getattr(error.orig, "sqlite_errorcode", 0) if isinstance(error, DBAPIError) else 0
    return bool(code & 0xFF == sqlite3.SQLITE_BUSY)


def _disk_full(error: Exception) -> bool:
    text = str(error).lower()
    return "disk is full" in text or "no space left" in text


def _translate(error: Exception) -> Exception:
    if isinstance(error, ArchiveError):
        return error
    if isinstance(error, SQLAlchemyError):
        if _disk_full(error):
            full = StorageFull("the volume of the database is full")
            full.__cause__ = error
            return full
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            gone = IndexUnavailable("the database did not take the write")
            gone.__cause__ = error
            return gone
    return error
