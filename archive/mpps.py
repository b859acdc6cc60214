"""Performed procedure steps as use cases: kept for good before they are acknowledged, counted, told to the RIS
(REQ-DCM-53, 54)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, select, update

from archive import jobs
from archive.access import SYSTEM, Actor
from archive.core import Archive
from archive.dicom import performed as said
from archive.dicom.header import is_legal_uid
from archive.dicom.performed import Status
from archive.errors import NotFound, UidMismatch
from archive.identity import dicom
from archive.identity.acts import Act
from archive.schema import patient, performed_step
from archive.workflow import performed
from archive.workflow.availability import announce

FORWARD, COUNT = "dicom.mpps", "dicom.mpps_count"  # kinds of jobs
# After its end, when instances that a step lists are looked for; the last look leaves what is missing to a person.
LOOKS = (
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=3),
    timedelta(days=7),
)
_OF_PATIENT = (dicom.NAME, dicom.PATIENT_ID, dicom.ISSUER, dicom.QUALIFIERS, dicom.BIRTH_DATE, dicom.SEX)
# Only as they are known now: an INS may have been withdrawn, a name may be that of whoever was merged away.
_OF_RECORD = (dicom.OTHER_IDS, dicom.OTHER_NAMES, dicom.BIRTH_NAME)


@dataclass(frozen=True, slots=True)
class Message:
    """One that a peer is still to be told, as DICOM JSON; then it knows `version` of the step."""

    is_new: bool  # N-CREATE, else N-SET
    attributes: dict[str, Any]
    version: int


def create(archive: Archive, uid: str, attributes: Mapping[str, Any], *, actor: Actor, calling_ae: str) -> None:
    """Keep a step that a modality has begun, and see to it that orders and RIS know.

    Once this returns, the step outlives a crash or a power cut and may be acknowledged.

    Raises:
        UidMismatch: the SOP Instance UID is none.
        AttributeRefused: an attribute is missing, empty or wrong.
        IdentifierInUse: there is such a step.
        Unavailable: nothing was promised; sending again may help.
    """
    if not is_legal_uid(uid):
        raise UidMismatch("the SOP Instance UID is none", tag=0x00080018)
    kept = said.created(attributes)
    act = _act(archive, actor, "MPPS N-CREATE")

    def write(conn: Connection) -> None:
        performed.create(conn, uid, kept, calling_ae=calling_ae, act=act)
        _forward(archive, conn, uid, calling_ae)

    archive.commit.run(write)


def change(archive: Archive, uid: str, attributes: Mapping[str, Any], *, actor: Actor, calling_ae: str) -> bool:
    """Apply what a modality says of a step; whether all of it was taken. Durable, as `create`.

    Raises:
        NotFound: no such step.
        Conflict: it has ended.
        AttributeRefused: an attribute is wrong, or missing at the end of a step.
        Unavailable: nothing was promised; sending again may help.
    """
    act = _act(archive, actor, "MPPS N-SET")

    def write(conn: Connection) -> bool:
        status, whole = performed.change(conn, uid, attributes, act=act)
        _forward(archive, conn, uid, calling_ae)
        if status is not Status.IN_PROGRESS:
            _ended(archive, conn, uid, status)
        return whole

    return archive.commit.run(write)


def _ended(archive: Archive, conn: Connection, uid: str, status: Status) -> None:
    """What follows the end of a step, in its transaction."""
    if status is Status.COMPLETED:
        _look_later(archive, conn, uid, 0)
        for study_instance_uid in performed.studies(conn, uid):
            announce(conn, study_instance_uid, at=archive.real_clock())


def count(archive: Archive, uid: str, look: int) -> int:
    """Look for the instances that a step lists, and later again while some are missing; how many are."""
    act = _act(archive, SYSTEM, "count of images")

    def write(conn: Connection) -> int:
        missing = performed.missing(conn, uid, act=act)
        if missing:
            _look_later(archive, conn, uid, look + 1)
        return missing

    return archive.commit.run(write)


def _look_later(archive: Archive, conn: Connection, uid: str, look: int) -> None:
    if look < len(LOOKS):
        jobs.put(conn, COUNT, {"uid": uid, "look": look}, at=archive.real_clock(), after=LOOKS[look])


def _forward(archive: Archive, conn: Connection, uid: str, calling_ae: str) -> None:
    """Owe this step to every peer that wants to know of it, but the one it comes from."""
    for title, peer in archive.settings.dicom.callers().items():
        if peer.forward_mpps and title != calling_ae:
            jobs.put(conn, FORWARD, {"uid": uid, "ae_title": title}, at=archive.real_clock())


def untold(archive: Archive, uid: str, ae_title: str) -> list[Message]:
    """What a peer is still to be told of a step, in order: an N-CREATE with the patient as they are known now, and one
    N-SET for all that was said since.

    Raises:
        NotFound: no such step.
    """
    with archive.reading() as conn:
        row = conn.execute(
            select(performed_step, patient.c.attributes)
            .join(patient, patient.c.pk == performed_step.c.patient_pk)
            .where(performed_step.c.sop_instance_uid == uid)
        ).first()
    if row is None:
        raise NotFound("no such performed procedure step")
    known = orjson.loads(row.forwarded).get(ae_title, 0)
    owner: dict[str, Any] = orjson.loads(row.attributes)
    found: list[Message] = []
    if known < 1:
        said_then = {key: value for key, value in orjson.loads(row.created).items() if key not in _OF_RECORD}
        known_now = {key: owner[key] for key in (*_OF_PATIENT, *_OF_RECORD) if key in owner}
        created = {**said_then, **known_now}
        found.append(Message(is_new=True, attributes=created, version=1))
    if row.version > max(known, 1):
        found.append(Message(is_new=False, attributes=orjson.loads(row.modified), version=row.version))
    return found


def told(archive: Archive, uid: str, ae_title: str, version: int) -> None:
    """A peer has taken what was said of a step up to a version."""
    archive.commit.run(partial(_told, uid=uid, ae_title=ae_title, version=version))


def _told(conn: Connection, *, uid: str, ae_title: str, version: int) -> None:
    mine = performed_step.c.sop_instance_uid == uid
    known = orjson.loads(conn.execute(select(performed_step.c.forwarded).where(mine).with_for_update()).scalar_one())
    known[ae_title] = max(version, known.get(ae_title, 0))
    conn.execute(update(performed_step).where(mine).values(forwarded=orjson.dumps(known).decode()))


def _act(archive: Archive, actor: Actor, event: str) -> Act:
    return Act(at=archive.clock(), actor=actor, event=event, authorities=archive.authorities)
