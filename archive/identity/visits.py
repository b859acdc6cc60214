"""Visits and their movements (IHE PAM ITI-31 with Historic Movement; sheet 20 §4.1, §5.2).

Movements are kept as they are sent. Status, class, location and account of a visit follow from those that stand, in the
order in which they began: one that is sent late (ZBE-5) changes the past, not the present. Functions on the connection
of a write, but `described`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Connection, delete, select, update

from archive.dicom.patient_id import cx
from archive.errors import Conflict, IdentifierInUse
from archive.identity import patients
from archive.identity.acts import Act
from archive.journal import Kind as Fact
from archive.journal import note
from archive.schema import movement, visit
from archive.schema.types import AnyRow


class Status(StrEnum):
    """Of a visit."""

    PLANNED = "planned"  # pre-admission
    OPEN = "open"
    CLOSED = "closed"  # discharged
    CANCELLED = "cancelled"


PRE_ADMISSION, DISCHARGE = "A05", "A03"
ADMISSIONS = frozenset({"A01", "A04"})
BEGINS = ADMISSIONS | {PRE_ADMISSION}
_OF_MOVEMENT = ("movement_id", "event", "start", "historic", "cancelled")
_CARRIED = ("patient_class", "location", "account_number", "account_issuer")  # of the movement's record
_FURTHER = "further_ids"  # there too: those of ZBE-1 behind the first


@dataclass(frozen=True, slots=True)
class Numbered:
    """A number of a visit or account, and who assigned it, in the one spelling of `archive.authorities`."""

    number: str
    issuer: str = ""

    @property
    def cx(self) -> str:
        return cx(self.number, self.issuer)


NOTHING = Numbered("")


@dataclass(frozen=True, slots=True)
class Movement:
    """What one message says of a visit: PV1, ZBE, PID-18. `ids` are all that ZBE-1 has; () when nobody numbers it."""

    event: str
    start: str  # digits of local time, as precise as it is known
    ids: tuple[str, ...] = ()
    historic: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)  # class, location, account, wards, nature: what is known


def enter(conn: Connection, key: Numbered, moved: Movement, *, patient_pk: int, act: Act) -> None:
    """Keep a movement; the visit is made when nobody has heard of it. One that is sent again replaces the first.

    Raises:
        IdentifierInUse: the visit is another patient's.
    """
    row = _find(conn, key)
    if row is not None and row.patient_pk != patient_pk:
        raise IdentifierInUse("this visit is another patient's", what="visit")
    pk = row.pk if row is not None else _add(conn, key, patient_pk, act.at)
    known = _movement(conn, pk, moved.ids)
    values = {**_values(moved, known), "cancelled": 0}
    if known is None:
        conn.execute(movement.insert(), {**values, "visit_pk": pk})
    else:
        conn.execute(update(movement).where(movement.c.pk == known.pk).values(values))
    _settle(conn, pk, moved, act)


def cancel(
    conn: Connection, key: Numbered, moved: Movement, *, begun_by: frozenset[str], patient_pk: int | None, act: Act
) -> bool:
    """Take back a movement: that with the ID, else the last one that an event of `begun_by` began. False: nobody has
    heard of visit or movement, or it is cancelled already.

    Raises:
        Conflict: the visit is another patient's.
    """
    found = _known(conn, key, moved, patient_pk, begun_by)
    if found is None or found.cancelled:
        return False
    conn.execute(update(movement).where(movement.c.pk == found.pk).values(cancelled=1))
    _settle(conn, found.visit_pk, moved, act)
    return True


def amend(conn: Connection, key: Numbered, moved: Movement, *, patient_pk: int | None, act: Act) -> bool:
    """Correct a movement that was sent before (Z99). False: nobody has heard of it, or it is cancelled.

    Raises:
        Conflict: the visit is another patient's.
    """
    found = _known(conn, key, moved, patient_pk, frozenset())
    if found is None or found.cancelled:
        return False
    said = {**orjson.loads(found.record), **moved.said, **_further(found.movement_id, moved.ids, found)}
    values = {"start": moved.start or found.start, "historic": int(moved.historic), "record": _json(said)}
    conn.execute(update(movement).where(movement.c.pk == found.pk).values(values))
    _settle(conn, found.visit_pk, moved, act)
    return True


def move_account(conn: Connection, account: Numbered, *, from_pk: int, to_pk: int, act: Act) -> list[Numbered]:
    """The visits of an account become another patient's; which they are."""
    mine = (visit.c.account_number == account.number) & (visit.c.account_issuer == account.issuer)
    rows = conn.execute(select(visit).where(mine, visit.c.patient_pk == from_pk).order_by(visit.c.pk)).all()
    for row in rows:
        conn.execute(update(visit).where(visit.c.pk == row.pk).values(patient_pk=to_pk, updated_at=act.at))
        _note(conn, row.pk, act.at)
    return [Numbered(row.number, row.issuer) for row in rows]


