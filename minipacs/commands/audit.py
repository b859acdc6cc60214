"""`minipacs audit export` and `minipacs verify-audit`: the follow-up of accesses, taken out and checked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minipacs.terminal import FINDING, Config, Json, complain, opened, say, say_json

if TYPE_CHECKING:
    from archive.access import Actor
    from archive.audit.verify import Verdict
    from archive.core import Archive

app = typer.Typer(help="The follow-up of accesses.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """The follow-up of accesses."""


@app.command("export")
def export_(
    to: Annotated[Path, typer.Option("--to", help="File to write (JSON Lines); one that is there is replaced.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write all rows and their chains to a file that «verify-audit FILE» checks without the server."""
    with opened(config, process="audit export") as (archive, actor):
        try:
            rows = _export(archive, actor, to)
        except OSError as error:
            raise typer.Exit(complain(error)) from error
    if as_json:
        say_json({"file": str(to), "rows": rows})
    else:
        say(f"{rows} rows written to {to}")


def verify_audit(
    file: Annotated[
        Path | None, typer.Argument(help="An export; else the database of the settings.", exists=True, dir_okay=False)
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check the chains of the audit. Exit 1 when a row was altered or is missing: it is named."""
    verdict = _verdict_of_database(config) if file is None else _verdict_of_file(file)
    if as_json:
        say_json(verdict.as_json())
    elif verdict.ok:
        say(f"{verdict.rows} rows: every chain is whole")
    else:
        row = verdict.row
        named = f" (pk {row.pk}, chain {row.chain}, seq {row.seq})" if row is not None else ""
        say(f"broken: {verdict.reason}{named}; {verdict.rows} rows before it are good")
    if not verdict.ok:
        raise typer.Exit(FINDING)


def _export(archive: Archive, actor: Actor, to: Path) -> int:
    """Whole or not at all, readable by its owner alone: it names patients. The row that tells of it is in it."""
    from archive.audit.verify import export

    _tell(archive, actor, "export")
    fd, name = tempfile.mkstemp(prefix=f".{to.name}.", dir=to.parent)
    try:
        with os.fdopen(fd, "wb") as out, archive.reading() as conn:
            rows = export(conn, out, archive.time)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, to)
    except BaseException:
        os.unlink(name)
        raise
    return rows


def _verdict_of_database(config: Path | None) -> Verdict:
    from archive.audit.verify import verify

    with opened(config, process="verify-audit") as (archive, actor):
        _tell(archive, actor, "verify")
        with archive.reading() as conn:
            return verify(conn)


def _verdict_of_file(file: Path) -> Verdict:
    from archive.audit.verify import verify_file

    try:
        return verify_file(file)
    except OSError as error:
        raise typer.Exit(complain(error)) from error


def _tell(archive: Archive, actor: Actor, act: str) -> None:
    """Reading the audit is audited, before it is read (110101, law 4)."""
    from archive.audit.record import Event, record

    archive.commit.run(lambda conn: record(conn, actor, Event.AUDIT_LOG_USED, "R", detail={"act": act}))
