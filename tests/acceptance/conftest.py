"""A running archive for each kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server import Server, free_port


@pytest.fixture(scope="module")
def move_port() -> int:
    """Where STORESCP, the move destination that the server knows, listens when a test starts it."""
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_database_url: str, move_port: int) -> Iterator[Server]:
    """One for all tests of a module: they tell their own studies from others'."""
    peers = f'{{"STORESCP": {{"host": "127.0.0.1", "port": {move_port}}}}}'
    running = Server(tmp_path_factory.mktemp("server"), module_database_url, {"MINIPACS_DICOM__PEERS": peers})
    running.start()
    yield running
    assert running.stop() == 0
    log = running.log.read_text()
    assert "Traceback" not in log, log[-4000:]
