"""The retention process: a tick now and then, what other processes ask of it (`retention.*` jobs), what is owed to the
network (`retention.network`), and metadata that are made ready."""

from __future__ import annotations

import socket
import threading

from archive.core import Archive
from retention.network import at_work
from retention.preparing import Preparing
from retention.schedule import Schedule


def serve(archive: Archive, sock: socket.socket | None, stopping: threading.Event) -> None:
    """Run ticks and `retention.*` jobs until `stopping` is set; then finish the study that is being worked on.

    There is nothing to listen on: `sock` is None. The first tick runs at once, the others every
    `retention.tick_seconds` of real time.
    """
    preparing = Preparing(archive, stopping)
    preparing.start()
    try:
        with at_work(archive, stopping):
            Schedule(archive, stopping).run()
    finally:
        stopping.set()
        preparing.join()
