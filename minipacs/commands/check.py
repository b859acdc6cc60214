"""`minipacs verify`, `fsck`, `import` and `work-items`: what is in the archive, and whether it is still what it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minipacs.terminal import FINDING, Config, Json, opened, progress, say, say_json

if TYPE_CHECKING:
    from archive.integrity import Report
    from archive.media import Left

app = typer.Typer()
work_items = typer.Typer(help="What waits for a person.", no_args_is_help=True)


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders, media with a DICOMDIR, ZIPs.", exists=True)],
    restore_purged: Annotated[
        bool, typer.Option("--restore-purged", help="Bring back what retention had removed; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why it is brought back; kept in the audit.")] = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Take in files as if the network had sent them. Safe to repeat: what is stored is left alone.

    What was purged is refused, unless --restore-purged brings it back. Exit 1 when a file was refused or quarantined;
    the summary says why.
    """
    from archive.media import import_paths

    if restore_purged != bool(reason.strip()):
        raise typer.BadParameter("--restore-purged needs --reason, and --reason is for --restore-purged alone")
    why = reason if restore_purged else None
    with opened(config, process="import") as (archive, actor), progress("import") as bar:
        summary = import_paths(archive, paths, actor=actor, restore_purged=why, progress=bar)
    if as_json:
        say_json(asdict(summary))
    else:
        say(f"stored {summary.stored}, already there {summary.already_stored}, held back {summary.held}")
        _list("quarantined", summary.quarantined)
        _list("refused", summary.refused)
        _list("ignored", summary.ignored)
    if summary.quarantined or summary.refused:
        raise typer.Exit(FINDING)


def _list(title: str, files: list[Left]) -> None:
    if files:
        say(f"{title} {len(files)}:")
        for one in files:
            say(f"  {one.path}: {one.reason}")


@app.command()
def verify(
    study: Annotated[str | None, typer.Option(help="Study Instance UID: only the copies of this study.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every copy; else those checked longest ago.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Read copies again and compare their digests. Exit 1 when one is not what it was."""
    from archive.integrity import verify as check

    if study is not None and everything:
        raise typer.BadParameter("--study and --all exclude each other")
    with opened(config, process="verify") as (archive, _actor), progress("verify") as bar:
        report = check(archive, study_uid=study, everything=everything, progress=bar)
    _tell(report, as_json=as_json)


@app.command()
def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mark lost copies damaged; take in files without rows.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Compare the index with the files: rows without bytes, bytes without rows. Exit 1 when they differ."""
    from archive.integrity import fsck as check

    with opened(config, process="fsck") as (archive, _actor), progress("fsck") as bar:
        report = check(archive, repair=repair, progress=bar)
    _tell(report, as_json=as_json)


def _tell(report: Report, *, as_json: bool) -> None:
    if as_json:
        say_json({"ok": not report.findings, **asdict(report)})
    else:
        for finding in report.findings:
            say(f"{finding.path}: {finding.reason} {finding.sop_instance_uid}".rstrip())
        repaired = f", {report.repaired} settled" if report.repaired else ""
        say(f"{report.checked} copies looked at, {len(report.findings)} findings{repaired}")
    if report.findings:
        raise typer.Exit(FINDING)


@work_items.command("list")
def list_work_items(
    kind: Annotated[str | None, typer.Option(help="Only items of this kind.")] = None,
    state: Annotated[str, typer.Option(help="open, closed or all.")] = "open",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List what waits for a person, the oldest first."""
    from archive.index.asked import audit_query
    from archive.work_items import Kind, list_items

    if kind is not None and kind not in list(Kind):
        raise typer.BadParameter(f"no such kind: {kind}; kinds are: {', '.join(Kind)}")
    if state not in ("open", "closed", "all"):
        raise typer.BadParameter("--state is open, closed or all")
    items = []
    asked = {"query": {"work_items": kind or "all", "state": state}}
    with opened(config, process="work-items") as (archive, actor):
        audit_query(archive.commit, actor, parameters=asked)
        after: int | None = 0
        while after is not None:
            with archive.reading() as conn:
                page = list_items(conn, kind=kind, state=None if state == "all" else state, after=after, limit=500)
            items += page
            after = page[-1]["id"] if page else None
    if as_json:
        say_json({"items": items, "next": None})
        return
    for item in items:
        say(f"{item['id']:>6}  {item['opened_at'][:16]}  {item['state']:<6}  {item['kind']:<18}  {item['study'] or ''}")
    say(f"{len(items)} items")


@work_items.command("settle")
def settle_work_item(
    item: Annotated[int, typer.Argument(help="Number of the item, as «list» shows it.", min=1)],
    how: Annotated[
        str,
        typer.Option(
            "--as",
            help="done, accepted, unfounded; of an identity_conflict accept, reject; of a uid_conflict keep, replace.",
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why; kept with the item and in the audit.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Close an item that somebody has dealt with. It opens again when its cause comes up again."""
    from archive.settling import settle
    from archive.work_items import How

    if how not in list(How):
        raise typer.BadParameter(f"--as is one of: {', '.join(How)}")
    with opened(config, process="work-items") as (archive, actor):
        settle(archive, item, how=how, reason=reason, actor=actor)
    if as_json:
        say_json({"id": item, "state": "closed", "as": how, "reason": reason})
    else:
        say(f"work item {item} is closed: {how}")
