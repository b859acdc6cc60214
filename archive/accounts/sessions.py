"""Sessions of the desk: a secret in a cookie, good until some silence or the end of the day (REQ-SEC-24).

The last sign of life is written once a minute at most, so a session may end up to a minute early, never late.
"""

from __future__ import annotations

import json
import secrets
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from archive.access import Actor, Door, rights
from archive.accounts.people import Account
from archive.accounts.tokens import secret_hash
from archive.audit.record import Event, EventType, record
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import NotAuthenticated
from archive.recognition import REMEMBER_SECONDS, Grant
from archive.schema import account, session

LONGEST = timedelta(hours=12)  # then one logs in again, however busy

_SESSIONS = select(
    session.c.pk,
    session.c.last_seen_at,
    session.c.expires_at,
    account.c.name,
    account.c.roles,
    account.c.disabled,
).join_from(session, account, session.c.account_pk == account.c.pk)
_BY_SECRET = _SESSIONS.where(session.c.secret_hash == bindparam("its_hash"))
_OVER = _SESSIONS.where((session.c.expires_at <= bindparam("now")) | (session.c.last_seen_at <= bindparam("quiet")))
_REMOVE = delete(session).where(session.c.pk == bindparam("its_pk"))
_SEEN = (
    update(session)
    .where(session.c.pk == bindparam("its_pk"), session.c.last_seen_at < bindparam("now"))
    .values(last_seen_at=bindparam("now"))
)


def create_session(archive: Archive, account: Account) -> str:
    """Open a session for an account that has just authenticated; returns its secret. Clears those that are over."""
    secret = secrets.token_urlsafe(32)
    at = archive.real_clock()

    def write(conn: Connection) -> None:
        for row in conn.execute(_OVER, {"now": at, "quiet": at - _idle(archive)}).all():
            _end_idle(conn, row.pk, row.name)
        conn.execute(
            insert(session),
            {
                "secret_hash": secret_hash(secret),
                "account_pk": account.pk,
                "created_at": at,
                "last_seen_at": at,
                "expires_at": at + LONGEST,
            },
        )

    archive.commit.run(write)
    return secret


def actor_of_session(archive: Archive, secret: str, *, source: str, door: Door) -> Actor:
    """Who has this session; using it keeps it alive. The answer may be three seconds old (law 4 allows five).

    Raises NotAuthenticated: unknown or over; the edge audits it before it answers.
    """
    hashed = secret_hash(secret)
    at = archive.real_clock()
    grant = archive.recognition.grants.get(hashed, at)
    if grant is None:
        read_at = monotonic()
        with archive.reading() as conn:
            row = conn.execute(_BY_SECRET, {"its_hash": hashed}).one_or_none()
        if row is None or row.disabled:
            raise NotAuthenticated("no such session: log in")
        if row.expires_at <= at or row.last_seen_at <= at - _idle(archive):
            pk, name = row.pk, row.name
            archive.commit.run(lambda conn: _end_idle(conn, pk, name))
            raise NotAuthenticated("the session is over: log in again")
        _keep_alive(archive, row.pk, row.last_seen_at, at)
        grant = Grant(row.name, rights(json.loads(row.roles)), row.expires_at)
        archive.recognition.grants.keep(hashed, grant, read_at=read_at)
    return Actor(user=grant.user, source=source, door=door, may=grant.may)


def end_session(archive: Archive, secret: str, *, source: str = "", door: Door = Door.DESK) -> None:
    """Log out. An unknown session is no error: it is over."""
    hashed = secret_hash(secret)

    def write(conn: Connection) -> None:
        row = conn.execute(_BY_SECRET, {"its_hash": hashed}).one_or_none()
        if row is None:
            return
        conn.execute(_REMOVE, {"its_pk": row.pk})
        actor = Actor(user=row.name, source=source, door=door, may=frozenset())
        record(conn, actor, Event.USER_AUTHENTICATION, "E", detail={"type": EventType.LOGOUT})

    archive.commit.run(write)
    archive.recognition.grants.forget()


def _idle(archive: Archive) -> timedelta:
    return timedelta(seconds=archive.settings.api.session_idle_seconds)


def _keep_alive(archive: Archive, pk: int, last_seen_at: datetime, at: datetime) -> None:
    seldom = timedelta(seconds=min(60.0, archive.settings.api.session_idle_seconds / 4) - REMEMBER_SECONDS)
    if at - last_seen_at >= seldom:
        archive.commit.later(lambda conn: conn.execute(_SEEN, {"its_pk": pk, "now": at}))


def _end_idle(conn: Connection, pk: int, name: str) -> None:
    """The silence logged somebody out: not they themselves (sheet 40 §2, UserIsRequestor false)."""
    if conn.execute(_REMOVE, {"its_pk": pk}).rowcount:
        actor = Actor(user=name, source="", door=Door.SYSTEM, may=frozenset())
        detail = {"type": EventType.LOGOUT, "requestor": False}
        record(conn, actor, Event.USER_AUTHENTICATION, "E", detail=detail)
