"""A real `minipacs serve`, on free ports, with an account's token: what acceptance, crash and bench tests talk to."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests import forked

_RANDOM = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on now, each time another one. Each worker of pytest has a range of its own, below
    those that the system gives to connections: what is free now is free when it is bound."""
    first = 12000 + 4000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 5)
    while True:
        port = _RANDOM.randrange(first, first + 4000)
        if port in _given:
            continue
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            _given.add(port)
            return port


@dataclass
class Server:
    """One archive and its processes. `folder` keeps data and log; `environment` overrides settings."""

    folder: Path
    database_url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    dicom_port: int = field(default_factory=free_port)
    api_port: int = field(default_factory=free_port)
    hl7_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def variables(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MINIPACS_")}
        return clean | {
            "MINIPACS_DATA_DIR": str(self.data_dir),
            "MINIPACS_DATABASE__URL": self.database_url,
            "MINIPACS_DICOM__PORT": str(self.dicom_port),
            "MINIPACS_API__PORT": str(self.api_port),
            "MINIPACS_HL7__PORT": str(self.hl7_port),
            "MINIPACS_STORAGE__RESERVE_BYTES": "0",
            "MINIPACS_PROBE__EVERY_SECONDS": "0",  # tests count who asked for what
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }

    def start(self, *arguments: str, timeout: float = 60) -> None:
        """Start and wait until `/readyz` says so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minipacs", "serve", *arguments],
                env=self.variables(),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.web}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the server did not become ready:\n{self.log.read_text()[-4000:]}")

    def stop(self, *, timeout: float = 30) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL to every process of the server at once."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def command(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `minipacs …` with this server's settings."""
        return forked.run("minipacs", arguments, env=self.variables(), cwd=self.folder, timeout=timeout)

    def send_hl7(self, message: bytes | Path, *, timeout: float = 60) -> bytes:
        """Send one message, or the file that holds it, over MLLP on a connection of its own; the ACK, unframed."""
        raw = message.read_bytes() if isinstance(message, Path) else message
        with socket.create_connection(("127.0.0.1", self.hl7_port), timeout) as sock:
            sock.sendall(b"\x0b" + raw + b"\x1c\r")
            answer = b""
            while not answer.endswith(b"\x1c\r"):
                piece = sock.recv(65536)
                if not piece:
                    raise ConnectionError(f"the connection ended after {answer!r}")
                answer += piece
        assert answer.startswith(b"\x0b")
        return answer[1:-2]

    def token(self, *roles: str, name: str = "tests") -> str:
        """A new API token with these roles."""
        arguments = [part for role in roles for part in ("--role", role)]
        done = self.command("token", "create", "--name", name, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["token"])

    def client(self, *roles: str) -> httpx.Client:
        """An HTTP client that carries a token with these roles."""
        return httpx.Client(base_url=self.web, headers={"Authorization": f"Bearer {self.token(*roles)}"}, timeout=120)
