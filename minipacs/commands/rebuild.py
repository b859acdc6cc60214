"""`minipacs rebuild-index`: the index anew, from files and journal alone."""

from __future__ import annotations

from dataclasses import asdict

import typer

from minipacs.terminal import FINDING, Config, Json, opened, progress, say, say_json

app = typer.Typer()


@app.command("rebuild-index")
def rebuild_index(config: Config = None, as_json: Json = False) -> None:
    """Make the index of an empty database from the files of both tiers and the journal of facts.

    An index that is not empty is refused, so nothing is asked. Stop the server first. Accounts and the audit come back
    from a backup only (docs/operations.md); removal stays suspended until `minipacs retention resume`. Killed? Run it
    again. Exit 1 when something could not be taken in.
    """
    import migrations
    from archive.config import load
    from archive.rebuild import rebuild

    settings = load(config)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if migrations.current(settings.database_url) is None:
        migrations.upgrade(settings.database_url)
    with opened(config, process="rebuild") as (archive, actor), progress("rebuild-index") as bar:
        rebuilt = rebuild(archive, actor=actor, progress=bar)
    if as_json:
        say_json({"ok": not rebuilt.not_taken, **asdict(rebuilt)})
    else:
        say(
            f"stored {rebuilt.stored}, held back {rebuilt.held}, quarantined {rebuilt.quarantined}, "
            f"twice {rebuilt.already_stored}, on the cold tier {rebuilt.cold_copies}, "
            f"removed as purged {rebuilt.removed}, facts {rebuilt.facts}"
        )
        for one in rebuilt.not_taken:
            say(f"not taken in: {one.path}: {one.reason}")
        say("removal is suspended: look at some studies, then «minipacs retention resume --reason …»")
    if rebuilt.not_taken:
        raise typer.Exit(FINDING)
