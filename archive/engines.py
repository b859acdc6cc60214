"""The connections to the database: with the durability that the laws need, and in SQLite one writer at a time."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from time import sleep
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError

from archive.clock import monotonic
from archive.schema.prepared import quote_nothing, run_text

BUSY_SECONDS = 30  # patience for another process that writes to the same SQLite file
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.0001, 0.002  # between two looks whether it has ended


class _Connection(sqlite3.Connection):
    """A connection to a SQLite file, and the turn to write to it: a lock (flock(2)) on its folder, which the processes
    of an archive take before they begin and give back once they have ended. To look at it costs a hundredth of a BEGIN
    that is refused."""

    _folder = -1  # its descriptor, once there was a turn
    _has_turn = False

    def take_turn(self, deadline: float) -> None:
        """Wait for the turn, or until `deadline`: whoever has it then holds SQLite's own lock too."""
        if self._folder < 0:
            _, _, path = self.execute("PRAGMA database_list").fetchone()
            self._folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        pause = FIRST_LOOK_SECONDS
        while not self._has_turn and monotonic() < deadline:
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._has_turn = True
            except BlockingIOError:
                sleep(pause)
                pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)

    def give_turn(self) -> None:
        """Nothing is being written. Safe to call twice."""
        if self._has_turn:
            self._has_turn = False
            fcntl.flock(self._folder, fcntl.LOCK_UN)

    def commit(self) -> None:
        super().commit()
        self.give_turn()

    def rollback(self) -> None:
        super().rollback()
        self.give_turn()

    def close(self) -> None:
        super().close()
        if self._folder >= 0:
            self._has_turn = False
            os.close(self._folder)
            self._folder = -1


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
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "factory": _Connection},
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
    driver = conn.connection.dbapi_connection
    assert isinstance(driver, _Connection)
    deadline = monotonic() + BUSY_SECONDS
    driver.take_turn(deadline)
    while True:
        try:
            run_text(conn, "BEGIN IMMEDIATE")
            return
        except DBAPIError as error:  # of a program that takes no turns
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                driver.give_turn()
                raise
        sleep(LONGEST_LOOK_SECONDS)


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
