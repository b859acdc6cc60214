"""`minipacs send`, `jobs` and `forward`: what leaves for peers, what waits or was given up, what rules would send."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minipacs.terminal import FINDING, NOT_THERE, Config, Json, opened, progress, say, say_json

if TYPE_CHECKING:
    from archive.core import Archive
    from archive.jobs import Job
    from archive.sending import Counts
    from minipacs.terminal import Progress

app = typer.Typer()
jobs = typer.Typer(help="Work that processes owe each other: what waits, what was given up.", no_args_is_help=True)
forward = typer.Typer(help="Rules by which images are sent on.", no_args_is_help=True)

TAKEN_SECONDS = 10.0  # until a DICOM process that runs has begun
_LOOK_SECONDS = 0.3


@app.command()
def send(
    *,
    to: Annotated[str, typer.Option(help="The peer, as its table in dicom.peers is named.")],
    study: Annotated[list[str] | None, typer.Option(help="Study Instance UID; may be given several times.")] = None,
    series: Annotated[list[str] | None, typer.Option(help="Series Instance UID: only these.")] = None,
    instance: Annotated[list[str] | None, typer.Option(help="SOP Instance UID: only these.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end; else the job's number is printed at once.")] = True,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Send studies to a peer (C-STORE). The server's DICOM process does it, and goes on when this command is ended.

    Exit 1 when the peer did not take all, 3 when it is away or no DICOM process runs: the job then waits.
    """
    from archive import sending

    with opened(config, process="send") as (archive, actor), progress("send") as bar:
        id, instances = sending.ask(
            archive,
            to,
            actor=actor,
            study_uids=study or (),
            series_uids=series or (),
            instance_uids=instance or (),
        )
        if not wait:
            say_json({"job": id, "instances": instances}) if as_json else say(str(id))
            return
        job, counts = _watched(archive, id, bar)
        with archive.reading() as conn:
            failures = sending.failures(conn, id, limit=1000)
    code = {"done": 0, "dead": FINDING}.get(job.state, NOT_THERE)
    if as_json:
        say_json({"job": id, "state": job.state, "error": job.error, **asdict(counts), "failures": failures})
    else:
        say(f"job {id}: sent {counts.sent}, failed {counts.failed}, waiting {counts.waiting}")
        for one in failures:
            say(f"  {one['sop_instance_uid']}: {one['reason']}")
        if code == NOT_THERE:
            why = job.error or "no DICOM process has taken it"
            typer.echo(f"minipacs: {why}; the job waits, «minipacs jobs list» shows it", err=True)
        elif job.error:
            typer.echo(f"minipacs: {job.error}", err=True)
    if code:
        raise typer.Exit(code)


def _watched(archive: Archive, id: int, bar: Progress | None) -> tuple[Job, Counts]:
    """The job when it is over, waits for its next attempt, or was not taken in time."""
    from archive import jobs as all_jobs
    from archive import sending
    from archive.clock import monotonic

    deadline = monotonic() + TAKEN_SECONDS
    while True:
        job = all_jobs.wait(archive, id, seconds=0)
        with archive.reading() as conn:
            counts = sending.counts(conn, [id]).get(id, sending.Counts())
        if bar is not None:
            bar(counts.sent + counts.failed, counts.total)
        given_back = job.state == "due" and job.error is not None
        if job.state in ("done", "dead") or given_back or (job.state == "due" and monotonic() > deadline):
            return job, counts
        sleep(_LOOK_SECONDS)


@jobs.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help="Only of this kind, as dicom.send.")] = None,
    state: Annotated[str | None, typer.Option(help="due, leased, done or dead (given up).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs at most.")] = 100,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List jobs, the latest first."""
    from archive.jobs import list_jobs
    from archive.sending import described

    if state not in (None, "due", "leased", "done", "dead"):
        raise typer.BadParameter("--state is due, leased, done or dead")
    with opened(config, process="jobs") as (archive, _actor):
        with archive.reading() as conn:
            found = list_jobs(conn, kind=kind, state=state, limit=limit)
        items = described(archive, found)
    if as_json:
        say_json({"items": items, "next": None})
        return
    for one in items:
        say(_line(one))
    say(f"{len(items)} jobs")


def _line(one: dict[str, Any]) -> str:
    far = f"{one['peer']}: {one['sent']} of {one['sent'] + one['waiting'] + one['failed']}" if "peer" in one else ""
    return f"{one['id']:>8}  {one['created_at']:%Y-%m-%d %H:%M}  {one['state']:<6}  {one['kind']:<14}  " + "  ".join(
        part for part in (far, one["error"] or "") if part
    )


@jobs.command()
def retry(id: Annotated[int, typer.Argument(help="Number of the job.")], config: Config = None) -> None:
    """Have a job done that was given up, or now instead of later."""
    from archive import sending

    with opened(config, process="jobs") as (archive, actor):
        sending.retry(archive, id, actor=actor)


@jobs.command()
def cancel(id: Annotated[int, typer.Argument(help="Number of the job.")], config: Config = None) -> None:
    """Give a job up."""
    from archive import sending

    with opened(config, process="jobs") as (archive, actor):
        sending.cancel(archive, id, actor=actor)


@forward.command()
def preview(
    study: Annotated[str | None, typer.Option(help="Study Instance UID: only this study.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Only what was received since this day (UTC)."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say what the rules would do with what is held, if it arrived now, and why. Sends nothing."""
    from archive.forwarding import foresee
    from archive.index.asked import audit_query

    with opened(config, process="forward") as (archive, actor):
        asked = {"forward_preview": study or "all", "since": since.isoformat() if since else None}
        audit_query(archive.commit, actor, parameters={"query": asked}, study=study)
        day = None if since is None else since.replace(tzinfo=UTC)
        with archive.reading() as conn:
            found = list(foresee(conn, archive.settings, study_uid=study, since=day))
    if as_json:
        say_json({"items": [asdict(one) for one in found], "next": None})
        return
    for one in found:
        verb = "→" if one.sends else "–"
        say(f"{one.study_instance_uid}  {one.rule} {verb} {one.to}: {one.instances} instances, {one.why}")
    sent = [one for one in found if one.sends]
    say(f"{sum(one.instances for one in sent)} instances of {len({one.study_instance_uid for one in sent})} studies")
