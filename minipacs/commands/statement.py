"""`minipacs statement dicom|dicomweb|ihe`: what the running configuration does, as a conformance statement."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from minipacs.terminal import Config, say, say_json

app = typer.Typer(help="Conformance statements of the running configuration.", no_args_is_help=True)


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


@app.callback()
def statement_() -> None:
    """Conformance statements of the running configuration."""


@app.command("dicom")
def dicom(
    config: Config = None,
    form: Annotated[Format, typer.Option("--format", help="text (Markdown) or json.")] = Format.TEXT,
) -> None:
    """Print the DICOM conformance statement. Needs neither the database nor a running server."""
    from archive.config import load
    from dicom_scp.stated_services import markdown
    from dicom_scp.statement import statement

    parts = statement(load(config))
    if form is Format.JSON:
        say_json({"statement": "dicom", "parts": [asdict(part) for part in parts]})
    else:
        say("# DICOM conformance statement\n\n" + markdown(parts))


@app.command("ihe")
def ihe(
    config: Config = None,
    form: Annotated[Format, typer.Option("--format", help="text (Markdown) or json.")] = Format.TEXT,
) -> None:
    """Print the IHE integration statement. Needs neither the database nor a running server."""
    from archive.clock import Clock
    from archive.config import load
    from archive.policy import local_day
    from dicom_scp.stated_services import markdown
    from minipacs.ihe import parts, statement

    settings, today = load(config), local_day(Clock().real())
    if form is Format.JSON:
        say_json(statement(settings, on=today))
    else:
        say("# IHE integration statement\n\n" + markdown(list(parts(settings, on=today))))


@app.command("dicomweb")
def dicomweb(config: Config = None) -> None:
    """Print the DICOMweb conformance statement. Needs neither the database nor a running server."""
    from api.statement import statement
    from archive.config import load

    say("# DICOMweb conformance statement\n\n" + statement(load(config)))
