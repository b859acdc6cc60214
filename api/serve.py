"""Running the API on a socket that somebody else made (`minipacs/`), until told to stop."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Generator

import uvicorn

from api.app import create_app
from api.opening import prober
from api.wire import Protocol
from archive.core import Archive

GRACE_SECONDS = 20  # for requests that run when the stop is called


class _Server(uvicorn.Server):
    """uvicorn that stops when an event says so and leaves the signals to the process that runs it."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stopping.is_set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def serve(archive: Archive, sock: socket.socket, stopping: threading.Event) -> None:
    """Answer HTTP on `sock`, which listens, until `stopping` is set; then finish what runs, within a bound.

    Addresses of callers come from a reverse proxy only when it is on this host, or named in FORWARDED_ALLOW_IPS.
    There is no access log: addresses hold what people search for.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    app = create_app(archive)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=1024,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with contextlib.closing(prober(archive, app)):
        _Server(config, stopping).run(sockets=[sock])
