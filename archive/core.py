"""The parts of an archive, wired. No globals: everything below receives what it needs from here."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from time import sleep
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from archive.audit.accesses import Accesses
from archive.audit.chain import AuditChain
from archive.authorities import Authorities, authorities_of
from archive.clock import Clock, monotonic
from archive.commit import GroupCommit
from archive.config import Settings
from archive.errors import IndexUnavailable, StorageFailed
from archive.journal import FactJournal, complete, is_waiting, unknown, unwritten
from archive.recognition import Recognition
from archive.schema import REVISION, location
from archive.schema.prepared import quote_nothing, run_text
from archive.storage import marker
from archive.storage.filesystem import Tier

READERS = 16  # idle connections to read with that are kept
READER_CACHE_KIB = 1024  # of SQLite, for each; behind it is the system's
BUSY_SECONDS = 30  # patience for another process that writes to the same SQLite file
LONGEST_LOOK_SECONDS = 0.005  # between two looks whether it has ended


@dataclass(frozen=True, slots=True)
class Archive:
    """One process's archive. Made by `open_archive`; every edge gets one."""

    settings: Settings
    engine: Engine  # read with `reading()`, write with `commit`
    time: Clock
    hot: Tier
    cold: Tier
    commit: GroupCommit
    journal: FactJournal
    authorities: Authorities
    accesses: Accesses
    recognition: Recognition = field(default_factory=Recognition)
    _readers: deque[Connection] = field(default_factory=deque)  # of `reading`, idle

    def clock(self) -> datetime:
        """The archive's time (law 6): policy, dates, audit."""
        return self.time.now()

    def real_clock(self) -> datetime:
        """The system's time: leases, timeouts, tokens, the age of leftovers."""
        return self.time.real()

    def tier(self, name: str) -> Tier:
        """`hot` or `cold`, as `location.tier` names them."""
        return self.cold if name == "cold" else self.hot

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with: all its statements see one state of the index, whatever is committed meanwhile
        (REQ-DCM-83). Raises IndexUnavailable when the database does not answer."""
        try:
            if self.engine.dialect.name == "sqlite":  # reads so by itself; its connections do not go stale
                yield from self._reading_again()
                return
            with self.engine.connect() as conn:
                yield conn.execution_options(isolation_level="REPEATABLE READ")
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise IndexUnavailable("the database cannot be read") from error

    def _reading_again(self) -> Iterator[Connection]:
        """A connection that was used before, or a new one; kept for the next, unless something went wrong with it."""
        try:
            conn = self._readers.pop()
        except IndexError:
            conn = self.engine.connect()
            conn.connection.cursor().execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
        try:
            yield conn
            conn.rollback()
        except BaseException:
            conn.close()
            raise
        if len(self._readers) < READERS:
            self._readers.append(conn)
        else:
            conn.close()

    def close(self) -> None:
        """Finish what was begun. Safe to call twice."""
        self.accesses.close()
        self.commit.close()
        while self._readers:
            self._readers.pop().close()
        self.engine.dispose()


def make_engine(url: str) -> Engine:
    """An engine with the durability that the laws need: SQLite in WAL with synchronous=FULL, or PostgreSQL."""
    if not url.startswith("sqlite"):
        engine = create_engine(
            url,
            # a server set to acknowledge before its log is on disk would break law 1
            connect_args={"options": "-c synchronous_commit=on"},
            pool_size=16,
            max_overflow=64,
            pool_pre_ping=True,
            hide_parameters=True,
        )
        event.listen(engine, "handle_error", _quote_nothing)
        return engine
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=16,
        max_overflow=64,
        hide_parameters=True,  # a traceback names no patient
    )

    @event.listens_for(engine, "connect")
    def _prepare(dbapi: sqlite3.Connection, _record: Any) -> None:
        dbapi.isolation_level = None  # transactions are begun below, not by the driver
        _keep_a_log(dbapi)
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "case_sensitive_like=ON",
            "cache_size=-16384",
            "wal_autocheckpoint=4000",  # 16 MB: pages that change again and again are copied back once
        ):
            dbapi.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        if conn.get_execution_options().get("minipacs_write"):
            _begin_writing(conn)
        else:
            run_text(conn, "BEGIN")  # touches no file yet

    return engine


def _begin_writing(conn: Connection) -> None:
    """Wait for other processes that write, and begin. SQLite's own patience sleeps up to a tenth of a second between
    two looks, and several workers would wait more than they write.

    Raises DBAPIError after BUSY_SECONDS.
    """
    if not conn.info.get("looks by itself"):
        run_text(conn, "PRAGMA busy_timeout=0")
        conn.info["looks by itself"] = True
    deadline, pause = monotonic() + BUSY_SECONDS, 0.0002
    while True:
        try:
            run_text(conn, "BEGIN IMMEDIATE")
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
        sleep(pause)
        pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)


def _keep_a_log(dbapi: sqlite3.Connection) -> None:
    """Have a database in WAL. Where it is not yet, another process may be about to: SQLite then says «locked» at once,
    without the patience that it has for every other lock."""
    deadline = monotonic() + BUSY_SECONDS
    while True:
        try:
            dbapi.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError:
            if monotonic() > deadline:
                raise
            sleep(0.05)


def _quote_nothing(context: ExceptionContext) -> None:
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            quote_nothing(error)


def schema_revision(engine: Engine) -> str | None:
    """The schema's revision, or None for an empty database. Raises IndexUnavailable."""
    try:
        with engine.connect() as conn:
            if not engine.dialect.has_table(conn, "alembic_version"):
                return None
            return conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except SQLAlchemyError as error:
        raise IndexUnavailable("the database cannot be reached") from error