def described(conn: Connection, number: str, issuer: str | None = None) -> dict[str, Any]:
    """The visit with a number as `/api/v1/visits` shows it; `issuer` None: whoever assigned it, the first one.
    `{"exists": false}` when unknown."""
    mine = visit.c.number == number
    if issuer is not None:
        mine = mine & (visit.c.issuer == issuer)
    row = conn.execute(select(visit).where(mine).order_by(visit.c.pk).limit(1)).first()
    if row is None:
        return {"exists": False}
    owner = patients.row_of(conn, row.patient_pk)
    return {
        "exists": True,
        "number": row.number,
        "issuer": row.issuer,
        "patient_id": owner.patient_id,
        "patient_issuer": owner.issuer,
        "account": row.account_number,
        "account_issuer": row.account_issuer,
        "status": row.status,
        "class": row.patient_class,
        "location": row.location,
        "movements": [_shown(one) for one in _movements(conn, row.pk)],
    }


def put(conn: Connection, body: Mapping[str, Any], patient_pk: int, *, made_at: datetime, at: datetime) -> None:
    """A visit and its movements as a fact has them (`archive.identity.restore`)."""
    key = Numbered(body["number"], body["issuer"])
    row = _find(conn, key)
    pk = row.pk if row is not None else _add(conn, key, patient_pk, made_at)
    conn.execute(delete(movement).where(movement.c.visit_pk == pk))
    for one in body["movements"]:
        values = {**{name: one[name] for name in _OF_MOVEMENT}, "record": _json(one["record"])}
        conn.execute(movement.insert(), {**values, "visit_pk": pk})
    conn.execute(update(visit).where(visit.c.pk == pk).values(patient_pk=patient_pk))
    _settle_state(conn, pk, at)


def state_of(movements: Sequence[Mapping[str, Any]]) -> tuple[Status, dict[str, str]]:
    """Status of a visit, and what its last movements say of class, location and account. `movements` are in the order
    in which they came. Pure."""
    in_order = sorted(movements, key=lambda one: one["start"].ljust(14, "0"))
    standing = [one for one in in_order if not one["cancelled"]]
    status = None
    for one in standing:
        if one["event"] == DISCHARGE:
            status = Status.CLOSED
        elif one["event"] != PRE_ADMISSION:
            status = Status.OPEN
        else:
            status = status or Status.PLANNED
    for beginning in (ADMISSIONS, {PRE_ADMISSION}):  # what began it was taken back: so is the visit
        begun = [one["cancelled"] for one in movements if one["event"] in beginning]
        if begun:
            status = Status.CANCELLED if all(begun) else status
            break
    said: dict[str, str] = {}
    for one in standing or in_order:
        said |= {name: value for name in _CARRIED if (value := one["record"].get(name)) is not None}
    return status or Status.OPEN, said


def _settle(conn: Connection, pk: int, moved: Movement, act: Act) -> None:
    """What follows from the movements; the fact, the audit."""
    _settle_state(conn, pk, act.at)
    _note(conn, pk, act.at)
    row = conn.execute(select(visit).where(visit.c.pk == pk)).one()
    owner = patients.key_of(patients.row_of(conn, row.patient_pk))
    detail = {
        "type": "ITI-31",
        "visit": row.number,
        "movement": moved.ids[0] if moved.ids else "",
        "status": row.status,
    }
    patients.tell(conn, owner, "U", act=act, detail=detail)


