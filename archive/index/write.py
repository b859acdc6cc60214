"""Putting a received instance into the index. Called in a write of `GroupCommit`: safe to run twice, never commits."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, bindparam, literal, select, union_all, update

from archive.dicom.attributes import Level
from archive.dicom.corrections import coerces_identifier, identity, said
from archive.errors import Gone
from archive.index.arrival import Arrival
from archive.index.doses import add_doses
from archive.index.parents import place
from archive.index.references import add_references
from archive.index.rejections import add_note, refuse_again, settle, settle_arrival, show
from archive.index.replaced import bring_back, derived_of
from archive.instance import HIDDEN, CopyState, Outcome, State
from archive.schema import instance, location, quarantined, tombstone
from archive.schema.prepared import Prepared
from archive.schema.types import AnyRow
from archive.storage import marker
from archive.work_items import Kind, open_item

# What is known of a SOP Instance UID: an instance, or what a purge left of one (pk 0).
_INSTANCE = Prepared(
    union_all(
        select(instance.c.pk, instance.c.digest, instance.c.state).where(
            instance.c.sop_instance_uid == bindparam("uid")
        ),
        select(literal(0), tombstone.c.digest, literal("purged")).where(
            tombstone.c.sop_instance_uid == bindparam("uid")
        ),
    )
)
_COPIES = (
    select(location.c.pk, location.c.tier, location.c.path, location.c.file_bytes, location.c.state)
    .where(location.c.instance_pk == bindparam("instance_pk"), location.c.state != CopyState.PURGING)
    .order_by(location.c.pk)
)
_STATE = select(instance.c.state).where(instance.c.pk == bindparam("instance_pk")).with_for_update()
_DAMAGED = (  # a copy that is being removed stays so, whatever is seen of it (law 2)
    update(location)
    .where(location.c.pk == bindparam("location_pk"), location.c.state != CopyState.PURGING)
    .values(state=CopyState.DAMAGED)
)


_ADD_INSTANCE = Prepared(
    instance.insert().returning(instance.c.pk),
    columns=(
        *("series_pk", "sop_instance_uid", "sop_class_uid", "instance_number", "state", "digest", "source"),
        *("received_at", "attributes", "identity", "held_for"),
    ),
)
_ADD_LOCATION = Prepared(
    location.insert(),
    columns=(
        *("instance_pk", "tier", "path", "state", "transfer_syntax_uid", "digest", "file_bytes", "data_set_offset"),
        "pixel_offset",
    ),
)


class _Known(NamedTuple):
    """What is known of a SOP Instance UID."""

    pk: int  # 0: it was purged
    digest: str
    state: str


def _known(conn: Connection, sop_instance_uid: str) -> _Known | None:
    row = _INSTANCE.first(conn, {"uid": sop_instance_uid})
    return _Known(*row) if row is not None else None


def add_instance(conn: Connection, arrival: Arrival) -> Outcome:
    """File an instance under its patient, study and series.

    Returns STORED or one of its kinds, STORED_HELD, ALREADY_STORED (the file is not needed), REPAIRED, or SAME_UID:
    other bytes stand under this SOP Instance UID, and nothing was written.

    Raises:
        Gone: it was purged at the end of its retention (C0F2), or rejected by it.
        RejectedBefore: it was rejected for good (C0F3).
    """
    header = arrival.header
    known = _known(conn, header.sop_instance_uid)
    if known is not None and not known.pk:
        raise Gone("it was purged at the end of its retention: «minipacs import --restore-purged» takes it back")
    if known is not None:
        return _again_hidden(conn, arrival) if known.state in HIDDEN else _again(conn, arrival, known)
    parents, contradiction = place(conn, arrival)
    patient_pk = parents.patient_pk
    # the subject of its work item
    conflict = f"{header.study_instance_uid} {arrival.identity_key}" if contradiction else None
    keys = header.keys[Level.IMAGE]
    ((instance_pk,),) = _ADD_INSTANCE.all(
        conn,
        {
            "series_pk": parents.series_pk,
            "sop_instance_uid": header.sop_instance_uid,
            "sop_class_uid": header.sop_class_uid,
            "instance_number": keys.get("instance_number"),
            "state": State.HELD if contradiction else State.STORED,
            "digest": arrival.digest,
            "source": arrival.source,
            "received_at": arrival.at,
            "attributes": _json(header.levels[Level.IMAGE]),
            "identity": identity(header.levels),
            "held_for": conflict,
        },
    )
    add_copy(conn, arrival, instance_pk)
    add_doses(conn, instance_pk, arrival.said.doses)
    if arrival.said.key_object is not None:
        add_references(conn, instance_pk, arrival.said.key_object.selected)
    settle_arrival(conn, header.sop_instance_uid, at=arrival.at)
    if header.truncated:
        ask_about_truncated(conn, arrival, patient_pk)
    if conflict is None:
        apply_note(conn, arrival)
        if parents.corrections and coerces_identifier(
            said(header.levels), parents.corrections, parents.study_corrections or ""
        ):
            return Outcome.COERCED
        return arrival.irregularity or Outcome.STORED
    open_item(
        conn,
        Kind.IDENTITY_CONFLICT,
        conflict,
        at=arrival.at,
        patient_pk=patient_pk,
        study_instance_uid=header.study_instance_uid,
        evidence={
            "contradiction": contradiction,
            "sop_instance_uid": header.sop_instance_uid,
            "series_instance_uid": header.series_instance_uid,
            "study_instance_uid": header.study_instance_uid,
            "received": header.levels[Level.PATIENT],
            "source": arrival.source,
        },
    )
    return Outcome.STORED_HELD


def ask_about_truncated(conn: Connection, arrival: Arrival, patient_pk: int) -> None:
    """Have a person look at an instance whose Pixel Data is cut short."""
    header = arrival.header
    open_item(
        conn,
        Kind.TRUNCATED,
        header.sop_instance_uid,
        at=arrival.at,
        patient_pk=patient_pk,
        study_instance_uid=header.study_instance_uid,
        evidence={"sop_instance_uid": header.sop_instance_uid, "source": arrival.source},
    )


def apply_note(conn: Connection, arrival: Arrival) -> None:
    """Hide what a rejection note names, once it is in sight itself. Another document rejects nothing."""
    found, header = arrival.said.key_object, arrival.header
    if found is not None and arrival.said.rejects:
        uid, study_uid = header.sop_instance_uid, header.study_instance_uid
        add_note(conn, uid, found, study_instance_uid=study_uid, by=arrival.source, at=arrival.at)


def _again(conn: Connection, arrival: Arrival, known: _Known) -> Outcome:
    """The SOP Instance UID is taken (REQ-DCM-15). An original that was replaced is held as its derived copy; when that
    is lost, the resend is the original again (law 7)."""
    if known.state == State.PURGING:
        raise Gone("it is being removed: nothing of it is taken now")
    if known.digest != arrival.digest:
        return Outcome.SAME_UID
    copies = conn.execute(_COPIES, {"instance_pk": known.pk}).all()
    if any((copy.tier, copy.path) == (arrival.tier, arrival.path) for copy in copies):
        return Outcome.STORED  # this very file was filed by an earlier try
    if _stands(conn, arrival, copies):
        return Outcome.ALREADY_STORED
    state = conn.execute(_STATE, {"instance_pk": known.pk}).scalar()  # locked: migration may be about to switch it
    if state != known.state:
        return add_instance(conn, arrival)
    if state == State.REPLACED:
        for copy_pk in derived_of(conn, known.pk):
            if _stands(conn, arrival, conn.execute(_COPIES, {"instance_pk": copy_pk}).all()):
                return Outcome.ALREADY_STORED
        bring_back(conn, known.pk, at=arrival.at)
    add_copy(conn, arrival, known.pk)
    return Outcome.REPAIRED


def _again_hidden(conn: Connection, arrival: Arrival) -> Outcome:
    """What was rejected for quality reasons is taken again, and stays hidden; else it is refused (sheet 30 §9). What
    was acknowledged before is no refusal's business."""
    uid = arrival.header.sop_instance_uid
    if not arrival.recovered:
        refuse_again(conn, uid)
    show(conn, uid)
    outcome = add_instance(conn, arrival)
    settle(conn, [uid], at=arrival.at)
    return outcome


