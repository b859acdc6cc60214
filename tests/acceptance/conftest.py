"""A running archive for each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Server, free_port


@pytest.fixture
def move_port() -> int:
    """Where STORESCP, the move destination that the server knows, listens when a test starts it."""
    return free_port()


@pytest.fixture
def server(tmp_path: Path, database_url: str, move_port: int) -> Iterator[Server]:
    peers = f'{{"STORESCP": {{"host": "127.0.0.1", "port": {move_port}}}}}'
    running = Server(tmp_path / "server", database_url, {"MINIPACS_DICOM__PEERS": peers})
    running.start()
    yield running
    assert running.stop() == 0
    log = running.log.read_text()
    assert "Traceback" not in log, log[-4000:]
