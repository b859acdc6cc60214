"""Other content under a UID that is taken (REQ-DCM-15), kept aside until a person says which content stands.

What is discarded goes by law 2: its row becomes that of a copy that is being removed, which `finish_removals` ends.
What is replaced is not: the two change places, and the former is kept aside until the study is purged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, delete, exists, select, update

from archive.dicom.attributes import Level
from archive.dicom.corrections import identity
from archive.dicom.document import Reference
from archive.dicom.dose import Dose
from archive.errors import Conflict
from archive.index.arrival import Arrival
from archive.index.correct import facts_changed
from archive.index.doses import add_doses
from archive.index.patients import contradiction
from archive.index.references import add_references
from archive.index.rejections import of_note
from archive.index.write import ask_about_truncated
from archive.instance import CopyState, State
from archive.journal import Kind, note
from archive.schema import dose, instance, location, patient, quarantined, reference, series, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert
from archive.work_items import Kind as Item
from archive.work_items import Resolved, close_item

_ASIDE = (
    select(quarantined)
    .where(quarantined.c.sop_instance_uid == bindparam("uid"))
    .order_by(quarantined.c.last_received_at, quarantined.c.pk)
)
_INSTANCE = (
    select(
        instance,
        series.c.series_instance_uid,
        study.c.study_instance_uid,
        patient.c.pk.label("patient_pk"),
        patient.c.patient_id,
        patient.c.issuer,
    )
    .select_from(instance.join(series).join(study).join(patient))
    .where(instance.c.sop_instance_uid == bindparam("uid"))
    .with_for_update(of=instance)
)
_COPIES = (
    select(location)
    .where(location.c.instance_pk == bindparam("instance_pk"), location.c.state != CopyState.PURGING)
    .order_by(location.c.pk)
)
_derived = instance.alias("derived")
_MADE = select(exists().where(_derived.c.derived_from_pk == bindparam("instance_pk")))


def set_aside(conn: Connection, sop_instance_uid: str) -> Sequence[AnyRow]:
    """What is kept aside under a UID, the last that came last; `former`: it was the instance once."""
    return conn.execute(_ASIDE, {"uid": sop_instance_uid}).all()


def keep_first(conn: Connection, uid: str, resolved: Resolved) -> dict[str, Any]:
    """The content that stands is the right one, all that is aside goes; their digests. Inside a write of
    `archive.commit`.

    Raises:
        Conflict: there is nothing aside, or no instance, or no good copy of it any more (law 7).
    """
    stands = _standing(conn, uid)
    copies = conn.execute(_COPIES, {"instance_pk": stands.pk}).all()
    if stands.state != State.REPLACED and not any(copy.state == CopyState.OK for copy in copies):
        raise Conflict("no good copy of the first is left: have it replaced, or sent again")
    going = _all_aside(conn, uid)
    _discard(conn, stands.pk, going)
    said = {"stands": stands.digest, "discarded": [_named(row) for row in going]}
    note(conn, Kind.CONFLICT, uid, {**said, **resolved.said}, at=resolved.at)
    return said


def replace_first(conn: Connection, arrival: Arrival, resolved: Resolved) -> dict[str, Any]:
    """The content of `arrival`, which is aside, becomes the instance; the former is kept aside, all else that is goes.
    Their digests. Inside a write of `archive.commit`.

    Raises:
        Conflict: it says another series or patient, or the first has been migrated, or is held back or rejected; or one
            of them is a rejection note: what that rejects is revoked, not replaced.
    """
    header = arrival.header
    uid = header.sop_instance_uid
    first = _standing(conn, uid)
    if (first.study_instance_uid, first.series_instance_uid) != (header.study_instance_uid, header.series_instance_uid):
        raise Conflict("the other content is of another series: only its sender can give it a UID of its own")
    if contradiction(conn, arrival.claim, first):
        raise Conflict("the other content is of another patient: only its sender can give it a UID of its own")
    copies = conn.execute(_COPIES, {"instance_pk": first.pk}).all()
    made = conn.execute(_MADE, {"instance_pk": first.pk}).scalar_one()
    if first.state != State.STORED or first.derived_from_pk or made or any(copy.tier != "hot" for copy in copies):
        raise Conflict("the first is held back, rejected, or in cold storage: it is not replaced any more")
    if arrival.said.rejects or of_note(conn, uid):
        raise Conflict("a rejection note does not replace, and is not replaced: its sender gives it a UID of its own")
    aside = _all_aside(conn, uid)
    new = next((row for row in aside if (row.digest, row.path) == (arrival.digest, arrival.path)), None)
    if new is None:
        raise Conflict("what is kept aside has changed meanwhile: look again")
    kept = next((copy for copy in copies if copy.state == CopyState.OK), None)
    selected = arrival.said.key_object.selected if arrival.said.key_object is not None else ()
    body: dict[str, Any] = {
        "stands": arrival.digest,
        "aside": _described(first, kept) if kept is not None else None,
        "former": first.digest,
        "discarded": [_named(row) for row in aside if row.pk != new.pk],
        "received_at": new.first_received_at.isoformat(),
        "pixel_offset": header.pixel_offset,
        "said": {
            "doses": [asdict(one) for one in arrival.said.doses],
            "selected": [asdict(one) for one in selected],
        },
        "instance": {
            "sop_class_uid": header.sop_class_uid,
            "instance_number": header.keys[Level.IMAGE].get("instance_number"),
            "digest": arrival.digest,
            "source": new.source,
            "attributes": orjson.dumps(header.levels[Level.IMAGE]).decode(),
            "identity": identity(header.levels),
        },
    }
    _swap(conn, first, new, body)
    _discard(conn, first.pk, [row for row in aside if row.pk != new.pk])
    close_item(conn, Item.TRUNCATED, uid, at=resolved.at, **resolved.said)  # it was about the former
    if header.truncated:
        ask_about_truncated(conn, arrival, first.patient_pk)
    note(conn, Kind.CONFLICT, uid, {**body, **resolved.said}, at=resolved.at)
    return {name: body[name] for name in ("stands", "former", "discarded")}


def restore_conflict(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make it true again which content stands under the UID `subject` (`minipacs rebuild-index`), before its files are
    taken in: the former is known as kept aside, so that what replaced it is the instance. Idempotent.

    The file of what was discarded, should power have left it, is kept aside once more, and waits for a person.
    """
    first = conn.execute(_INSTANCE, {"uid": subject}).first()
    if first is None:
        if body.get("aside") is not None:
            _keep_aside(conn, subject, body)
        return
    aside = set_aside(conn, subject)
    if "instance" in body and first.digest == body["former"]:  # a database that is older than the fact
        _swap(conn, first, next((row for row in aside if row.digest == body["stands"]), None), body)
    gone = {(one["digest"], one["path"]) for one in body["discarded"]}
    _discard(conn, first.pk, [row for row in aside if (row.digest, row.path) in gone])
    if all(row.former for row in set_aside(conn, subject)):
        close_item(conn, Item.UID_CONFLICT, subject, at=at, by=body["by"], resolution=body["resolution"])


