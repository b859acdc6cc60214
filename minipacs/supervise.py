"""`minipacs serve`: one process per edge (and more of them if the settings say so), watched, restarted, stopped.

This process holds the listening sockets and nothing else: a worker that dies takes no connection with it that waits in
the queue, and no database or DICOM library is loaded here. Signals are waited for, never handled.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from archive.clock import Clock, monotonic
from archive.config import EDGES, Settings
from archive.sections import Api, Dicom, Hl7
from minipacs.logs import Form

log = structlog.get_logger(__name__)

STOP_SECONDS = 30.0  # for the edges to finish what they are doing; then they are killed
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # before a dead worker is started again, doubling
STEADY_SECONDS = 60.0  # a worker that lived so long starts again with the first pause
BACKLOG = 512
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Refused(Exception):
    """The archive cannot start; the message says why and what to do. `code` is the exit code."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Port:
    """Where an edge listens. `key`: the setting that gives the number."""

    edge: str
    key: str
    host: str
    number: int
    tls: bool = False


@dataclass(slots=True)
class Worker:
    """One process of an edge, living or to be started at `due` (monotonic)."""

    edge: str
    sockets: list[tuple[Port, socket.socket]]  # none: an edge that listens to nobody
    sweeps: bool
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS


def serve(
    settings: Settings, *, edges: Sequence[str] = EDGES, config: Path | None = None, form: Form = Form.TEXT
) -> int:
    """Run the archive until SIGTERM or SIGINT. Returns 0 when every edge stopped cleanly, 1 when one had to be killed.

    Raises:
        Refused: start-up is not possible (REQ-FACE-03).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    sockets = listen(settings, edges)
    password = _prepare(config, form)
    _warn(settings)
    workers = [
        Worker(
            edge,
            [(port, sock) for port, sock in sockets.items() if port.edge == edge],
            sweeps=(edge, number) == (edges[0], 0),
        )
        for edge in edges
        for number in range({"dicom": settings.dicom.workers, "api": settings.api.workers}.get(edge, 1))
    ]
    for worker in workers:
        _start(worker, config=config, form=form)
    print(welcome(settings, sockets, password=password), flush=True)
    try:
        _watch(workers, config=config, form=form)
    finally:
        clean = _stop(workers)
        for sock in sockets.values():
            sock.close()
    return 0 if clean else 1


def listen(settings: Settings, edges: Sequence[str]) -> dict[Port, socket.socket]:
    """Bind the ports of these edges. Raises Refused, with the key to change."""
    return {port: _bind(port) for port in ports(settings) if port.edge in edges}


def ports(settings: Settings) -> list[Port]:
    """The ports that are opened, edge by edge: DICOM in clear text not beyond this machine, unless somebody said so."""
    dicom = settings.dicom
    found = []
    if settings.dicom_in_clear:
        found.append(Port("dicom", "dicom.port", dicom.host, dicom.port))
    if settings.tls.on:
        found.append(Port("dicom", "dicom.tls_port", dicom.host, dicom.tls_port, tls=True))
    found.append(Port("hl7", "hl7.port", settings.hl7.host, settings.hl7.port))
    found.append(Port("api", "api.port", settings.api.host, settings.api.port))
    return found


def sections(settings: Settings) -> dict[str, Dicom | Hl7 | Api]:
    """The sections that say where to listen, by edge."""
    return {"dicom": settings.dicom, "hl7": settings.hl7, "api": settings.api}


def _bind(port: Port) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            port.host, port.number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        raise Refused(
            f"{port.edge} cannot listen on {port.host}:{port.number}: {error.strerror}. Stop the program that holds "
            f"the port, or set {port.edge}.host and {port.key}"
        ) from error
    return sock


def _prepare(config: Path | None, form: Form) -> str | None:
    """The password of the first account, when it was just made. Raises Refused."""
    command = [sys.executable, "-P", "-m", "minipacs.prepare", "--log", form, *_config_option(config)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    if done.returncode != 0:
        raise Refused("the archive could not be prepared; the lines above say why")
    said = json.loads(done.stdout)
    if "refused" in said:
        raise Refused(said["refused"], code=said["code"])
    password: str | None = said["password"]
    return password


def _config_option(config: Path | None) -> list[str]:
    return [] if config is None else ["--config", str(config)]


def _start(worker: Worker, *, config: Path | None, form: Form) -> None:
    command = [sys.executable, "-P", "-m", "minipacs.edge", worker.edge, "--log", form]
    for port, sock in worker.sockets:
        command += ["--tls-fd" if port.tls else "--fd", str(sock.fileno())]
    fds = [sock.fileno() for _, sock in worker.sockets]
    command += ["--parent", str(os.getpid()), *_config_option(config)]
    if worker.sweeps:
        command.append("--sweep")
    # glibc keeps memory for each of many threads apart, which read images and forget them
    env = {"MALLOC_ARENA_MAX": "2", **os.environ}
    worker.process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=env)  # noqa: S603
    worker.started = monotonic()
    log.info("edge started", edge=worker.edge, pid=worker.process.pid)


def _watch(workers: list[Worker], *, config: Path | None, form: Form) -> None:
    """Start dead workers again, until somebody wants to stop."""
    while True:
        got = signal.sigtimedwait(_SIGNALS, 0.5)
        if got is not None and got.si_signo != signal.SIGCHLD:
            log.info("stopping", signal=signal.Signals(got.si_signo).name)
            return
        for worker in workers:
            _look_after(worker, config=config, form=form)


def _look_after(worker: Worker, *, config: Path | None, form: Form) -> None:
    now = monotonic()
    if worker.process is None:
        if now >= worker.due:
            _start(worker, config=config, form=form)
        return
    code = worker.process.poll()
    if code is None:
        return
    if now - worker.started >= STEADY_SECONDS:
        worker.pause = FIRST_PAUSE_SECONDS
    log.error("edge died", edge=worker.edge, pid=worker.process.pid, code=code, again_in_seconds=worker.pause)
    worker.process, worker.due = None, now + worker.pause
    worker.pause = min(worker.pause * 2, LONGEST_PAUSE_SECONDS)


def _stop(workers: list[Worker]) -> bool:
    """Ask every worker to stop, and wait; whether all did, by themselves and without a complaint."""
    living = [worker.process for worker in workers if worker.process is not None]
    for process in living:
        process.terminate()
    deadline = monotonic() + STOP_SECONDS
    clean = True
    for process in living:
        try:
            code = process.wait(max(0.0, deadline - monotonic()))
        except subprocess.TimeoutExpired:
            log.error("edge does not stop: killed", pid=process.pid, after_seconds=STOP_SECONDS)
            process.kill()
            code = process.wait()
        clean = clean and code == 0
    log.info("stopped", clean=clean)
    return clean


def _warn(settings: Settings) -> None:
    """What has to be said at each start (REQ-FACE-04)."""
    for name, section in sections(settings).items():
        if section.insecure:
            log.warning(
                "insecure: clear text beyond this machine is allowed", key=f"{name}.insecure", host=section.host
            )
    if settings.tls.on:
        from archive.tls import expiry

        said = expiry(settings.tls, at=Clock().real())
        if said is not None:
            log.warning("the certificate needs attention", why=said)
    if settings.test_mode:
        log.warning("test_mode: the clock can be moved; not for patients")


def welcome(settings: Settings, sockets: dict[Port, socket.socket], *, password: str | None) -> str:
    """What a person reads at start: addresses and, once, the first account. In French first."""
    lines = ["", "minipacs est démarré (running). Ctrl-C l'arrête (stops it)."]
    at = {port.key: address_of(sock) for port, sock in sockets.items()}
    if "api.port" in at:
        base = f"http://{at['api.port']}"
        lines += [f"  Bureau et API (desk and API)   {base}/", f"  DICOMweb                       {base}/dicom-web"]
    if "dicom.port" in at:
        lines.append(f"  DICOM                          {settings.dicom.ae_title} @ {at['dicom.port']}")
    if "dicom.tls_port" in at:
        lines.append(f"  DICOM sur TLS (over TLS)       {settings.dicom.ae_title} @ {at['dicom.tls_port']}")
    if "hl7.port" in at:
        lines.append(f"  HL7 (MLLP)                     {at['hl7.port']}")
    if password is not None:
        lines += [
            "",
            "Premier compte, affiché cette seule fois (first account, shown only this once) :",
            f"  nom (name)           admin\n  mot de passe         {password}",
        ]
    if any(section.insecure for section in sections(settings).values()):
        lines += ["", "ATTENTION : insecure = true, les échanges ne sont pas chiffrés (not encrypted)."]
    if settings.test_mode:
        lines += ["", "MODE TEST (test_mode) : ne pas utiliser pour des patients."]
    return "\n".join([*lines, ""])


def address_of(sock: socket.socket) -> str:
    """Host and port as they are written in an address."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