def _stands(conn: Connection, arrival: Arrival, copies: Sequence[AnyRow]) -> bool:
    """Whether one of an instance's copies is there and as long as it should be; those that are not are marked. Whether
    its bytes are the right ones takes longer to tell.

    Raises:
        StorageFailed: the volume of such a copy is away, which says nothing about it.
    """
    for copy in copies:
        if copy.state != CopyState.OK:
            continue
        root = arrival.roots[copy.tier]
        if _is_long(os.path.join(root, copy.path), copy.file_bytes):
            return True
        marker.need(Path(root))
        conn.execute(_DAMAGED, {"location_pk": copy.pk})
    return False


def repair_instance(conn: Connection, arrival: Arrival, *, damaged: Collection[int]) -> Outcome:
    """File an instance again whose copies numbered `damaged` turned out to be bad: REPAIRED, or ALREADY_STORED when
    another good copy stands."""
    for location_pk in damaged:
        conn.execute(_DAMAGED, {"location_pk": location_pk})
    return add_instance(conn, arrival)


def _is_long(path: str, file_bytes: int) -> bool:
    try:
        return os.stat(path).st_size == file_bytes
    except OSError:
        return False


def add_copy(conn: Connection, arrival: Arrival, instance_pk: int) -> None:
    """File the file that arrived as a copy of an instance."""
    _ADD_LOCATION.run(
        conn,
        {
            "instance_pk": instance_pk,
            "tier": arrival.tier,
            "path": arrival.path,
            "state": CopyState.OK,
            "transfer_syntax_uid": arrival.header.transfer_syntax_uid,
            "digest": arrival.digest,
            "file_bytes": arrival.file_bytes,
            "data_set_offset": arrival.data_set_offset,
            "pixel_offset": arrival.header.pixel_offset,
        },
    )


