"""`minipacs export`: studies on a medium, for a patient or another site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minipacs.terminal import FINDING, Config, Json, opened, progress, say, say_json

app = typer.Typer()


@app.command()
def export(
    *,
    study: Annotated[list[str], typer.Option(help="Study Instance UID; may be given several times.")],
    to: Annotated[Path, typer.Option(help="A folder that is made, or a file with --zip. It must not exist yet.")],
    as_zip: Annotated[bool, typer.Option("--zip", help="One ZIP file instead of a folder.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write studies with a DICOMDIR, as they leave everywhere else. Exit 1 when an instance had to be left out."""
    from archive.exporting import export as write

    with opened(config, process="export") as (archive, actor), progress("export") as bar:
        done = write(archive, study, to.absolute(), actor=actor, as_zip=as_zip, progress=bar)
    if as_json:
        left = [{"sop_instance_uid": uid, "reason": reason} for uid, reason in done.left_out]
        say_json({"instances": done.instances, "bytes": done.bytes, "left_out": left, "to": str(to)})
    else:
        say(f"{done.instances} instances, {done.bytes / 1e6:.1f} MB: {to}")
        for uid, reason in done.left_out:
            say(f"  left out {uid}: {reason}")
    if done.left_out:
        raise typer.Exit(FINDING)
