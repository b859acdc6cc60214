"""`minipacs mwl`: the modality worklist, as modalities are told it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from minipacs.terminal import Config, Json, opened, say, say_json

app = typer.Typer(help="The modality worklist.", no_args_is_help=True)


@app.command("list")
def list_(
    *,
    date: Annotated[str, typer.Option(help="Day, or range, of the start: 20260105, 20260105-20260107.")] = "",
    modality: Annotated[str, typer.Option(help="CT, DX…")] = "",
    station: Annotated[str, typer.Option(help="AE title of the modality.")] = "",
    accession: Annotated[str, typer.Option(help="Accession number.")] = "",
    status: Annotated[
        str, typer.Option(help="SCHEDULED, STARTED, COMPLETED, DISCONTINUED, CANCELLED or all.")
    ] = "SCHEDULED",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Items at most.")] = 1000,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List what is to be done, in the order in which it is to start."""
    from archive.index.asked import audit_query
    from archive.workflow.worklist import listed

    asked = {"date": date, "modality": modality, "station": station, "accession": accession, "status": status}
    with opened(config, process="mwl-list") as (archive, actor):
        audit_query(archive.commit, actor, parameters={"query": {"worklist": asked}})
        with archive.reading() as conn:
            found = listed(conn, **asked, stations=archive.settings.dicom.stations(), limit=limit)
    if as_json:
        say_json({"items": found, "next": None})
        return
    for one in found:
        say(_line(one))
    say(f"{len(found)} items")


def _line(one: dict[str, Any]) -> str:
    start = f"{one['start_date'] or '--------'} {one['start_time'][:4] or '----'}"
    stations = ",".join(one["station_aes"]) or "-"
    who = f"{one['patient_id']:<14} {one['patient_name']}"
    return f"{start}  {one['modality']:<4} {stations:<16}  {one['accession_number']:<16}  {one['status']:<12}  {who}"
