"""The command line (sheet 60 §2). Exit codes: 0 done, 1 finding or refusal, 2 usage, 3 a service was not there."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from archive.config import ConfigError
from archive.errors import ArchiveError
from minipacs.commands import (
    audit,
    check,
    export,
    hl7,
    hold,
    mwl,
    rebuild,
    remote,
    retention,
    send,
    serve,
    statement,
    testbed,
    token,
    user,
)
from minipacs.terminal import complain

app = typer.Typer(
    name="minipacs",
    help="minipacs: a small DICOM archive for radiology practices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # it would print local variables, and with them patient data
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(version("minipacs"))
        except PackageNotFoundError:
            typer.echo("not installed")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """minipacs: a small DICOM archive for radiology practices."""


app.add_typer(serve.app)
app.add_typer(check.app)
app.add_typer(check.work_items, name="work-items")
app.add_typer(user.app, name="user")
app.add_typer(token.app, name="token")
app.add_typer(audit.app, name="audit")
_alone = typer.Typer()
_alone.command("verify-audit")(audit.verify_audit)
app.add_typer(_alone)
app.add_typer(retention.app, name="retention")
app.add_typer(hold.app, name="hold")
app.add_typer(rebuild.app)
app.add_typer(hl7.app, name="hl7")
app.add_typer(statement.app, name="statement")
app.add_typer(export.app)
app.add_typer(send.app)
app.add_typer(remote.app)
app.add_typer(remote.remote, name="remote")
app.add_typer(send.jobs, name="jobs")
app.add_typer(send.forward, name="forward")
app.add_typer(mwl.app, name="mwl")
app.add_typer(testbed.app, name="testbed")


def main() -> None:
    """Run a command and leave with its exit code."""
    try:
        app()
    except (ConfigError, ArchiveError) as error:
        sys.exit(complain(error))


if __name__ == "__main__":
    main()
