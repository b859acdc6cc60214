"""Tokens of machines: 256 random bits, shown once, stored as SHA-256 (nothing to guess, so nothing to slow down)."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from archive.access import Action, Actor, Door, demand, rights
from archive.accounts.people import checked_name, checked_roles
from archive.audit.record import Event, EventType, record
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import InvalidRequest, NotAuthenticated, NotFound
from archive.recognition import Grant
from archive.schema import token

PREFIX = "mp_"
_MOST_DAYS = 3660

_BY_SECRET = select(token.c.name, token.c.roles, token.c.expires_at, token.c.revoked_at).where(
    token.c.secret_hash == bindparam("its_hash")
)


class NewToken(NamedTuple):
    """A token that was just made; the secret is shown once and kept nowhere."""

    id: str
    secret: str
    expires: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: everything but its secret."""

    id: str
    name: str
    roles: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def secret_hash(secret: str) -> str:
    """What is stored of a secret of 256 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def create_token(
    archive: Archive, name: str, roles: Iterable[str], days: int | None = None, *, actor: Actor
) -> NewToken:
    """Make a token that acts under `name`, for `days` from now, or without end.

    Raises InvalidRequest: a role that does not exist, none at all, a bad name, or a bad number of days.
    """
    demand(actor, Action.ADMINISTER)
    name = checked_name(name)
    granted = checked_roles(roles)
    if days is not None and not 0 < days <= _MOST_DAYS:
        raise InvalidRequest(f"a token lives 1 to {_MOST_DAYS} days, or without end")
    at = archive.real_clock()
    made = NewToken(
        id=secrets.token_hex(6),
        secret=PREFIX + secrets.token_urlsafe(32),
        expires=None if days is None else at + timedelta(days=days),
    )

    def write(conn: Connection) -> None:
        conn.execute(
            insert(token),
            {
                "id": made.id,
                "name": name,
                "secret_hash": secret_hash(made.secret),
                "roles": json.dumps(list(granted)),
                "created_at": at,
                "expires_at": made.expires,
            },
        )
        _tell(conn, actor, EventType.ROLES_CHANGED, "token created", token=made.id, name=name, roles=list(granted))

    archive.commit.run(write)
    return made


def list_tokens(archive: Archive) -> list[Token]:
    """All tokens, also those that expired or were revoked, oldest first."""
    with archive.reading() as conn:
        return [
            Token(
                id=row.id,
                name=row.name,
                roles=tuple(json.loads(row.roles)),
                created_at=row.created_at,
                expires_at=row.expires_at,
                revoked_at=row.revoked_at,
            )
            for row in conn.execute(select(token).order_by(token.c.pk))
        ]


def revoke_token(archive: Archive, id: str, *, actor: Actor) -> None:
    """End a token, in every process within five seconds. Doing it again changes nothing. Raises NotFound."""
    demand(actor, Action.ADMINISTER)
    at = archive.real_clock()

    def write(conn: Connection) -> None:
        found = conn.execute(select(token.c.pk, token.c.name, token.c.revoked_at).where(token.c.id == id)).one_or_none()
        if found is None:
            raise NotFound(f"no token {id!r}")
        if found.revoked_at is None:
            conn.execute(update(token).where(token.c.pk == found.pk).values(revoked_at=at))
            _tell(conn, actor, EventType.USER_ATTRIBUTES_CHANGED, "token revoked", token=id, name=found.name)

    archive.commit.run(write)
    archive.recognition.grants.forget()


def actor_of_token(archive: Archive, secret: str, *, source: str, door: Door) -> Actor:
    """Who holds this token. The answer may be three seconds old (law 4 allows five).

    Raises NotAuthenticated: unknown, expired or revoked; the edge audits it before it answers.
    """
    hashed = secret_hash(secret)
    at = archive.real_clock()
    grant = archive.recognition.grants.get(hashed, at)
    if grant is None:
        read_at = monotonic()
        with archive.reading() as conn:
            row = conn.execute(_BY_SECRET, {"its_hash": hashed}).one_or_none()
        if row is None:
            raise NotAuthenticated("no such token")
        if row.revoked_at is not None:
            raise NotAuthenticated("the token was revoked")
        if row.expires_at is not None and row.expires_at <= at:
            raise NotAuthenticated("the token has expired")
        grant = Grant(row.name, rights(json.loads(row.roles)), row.expires_at)
        archive.recognition.grants.keep(hashed, grant, read_at=read_at)
    return Actor(user=grant.user, source=source, door=door, may=grant.may)


def _tell(conn: Connection, actor: Actor, kind: EventType, act: str, **more: object) -> None:
    record(conn, actor, Event.SECURITY_ALERT, "E", detail={"type": kind, "act": act, **more})
