"""What every command shares: its options, the archive it opens, how it speaks, and its exit codes (sheet 60 §2)."""

from __future__ import annotations

import json
import os
import pwd
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archive.config import load
from archive.errors import IndexUnavailable, Unavailable
from minipacs import logs

if TYPE_CHECKING:
    from archive.access import Actor
    from archive.core import Archive

DONE, FINDING, USAGE, NOT_THERE = 0, 1, 2, 3

Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; else MINIPACS_CONFIG, else ./minipacs.toml, else defaults."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Progress = Callable[[int, int], None]


def exit_code(error: Exception) -> int:
    """1: refused, in words. 3: something that the command needs was not there (database, disk, the edges)."""
    if isinstance(error, IndexUnavailable) and error.__cause__ is None:
        return FINDING  # the database is there, its schema is not the one
    return NOT_THERE if isinstance(error, Unavailable) else FINDING


@contextmanager
def opened(config: Path | None, *, process: str) -> Iterator[tuple[Archive, Actor]]:
    """The archive of these settings, and the person at the keyboard: whoever may run commands may do everything.

    Raises ConfigError or ArchiveError; `minipacs.cli.main` puts them into words and an exit code.
    """
    from archive.core import open_archive
    from archive.heartbeat import follow

    logs.configure(process=process)
    with open_archive(load(config), process=process) as archive:
        follow(archive)
        yield archive, whoever_types()


def whoever_types() -> Actor:
    """The host's user, as the audit names it."""
    from archive.access import EVERYTHING, Actor, Door

    try:
        login = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        login = str(os.getuid())
    return Actor(user=login, source=f"{login}@{socket.gethostname()}", door=Door.COMMAND, may=EVERYTHING)


def say(text: str) -> None:
    """A result, to stdout."""
    typer.echo(text)


def say_json(value: object) -> None:
    """A result that is data, to stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def complain(error: Exception) -> int:
    """Say, on stderr, why a command did not do what it was asked; returns the exit code."""
    typer.echo(f"minipacs: {error}", err=True)
    return exit_code(error)


@contextmanager
def progress(title: str) -> Iterator[Progress | None]:
    """A progress bar on stderr when a person looks on; else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
