"""This host, and whether a process of it still lives: who died without a word is not waited for."""

from __future__ import annotations

import os
import socket
from functools import cache


@cache
def this_host() -> str:
    """Where pids mean something: the host, and its namespace of pids (containers may share a host's name)."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}:{namespace}"


def is_gone(host: str, pid: int) -> bool:
    """A process of this host whose pid is free. Of other hosts nothing is known: False."""
    if host != this_host():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
