"""The parts of an archive, wired. No globals: everything below receives what it needs from here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from archive import waiting
from archive.audit.accesses import Accesses
from archive.audit.chain import AuditChain
from archive.authorities import Authorities, authorities_of
from archive.clock import Clock
from archive.commit import GroupCommit
from archive.config import Settings
from archive.engines import make_engine
from archive.errors import IndexUnavailable, StorageFailed
from archive.journal import FactJournal, complete, is_waiting, unknown, unwritten
from archive.recognition import Recognition
from archive.schema import REVISION, location
from archive.schema.prepared import run_text
from archive.storage import marker
from archive.storage.filesystem import Tier

READERS = 16  # idle connections to read with that are kept
READER_CACHE_KIB = 1024  # of SQLite, for each; behind it is the system's


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

    @property
    def reads_at_once(self) -> bool:
        """Whether the index is read within this process, and not asked of another."""
        return self.engine.dialect.name == "sqlite"

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
    def reading(self, *, brief: bool = False) -> Iterator[Connection]:
        """A connection to read with: all its statements see one state of the index, whatever is committed meanwhile
        (REQ-DCM-83). At the end its transaction is committed: nothing was written, but after a rollback PostgreSQL's
        driver would prepare statements anew. `brief`: for one statement alone, a row by its keys, which SQLite has at
        hand where nobody may wait, and runs without a transaction.

        Raises:
            IndexUnavailable: the database does not answer.
            WouldWait: nobody may wait here.
        """
        if not (brief and self.reads_at_once):
            waiting.demand()
        try:
            if not self.reads_at_once:
                with self.engine.connect() as conn:
                    yield conn.execution_options(isolation_level="REPEATABLE READ")
                    conn.commit()
                return
            conn = self._reader()
            begun = conn.in_transaction()  # for SQLAlchemy: see `_reader`
            try:
                if begun and not brief:
                    run_text(conn, "BEGIN")  # touches no file yet
                yield conn
                if conn.in_transaction() and not (begun and brief):
                    run_text(conn, "COMMIT")
            except BaseException:
                conn.close()
                raise
            if len(self._readers) < READERS:
                self._readers.append(conn)
            else:
                conn.close()
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise IndexUnavailable("the database cannot be read") from error

    def _reader(self) -> Connection:
        """A connection to SQLite that was used before, or a new one: such a connection does not go stale.

        SQLAlchemy's own transactions cost more than what is read in them. So for SQLAlchemy the connection stays in
        its first one, and SQLite is told by its driver where each begins and ends.
        """
        try:
            return self._readers.pop()
        except IndexError:
            waiting.demand()
            conn = self.engine.connect()
            conn.connection.cursor().execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
            return conn

    def close(self) -> None:
        """Finish what was begun. Safe to call twice."""
        self.accesses.close()
        self.commit.close()
        while self._readers:
            self._readers.pop().close()
        self.engine.dispose()


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
