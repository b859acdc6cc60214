"""Accounts of people: one for each, never shared (REQ-SEC-24)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from archive.access import SYSTEM, Action, Actor, Door, Role, demand, rights
from archive.accounts.passwords import check_rule, hash_password, is_dated, matches, new_password
from archive.audit.record import Event, EventType, record, refused, storable
from archive.core import Archive
from archive.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound
from archive.schema import account, session

FIRST = "admin"
_LONGEST_NAME = 64

_BY_NAME = select(account).where(account.c.name == bindparam("its_name"))


@dataclass(frozen=True, slots=True)
class Account:
    """A person's account; `may` is what its roles allow together."""

    pk: int
    name: str
    roles: tuple[str, ...]
    may: frozenset[Action]
    disabled: bool
    created_at: datetime


class NewAccount(NamedTuple):
    """An account that was just made; `password` only if it was generated: shown once, kept nowhere."""

    account: Account
    password: str | None


def add_account(
    archive: Archive, name: str, roles: Iterable[str], password: str | None = None, *, actor: Actor
) -> NewAccount:
    """Make an account. Without `password` one is generated.

    Raises:
        InvalidRequest: a role that does not exist, none at all, a bad name, or a password against the rule.
        Conflict: there is an account of that name, in whatever case.
    """
    demand(actor, Action.ADMINISTER)
    name = checked_name(name)
    granted = checked_roles(roles)
    generated = new_password() if password is None else None
    chosen = generated or password or ""
    check_rule(chosen, name=name)
    hashed = hash_password(chosen, archive.recognition.hashing)
    at = archive.real_clock()

    def write(conn: Connection) -> Account:
        taken = conn.execute(select(account.c.name)).scalars()
        if any(name.casefold() == other.casefold() for other in taken):
            raise Conflict(f"there is an account {name!r} already")
        return _insert(conn, actor, name=name, roles=granted, hashed=hashed, at=at)

    return NewAccount(archive.commit.run(write), generated)


def list_accounts(archive: Archive) -> list[Account]:
    """All accounts, by name."""
    with archive.reading() as conn:
        return [_account(row) for row in conn.execute(select(account).order_by(account.c.name))]


def disable_account(archive: Archive, name: str, *, actor: Actor) -> None:
    """Nobody gets in under that name any more; its sessions end. Doing it again changes nothing.

    Raises NotFound.
    """
    _set_disabled(archive, name, 1, actor)


def enable_account(archive: Archive, name: str, *, actor: Actor) -> None:
    """Let a disabled account in again. Raises NotFound."""
    _set_disabled(archive, name, 0, actor)


def set_password(archive: Archive, name: str, password: str | None = None, *, actor: Actor) -> str | None:
    """Give an account another password; its sessions end. Returns the password if it was generated, once.

    Raises:
        NotFound: no such account.
        InvalidRequest: a password against the rule.
    """
    demand(actor, Action.ADMINISTER)
    generated = new_password() if password is None else None
    chosen = generated or password or ""
    check_rule(chosen, name=name)
    hashed = hash_password(chosen, archive.recognition.hashing)

    def write(conn: Connection) -> None:
        pk = _pk(conn, name)
        conn.execute(update(account).where(account.c.pk == pk).values(password_hash=hashed))
        conn.execute(delete(session).where(session.c.account_pk == pk))
        _tell(conn, actor, EventType.USER_ATTRIBUTES_CHANGED, name, "password changed")

    archive.commit.run(write)
    archive.recognition.grants.forget()
    return generated


