"""`minipacs remote` and `minipacs pull`: asking another archive, and taking it over."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, time
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minipacs.terminal import FINDING, Config, Json, complain, opened, progress, say, say_json

if TYPE_CHECKING:
    from archive.core import Archive
    from archive.takeover import Checked
    from dicom_scp.remote import Remote
    from dicom_scp.takeover import Fetch

app = typer.Typer()
remote = typer.Typer(help="Ask another archive (C-FIND), fetch studies of it.", no_args_is_help=True)

Peer = Annotated[str, typer.Option("--peer", help="The other archive, as its table in dicom.peers is named.")]
Via = Annotated[
    str,
    typer.Option(
        help="get: C-GET. move: C-MOVE to our port (the server runs, the peer knows us). wado: WADO-RS, with --url."
    ),
]
Url = Annotated[str, typer.Option(help="Service root of its DICOMweb, as https://pacs/dicom-web.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with a bearer token for --url.", exists=True)]
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="Study Date, included.")]

_SHOWN = ("StudyInstanceUID", "StudyDate", "StudyTime", "PatientID", "PatientName", "AccessionNumber")
_MORE = ("ModalitiesInStudy", "StudyDescription", "NumberOfStudyRelatedInstances")
_COLUMNS = ("study", "date", "state", "announced", "listed", "already_here", "pulled", "missing", "why")


@remote.command()
def find(
    *,
    peer: Peer,
    date: Annotated[str, typer.Option(help="Study Date: YYYYMMDD, or a range YYYYMMDD-YYYYMMDD.")] = "",
    patient: Annotated[str, typer.Option(help="Patient ID.")] = "",
    name: Annotated[str, typer.Option(help="Patient's Name; * and ? stand for any text, any character.")] = "",
    accession: Annotated[str, typer.Option(help="Accession Number.")] = "",
    modality: Annotated[str, typer.Option(help="A modality of the study.")] = "",
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Find studies of another archive. Exit 1 when it did not list all, 3 when it is not there."""
    from archive.index.asked import audit_query
    from dicom_scp.remote import remote_of, value

    keys = {
        "StudyDate": date, "PatientID": patient, "PatientName": name, "AccessionNumber": accession,
        "ModalitiesInStudy": modality, "StudyInstanceUID": study,
    }  # fmt: skip
    if not any(keys.values()):
        raise typer.BadParameter("say what to find: --date, --patient, --name, --accession, --modality or --study")
    wanted = {**dict.fromkeys((*_SHOWN, *_MORE), ""), **keys}
    with opened(config, process="remote-find") as (archive, actor):
        other = remote_of(archive, peer)
        asked = {"peer": peer, **{keyword: text for keyword, text in keys.items() if text}}
        audit_query(archive.commit, actor, parameters={"query": asked})
        with _said(peer), other.asking() as asking:
            answers = asking.find({"QueryRetrieveLevel": "STUDY", **wanted})
    items = [
        {keyword: value(row, keyword) for keyword in (*_SHOWN, *_MORE)}
        | {"ModalitiesInStudy": [str(one) for one in row.get("00080061", {}).get("Value", ())]}
        for row in answers.rows
    ]
    if as_json:
        say_json({"items": items, "next": None, "complete": answers.complete})
    else:
        for one in items:
            modalities = "/".join(one["ModalitiesInStudy"])
            say("  ".join([*(str(one[keyword]) for keyword in _SHOWN), modalities, *(str(one[k]) for k in _MORE[1:])]))
        say(f"{len(items)} studies" + ("" if answers.complete else ", and the other archive has more"))
    if not answers.complete:
        raise typer.Exit(FINDING)


