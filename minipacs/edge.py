"""The process of one edge: `python -m minipacs.edge dicom --fd N`. The supervisor starts it and owns its sockets.

The edge `retention` has none: it waits for time to pass, and for what others ask of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import structlog

from archive import tls
from archive.accounts import assertions
from archive.config import EDGES, ConfigError, Settings, load
from archive.core import Archive, open_archive
from archive.errors import ArchiveError
from archive.heartbeat import Heartbeat
from archive.recovery import Sweeper
from minipacs import logs
from minipacs.supervise import address_of

log = structlog.get_logger(__name__)

STOP = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

Serve = Callable[[Archive, threading.Event], None]  # until the event is set


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 0: stopped as asked; 1: refused to start, or broke down."""
    options = _options(argv)
    signal.pthread_sigmask(signal.SIG_SETMASK, STOP)  # taken by `_run`, in every thread blocked
    logs.configure(options.log, process=options.edge)
    _die_with(options.parent)
    try:
        settings = load(options.config)
        if options.edge == "dicom":
            tls.check(settings)
            assertions.check(settings.dicom.jwt)
        with ExitStack() as held:
            sock, tls_sock = (
                None if fd is None else held.enter_context(socket.socket(fileno=fd))
                for fd in (options.fd, options.tls_fd)
            )
            work = _serve_of(options.edge, sock, tls_sock)
            return _run(options.edge, work, settings, [one for one in (sock, tls_sock) if one], sweeps=options.sweep)
    except (ConfigError, ArchiveError) as error:
        log.error("the edge cannot start", error=type(error).__name__, detail=str(error))
        return 1


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="minipacs.edge")
    parser.add_argument("edge", choices=EDGES)
    parser.add_argument("--fd", type=int, help="the listening socket, inherited")
    parser.add_argument("--tls-fd", type=int, help="the one for connections over TLS (dicom)")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--log", type=logs.Form, choices=list(logs.Form), default=logs.Form.TEXT)
    parser.add_argument("--parent", type=int, help="pid of the supervisor: die with it")
    parser.add_argument("--sweep", action="store_true", help="settle leftovers at start and every hour")
    return parser.parse_args(argv)


def _serve_of(edge: str, sock: socket.socket | None, tls_sock: socket.socket | None) -> Serve:
    """Imported here: a process loads the libraries of its own protocol only."""
    if edge == "retention":
        from retention.serve import serve as work

        return lambda archive, stopping: work(archive, None, stopping)
    if edge == "dicom" and (sock or tls_sock):
        from dicom_scp.server import serve as dicom

        return lambda archive, stopping: dicom(archive, sock, stopping, tls_sock=tls_sock)
    if sock is None:
        raise ConfigError(f"the edge {edge} needs the socket that it listens on (--fd)")
    if edge == "hl7":
        from hl7_listener.serve import serve
    else:
        from api.serve import serve
    return lambda archive, stopping: serve(archive, sock, stopping)


def _die_with(parent: int | None) -> None:
    """Have the kernel send SIGTERM when the supervisor dies, even by SIGKILL: nobody holds the port without it."""
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        raise SystemExit(1)


def _run(edge: str, serve: Serve, settings: Settings, sockets: list[socket.socket], *, sweeps: bool) -> int:
    stopping = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            serve(archive, stopping)
        except BaseException as error:
            failed.append(error)
            log.exception("the edge broke down")

    with ExitStack() as parts:
        archive = parts.enter_context(open_archive(settings, process=edge))
        beat = parts.enter_context(Heartbeat(archive, edge))
        if sweeps:
            parts.enter_context(closing(Sweeper(archive)))
        gc.freeze()  # what is loaded stays as long as the process: later collections need not walk through it
        # Signals are waited for, not handled: a handler that sets an event can meet the lock it needs.
        thread = threading.Thread(target=work, name="serve")
        thread.start()
        beat.listening()
        log.info("at work", listening=", ".join(map(address_of, sockets)) or None)
        asked = None
        while asked is None and thread.is_alive():
            asked = signal.sigtimedwait(STOP, 0.5)
        log.info("stopping", asked=asked is not None)
        stopping.set()
        thread.join()
    log.info("stopped")
    return 1 if failed or asked is None else 0


if __name__ == "__main__":
    sys.exit(main())