def authenticate(archive: Archive, name: str, password: str, *, source: str = "", door: Door = Door.API) -> Account:
    """The account, if name and password are right. Both outcomes are audited before this returns (110114).

    The work is the same whether the name exists or not. After some failures in a row the answer is no for a while,
    whatever the password (`archive.recognition.Throttle`).

    Raises:
        NotAuthenticated: without saying which of both was wrong.
        Busy: too many are logging in.
    """
    name = storable(name)[:_LONGEST_NAME]
    actor = Actor(user=name, source=source, door=door, may=frozenset())
    throttle = archive.recognition.throttle
    wait = throttle.barred_seconds(name, source)
    if wait > 0:
        _refuse(archive, actor, "too many failures")
        raise NotAuthenticated(f"too many failed attempts: wait {math.ceil(wait)} seconds")
    with archive.reading() as conn:
        row = conn.execute(_BY_NAME, {"its_name": name}).one_or_none()
    stored: str | None = None if row is None else row.password_hash
    right = matches(stored, password, archive.recognition.hashing)
    if row is None or not right or row.disabled:
        throttle.failed(name, source)
        _refuse(archive, actor, "account disabled" if row is not None and right else "wrong name or password")
        raise NotAuthenticated("the name or the password is wrong")
    throttle.succeeded(name, source)
    found = _account(row)
    renewed = hash_password(password, archive.recognition.hashing) if is_dated(row.password_hash) else None

    def write(conn: Connection) -> None:
        record(conn, actor, Event.USER_AUTHENTICATION, "E", detail={"type": EventType.LOGIN})
        if renewed is not None:
            same = (account.c.pk == found.pk) & (account.c.password_hash == row.password_hash)
            conn.execute(update(account).where(same).values(password_hash=renewed))

    archive.commit.run(write)
    return found


def ensure_first_account(archive: Archive) -> str | None:
    """Make `admin` (it_admin and radiologist) when there is no account at all; returns its password, once."""
    with archive.reading() as conn:
        if conn.execute(select(account.c.pk).limit(1)).first() is not None:
            return None
    password = new_password()
    hashed = hash_password(password, archive.recognition.hashing)
    at = archive.real_clock()

    def write(conn: Connection) -> bool:
        if conn.execute(select(func.count()).select_from(account)).scalar_one():
            return False  # another process was faster
        _insert(conn, SYSTEM, name=FIRST, roles=(Role.IT_ADMIN, Role.RADIOLOGIST), hashed=hashed, at=at)
        return True

    return password if archive.commit.run(write) else None


def checked_name(name: str) -> str:
    """A name that can stand in the audit. Raises InvalidRequest."""
    if not (0 < len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()):
        raise InvalidRequest(f"a name has 1 to {_LONGEST_NAME} printable characters, no space at its ends")
    return name


def checked_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """The roles, each once, in the order of sheet 60 §4. Raises InvalidRequest."""
    given = set(roles)
    rights(given)
    if not given:
        raise InvalidRequest(f"give at least one role: {', '.join(Role)}")
    return tuple(role.value for role in Role if role.value in given)


def _account(row: Row[tuple[object, ...]]) -> Account:
    values = row._mapping
    roles = tuple(json.loads(values["roles"]))
    return Account(
        pk=values["pk"],
        name=values["name"],
        roles=roles,
        may=rights(roles),
        disabled=bool(values["disabled"]),
        created_at=values["created_at"],
    )


def _insert(conn: Connection, actor: Actor, *, name: str, roles: tuple[str, ...], hashed: str, at: datetime) -> Account:
    added = conn.execute(
        insert(account)
        .values(name=name, password_hash=hashed, roles=json.dumps(list(roles)), disabled=0, created_at=at)
        .returning(account)
    ).one()
    _tell(conn, actor, EventType.ROLES_CHANGED, name, "account added", roles=list(roles))
    return _account(added)


def _set_disabled(archive: Archive, name: str, disabled: int, actor: Actor) -> None:
    demand(actor, Action.ADMINISTER)

    def write(conn: Connection) -> None:
        pk = _pk(conn, name)
        conn.execute(update(account).where(account.c.pk == pk).values(disabled=disabled))
        if disabled:
            conn.execute(delete(session).where(session.c.account_pk == pk))
        done = "account disabled" if disabled else "account enabled"
        _tell(conn, actor, EventType.USER_ATTRIBUTES_CHANGED, name, done)

    archive.commit.run(write)
    archive.recognition.grants.forget()


def _pk(conn: Connection, name: str) -> int:
    pk = conn.execute(select(account.c.pk).where(account.c.name == name)).scalar()
    if pk is None:
        raise NotFound(f"no account {name!r}")
    return int(pk)


def _tell(conn: Connection, actor: Actor, kind: EventType, name: str, act: str, **more: object) -> None:
    record(conn, actor, Event.SECURITY_ALERT, "E", detail={"type": kind, "act": act, "account": name, **more})


def _refuse(archive: Archive, actor: Actor, reason: str) -> None:
    refused(
        archive.commit,
        actor,
        Event.USER_AUTHENTICATION,
        "E",
        reason=reason,
        detail={"type": EventType.LOGIN},
    )
