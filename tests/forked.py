"""Processes of minipacs that start at once: forked from one that has loaded the libraries and done nothing else.

Real processes, killed for real; what they skip is a second or two of imports, which a round of `kill -9` would spend
most of its time on. `tests.server.Server.start` starts an archive from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.forked",
        "alembic.command",
        "api.app",
        "api.serve",
        "dicom_scp.server",
        "hl7_listener.serve",
        "minipacs.cli",
        "minipacs.edge",
        "minipacs.terminal",
        "retention.serve",
        "uvicorn",
    ]
)


class Forked:
    """One process, like a `subprocess.Popen` without pipes."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        fd: int | None = None,
    ) -> None:
        """Run `python -m module arguments`; `fd`, if any, is inherited, and its number the last argument."""
        outs = [out if isinstance(out, int) else out.fileno() for out in (stdout, stderr)]
        with open(os.devnull, "r+b") as null:
            outs = [null.fileno() if out == subprocess.DEVNULL else out for out in outs]
            given = [DupFd(out) for out in outs] + ([] if fd is None else [DupFd(fd)])
            self._process = _CONTEXT.Process(
                target=_run, args=(module, list(arguments), dict(env), str(cwd), given), daemon=False
            )
            self._process.start()
        pid = self._process.pid
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        return code

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(module: str, arguments: list[str], env: dict[str, str], cwd: str, given: list[Any]) -> None:
    """In the child: become `python -m module arguments`."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    inherited = [one.detach() for one in given]
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    for number, out in enumerate(inherited[:2], 1):
        os.dup2(out, number)
        os.close(out)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    arguments += [str(fd) for fd in inherited[2:]]
    sys.argv = [module, *arguments]
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int | None) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(code or 0)


def run(
    module: str, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run to its end; what it printed is captured. A `TimeoutExpired` leaves nothing running."""
    import tempfile

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forked(module, arguments, env=env, cwd=cwd, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess([module, *arguments], code, *printed)