@contextmanager
def open_archive(settings: Settings, *, process: str) -> Iterator[Archive]:
    """Build, check, and at the end close. `process` names the writer in the audit chain (`dicom`, `api`, `import`…).

    Raises:
        IndexUnavailable: no database, or a schema of another version; the message says what to run.
        StorageFailed: the volume of a tier is not mounted, or the journal of facts cannot be read or completed.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = make_engine(settings.database_url)
    revision = schema_revision(engine)
    if revision != REVISION:
        engine.dispose()
        raise IndexUnavailable(
            f"the schema of the database is {revision or 'empty'}, this version needs {REVISION}: "
            "run «minipacs migrate»"
        )
    time = Clock()
    reserve_bytes = settings.storage.reserve_bytes
    try:
        _settle_volumes(engine, settings)
    except BaseException:
        engine.dispose()
        raise
    journal = FactJournal(settings.hot_dir / "facts")
    commit = GroupCommit(engine, AuditChain(process, time), journal=journal)
    archive = Archive(
        settings=settings,
        engine=engine,
        time=time,
        hot=Tier(settings.hot_dir, reserve_bytes=reserve_bytes),
        cold=Tier(settings.cold_dir, name="cold", reserve_bytes=reserve_bytes),
        commit=commit,
        journal=journal,
        authorities=authorities_of(settings),
        accesses=Accesses(commit, time),
    )
    try:
        complete_journal(archive)
        yield archive
    finally:
        archive.close()


def _settle_volumes(engine: Engine, settings: Settings) -> None:
    """Where the index names files, their volume has to be mounted; a new tier is made."""
    for name, root in (("hot", settings.hot_dir), ("cold", settings.cold_dir)):
        try:
            with engine.connect() as conn:
                used = conn.execute(select(location.c.pk).where(location.c.tier == name).limit(1)).first() is not None
        except SQLAlchemyError as error:
            raise IndexUnavailable("the database cannot be read") from error
        marker.settle(root, name=name, used=used)


def complete_journal(archive: Archive) -> None:
    """Append the facts whose COMMIT was the last thing that power allowed; see whether the file knows others.

    Raises:
        StorageFailed: the file cannot be read or written.
    """
    journal = archive.journal
    try:
        journal.prepare()
        lines = journal.newest()  # read before the rows: a line always comes after its row
        with archive.reading() as conn:
            journal.ahead = bool(unknown(conn, lines)) or is_waiting(conn)
            missing = unwritten(conn)
        while missing:
            archive.commit.run(complete(journal, missing))
            with archive.reading() as conn:
                missing = unwritten(conn)
    except OSError as error:
        raise StorageFailed(f"the journal of facts cannot be read or completed: {error.strerror}") from error