def _settle_state(conn: Connection, pk: int, at: datetime) -> None:
    status, said = state_of([_body(one) for one in _movements(conn, pk)])
    values = {name: said.get(name, "") for name in _CARRIED}
    conn.execute(update(visit).where(visit.c.pk == pk).values(**values, status=status, updated_at=at))


def _note(conn: Connection, pk: int, at: datetime) -> None:
    row = conn.execute(select(visit).where(visit.c.pk == pk)).one()
    body = {
        "number": row.number,
        "issuer": row.issuer,
        "patient": patients.named(patients.row_of(conn, row.patient_pk)),
        "created_at": row.created_at.isoformat(),
        "movements": [_body(one) for one in _movements(conn, pk)],
    }
    note(conn, Fact.VISIT, cx(row.number, row.issuer), body, at=at)


def _known(
    conn: Connection, key: Numbered, moved: Movement, patient_pk: int | None, begun_by: frozenset[str]
) -> AnyRow | None:
    """The movement that a message means."""
    row = _find(conn, key)
    if row is None:
        return None
    if row.patient_pk != patient_pk:
        raise Conflict("this visit is another patient's")
    if moved.ids:
        return _movement(conn, row.pk, moved.ids)
    standing = [one for one in _movements(conn, row.pk) if one.event in begun_by and not one.cancelled]
    return max(standing, key=lambda one: (one.start.ljust(14, "0"), one.pk), default=None)


def _find(conn: Connection, key: Numbered) -> AnyRow | None:
    mine = (visit.c.number == key.number) & (visit.c.issuer == key.issuer)
    return conn.execute(select(visit).where(mine)).first()


def _add(conn: Connection, key: Numbered, patient_pk: int, at: datetime) -> int:
    values = {
        **dict.fromkeys(_CARRIED, ""),
        "number": key.number,
        "issuer": key.issuer,
        "patient_pk": patient_pk,
        "status": Status.OPEN,
        "created_at": at,
        "updated_at": at,
    }
    return int(conn.execute(visit.insert().returning(visit.c.pk), values).scalar_one())


def _movements(conn: Connection, pk: int) -> Sequence[AnyRow]:
    return conn.execute(select(movement).where(movement.c.visit_pk == pk).order_by(movement.c.pk)).all()


def _movement(conn: Connection, pk: int, ids: Sequence[str]) -> AnyRow | None:
    """The movement of a visit with one of these IDs."""
    return next((one for one in _movements(conn, pk) if not _ids(one).isdisjoint(ids)), None)


def _ids(row: AnyRow) -> set[str]:
    return {row.movement_id, *orjson.loads(row.record).get(_FURTHER, ())}


def _further(first: str, ids: Sequence[str], known: AnyRow | None) -> dict[str, list[str]]:
    """The IDs beside the first one, those that the movement was sent with before too."""
    further = ({*ids} | (_ids(known) if known is not None else set())) - {first, ""}
    return {_FURTHER: sorted(further)} if further else {}


def _values(moved: Movement, known: AnyRow | None) -> dict[str, Any]:
    first = moved.ids[0] if moved.ids else ""
    return {
        "movement_id": first,
        "event": moved.event,
        "start": moved.start,
        "historic": int(moved.historic),
        "record": _json({**moved.said, **_further(first, moved.ids, known)}),
    }


def _body(row: AnyRow) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in _OF_MOVEMENT}, "record": orjson.loads(row.record)}


def _shown(row: AnyRow) -> dict[str, Any]:
    said = orjson.loads(row.record)
    return {
        "id": row.movement_id,
        "event": row.event,
        "start": row.start,
        "historic": bool(row.historic),
        "cancelled": bool(row.cancelled),
        **{"class" if name == "patient_class" else name: value for name, value in said.items() if name != _FURTHER},
    }


def _json(said: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(said), option=orjson.OPT_SORT_KEYS).decode()
