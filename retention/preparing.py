"""Making the metadata of series ready when they fall quiet (`archive.series_metadata`), beside ticks and jobs.

What arrives is seen by the keys of the index, which grow; nothing is written for it while images come in. A process
that is stopped forgets what it waited for, and looks at the last images again when it starts; what is missed is made
ready when somebody asks for it.
"""

from __future__ import annotations

import os
import sys
import threading

import structlog

from archive import series_metadata
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.lines import Lines
from archive.errors import ArchiveError

log = structlog.get_logger(__name__)

QUIET_SECONDS = 10.0  # without a further image
LOOK_SECONDS = 1.0
LOOK_BACK = 10_000  # instances, at the start
_NICE = 10  # receiving and answering come first


class Preparing:
    """The thread that does it; `start`, and `join` once `stopping` is set."""

    def __init__(self, archive: Archive, stopping: threading.Event, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._archive = archive
        self._stopping = stopping
        self._quiet_seconds = quiet_seconds
        self._waiting: dict[int, float] = {}  # series (key): when they are quiet
        self._seen: int | None = None  # the newest instance (key)
        self._alike = Lines()  # no more than the images of a few series have in common; dropped when nothing waits
        self._thread = threading.Thread(target=self._run, name="preparing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def look(self) -> None:
        """Note which series grew, and make those ready that are quiet.

        Raises:
            IndexUnavailable: the next look goes on.
        """
        self._seen, grown = series_metadata.grown(self._archive, self._seen, look_back=LOOK_BACK)
        now = monotonic()
        self._waiting.update(dict.fromkeys(grown, now + self._quiet_seconds))
        for pk in [pk for pk, quiet_at in self._waiting.items() if quiet_at <= now]:
            if self._stopping.is_set():
                return
            del self._waiting[pk]
            self._prepare(pk)
        if not self._waiting:
            self._alike = Lines()

    def _prepare(self, series_pk: int) -> None:
        try:
            series_metadata.prepare(self._archive, series_pk, alike=self._alike, stopping=self._stopping)
        except ArchiveError as error:
            log.warning("the metadata of a series are not ready", series=series_pk, error=type(error).__name__)
        except Exception:  # a bug: the other series do not suffer from it
            log.exception("the metadata of a series are not ready", series=series_pk)

    def _run(self) -> None:
        if sys.platform == "linux":  # where it is the priority of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stopping.is_set():
            try:
                self.look()
            except ArchiveError as error:
                log.error("new series cannot be looked for", error=type(error).__name__)
            except Exception:
                log.exception("new series cannot be looked for")
            self._stopping.wait(LOOK_SECONDS)
