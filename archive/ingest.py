"""The only way in. C-STORE, STOW-RS, import and recovery all end here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial

import structlog
from sqlalchemy import Connection, bindparam, select

from archive.access import Actor, Door
from archive.audit.accesses import Access
from archive.audit.record import Event
from archive.core import Archive
from archive.dicom.header import Header, read_header
from archive.errors import Rejected, UidMismatch, Unavailable
from archive.index.write import Arrival, add_instance, quarantine, repair_instance
from archive.instance import CopyState, Outcome
from archive.schema import instance, location
from archive.schema.types import AnyRow
from archive.storage.incoming import Incoming
from archive.storage.part10 import HEAD_BYTES, read_meta

__all__ = ["Outcome", "adopt", "ingest"]

log = structlog.get_logger(__name__)

_COPIES = (
    select(
        location.c.pk,
        location.c.path,
        location.c.transfer_syntax_uid,
        location.c.digest,
        location.c.file_bytes,
        location.c.data_set_offset,
    )
    .join_from(location, instance)
    .where(
        instance.c.sop_instance_uid == bindparam("sop_instance_uid"),
        location.c.state == CopyState.OK,
        location.c.tier == "hot",
    )
)
_SOURCES = {Door.DICOM: "network", Door.COMMAND: "media"}


def ingest(archive: Archive, incoming: Incoming, *, actor: Actor, scope: str = "") -> Outcome:
    """Make one received instance durable and findable.

    Once this returns, the instance outlives a crash or a power cut and the caller may acknowledge it (REQ-DCM-14).
    The data set is kept bit for bit: Level 2 of PS3.4 B.4.1. Safe to repeat. `scope` is the association or
    import: one opening row for each scope and study (law 4); "" for none.

    Raises:
        UnreadableInstance: the header up to Pixel Data cannot be parsed.
        UidMismatch: a UID is missing, illegal, or not the one that was announced (REQ-DCM-16).
        Unavailable: nothing was promised; sending again may help.
    """
    try:
        header = _header(archive, incoming)
    except Rejected:
        incoming.discard()
        raise
    try:
        incoming.settle()  # flushed, then named; from here only a known outcome removes it (law 7)
    except Unavailable:
        incoming.discard()
        raise
    try:
        arrival = Arrival(
            header=header,
            path=incoming.final,
            absolute_path=incoming.path,
            file_bytes=incoming.file_bytes,
            data_set_offset=incoming.data_set_offset,
            digest=incoming.digest,
            source=f"{_SOURCES.get(actor.door, 'web')}:{actor.user}",
            default_issuer=archive.settings.dicom.default_issuer,
            at=archive.clock(),
        )
        return _record(archive, arrival, actor, scope)
    finally:
        incoming.close()


def adopt(archive: Archive, path: str, *, actor: Actor) -> Outcome:
    """Take in a finished file that lies in the hot tier without a row: power failed before its COMMIT, or the
    database is older than the files. `path` is relative to the tier.

    Raises:
        Rejected: it is not an instance that can be filed; it stays where it is.
    """
    absolute = archive.hot.path(path)
    sha = hashlib.sha256()
    with open(absolute, "rb") as file:
        meta, offset = read_meta(file.read(HEAD_BYTES))
        file.seek(offset)
        while piece := file.read(1 << 20):
            sha.update(piece)
        length = file.tell()
        header = read_header(
            file.fileno(),
            offset=offset,
            length=length - offset,
            transfer_syntax_uid=meta.transfer_syntax_uid,
            default_charset=archive.settings.dicom.default_charset,
        )
    arrival = Arrival(
        header=header,
        path=path,
        absolute_path=absolute,
        file_bytes=length,
        data_set_offset=offset,
        digest=sha.hexdigest(),
        source=f"recovered:{meta.source_ae}",
        default_issuer=archive.settings.dicom.default_issuer,
        at=archive.clock(),
    )
    return _record(archive, arrival, actor, "")


def _record(archive: Archive, arrival: Arrival, actor: Actor, scope: str) -> Outcome:
    """Row and audit for a file that is durable and named; removes the file when it is not needed."""
    access = archive.accesses.access(
        actor,
        Event.INSTANCES_TRANSFERRED,
        "C",
        study=arrival.header.study_instance_uid,
        patient=arrival.patient_cx,
        scope=scope,
    )
    directories = [os.path.dirname(arrival.absolute_path)]
    outcome = archive.commit.run(partial(_file, arrival, access), directories=directories)
    if outcome is Outcome.ALREADY_STORED and (damaged := _damaged(archive, arrival)):
        outcome = archive.commit.run(
            partial(repair_instance, arrival=arrival, damaged=damaged), directories=directories
        )
    if outcome is Outcome.SAME_UID:  # other bytes: compare the meaning, outside the commit thread
        outcome = _settle_same_uid(archive, arrival)
    if outcome is Outcome.ALREADY_STORED:
        archive.hot.unlink(arrival.path)
    access.count(instances=1, bytes=arrival.file_bytes - arrival.data_set_offset)
    return outcome


def _header(archive: Archive, incoming: Incoming) -> Header:
    header = read_header(
        incoming.fd,
        offset=incoming.data_set_offset,
        length=incoming.data_set_bytes,
        transfer_syntax_uid=incoming.meta.transfer_syntax_uid,
        default_charset=archive.settings.dicom.default_charset,
    )
    announced = incoming.meta
    if announced.sop_class_uid != header.sop_class_uid:
        raise UidMismatch("the SOP Class UID is not the one that was announced", tag=0x00080016)
    if announced.sop_instance_uid != header.sop_instance_uid:
        raise UidMismatch("the SOP Instance UID is not the one that was announced", tag=0x00080018)
    return header


def _file(arrival: Arrival, access: Access, conn: Connection) -> Outcome:
    outcome = add_instance(conn, arrival)
    access.record_opening(conn)
    return outcome


def _damaged(archive: Archive, arrival: Arrival) -> list[int]:
    """The held copies that are not what was stored, until the first good one (law 7: it is read, not believed)."""
    damaged: list[int] = []
    for row in _held(archive, arrival):
        reason = archive.hot.damage(
            row.path, digest=row.digest, file_bytes=row.file_bytes, data_set_offset=row.data_set_offset
        )
        if not reason:
            return []
        log.error("a copy is damaged", sop_instance_uid=arrival.header.sop_instance_uid, path=row.path, why=reason)
        damaged.append(row.pk)
    return damaged


def _held(archive: Archive, arrival: Arrival) -> Sequence[AnyRow]:
    with archive.reading() as conn:
        return conn.execute(_COPIES, {"sop_instance_uid": arrival.header.sop_instance_uid}).all()


def _settle_same_uid(archive: Archive, arrival: Arrival) -> Outcome:
    """REQ-DCM-15: the same image in another lossless syntax is a duplicate; other content goes to quarantine."""
    from archive.dicom.compare import Copy, same_meaning

    uid = arrival.header.sop_instance_uid
    new = Copy(arrival.absolute_path, arrival.header.transfer_syntax_uid)
    for row in _held(archive, arrival):
        if same_meaning(Copy(archive.hot.path(row.path), row.transfer_syntax_uid), new):
            return Outcome.ALREADY_STORED
    kept = archive.commit.run(partial(quarantine, arrival=arrival))
    log.warning("other content under a known SOP Instance UID is kept aside", sop_instance_uid=uid)
    if not kept:
        archive.hot.unlink(arrival.path)
    return Outcome.QUARANTINED
