"""A DICOM server in a thread, on a free port."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select as wait_to_read
from typing import Any

import pytest
from sqlalchemy import select

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.schema import audit, instance
from dicom_scp.server import serve
from tests.certificates import Authority, Certificate
from tests.conftest import new_database


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`OVER_TLS` of a module names a fixture: the tests that use it run twice, over TCP and over TLS (REQ-DCM-04)."""
    if getattr(metafunc.module, "OVER_TLS", None) in metafunc.fixturenames:
        metafunc.parametrize("transport", ["tcp", "tls"])


@pytest.fixture
def transport() -> str:
    return "tcp"


@pytest.fixture
def settings(
    migrated_sqlite: str, tmp_path: Path, request: pytest.FixtureRequest, transport: str
) -> Iterator[Settings]:
    """One database is enough for the wire: the archive's own tests, and the acceptance tests, run on both."""
    tls = request.getfixturevalue("authority").settings() if transport == "tls" else {}
    with new_database("sqlite", tmp_path, request, template=migrated_sqlite) as url:
        yield Settings.model_validate(
            {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}, "tls": tls}
        )


class Running:
    """A server, and what its archive holds. Where its settings have a certificate, it listens over TLS alone."""

    def __init__(self, archive: Archive, port: int, stopping: threading.Event, thread: threading.Thread) -> None:
        self.archive = archive
        self.port = port
        self.authority = Authority(tls.cert.parent) if (tls := archive.settings.tls).cert else None
        self.stopping = stopping
        self.thread = thread

    def stop(self, seconds: float = 15) -> None:
        self.stopping.set()
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "the server does not stop"

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self.caller_context()
        return sock if context is None else context.wrap_socket(sock, server_hostname="127.0.0.1")

    @classmethod
    def beside(cls, server: Running, sock: socket.socket) -> Running:
        """The same archive, listening in clear text too."""
        stopping = threading.Event()
        thread = threading.Thread(target=serve, args=(server.archive, sock, stopping), daemon=True)
        thread.start()
        made = cls(server.archive, sock.getsockname()[1], stopping, thread)
        made.authority = None
        return made

    @property
    def caller(self) -> Certificate:
        assert self.authority is not None
        return self.authority.caller

    def caller_context(self) -> ssl.SSLContext | None:
        """TLS as a caller with a certificate does it; None: none is wanted."""
        return None if self.authority is None else self.authority.context(self.authority.caller)

    def options(self) -> list[str]:
        """TLS for the programs of DCMTK."""
        return [] if self.authority is None else self.authority.options(self.authority.caller)

    @property
    def tls_args(self) -> tuple[ssl.SSLContext, str] | None:
        """TLS for pynetdicom."""
        context = self.caller_context()
        return None if context is None else (context, "127.0.0.1")

    @contextmanager
    def port_in_clear(self) -> Iterator[int]:
        """For a program that does not speak TLS: where it does, a port of this machine that goes on over it."""
        if self.authority is None:
            yield self.port
            return
        with socket.create_server(("127.0.0.1", 0)) as listening:
            threading.Thread(target=self._tunnel, args=(listening,), daemon=True).start()
            yield listening.getsockname()[1]
            listening.shutdown(socket.SHUT_RDWR)

    def _tunnel(self, listening: socket.socket) -> None:
        """One connection."""
        clear, _ = listening.accept()
        with clear, self.connect() as secure:
            assert isinstance(secure, ssl.SSLSocket)
            while True:
                ready = [secure] if secure.pending() else wait_to_read([clear, secure], [], [])[0]
                for source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (clear if source is secure else secure).sendall(data)

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
        listening = (None, sock) if archive.settings.tls.on else (sock, None)
        thread = threading.Thread(
            target=serve, args=(archive, listening[0], stopping), kwargs={"tls_sock": listening[1]}, daemon=True
        )
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
