"""`minipacs serve`, `check-config` and `migrate`."""

from __future__ import annotations

import contextlib
import os
import shutil
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from archive import tls
from archive.clock import Clock
from archive.config import EDGES, ConfigError, Settings, load
from archive.sections import is_loopback
from minipacs import logs, supervise
from minipacs.terminal import FINDING, Config, Json, complain, say, say_json

app = typer.Typer()


@app.command()
def serve(
    only: Annotated[
        str, typer.Option(help="Edges to run, separated by commas: dicom, hl7, api, retention. Default: all.")
    ] = "",
    config: Config = None,
    log: Annotated[logs.Form, typer.Option(help="How log lines are written, on stderr.")] = logs.Form.TEXT,
) -> None:
    """Run the archive until SIGTERM or Ctrl-C."""
    logs.configure(log, process="serve")
    edges = [name.strip() for name in only.split(",") if name.strip()] or list(EDGES)
    unknown = [name for name in edges if name not in EDGES]
    if unknown:
        raise typer.BadParameter(f"no such edge: {', '.join(unknown)}; edges of this version: {', '.join(EDGES)}")
    edges = [name for name in EDGES if name in edges]
    try:
        raise typer.Exit(supervise.serve(load(config), edges=edges, config=config, form=log))
    except supervise.Refused as refusal:
        complain(refusal)
        raise typer.Exit(refusal.code) from refusal


@app.command("check-config")
def check_config(config: Config = None, as_json: Json = False) -> None:
    """Validate the settings and the environment, with advice. Exit 1 when something would stop the start."""
    settings = load(config)
    stops, advice = _stops(settings), _advice(settings)
    if as_json:
        say_json({"ok": not stops, "problems": stops, "advice": advice, "settings": _shown(settings)})
    else:
        for line in stops:
            say(f"PROBLEM  {line}")
        for line in advice:
            say(f"advice   {line}")
        if not stops:
            say("The settings are valid.")
    if stops:
        raise typer.Exit(FINDING)


@app.command()
def migrate(config: Config = None) -> None:
    """Bring the schema of the database up to this version. Safe to repeat."""
    import migrations

    logs.configure(process="migrate")
    settings = load(config)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    before = migrations.current(settings.database_url)
    migrations.upgrade(settings.database_url)
    after = migrations.head()
    say(f"The schema is {after}." if before == after else f"The schema went from {before or 'empty'} to {after}.")


def _stops(settings: Settings) -> list[str]:
    """What would keep the archive from starting or storing."""
    problems = []
    for key, folder in (("data_dir", settings.data_dir.absolute()), ("storage.hot", settings.hot_dir)):
        there = _existing(folder)
        if not there.is_dir():
            problems.append(f"{key}: {there} is not a folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            problems.append(f"{key}: {there} cannot be written by this user")
        elif shutil.disk_usage(there).free < settings.storage.reserve_bytes:
            problems.append(
                f"{key}: less than storage.reserve_bytes ({settings.storage.reserve_bytes}) is free on {there}: "
                "nothing can be stored"
            )
    problems += [
        f"{one.key} and {other.key} are the same"
        for one, other in combinations(supervise.ports(settings), 2)
        if one.number and one.number == other.number
    ]
    from archive.accounts import assertions

    try:
        tls.check(settings)
    except ConfigError as error:
        problems.append(str(error))
    try:
        assertions.check(settings.dicom.jwt)
    except ConfigError as error:
        problems.append(str(error))
    return problems


def _advice(settings: Settings) -> list[str]:
    """What works and deserves a second look."""
    found = []
    if settings.test_mode:
        found.append("test_mode: the clock can be moved; not for patients")
    for name, section in supervise.sections(settings).items():
        if section.insecure:
            found.append(f"{name}.insecure: clear text beyond this machine is allowed")
        if section.insecure and is_loopback(section.host):
            found.append(f"{name}.insecure is not needed: {section.host} is this machine only")
    found += _tls_advice(settings)
    if settings.dicom.accepts_strangers() and settings.dicom.peers:
        found.append("dicom.accept_unknown_callers: callers that are not in dicom.peers are accepted too")
    found += [
        f"dicom.peers.{title}: host and port go together; without both it cannot receive (C-MOVE)"
        for title, peer in settings.dicom.callers().items()
        if (peer.host is None) != (peer.port is None)
    ]
    found += _network_advice(settings)
    if not settings.hl7.authorities:
        found.append(
            "hl7.authorities is empty: identifiers count as they are written, and those without CX-4 are refused"
        )
    if not settings.site.name:
        found.append("site.name is empty: pages and reports cannot name the practice")
    if settings.database_url.startswith("sqlite") and settings.dicom.workers + settings.api.workers > 4:
        found.append("many workers share SQLite, where one writes at a time: consider PostgreSQL (database.url)")
    return found


def _network_advice(settings: Settings) -> list[str]:
    """What the audit repository and the time servers say now."""
    from archive import ntp, repository, timekeeping
    from archive.audit.syslog import NotDelivered

    found = []
    if settings.audit.repository.host:
        try:
            repository.knock(settings)
        except (NotDelivered, ConfigError) as error:
            found.append(f"audit.repository: it cannot be reached, audit messages would wait: {error}")
    if settings.time.servers:
        compared = ntp.compare(settings.time.servers, Clock())
        wrong = timekeeping.fault(compared, settings)
        found += [f"time.servers: {why}" for why in ([wrong] if wrong else compared.silent)]
    else:
        found.append("time.servers is empty: nobody compares the clock of this machine (IHE CT)")
    return found


def _tls_advice(settings: Settings) -> list[str]:
    dicom, found = settings.dicom, []
    if settings.tls.on:
        with contextlib.suppress(ConfigError):  # a problem, said as one
            found += [said for said in (tls.expiry(settings.tls, at=Clock().real()),) if said]
        if not settings.dicom_in_clear:
            found.append(
                f"dicom.port: {dicom.port} stays closed, callers use dicom.tls_port ({dicom.tls_port}); "
                "dicom.insecure = true would open it"
            )
        if is_loopback(dicom.host):
            found.append(f"dicom.tls_port: {dicom.host} is this machine only; set dicom.host to let others in")
        if not settings.dicom_mutual_tls:
            found.append(
                "dicom.tls_mutual: no certificate is demanded of callers; "
                + ("set it to true" if settings.tls.ca else "set tls.ca to the authority of theirs")
            )
    if not is_loopback(dicom.host) and dicom.jwt.keys is not None and settings.dicom_in_clear:
        found.append("dicom.jwt: tokens and passcodes that come in clear text can be read on the network")
    if not is_loopback(dicom.host):
        found += [
            f"dicom.peers.{title}: who reaches the port can call by this AE title; set address or fingerprints"
            for title, peer in dicom.callers().items()
            if peer.address is None and not peer.fingerprints
        ]
    return found


def _shown(settings: Settings) -> dict[str, object]:
    """The settings in force; a password in the database's address is masked."""
    values = settings.model_dump(mode="json")
    values["database"]["url"] = masked(settings.database_url)
    return values


def masked(url: str) -> str:
    """A database address without its password."""
    scheme, mark, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at or ":" not in credentials:
        return url
    return f"{scheme}{mark}{credentials.partition(':')[0]}:***@{place}"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
