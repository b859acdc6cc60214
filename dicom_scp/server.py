"""Listening, and the threads of the associations."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Mapping

import structlog

from archive import tls
from archive.clock import monotonic
from archive.core import Archive
from dicom_scp.association import Association
from dicom_scp.duties import on_duty
from dicom_scp.negotiate import BUSY
from dicom_scp.opening import prober

log = structlog.get_logger(__name__)

FINISH_SECONDS = 5.0  # for the messages that are being served when the archive stops
_FAREWELL_SECONDS = 1.0
_REJECTING = 64  # connections above the limit that are told so; more are closed unheard
_RETRY_MILLISECONDS = 200


class _Live:
    """The associations of this process."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._associations: set[Association] = set()

    def __len__(self) -> int:
        return len(self._associations)

    def add(self, association: Association) -> None:
        with self._lock:
            self._associations.add(association)

    def remove(self, association: Association) -> None:
        with self._lock:
            self._associations.discard(association)
            self._lock.notify_all()

    def all(self) -> list[Association]:
        with self._lock:
            return list(self._associations)

    def wait_until_none(self, until: float) -> bool:
        with self._lock:
            return self._lock.wait_for(lambda: not self._associations, max(0, until - monotonic()))


Listening = Mapping[int, tuple[socket.socket, ssl.SSLContext | None]]  # by descriptor


def serve(
    archive: Archive,
    sock: socket.socket | None,
    stopping: threading.Event,
    *,
    tls_sock: socket.socket | None = None,
) -> None:
    """Answer DICOM on listening sockets, without and with TLS, and do `dicom.*` jobs, until `stopping` is set; then end
    every association.

    The sockets may be shared with other processes: they stay open and listening. Messages that are being served have
    five seconds to end; what is left is aborted.

    Raises ConfigError when a certificate cannot be used.
    """
    settings = archive.settings
    sockets: dict[int, tuple[socket.socket, ssl.SSLContext | None]] = {}
    if sock is not None:
        sockets[sock.fileno()] = (sock, None)
    if tls_sock is not None:
        sockets[tls_sock.fileno()] = (tls_sock, tls.acceptor(settings.tls, mutual=settings.dicom_mutual_tls))
    live = _Live()
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    listener = threading.Thread(target=_listen, args=(archive, sockets, wake_read, live), name="listen", daemon=True)
    listener.start()
    for listening, context in sockets.values():
        host, port = listening.getsockname()[:2]
        log.info("listening for DICOM", host=host, port=port, ae_title=settings.dicom.ae_title, tls=context is not None)
    duties, probe = on_duty(archive), prober(archive)
    try:
        stopping.wait()
    finally:
        probe.close()
        duties.close()
        os.write(wake_write, b"\0")
        listener.join()
        os.close(wake_read)
        os.close(wake_write)
        _end(live)
    log.info("no longer listening for DICOM")


def _end(live: _Live) -> None:
    for association in live.all():
        association.stop()
    if live.wait_until_none(monotonic() + FINISH_SECONDS):
        return
    for association in live.all():
        association.expire()
    if live.wait_until_none(monotonic() + _FAREWELL_SECONDS):
        return
    for association in live.all():
        association.kill()
    if not live.wait_until_none(monotonic() + _FAREWELL_SECONDS):
        log.error("associations do not end", count=len(live))


def _listen(archive: Archive, sockets: Listening, wake: int, live: _Live) -> None:
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    for sock, _ in sockets.values():
        sock.setblocking(False)  # another worker may be quicker to take what poll announced
        poll.register(sock, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if wake in ready:
            return
        for sock, context in (sockets[fd] for fd in ready):
            try:
                connection, address = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:  # out of descriptors: those who are here go on
                log.error("a connection cannot be accepted", error=error.strerror)
                only_wake = select.poll()
                only_wake.register(wake, select.POLLIN)
                if only_wake.poll(_RETRY_MILLISECONDS):
                    return
                continue
            _open(archive, connection, str(address[0]), context, live)


def _open(
    archive: Archive, connection: socket.socket, source: str, context: ssl.SSLContext | None, live: _Live
) -> None:
    limit = archive.settings.dicom.max_associations
    if len(live) >= limit + _REJECTING:
        connection.close()
        return
    association: Association | None = None
    try:
        refuse = BUSY if len(live) >= limit else None
        association = Association(archive, connection, source, tls=context, refuse=refuse)
        live.add(association)
        threading.Thread(target=_run, args=(association, live), name=f"assoc-{association.id[:8]}", daemon=True).start()
    except (OSError, RuntimeError) as error:  # reset already, or no thread to be had
        log.error("an association cannot be begun", error=str(error))
        if association is not None:
            live.remove(association)
        connection.close()


def _run(association: Association, live: _Live) -> None:
    try:
        association.run()
    finally:
        live.remove(association)
