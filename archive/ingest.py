"""The only way in. C-STORE, STOW-RS, import and recovery all end here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Select, bindparam, select

from archive import forwarding
from archive.access import SYSTEM, Action, Actor, Door, demand
from archive.audit.accesses import Access
from archive.audit.record import Event, record, refused
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.dicom.header import Header, read_header
from archive.errors import (
    ArchiveError,
    Conflict,
    Gone,
    NotAllowed,
    Rejected,
    RejectedBefore,
    UidMismatch,
    Unavailable,
)
from archive.identity.dicom import ins_of
from archive.index.arrival import RECOVERED, Arrival, Notify
from archive.index.aside import replace_first
from archive.index.conditions import constant
from archive.index.copies import add_cold_copy
from archive.index.said import said_of
from archive.index.write import add_instance, quarantine, repair_instance
from archive.instance import TAKEN_IN, CopyState, Outcome, State
from archive.schema import instance, location
from archive.schema.types import AnyRow
from archive.sites import is_imported
from archive.storage.incoming import Incoming
from archive.storage.part10 import HEAD_BYTES, read_meta
from archive.work_items import Kind, Resolved, close_item
from archive.workflow.rejections import rejected

__all__ = ["Outcome", "adopt", "adopt_cold", "arrival_of", "ingest"]

log = structlog.get_logger(__name__)

_COPY = (
    location.c.pk,
    location.c.tier,
    location.c.path,
    location.c.transfer_syntax_uid,
    location.c.digest,
    location.c.file_bytes,
    location.c.data_set_offset,
)
_COPIES = (
    select(*_COPY)
    .join_from(location, instance)
    .where(
        instance.c.sop_instance_uid == bindparam("sop_instance_uid"), location.c.state == constant(str(CopyState.OK))
    )
    .order_by(location.c.tier.desc(), location.c.pk)  # hot before cold
)
_original = instance.alias("original")
_IN_ITS_STEAD = (  # of an original that was replaced: the copies of its derived instance
    select(*_COPY)
    .select_from(
        location.join(instance, instance.c.pk == location.c.instance_pk).join(
            _original, _original.c.pk == instance.c.derived_from_pk
        )
    )
    .where(
        _original.c.sop_instance_uid == bindparam("sop_instance_uid"),
        _original.c.state.in_([State.REPLACED, State.UNFIT]),
        instance.c.state.in_([State.STORED, State.UNFIT]),
        location.c.state == constant(str(CopyState.OK)),
    )
)
_SOURCES = {Door.DICOM: "network", Door.COMMAND: "media"}


def ingest(archive: Archive, incoming: Incoming, *, actor: Actor, scope: str = "", forward: bool = True) -> Outcome:
    """Make one received instance durable and findable.

    Once this returns, the instance outlives a crash or a power cut and the caller may acknowledge it (REQ-DCM-14).
    The data set is kept bit for bit: Level 2 of PS3.4 B.4.1. Safe to repeat. `scope` is the association or
    import: one opening row for each scope and study (law 4); "" for none. Without `forward` no rule sends it on: what
    was fetched from another archive came because somebody here asked.

    Raises:
        UnreadableInstance: the header up to Pixel Data cannot be parsed.
        UidMismatch: a UID is missing, illegal, or not the one that was announced (REQ-DCM-16).
        Gone: it was purged; the refusal is audited (C0F2).
        RejectedBefore: it was rejected for good; the refusal is audited (C0F3).
        NotAllowed: it is a rejection note, and the actor may not reject; the refusal is audited.
        Unavailable: nothing was promised; sending again may help.
    """
    try:
        header = _header(archive, incoming)
        offset, length = incoming.data_set_offset, incoming.data_set_bytes
        charset = archive.settings.dicom.default_charset
        said = said_of(incoming.fd, header, offset=offset, length=length, default_charset=charset)
        if said.rejects:
            _demand_right(archive, header, actor)
    except ArchiveError:
        incoming.discard()
        raise
    try:
        incoming.settle()  # flushed, then named; from here only a known outcome removes it (law 7)
    except Unavailable:
        incoming.discard()
        raise
    try:
        source = f"{_SOURCES.get(actor.door, 'web')}:{actor.user}"
        arrival = Arrival(
            header=header,
            path=incoming.final,
            absolute_path=incoming.path,
            file_bytes=incoming.file_bytes,
            data_set_offset=incoming.data_set_offset,
            digest=incoming.digest,
            source=source,
            authorities=archive.authorities,
            ins=_ins_brought(archive, header, source),
            at=archive.clock(),
            roots=_roots(archive),
            said=said,
            notify=_notify(archive),
        )
        calling_ae = incoming.meta.source_ae if actor.door is Door.DICOM else ""
        rules = forwarding.wanted_by(archive.settings, header, calling_ae) if forward else ()
        return _record(archive, arrival, actor, scope, rules)
    finally:
        incoming.close()


def adopt(archive: Archive, path: str, *, actor: Actor, forward: bool = False) -> Outcome:
    """Take in a finished file that lies in the hot tier without a row: power failed before its COMMIT, or the
    database is older than the files. `path` is relative to the tier. With `forward` the rules that would have sent it
    on still do.

    Raises:
        Gone: it was purged, and the file is removed.
        Rejected: it is not an instance that can be filed; it stays where it is.
    """
    arrival = replace(arrival_of(archive, path), notify=_notify(archive))
    rules = forwarding.wanted_by(archive.settings, arrival.header, arrival.source_ae) if forward else ()
    return _record(archive, arrival, actor, "", rules)


def adopt_cold(archive: Archive, path: str) -> Outcome:
    """Take in a finished file that lies in the cold tier without a row: as one more copy of an instance that is known,
    or as the only one. `path` is relative to the tier.

    Raises:
        Gone: it was purged, and the file is removed.
        Rejected: it is not an instance, or other content under a known SOP Instance UID; it stays where it is.
    """
    arrival = arrival_of(archive, path, tier="cold")
    directories = [os.path.dirname(arrival.absolute_path)]
    try:
        outcome = archive.commit.run(partial(add_cold_copy, arrival=arrival), directories=directories)
    except Gone:
        archive.cold.unlink(path)
        raise
    if outcome is not Outcome.SAME_UID:
        return outcome
    if _is_recoded(archive, arrival):
        return archive.commit.run(partial(add_cold_copy, arrival=arrival, recoded=True), directories=directories)
    raise Conflict("other content under a SOP Instance UID that is known")


def arrival_of(archive: Archive, path: str, *, tier: str = "hot") -> Arrival:
    """Read a finished file to its end: what is to be said of it when it is filed. It was received when the name of its
    folder says: retention counts from there.

    Raises:
        Rejected: it is not an instance that can be filed.
        OSError: it cannot be read.
    """
    absolute = archive.tier(tier).path(path)
    sha = hashlib.sha256()
    with open(absolute, "rb") as file:
        meta, offset = read_meta(file.read(HEAD_BYTES))
        file.seek(offset)
        while piece := file.read(1 << 20):
            sha.update(piece)
        length = file.tell()
        where: Any = {
            "offset": offset,
            "length": length - offset,
            "default_charset": archive.settings.dicom.default_charset,
        }
        header = read_header(file.fileno(), transfer_syntax_uid=meta.transfer_syntax_uid, **where)
        said = said_of(file.fileno(), header, **where)
    source = f"{RECOVERED}{meta.source_ae}"
    return Arrival(
        header=header,
        path=path,
        absolute_path=absolute,
        file_bytes=length,
        data_set_offset=offset,
        digest=sha.hexdigest(),
        source=source,
        authorities=archive.authorities,
        ins=_ins_brought(archive, header, source),
        at=named_minute(path) or archive.clock(),
        roots=_roots(archive),
        tier=tier,
        said=said,
        recovered=True,
    )


def named_minute(path: str) -> datetime | None:
    """When a file was received: the minute (UTC) of its folder, `2025/11/22/1405/…`; None for another folder."""
    try:
        return datetime.strptime(path.rpartition("/")[0], "%Y/%m/%d/%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None


def _record(archive: Archive, arrival: Arrival, actor: Actor, scope: str, rules: tuple[str, ...] = ()) -> Outcome:
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
    try:
        # an index that is made anew gets the facts from the journal, which nobody else writes meanwhile
        told = None if arrival.recovered and archive.journal.ahead else archive.real_clock()
        owe = partial(forwarding.owe, rules=rules, header=arrival.header, at=archive.real_clock()) if rules else None
        write = partial(_file, arrival, access, told, owe)
        outcome = archive.commit.run(write, directories=directories)
        if outcome is Outcome.ALREADY_STORED and (damaged := _damaged(archive, arrival)):
            outcome = archive.commit.run(
                partial(repair_instance, arrival=arrival, damaged=damaged), directories=directories
            )
        if outcome is Outcome.SAME_UID:  # other bytes: compare the meaning, outside the commit thread
            outcome = _settle_same_uid(archive, arrival)
            if outcome is Outcome.QUARANTINED and archive.settings.dicom.uid_conflict == "replace":
                outcome = _replace(archive, arrival)
    except (Gone, RejectedBefore) as error:
        _refuse(archive, arrival, actor, error)
        raise
    if outcome is Outcome.ALREADY_STORED:
        archive.hot.unlink(arrival.path)
    access.count(instances=1, bytes=arrival.file_bytes - arrival.data_set_offset)
    return outcome


def _refuse(archive: Archive, arrival: Arrival, actor: Actor, error: Rejected) -> None:
    """What was purged or rejected stays so: the refusal is written down, then the file goes (REQ-DCM-15)."""
    refused(
        archive.commit,
        actor,
        Event.INSTANCES_TRANSFERRED,
        "C",
        reason=str(error),
        patient=arrival.patient_cx or None,
        study=arrival.header.study_instance_uid,
        detail={"sop_instance_uid": arrival.header.sop_instance_uid},
    )
    archive.hot.unlink(arrival.path)


def _ins_brought(archive: Archive, header: Header, source: str) -> tuple[str, ...]:
    """Others than the practice name a patient by the INS: whoever shares images (REQ-DRIM-08), nobody else."""
    if not is_imported(archive.settings.sharing, source):
        return ()
    return ins_of(header.levels[Level.PATIENT], archive.settings.identity.ins_oids)


def _roots(archive: Archive) -> dict[str, str]:
    return {tier.name: tier.path("") for tier in (archive.hot, archive.cold)}


def _notify(archive: Archive) -> Notify | None:
    """When peers are told of what arrives now (archive.notification)."""
    settings = archive.settings.dicom
    if not settings.listeners():
        return None
    quiet, now = timedelta(seconds=settings.notify_quiet_seconds), archive.real_clock()
    return Notify(after=now + quiet, at=now + quiet * 1.5)


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


def _demand_right(archive: Archive, header: Header, actor: Actor) -> None:
    try:
        demand(actor, Action.REJECT)
    except NotAllowed as error:
        study, event = header.study_instance_uid, Event.INSTANCES_ACCESSED
        refused(archive.commit, actor, event, "D", reason=str(error), study=study)
        raise


def _file(
    arrival: Arrival, access: Access, told: datetime | None, owe: Callable[[Connection], None] | None, conn: Connection
) -> Outcome:
    outcome = add_instance(conn, arrival)
    access.record_opening(conn)
    if outcome in TAKEN_IN and arrival.said.rejects and told is not None:
        rejected(conn, arrival.header.sop_instance_uid, actor=access.actor, at=arrival.at, now=told)
    if owe is not None and (outcome in TAKEN_IN or outcome is Outcome.STORED_HELD):
        owe(conn)
    return outcome


def _damaged(archive: Archive, arrival: Arrival) -> list[int]:
    """The held copies that are not what was stored, until the first good one (law 7: it is read, not believed)."""
    damaged: list[int] = []
    for row in _held(archive, arrival, _COPIES) or _held(archive, arrival, _IN_ITS_STEAD):
        reason = archive.tier(row.tier).damage(
            row.path, digest=row.digest, file_bytes=row.file_bytes, data_set_offset=row.data_set_offset
        )
        if not reason:
            return []
        log.error("a copy is damaged", sop_instance_uid=arrival.header.sop_instance_uid, path=row.path, why=reason)
        damaged.append(row.pk)
    return damaged


def _held(archive: Archive, arrival: Arrival, statement: Select[Any]) -> Sequence[AnyRow]:
    with archive.reading() as conn:
        return conn.execute(statement, {"sop_instance_uid": arrival.header.sop_instance_uid}).all()


def _settle_same_uid(archive: Archive, arrival: Arrival) -> Outcome:
    """REQ-DCM-15: the same image in another lossless syntax is a duplicate; other content goes to quarantine."""
    if _is_recoded(archive, arrival):
        return Outcome.ALREADY_STORED
    kept = archive.commit.run(partial(quarantine, arrival=arrival))
    log.warning(
        "other content under a known SOP Instance UID is kept aside", sop_instance_uid=arrival.header.sop_instance_uid
    )
    if not kept:
        archive.hot.unlink(arrival.path)
    return Outcome.QUARANTINED


def _replace(archive: Archive, arrival: Arrival) -> Outcome:
    """By `dicom.uid_conflict`: what was just set aside stands for the first, where nothing speaks against it."""
    try:
        archive.commit.run(partial(_stand, arrival=arrival))
    except Conflict as error:
        log.warning("it does not replace the first", sop_instance_uid=arrival.header.sop_instance_uid, why=str(error))
        return Outcome.QUARANTINED
    return arrival.irregularity or Outcome.STORED


def _stand(conn: Connection, *, arrival: Arrival) -> None:
    uid, resolved = arrival.header.sop_instance_uid, Resolved(arrival.at, SYSTEM.user, "replace: dicom.uid_conflict")
    became = replace_first(conn, arrival, resolved)
    close_item(conn, Kind.UID_CONFLICT, uid, at=resolved.at, **resolved.said)
    detail = {"kind": Kind.UID_CONFLICT, "as": "replace", "setting": "dicom.uid_conflict", **became}
    study = arrival.header.study_instance_uid
    patient = arrival.patient_cx or None
    record(conn, SYSTEM, Event.INSTANCES_ACCESSED, "U", patient=patient, study=study, detail=detail)


def _is_recoded(archive: Archive, arrival: Arrival) -> bool:
    """Whether a copy that is held says the same in other bytes."""
    from archive.dicom.compare import Copy, same_meaning

    new = Copy(arrival.absolute_path, arrival.header.transfer_syntax_uid)
    held = (
        Copy(archive.tier(row.tier).path(row.path), row.transfer_syntax_uid) for row in _held(archive, arrival, _COPIES)
    )
    charset = archive.settings.dicom.default_charset
    return any(same_meaning(copy, new, fallback=charset) for copy in held)
