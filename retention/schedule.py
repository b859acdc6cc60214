"""When retention works: a tick every `retention.tick_seconds` of real time, and what others ask for at once."""

from __future__ import annotations

import threading
import uuid

import structlog

from archive import jobs
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, Busy
from archive.jobs import Job
from retention.tick import Ticked, tick

log = structlog.get_logger(__name__)

KINDS = ("retention.run",)
LOOK_SECONDS = 0.5  # between two looks for jobs
PATIENCE_SECONDS = 60.0  # of a job for a tick that another process is at


class Schedule:
    """The loop of one retention process. Moving the clock of a test bed starts no tick: their time is real."""

    def __init__(self, archive: Archive, stopping: threading.Event) -> None:
        self._archive = archive
        self._stopping = stopping
        self._holder = str(uuid.uuid4())

    def run(self) -> None:
        """Until `stopping` is set. A tick that fails is logged; the next one tries again."""
        due = monotonic()
        while not self._stopping.is_set():
            if monotonic() >= due:
                self._tick()
                due = monotonic() + self._archive.settings.retention.tick_seconds
            self._serve_jobs()
            self._stopping.wait(LOOK_SECONDS)

    def _tick(self) -> None:
        try:
            tick(self._archive, stopping=self._stopping)
        except Busy:
            log.info("another process is at the tick")
        except ArchiveError as error:
            log.error("the tick failed", error=type(error).__name__, detail=str(error))
        except Exception:  # a bug: the next tick may get further
            log.exception("the tick failed")

    def _serve_jobs(self) -> None:
        try:
            while not self._stopping.is_set():
                job = jobs.claim(self._archive, KINDS, holder=self._holder)
                if job is None:
                    return
                self._do(job)
        except ArchiveError as error:
            log.error("jobs cannot be taken", error=type(error).__name__)
        except Exception:  # a bug: whoever asked waits in vain, others need not
            log.exception("a job broke down")

    def _do(self, job: Job) -> None:
        """Do one job; whoever asked waits for it, so it is not tried again later."""

        def progress(_done: int, _total: int) -> None:
            jobs.extend(self._archive, job)

        try:
            ticked: Ticked = tick(
                self._archive, stopping=self._stopping, patience_seconds=PATIENCE_SECONDS, progress=progress
            )
        except ArchiveError as error:
            log.error("a tick that was asked for failed", error=type(error).__name__)
            jobs.fail(self._archive, job, str(error), again=False)
        except Exception:
            log.exception("a tick that was asked for failed")
            jobs.fail(self._archive, job, "the tick broke down; the log of the archive says why", again=False)
        else:
            jobs.finish(self._archive, job, ticked.counts())
