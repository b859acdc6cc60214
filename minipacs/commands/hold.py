"""`minipacs hold`: legal holds. A study on hold neither goes nor becomes lossy."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from minipacs.terminal import Config, Json, opened, say, say_json

if TYPE_CHECKING:
    from archive.lifecycle.holds import Hold

app = typer.Typer(help="Legal holds.", no_args_is_help=True)


@app.command()
def add(
    study: Annotated[str, typer.Option(help="Study Instance UID.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit and on certificates.")],
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Its last day; else until it is removed."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Forbid that a study goes, or becomes lossy; prints the id of the hold."""
    from archive.lifecycle.holds import add_hold

    with opened(config, process="hold") as (archive, actor):
        placed = add_hold(archive, study, reason=reason, until=None if until is None else until.date(), actor=actor)
    if as_json:
        say_json(placed.shape())
    else:
        say(placed.id)


@app.command()
def remove(id: Annotated[str, typer.Argument(help="The id, from «hold list».")], config: Config = None) -> None:
    """End a hold; the dates of its study count again."""
    from archive.lifecycle.holds import remove_hold

    with opened(config, process="hold") as (archive, actor):
        remove_hold(archive, id, actor=actor)


@app.command("list")
def list_(
    study: Annotated[str | None, typer.Option(help="Study Instance UID: only its holds.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that ended, too.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the holds, the oldest first."""
    from archive.lifecycle.holds import holds

    with opened(config, process="hold") as (archive, actor):
        found = holds(archive, study_instance_uid=study, everything=everything, actor=actor)
    if as_json:
        say_json({"items": [one.shape() for one in found], "next": None})
        return
    for one in found:
        say(f"{one.id}  {_until(one):<18}  {one.study_instance_uid}  {one.placed_by}: {one.reason}")


def _until(one: Hold) -> str:
    if one.removed_at is not None:
        return f"removed {one.removed_at:%Y-%m-%d}"
    return "until removed" if one.until is None else f"until {one.until.isoformat()}"
