"""What waits for a person: one open item for a kind and a subject, with its evidence (sheet 20 §10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Connection, Dialect, UpdateBase, bindparam, null, select, update

from archive.dicom.patient_id import cx
from archive.errors import Conflict, NotFound
from archive.schema import patient, work_item
from archive.schema.prepared import Prepared
from archive.schema.types import AnyRow
from archive.schema.upsert import insert_in


class Kind(StrEnum):
    """Kinds that this version opens."""

    UID_CONFLICT = "uid_conflict"  # other content under a SOP Instance UID that is taken (REQ-DCM-15)
    IDENTITY_CONFLICT = "identity_conflict"  # an image contradicts the record (REQ-DCM-19)
    TRUNCATED = "truncated"  # Pixel Data announces more bytes than came: kept as it is, in doubt
    UNKNOWN_PATIENT = "unknown_patient"  # images of somebody the RIS has not sent (REQ-DCM-17)
    INS_REFUSED = "ins_refused"  # a national identifier that may not be used (REQ-HL7-62)
    INS_COLLISION = "ins_collision"  # the same one on two patients (REQ-HL7-65)
    MERGE_CONFLICT = "merge_conflict"  # a merge that contradicts an earlier one (sheet 20 §4.3)
    MERGED_ID_USED = "merged_id_used"  # a message about somebody who was merged away (REQ-HL7-P11)
    ACCOUNT_MOVED = "account_moved"  # visit and orders are another patient's now, images not (A44)
    STALE_UPDATE = "stale_update"  # demographics older than those that are known (REQ-HL7-25)
    ORDER_CLOSED_WITH_IMAGES = "order_closed_with_images"  # cancelled after images came (REQ-HL7-77)
    STUDY_UID_CHANGED = "study_uid_changed"  # of an order whose images are stored (REQ-HL7-78)
    ORDER_UNMATCHED = "order_unmatched"  # an order's study has another patient or number (REQ-HL7-98, REQ-DRIM-02)
    WRONG_WORKLIST_ENTRY = "wrong_worklist_entry"  # a modality had chosen the wrong item (110514, DCM)
    IMAGES_MISSING = "images_missing"  # that a modality says it made have not come (REQ-DCM-53)


def open_item(
    conn: Connection,
    kind: Kind,
    subject: str,
    *,
    at: datetime,
    patient_pk: int | None = None,
    study_instance_uid: str | None = None,
    evidence: Mapping[str, Any],
) -> None:
    """Open an item, or leave it as it is when it is open already. A closed one about the same subject opens again."""
    values = {
        "kind": kind,
        "subject": subject,
        "state": "open",
        "patient_pk": patient_pk,
        "study_instance_uid": study_instance_uid,
        "evidence": orjson.dumps(dict(evidence)).decode(),
        "opened_at": at,
    }
    _OPEN.run(conn, values)


def _open(dialect: Dialect) -> UpdateBase:
    adding = insert_in(dialect, work_item)
    again = ("state", "patient_pk", "study_instance_uid", "evidence", "opened_at")
    return adding.on_conflict_do_update(
        index_elements=["kind", "subject"],
        set_={
            **{name: adding.excluded[name] for name in again},
            **dict.fromkeys(("closed_at", "closed_by", "resolution"), null()),
        },
        where=work_item.c.state == "closed",
    )


_OPEN = Prepared(
    _open, columns=("kind", "subject", "state", "patient_pk", "study_instance_uid", "evidence", "opened_at")
)


def close_item(conn: Connection, kind: Kind, subject: str, *, at: datetime, by: str, resolution: str) -> bool:
    """Close an item whose cause went away by itself; whether there was an open one."""
    mine = (work_item.c.kind == kind) & (work_item.c.subject == subject) & (work_item.c.state == "open")
    closed = {"state": "closed", "closed_at": at, "closed_by": by, "resolution": resolution}
    return conn.execute(update(work_item).where(mine).values(closed)).rowcount > 0


@dataclass(frozen=True, slots=True)
class Resolved:
    """That a person settled an item: when, who, and how and why."""

    at: datetime
    by: str
    resolution: str

    @property
    def said(self) -> dict[str, str]:
        """For a fact, which has its own time; and for `close_item`."""
        return {"by": self.by, "resolution": self.resolution}


class How(StrEnum):
    """What a person says who settles an item."""

    DONE = "done"  # put right where it came from
    ACCEPTED = "accepted"  # it may stay as it is
    UNFOUNDED = "unfounded"  # there was nothing wrong
    ACCEPT = "accept"  # what is held back is seen, under the study in which it is filed
    REJECT = "reject"  # what is held back stays out of view
    KEEP = "keep"  # the first content stands, what is kept aside goes
    REPLACE = "replace"  # what came last stands, the first content is kept aside


_OF_ANY = (How.DONE, How.ACCEPTED, How.UNFOUNDED)
_OF_KIND = {Kind.IDENTITY_CONFLICT: (How.ACCEPT, How.REJECT), Kind.UID_CONFLICT: (How.KEEP, How.REPLACE)}


def ways(kind: str) -> tuple[How, ...]:
    """How an item of this kind is settled: one that holds bytes back is settled by what becomes of them."""
    return _OF_KIND.get(Kind(kind), _OF_ANY) if kind in list(Kind) else _OF_ANY


@dataclass(frozen=True, slots=True)
class Item:
    """What an item is about; patient and study as the audit names them."""

    id: int
    kind: str
    subject: str
    patient: str | None
    study: str | None
    patient_pk: int | None = None


def item_of(conn: Connection, item: int) -> Item:
    """The open item numbered `item`.

    Raises:
        NotFound: no such item.
        Conflict: it is closed already.
    """
    row = conn.execute(_ONE, {"item": item}).first()
    if row is None:
        raise NotFound("no such work item")
    if row.state != "open":
        raise Conflict("this work item is closed already")
    patient_cx = cx(row.patient_id or "", row.issuer or "") or None
    return Item(item, row.kind, row.subject, patient_cx, row.study_instance_uid, row.patient_pk)


_ITEMS = work_item.outerjoin(patient, work_item.c.patient_pk == patient.c.pk)
_ONE = (
    select(
        work_item.c.kind,
        work_item.c.subject,
        work_item.c.state,
        work_item.c.study_instance_uid,
        work_item.c.patient_pk,
        patient.c.patient_id,
        patient.c.issuer,
    )
    .select_from(_ITEMS)
    .where(work_item.c.pk == bindparam("item"))
)
_LIST = (
    select(
        work_item.c.pk,
        work_item.c.kind,
        work_item.c.state,
        work_item.c.subject,
        work_item.c.study_instance_uid,
        work_item.c.evidence,
        work_item.c.opened_at,
        work_item.c.closed_at,
        work_item.c.closed_by,
        work_item.c.resolution,
        patient.c.patient_id,
        patient.c.issuer,
    )
    .select_from(_ITEMS)
    .order_by(work_item.c.pk)
    .limit(bindparam("limit"))
)


def list_items(
    conn: Connection, *, kind: str | None = None, state: str | None = None, after: int = 0, limit: int = 100
) -> list[dict[str, Any]]:
    """Items in the order they were opened, after the one numbered `after`; `id` numbers them."""
    statement = _LIST.where(work_item.c.pk > after)
    if kind is not None:
        statement = statement.where(work_item.c.kind == kind)
    if state is not None:
        statement = statement.where(work_item.c.state == state)
    return [_shape(row) for row in conn.execute(statement, {"limit": limit})]


def _shape(row: AnyRow) -> dict[str, Any]:
    return {
        "id": row.pk,
        "kind": row.kind,
        "state": row.state,
        "subject": row.subject,
        "patient": cx(row.patient_id or "", row.issuer or "") or None,
        "study": row.study_instance_uid,
        "opened_at": row.opened_at.isoformat(),
        "evidence": orjson.loads(row.evidence),
        "closed_at": row.closed_at.isoformat() if row.closed_at else None,
        "closed_by": row.closed_by,
        "resolution": row.resolution,
    }
