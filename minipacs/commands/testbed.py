"""`minipacs testbed`: the clock of a test bed. Only with `test_mode = true`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minipacs.terminal import Config, Json, opened, say, say_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from archive.access import Actor
    from archive.clock import Simulation
    from archive.core import Archive

app = typer.Typer(help="The test bed (test_mode only).", no_args_is_help=True)
clock = typer.Typer(help="Move the clock of every process.", no_args_is_help=True)
app.add_typer(clock, name="clock")


@clock.command("set")
def set_(
    instant: Annotated[str, typer.Argument(help="ISO 8601 date or time, UTC unless it says otherwise.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make the clock show INSTANT; from there it runs at normal speed."""
    from archive.testbed import set_clock

    try:
        wanted = datetime.fromisoformat(instant)
    except ValueError as error:
        raise typer.BadParameter(f"{instant!r} is not an ISO 8601 date or time, like 2026-01-05T08:00:00Z") from error
    aware = wanted if wanted.tzinfo is not None else wanted.replace(tzinfo=UTC)
    _move(config, as_json, lambda archive, actor: set_clock(archive, aware, actor=actor))


@clock.command()
def advance(
    step: Annotated[str, typer.Argument(help="Years, months, weeks, days, hours, minutes: 3y1d, 6m, 36h, 30min.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Move the clock on by STEP."""
    from archive.testbed import advance as move

    _move(config, as_json, lambda archive, actor: move(archive, step, actor=actor))


@clock.command()
def release(config: Config = None, as_json: Json = False) -> None:
    """Let the clock follow the system again."""
    from archive.testbed import release as move

    _move(config, as_json, lambda archive, actor: move(archive, actor=actor))


def _move(config: Path | None, as_json: bool, move: Callable[[Archive, Actor], Simulation]) -> None:
    with opened(config, process="testbed") as (archive, actor):
        moved = move(archive, actor)
        now = archive.clock().isoformat(timespec="seconds")
    if as_json:
        say_json({"now": now, "simulated": moved.shown is not None, "generation": moved.generation})
    else:
        say(f"{now}  every process follows")
