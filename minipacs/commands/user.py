"""`minipacs user`: local accounts. With the server running or stopped; nothing is asked at the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from minipacs.terminal import Config, Json, opened, say, say_json

app = typer.Typer(help="Local accounts.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The account's name.")]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin; else one is made.")
]
Roles = Annotated[list[str], typer.Option("--role", help="A role; give the option once for each.")]


def _password(from_stdin: bool) -> str | None:
    return sys.stdin.readline().rstrip("\r\n") if from_stdin else None


@app.command()
def add(
    name: Name, role: Roles, password_stdin: FromStdin = False, config: Config = None, as_json: Json = False
) -> None:
    """Add an account. A password that was made for it is printed, once and alone."""
    from archive.accounts import add_account

    with opened(config, process="user") as (archive, actor):
        made = add_account(archive, name, role, _password(password_stdin), actor=actor)
    if as_json:
        say_json({"name": made.account.name, "roles": made.account.roles, "password": made.password})
    elif made.password is not None:
        say(made.password)


@app.command("list")
def list_(config: Config = None, as_json: Json = False) -> None:
    """List the accounts."""
    from archive.accounts import list_accounts

    with opened(config, process="user") as (archive, _actor):
        found = list_accounts(archive)
    if as_json:
        items = [
            {"name": one.name, "roles": one.roles, "disabled": one.disabled, "created_at": one.created_at.isoformat()}
            for one in found
        ]
        say_json({"items": items, "next": None})
        return
    for one in found:
        say(f"{one.name:<24}  {'disabled' if one.disabled else 'active':<8}  {', '.join(one.roles)}")


@app.command()
def disable(name: Name, config: Config = None) -> None:
    """Let nobody in under this name any more, and end its sessions."""
    from archive.accounts import disable_account

    with opened(config, process="user") as (archive, actor):
        disable_account(archive, name, actor=actor)


@app.command()
def enable(name: Name, config: Config = None) -> None:
    """Let a disabled account in again."""
    from archive.accounts import enable_account

    with opened(config, process="user") as (archive, actor):
        enable_account(archive, name, actor=actor)


@app.command()
def password(name: Name, password_stdin: FromStdin = False, config: Config = None, as_json: Json = False) -> None:
    """Give an account another password, and end its sessions. One that was made is printed, once and alone."""
    from archive.accounts import set_password

    with opened(config, process="user") as (archive, actor):
        made = set_password(archive, name, _password(password_stdin), actor=actor)
    if as_json:
        say_json({"name": name, "password": made})
    elif made is not None:
        say(made)