@remote.command("pull")
def pull_studies(
    *,
    peer: Peer,
    study: Annotated[list[str], typer.Option(help="Study Instance UID; may be given several times.")],
    via: Via = "get",
    url: Url = "",
    token_file: TokenFile = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fetch studies of another archive: what is not here yet. Exit 1 when one is not complete afterwards, 3 when it is
    away."""
    from archive import takeover as state
    from archive.errors import Busy
    from archive.index.asked import audit_query
    from archive.takeover import Announced
    from dicom_scp.remote import remote_of
    from dicom_scp.takeover import Takeover

    _check(via, url)
    with opened(config, process="remote-pull") as (archive, actor), progress("pull") as bar:
        other = remote_of(archive, peer)
        audit_query(archive.commit, actor, parameters={"query": {"peer": peer, "pull": study}})
        run = Takeover(other, _fetch(other, via, url, token_file), actor, anew=True)
        found: list[Checked] = []
        for done, uid in enumerate(study, start=1):
            with archive.reading() as conn:
                before = state.last(conn, peer, uid)
            announced = None if before is None else before.announced
            checked = run.study(Announced(uid, "" if before is None else before.study_date, announced))
            found += [checked] if checked is not None else []
            if bar is not None:
                bar(done, len(study))
    away = Busy(f"{peer}: {found[-1].why}") if found and run.lost == len(study) else None
    _tell(found, [], as_json=as_json, ended=away)


@app.command()
def pull(
    *,
    peer: Annotated[str, typer.Option("--from", help="The other archive, as its table in dicom.peers is named.")],
    since: Day = None,
    until: Day = None,
    via: Via = "get",
    url: Url = "",
    token_file: TokenFile = None,
    limit: Annotated[int, typer.Option(min=0, help="So many answers mean that the peer has more; 0: it says so.")] = 0,
    anew: Annotated[bool, typer.Option("--anew", help="Compare studies again that were complete.")] = False,
    pause: Annotated[float, typer.Option(min=0, help="Seconds between two studies.")] = 0,
    between: Annotated[
        str, typer.Option(metavar="HH:MM-HH:MM", help="Begin studies only in these hours (Paris), as 20:00-06:30.")
    ] = "",
    only_report: Annotated[bool, typer.Option("--only-report", help="Pull nothing: the report as it stands.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a line for each study to this file.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Take over another archive, or its studies of some dates: all that is not here yet, compared image by image.

    May be stopped at any time, and run again: it goes on with what is missing. Then the report of completeness. Exit 1
    when something is missing or could not be listed, 3 when the other archive went away.
    """
    from archive import takeover as state
    from archive.errors import Unavailable
    from dicom_scp.remote import remote_of
    from dicom_scp.takeover import Takeover

    _check(via, url)
    hours = _hours(between)
    first, last = (None if day is None else day.date() for day in (since, until))
    warnings: list[str] = []
    ended: Unavailable | None = None
    with opened(config, process="pull") as (archive, actor):
        other = remote_of(archive, peer)
        if not only_report:
            run = Takeover(
                other,
                _fetch(other, via, url, token_file),
                actor,
                limit=limit,
                anew=anew,
                pause_seconds=pause,
                may_go_on=_waiting(archive, hours),
                warnings=warnings,
            )
            with progress("pull") as bar:
                if bar is not None:
                    run.progress = bar
                try:
                    run.run(first, last)
                except Unavailable as error:
                    ended = error
        with archive.reading() as conn:
            found = list(state.report(conn, peer, since=first, until=last))
    if csv_file is not None:
        with csv_file.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
            lines.writeheader()
            lines.writerows(_line(one) for one in found)
    _tell(found, warnings, as_json=as_json, ended=ended)


def _tell(found: Sequence[Checked], warnings: Sequence[str], *, as_json: bool, ended: Exception | None = None) -> None:
    """The report, and the exit code."""
    incomplete = [one for one in found if one.state != "complete"]
    total = {
        "studies": len(found),
        "complete": len(found) - len(incomplete),
        **{name: sum(getattr(one, name) for one in found) for name in ("listed", "already_here", "pulled", "missing")},
    }
    if as_json:
        items = [{**_line(one), "missing_uids": one.missing_uids} for one in found]
        say_json({"total": total, "items": items, "warnings": list(warnings)})
    else:
        for one in incomplete:
            reason = one.why or "not looked at yet"
            say(f"{one.study_instance_uid}  {one.study_date}  missing {one.missing} of {one.listed}: {reason}")
        for differing in (one for one in found if one.announced not in (None, one.listed) and one.state != "found"):
            say(f"{differing.study_instance_uid}  announced {differing.announced}, listed {differing.listed}")
        for warning in warnings:
            say(warning)
        say(
            f"studies {total['studies']}, complete {total['complete']}; images listed {total['listed']}: "
            f"pulled {total['pulled']}, already here {total['already_here']}, missing {total['missing']}"
        )
    if ended is not None:
        sys.exit(complain(ended))
    if incomplete or warnings:
        raise typer.Exit(FINDING)


def _line(one: Checked) -> dict[str, Any]:
    said = {**asdict(one), "pulled": one.pulled, "study": one.study_instance_uid, "date": one.study_date}
    return {name: said[name] for name in _COLUMNS}


def _check(via: str, url: str) -> None:
    if via not in ("get", "move", "wado"):
        raise typer.BadParameter("--via is get, move or wado")
    if (via == "wado") != bool(url):
        raise typer.BadParameter("--via wado needs --url, and --url is for it alone")


def _fetch(other: Remote, via: str, url: str, token_file: Path | None) -> Fetch:
    from dicom_scp.takeover import fetching

    if via != "wado":
        return fetching(other, via)
    from minipacs.wado import Wado

    return Wado(other, url, token=token_file.read_text(encoding="utf-8").strip() if token_file else "")


def _hours(text: str) -> tuple[time, time] | None:
    if not text:
        return None
    try:
        first, last = (time.fromisoformat(part.strip()) for part in text.split("-"))
    except ValueError:
        raise typer.BadParameter("--between is HH:MM-HH:MM") from None
    return first, last


def _waiting(archive: Archive, hours: tuple[time, time] | None) -> Callable[[], None]:
    """Returns when a study may be begun."""
    from archive.policy import PARIS

    def wait() -> None:
        while hours is not None:
            first, last = hours
            now = archive.real_clock().astimezone(PARIS).time()
            if first <= now < last if first <= last else now >= first or now < last:
                return
            sleep(10)

    return wait


@contextmanager
def _said(peer: str) -> Iterator[None]:
    """The end of an association, in the words and with the exit code of a service that is not there."""
    from archive.errors import Busy
    from dicom_scp.ends import AssociationEnd
    from dicom_scp.remote import Refused

    try:
        yield
    except (AssociationEnd, Refused) as error:
        raise Busy(f"{peer}: {error}") from error
