"""The retention process: a tick now and then, and what other processes ask of it (`retention.*` jobs)."""

from __future__ import annotations

import socket
import threading

from archive.core import Archive
from retention.schedule import Schedule


def serve(archive: Archive, sock: socket.socket | None, stopping: threading.Event) -> None:
    """Run ticks and `retention.*` jobs until `stopping` is set; then finish the study that is being worked on.

    There is nothing to listen on: `sock` is None. The first tick runs at once, the others every
    `retention.tick_seconds` of real time.
    """
    Schedule(archive, stopping).run()
