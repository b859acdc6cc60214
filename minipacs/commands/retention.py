"""`minipacs retention`: what age does to studies, one tick now, approvals, the end of a suspension."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from minipacs.terminal import Config, Json, opened, progress, say, say_json

app = typer.Typer(help="Age: cold storage, purge, what keeps a study.", no_args_is_help=True)

PATIENCE_SECONDS = 60.0  # for the tick of another process

Reason = Annotated[str, typer.Option(help="Why; kept in the audit.")]


@app.command()
def run(config: Config = None, as_json: Json = False) -> None:
    """Run one tick now, in this process. Exit 3 when another process is at one for more than a minute."""
    from archive.lifecycle.runs import order_run
    from retention.tick import tick

    with opened(config, process="retention") as (archive, actor), progress("retention") as bar:
        order_run(archive, actor=actor)
        ticked = tick(archive, patience_seconds=PATIENCE_SECONDS, progress=bar)
    if as_json:
        say_json(ticked.counts())
        return
    say(
        f"migrated {ticked.migrated} (lossy copies {ticked.derived}, kept lossless {ticked.kept_lossless}), "
        f"announced {ticked.announced}, purged {ticked.purged}, blocked {ticked.blocked}"
    )
    for reason, studies in ticked.counts()["reasons"].items():
        say(f"  blocked {studies}: {reason}")


@app.command()
def approve(
    reason: Reason,
    study: Annotated[str, typer.Argument(help="Study Instance UID of an announced purge.")] = "",
    named: Annotated[str, typer.Option("--study", help="The same, as an option.")] = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Approve an announced purge (`retention.purge_approval = "two-person"`): two distinct persons have to."""
    from archive.lifecycle.approvals import NEEDED
    from archive.lifecycle.approvals import approve as approve_purge

    if bool(study) == bool(named):
        raise typer.BadParameter("give one Study Instance UID")
    uid = study or named
    with opened(config, process="retention") as (archive, actor):
        count = approve_purge(archive, uid, reason=reason, actor=actor)
    if as_json:
        say_json({"study": uid, "approvals": count, "needed": NEEDED})
    else:
        say(f"{uid}: {count} of {NEEDED} approvals")


@app.command()
def resume(reason: Reason, config: Config = None, as_json: Json = False) -> None:
    """Confirm that clock and index are right: what is due may be removed again."""
    from archive.lifecycle.suspension import resume as resume_removal

    with opened(config, process="retention") as (archive, actor):
        lifted = resume_removal(archive, reason=reason, actor=actor)
    if as_json:
        said = [{"kind": one.kind, "detail": one.detail, "since": one.since.isoformat()} for one in lifted]
        say_json({"lifted": said})
        return
    for one in lifted:
        say(f"lifted: {one.kind}, since {one.since:%Y-%m-%d %H:%M} UTC: {one.detail}")
    if not lifted:
        say("removal was not suspended")


@app.command()
def quality(
    sample: Annotated[int, typer.Option(min=1, max=10_000, help="Images of each modality.")] = 20,
    modality: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Try the lossy gate (`retention.quality`) on images of this archive: how many pass, how well, what it saves.

    Nothing is stored.
    """
    from archive.lifecycle.trial import trial

    with opened(config, process="retention") as (archive, _actor), progress("quality") as bar:
        found = trial(archive, sample, modalities=modality or (), progress=bar)
    if as_json:
        say_json({"items": [one.shape() for one in found], "next": None})
        return
    for one in found:
        shape = one.shape()
        say(f"{one.modality}: {one.passed} of {one.tried} pass, ratio {shape['ratio'] or '-'}")
        if (worst := shape["worst_passed"]) is not None:
            say("  worst of these  " + ", ".join(f"{name} {value}" for name, value in worst.items()))
        for reason, images in one.kept.items():
            say(f"  stay lossless   {images}: {reason}")
    if not found:
        say("no image on the hot tier has a gate")


@app.command()
def preview(
    on: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="The day; else today.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A draft to try: TOML with a table `retention`, put over ours."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say what leaves the hot tier, is announced or purged up to a day, and what is kept from it. Changes nothing."""
    from archive.lifecycle.preview import draft_of
    from archive.lifecycle.preview import preview as foretell

    with opened(config, process="retention") as (archive, _actor):
        draft = None if policy is None else draft_of(archive.settings, policy.read_bytes())
        items = (
            item for _, some in foretell(archive, on=None if on is None else on.date(), draft=draft) for item in some
        )
        if not as_json:
            for item in items:
                why = "; ".join(str(reason["text"]) for reason in item.reasons)
                say(f"{item.day.isoformat()}  {item.action:<8}  {item.study_instance_uid}  {why}")
            return
        say('{"items": [')  # one by one: there may be very many
        comma = ""
        for item in items:
            say(comma + json.dumps(item.shape(), ensure_ascii=False))
            comma = ","
        say('], "next": null}')