def quarantine(conn: Connection, arrival: Arrival) -> bool:
    """Keep other content of a known UID aside (REQ-DCM-15). False: the very same was kept before, drop the file.

    Raises:
        Gone: the known one was purged meanwhile.
    """
    header = arrival.header
    taken = _known(conn, header.sop_instance_uid)
    state = conn.execute(_STATE, {"instance_pk": taken.pk}).scalar() if taken is not None and taken.pk else None
    if taken is not None and state in (None, State.PURGING):
        raise Gone("it was purged at the end of its retention, or is being removed")
    where = (quarantined.c.sop_instance_uid == header.sop_instance_uid) & (quarantined.c.digest == arrival.digest)
    known = conn.execute(select(quarantined.c.path, quarantined.c.times).where(where)).first()
    if known is not None and known.path != arrival.path:
        conn.execute(update(quarantined).where(where).values(times=known.times + 1, last_received_at=arrival.at))
        return False
    if known is None:
        conn.execute(
            quarantined.insert(),
            {
                "sop_instance_uid": header.sop_instance_uid,
                "digest": arrival.digest,
                "path": arrival.path,
                "transfer_syntax_uid": header.transfer_syntax_uid,
                "file_bytes": arrival.file_bytes,
                "data_set_offset": arrival.data_set_offset,
                "source": arrival.source,
                "first_received_at": arrival.at,
                "last_received_at": arrival.at,
                "times": 1,
            },
        )
    open_item(
        conn,
        Kind.UID_CONFLICT,
        header.sop_instance_uid,
        at=arrival.at,
        study_instance_uid=header.study_instance_uid,
        evidence={"sop_instance_uid": header.sop_instance_uid, "digest": arrival.digest, "source": arrival.source},
    )
    return True


def _json(attributes: dict[str, Any]) -> str:
    return orjson.dumps(attributes).decode()