def _standing(conn: Connection, uid: str) -> AnyRow:
    row = conn.execute(_INSTANCE, {"uid": uid}).first()
    if row is None or row.state == State.PURGING:
        raise Conflict("the instance is not held any more")
    return row


def _all_aside(conn: Connection, uid: str) -> Sequence[AnyRow]:
    found = [row for row in set_aside(conn, uid) if not row.former]
    if not found:
        raise Conflict("nothing is kept aside under this UID any more")
    return found


def _named(row: AnyRow) -> dict[str, str]:
    return {"digest": row.digest, "path": row.path}


def _discard(conn: Connection, instance_pk: int, rows: Sequence[AnyRow]) -> None:
    for row in rows:
        conn.execute(delete(quarantined).where(quarantined.c.pk == row.pk))
        _file(conn, instance_pk, row, state=CopyState.PURGING, pixel_offset=None)


def _described(first: AnyRow, copy: AnyRow) -> dict[str, Any]:
    """The row of the former content, kept aside."""
    said = {name: copy._mapping[name] for name in ("path", "transfer_syntax_uid", "file_bytes", "data_set_offset")}
    return {**said, "source": first.source, "received_at": first.received_at.isoformat()}


def _keep_aside(conn: Connection, uid: str, body: Mapping[str, Any]) -> None:
    said = dict(body["aside"])
    at = datetime.fromisoformat(said.pop("received_at"))
    values = {"first_received_at": at, "last_received_at": at, "times": 1, "former": 1}
    conn.execute(
        insert(conn, quarantined).on_conflict_do_nothing(index_elements=["sop_instance_uid", "digest"]),
        {"sop_instance_uid": uid, "digest": body["former"], **said, **values},
    )


def _swap(conn: Connection, first: AnyRow, new: AnyRow | None, body: Mapping[str, Any]) -> None:
    """The file of `new` becomes the copy of the instance, its former one is kept aside, others of it go."""
    aside = body["aside"]
    for copy in conn.execute(_COPIES, {"instance_pk": first.pk}).all():
        if aside is not None and (copy.tier, copy.path) == ("hot", aside["path"]):
            conn.execute(delete(location).where(location.c.pk == copy.pk))
        else:
            conn.execute(update(location).where(location.c.pk == copy.pk).values(state=CopyState.PURGING))
    if new is not None:
        conn.execute(delete(quarantined).where(quarantined.c.pk == new.pk))
        _file(conn, first.pk, new, state=CopyState.OK, pixel_offset=body["pixel_offset"])
    if aside is not None:
        _keep_aside(conn, first.sop_instance_uid, body)
    received_at = datetime.fromisoformat(body["received_at"])
    mine = update(instance).where(instance.c.pk == first.pk)
    conn.execute(mine.values(received_at=received_at, derivation=None, **body["instance"]))
    for table in (dose, reference):  # what the former said of others
        conn.execute(delete(table).where(table.c.instance_pk == first.pk))
    add_doses(conn, first.pk, [Dose(**one) for one in body["said"]["doses"]])
    add_references(conn, first.pk, [Reference(**one) for one in body["said"]["selected"]])
    facts_changed(conn, first.patient_pk)


def _file(conn: Connection, instance_pk: int, row: AnyRow, *, state: CopyState, pixel_offset: int | None) -> None:
    names = ("path", "digest", "transfer_syntax_uid", "file_bytes", "data_set_offset")
    values = {name: row._mapping[name] for name in names}
    conn.execute(
        location.insert(),
        {"instance_pk": instance_pk, "tier": "hot", "state": state, "pixel_offset": pixel_offset, **values},
    )
