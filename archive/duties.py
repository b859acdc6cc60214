"""Does the jobs that are the duty of one edge, some at a time, until it stops (STYLE §1, `archive.jobs`)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from archive import jobs
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, Rejected
from archive.jobs import Job

log = structlog.get_logger(__name__)

FINISH_SECONDS = 5.0
LOOK_SECONDS = 0.5  # between two looks for jobs
AT_ONCE = 4  # a peer that does not answer holds one of these, not the others

Duty = Callable[[Archive, Job], Mapping[str, Any]]  # its result; what it raises is tried again, unless Rejected


class Duties:
    """Does jobs of some kinds until it is closed. `failures` are the exceptions, beside those of the archive, that mean
    a peer did not do its part; `also` is what is looked after each time, before the jobs."""

    def __init__(
        self,
        archive: Archive,
        duties: Mapping[str, Duty],
        *,
        failures: tuple[type[Exception], ...] = (),
        also: Sequence[Callable[[Archive], object]] = (),
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._archive = archive
        self._duties = duties
        self._failures: tuple[type[Exception], ...] = (*failures, ArchiveError)
        self._also = also
        self._holder = str(uuid.uuid4())
        self._look_seconds = look_seconds
        self._stopping = threading.Event()
        self._free = threading.Semaphore(AT_ONCE)
        self._thread = threading.Thread(target=self._run, name="duties", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Begin nothing more, and let what is being done end within five seconds; else it is done again later."""
        self._stopping.set()
        self._thread.join()
        until = monotonic() + FINISH_SECONDS
        for _ in range(AT_ONCE):
            self._free.acquire(timeout=max(0, until - monotonic()))

    def _run(self) -> None:
        while not self._stopping.wait(self._look_seconds):
            for look in (*self._also, self._begin_all):
                try:
                    look(self._archive)
                except ArchiveError as error:
                    log.error("jobs cannot be taken", error=type(error).__name__)
                except Exception:  # a bug: whoever asked waits in vain, others need not
                    log.exception("a job broke down")

    def _begin_all(self, _archive: Archive) -> None:
        while not self._stopping.is_set() and self._begin():
            pass

    def _begin(self) -> bool:
        """Begin one job, if there is one and a thread for it."""
        if not self._free.acquire(blocking=False):
            return False
        job: Job | None = None
        try:
            job = jobs.claim(self._archive, tuple(self._duties), holder=self._holder)
        finally:
            if job is None:
                self._free.release()
        if job is None:
            return False
        threading.Thread(target=self._do, args=(job,), name=f"duty-{job.id}", daemon=True).start()
        return True

    def _do(self, job: Job) -> None:
        try:
            self._settle(job)
        except ArchiveError as error:  # its lease ends, and it is done again
            log.error("a job cannot be settled", kind=job.kind, job=job.id, error=type(error).__name__)
        except Exception:
            log.exception("a job broke down", kind=job.kind, job=job.id)
        finally:
            self._free.release()

    def _settle(self, job: Job) -> None:
        try:
            result = self._duties[job.kind](self._archive, job)
        except self._failures as error:
            again = not (isinstance(error, Rejected) or job.payload.get("once"))
            log.warning(
                "a peer did not do its part",
                kind=job.kind,
                job=job.id,
                attempt=job.attempts,
                why=str(error),
                again=again,
            )
            jobs.fail(self._archive, job, str(error), again=again)
        except Exception:
            log.exception("a job broke down", kind=job.kind, job=job.id)
            jobs.fail(self._archive, job, "it broke down; the log of the archive says why", again=False)
        else:
            jobs.finish(self._archive, job, result)
