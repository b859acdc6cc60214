"""The job `dicom.send`: a C-STORE SCU (PS3.4 Annex B) for what `archive.sending` keeps waiting.

One association for a job, instances in batches. What the peer acknowledged is recorded every half second, so that a job
that is broken off goes on there. Status decides: success and warnings are sent; A7xx means that the peer has no room
now, and the job waits; any other is a failure of that instance alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from pynetdicom.status import code_to_category

from archive import sending
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import ArchiveError, Busy, Conflict, StorageFailed
from archive.jobs import Job
from archive.outgoing import outgoing
from archive.retrieve import Access, Stored, again, open_access, select
from archive.sending import Waiting
from dicom_scp.ends import AssociationEnd, CopyEnded, NotAssociated
from dicom_scp.requestor import Requestor
from dicom_scp.send import Sender, propose, store_status
from dicom_scp.status import Status

log = structlog.get_logger(__name__)

_AT_ONCE = 500  # instances in memory
_RECORD_SECONDS = 0.5  # between two records of what was acknowledged
_RECORD_INSTANCES = 100


class _Over(Exception):
    """The job was cancelled, or another process has it."""


def deliver(archive: Archive, job: Job) -> Mapping[str, Any]:
    """Send what a job has waiting; its result, once all was sent.

    Raises:
        AssociationEnd, Unavailable: it is worth trying again; what was acknowledged is recorded.
        NotFound: the settings do not say where the peer is. Conflict: some were refused, each with its reason.
    """
    delivery = _Delivery(archive, job)
    try:
        waiting = sending.waiting(archive, job)
        delivery.record()
        for start in range(0, len(waiting), _AT_ONCE):
            delivery.send(waiting[start : start + _AT_ONCE])
        delivery.record()
    except _Over:
        log.info("a sending was taken away", job=job.id)
        delivery.end()
        return {}
    except BaseException:
        delivery.end()
        with contextlib.suppress(_Over, ArchiveError):
            delivery.record()
        raise
    delivery.end(released=True)
    with archive.reading() as conn:
        done = sending.counts(conn, [job.id]).get(job.id, sending.Counts())
        refused = sending.failures(conn, job.id, limit=1)
    if refused:
        raise Conflict(f"{done.failed} of {done.total} instances were not taken; the first: {refused[0]['reason']}")
    return {"sent": done.sent}


class _Delivery:
    def __init__(self, archive: Archive, job: Job) -> None:
        name = str(job.payload["peer"])
        self._archive = archive
        self._job = job
        self._peer = sending.peer_named(archive, name)
        self._ae_title = self._peer.ae_title or name
        self._scope = f"job {job.id}"
        self._requestor: Requestor | None = None
        self._sender: Sender | None = None
        self._offered: frozenset[tuple[str, str]] = frozenset()
        self._sent: list[int] = []
        self._failed: list[tuple[int, str]] = []
        self._recorded = monotonic()

    def send(self, waiting: Sequence[Waiting]) -> None:
        """Send a batch. Raises as `deliver`, and _Over."""
        stored = select(
            self._archive,
            instance_uids=[one.sop_instance_uid for one in waiting],
            replaced=True,
            hidden=self._job.payload["rule"] == sending.REJECTIONS,  # a note of (113039, DCM) hides itself
        )
        by_uid = {one.sop_instance_uid: one for one in stored}
        current = [one for one in stored if not one.replaced]
        access = open_access(
            self._archive,
            current,
            actor=sending.actor_of(self._job),
            scope=self._scope,
            destination=self._ae_title,
        )
        for one in waiting:
            found = by_uid.get(one.sop_instance_uid)
            if found is None:
                self._fail(one, "it is not held here any more")
            elif found.replaced:
                self._fail(one, str(found.gone))
            else:
                self._one(one, found, current, access)
            self._record_now_and_then()

    def _one(self, waiting: Waiting, stored: Stored, batch: Sequence[Stored], access: Access) -> None:
        sender = self._associated(batch)
        try:
            status = self._status(sender, stored)
        except CopyEnded as error:
            self._hang_up()
            access.failed(stored)
            self._fail(waiting, str(error))
        except AssociationEnd as error:
            why, at = str(error), self._archive.real_clock()
            self._archive.commit.run(lambda conn: sending.interrupted(conn, waiting, why, at=at))
            raise
        except ArchiveError as error:
            access.failed(stored)
            self._fail(waiting, str(error))
        else:
            if status == Status.SUCCESS or code_to_category(status) == "Warning":
                access.count(stored, stored.data_set_bytes)
                self._sent.append(waiting.pk)
            elif status & 0xFF00 == Status.OUT_OF_RESOURCES:
                raise Busy(f"the peer has no room now (status {status:04X})")
            else:
                access.failed(stored)
                self._fail(waiting, f"the peer answered {status:04X}")

    def _status(self, sender: Sender, stored: Stored) -> int:
        """What the peer answers. A file that is gone since the selection may lie in the other tier now."""
        try:
            return sender.send(stored)
        except StorageFailed:
            now = again(self._archive, stored)
            if now is None:
                raise
            return sender.send(now)

    def _associated(self, batch: Sequence[Stored]) -> Sender:
        """The association of this job; a new one where it lacks a context that a batch needs."""
        proposed = propose(batch)
        wanted = {(one.abstract_syntax, syntax) for one in proposed for syntax in one.transfer_syntaxes}
        if self._sender is not None and wanted <= self._offered:
            return self._sender
        self._hang_up(released=True)
        requestor = Requestor.open(self._archive.settings, self._ae_title, self._peer, proposed)
        self._requestor, self._offered = requestor, frozenset(wanted)
        if not requestor.exchange.contexts:
            raise NotAssociated("the peer accepts none of the contexts")
        self._sender = Sender(
            requestor.exchange,
            leaving=partial(outgoing, self._archive),
            answered=lambda message_id: store_status(requestor.receive(), message_id),
            between=self._between,
        )
        return self._sender

    def _fail(self, one: Waiting, why: str) -> None:
        log.warning("an instance was not sent", why=why, sop_instance_uid=one.sop_instance_uid, scope=self._scope)
        self._failed.append((one.pk, why))

    def _record_now_and_then(self) -> None:
        many = len(self._sent) + len(self._failed) >= _RECORD_INSTANCES
        if many or monotonic() - self._recorded >= _RECORD_SECONDS:
            self.record()

    def _between(self) -> None:
        """In the middle of an instance: what the database refuses now is said after it."""
        with contextlib.suppress(ArchiveError):
            self._record_now_and_then()

    def record(self) -> None:
        """Have durable what became of instances, and the job leased on. Raises _Over."""
        write: Callable[..., bool] = partial(
            sending.record_progress,
            one=self._job,
            sent=self._sent,
            failed=self._failed,
            at=self._archive.real_clock(),
            patience_seconds=self._archive.settings.dicom.dimse_seconds,
        )
        mine = self._archive.commit.run(write)
        self._sent, self._failed, self._recorded = [], [], monotonic()
        if not mine:
            raise _Over

    def end(self, *, released: bool = False) -> None:
        """Let go of the association, and close what the audit says of it."""
        self._hang_up(released=released)
        self._archive.accesses.end_scope(self._scope)

    def _hang_up(self, *, released: bool = False) -> None:
        requestor, self._requestor, self._sender = self._requestor, None, None
        if requestor is not None and released:
            requestor.release()
        elif requestor is not None:
            requestor.abort()
