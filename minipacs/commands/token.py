"""`minipacs token`: tokens for machines. With the server running or stopped; nothing is asked at the terminal."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from minipacs.commands.user import Roles
from minipacs.terminal import Config, Json, opened, say, say_json

if TYPE_CHECKING:
    from archive.accounts import Token

app = typer.Typer(help="Tokens for machines.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Under which name the audit knows its holder.")],
    role: Roles,
    days: Annotated[int | None, typer.Option(help="Days until it expires; else it does not.", min=1)] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it, once and alone."""
    from archive.accounts import create_token

    with opened(config, process="token") as (archive, actor):
        made = create_token(archive, name, role, days, actor=actor)
    if as_json:
        say_json(
            {"id": made.id, "token": made.secret, "roles": list(dict.fromkeys(role)), "expires": _time(made.expires)}
        )
    else:
        say(made.secret)


@app.command("list")
def list_(config: Config = None, as_json: Json = False) -> None:
    """List the tokens, without their secrets."""
    from archive.accounts import list_tokens

    with opened(config, process="token") as (archive, _actor):
        found = list_tokens(archive)
        now = archive.real_clock()
    if as_json:
        items = [
            {
                "id": one.id,
                "name": one.name,
                "roles": one.roles,
                "created_at": _time(one.created_at),
                "expires": _time(one.expires_at),
                "revoked_at": _time(one.revoked_at),
                "active": _state(one, now) == "active",
            }
            for one in found
        ]
        say_json({"items": items, "next": None})
        return
    for one in found:
        expires = one.expires_at.date().isoformat() if one.expires_at else "no end"
        say(f"{one.id}  {_state(one, now):<8}  {expires:<10}  {one.name:<24}  {', '.join(one.roles)}")


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The token's id, from «token list».")], config: Config = None
) -> None:
    """End a token; running servers know within five seconds."""
    from archive.accounts import revoke_token

    with opened(config, process="token") as (archive, actor):
        revoke_token(archive, id, actor=actor)


def _state(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "active"


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
