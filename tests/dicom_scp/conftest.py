"""A DICOM server in a thread, on a free port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.schema import audit, instance
from dicom_scp.server import serve
from tests.conftest import new_database


@pytest.fixture
def settings(migrated_sqlite: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """One database is enough for the wire: the archive's own tests, and the acceptance tests, run on both."""
    with new_database("sqlite", tmp_path, request, template=migrated_sqlite) as url:
        yield Settings.model_validate(
            {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        )


class Running:
    """A server, and what its archive holds."""

    def __init__(self, archive: Archive, port: int, stopping: threading.Event, thread: threading.Thread) -> None:
        self.archive = archive
        self.port = port
        self.stopping = stopping
        self.thread = thread

    def stop(self, seconds: float = 15) -> None:
        self.stopping.set()
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "the server does not stop"

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def stored_uids(self) -> list[str]:
        with self.archive.engine.connect() as conn:
            return list(conn.execute(select(instance.c.sop_instance_uid).order_by(instance.c.pk)).scalars())

    def incoming_files(self) -> list[str]:
        return [path.name for path in self.archive.hot.incoming_dir.iterdir()]

    def audit_rows(self) -> list[Any]:
        with self.archive.engine.connect() as conn:
            return list(conn.execute(select(audit).order_by(audit.c.time)).all())


@contextmanager
def running(settings: Settings, **dicom: Any) -> Iterator[Running]:
    """Serve an archive with these settings changed in their section `dicom`."""
    values = settings.model_dump()
    values["dicom"] |= dicom
    with open_archive(Settings.model_validate(values), process="dicom") as archive:
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        stopping = threading.Event()
        thread = threading.Thread(target=serve, args=(archive, sock, stopping), daemon=True)
        thread.start()
        server = Running(archive, sock.getsockname()[1], stopping, thread)
        try:
            yield server
        finally:
            server.stop()
            sock.close()


@pytest.fixture
def server(settings: Settings) -> Iterator[Running]:
    with running(settings) as started:
        yield started
