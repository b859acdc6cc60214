"""`minipacs hl7`: the journal of HL7 messages, and applying one of it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from minipacs.terminal import FINDING, Config, Json, opened, say, say_json

if TYPE_CHECKING:
    from archive.messages import State

app = typer.Typer(help="The journal of HL7 messages.", no_args_is_help=True)


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="received, applied, refused, repeated or all.")] = "all",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Messages at most.")] = 100,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List what came and what was answered, the latest first; nothing of the content."""
    from archive.index.asked import audit_query
    from archive.messages import State, list_messages

    wanted: State | None = None
    if state != "all":
        if state not in list(State):
            raise typer.BadParameter(f"--state is one of {', '.join(State)}, all")
        wanted = State(state)
    with opened(config, process="hl7-list") as (archive, actor):
        audit_query(archive.commit, actor, parameters={"query": {"hl7_messages": state}})
        with archive.reading() as conn:
            found = list_messages(conn, state=wanted, limit=limit)
    if as_json:
        say_json({"items": found, "next": None})
        return
    for one in found:
        say(_line(one))
    say(f"{len(found)} messages")


def _line(one: dict[str, Any]) -> str:
    said = f"{one['ack'] or '--'}  {one['error'] or ''}"
    names = "".join(f"{name:<21}" for name in (one["kind"], one["sender"], one["control_id"]))
    return f"{one['id']:>8}  {one['received_at'][:19]}  {one['state']:<9} {names} {said}".rstrip()


@app.command()
def replay(
    messages: Annotated[list[int], typer.Argument(help="Numbers of messages, as `hl7 list` shows them.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Apply messages again, in the order given, that were not applied: a repair after a refusal or a breakdown.

    Exit 1 when one was refused again. What later messages said of the same patient or order is overwritten by an older
    one: look at the journal first.
    """
    from archive.errors import Rejected
    from hl7_listener.receive import replay as apply

    results: list[dict[str, Any]] = []
    with opened(config, process="hl7-replay") as (archive, actor):
        for message in messages:
            try:
                results.append({"id": message, "ack": apply(archive, message, actor=actor), "reason": None})
            except Rejected as error:
                results.append({"id": message, "ack": None, "reason": str(error)})
    if as_json:
        say_json({"items": results, "next": None})
    else:
        for one in results:
            say(f"{one['id']:>8}  {one['ack'] or one['reason']}")
    if any(one["ack"] != "AA" for one in results):
        raise typer.Exit(FINDING)


@app.command()
def pdq(
    *,
    family: Annotated[str, typer.Option(help="Family name; * stands for any text.")] = "",
    given: Annotated[str, typer.Option(help="Given name.")] = "",
    birth_date: Annotated[str, typer.Option(help="YYYYMMDD, or its beginning.")] = "",
    sex: Annotated[str, typer.Option(help="F, M, U or O.")] = "",
    identifier: Annotated[str, typer.Option(help="An identifier, as the IPP.")] = "",
    authority: Annotated[str, typer.Option(help="Who assigned it: namespace or OID.")] = "",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Ask the supplier of demographics (hl7.supplier) who somebody is: PDQ, ITI-21. Nothing of the answer is kept.

    Exit 1 when it refuses or knows more than are shown, 3 when it does not answer.
    """
    from functools import partial

    from archive.lookup import Traits, audit_look_up, compared, demand_supplier
    from hl7_listener.consumer import look_up

    traits = Traits(family, given, birth_date, sex, identifier, authority)
    with opened(config, process="hl7-pdq") as (archive, actor):
        demand_supplier(archive)
        traits.demand()
        archive.commit.run(partial(audit_look_up, traits=traits, actor=actor))
        found = look_up(archive, traits)
        items = compared(archive, found["items"])
    if as_json:
        say_json({"items": items, "next": None, "complete": found["complete"]})
    else:
        for one in items:
            names = f"{one['family_birth']} {one['given_first']}"
            used = f"({one['family_used']} {one['given_used']})" if one["family_used"] or one["given_used"] else ""
            known = ", ".join(f"{it['value']} {it['issuer']}".strip() for it in one["identifiers"])
            where = one["here"] or "not here"
            say(f"{one['birth_date'] or '--------'}  {one['sex'] or '-'}  {names} {used}  {known}  {where}")
        say(f"{len(items)} patients" + ("" if found["complete"] else ", and the supplier has more"))
    if not found["complete"]:
        raise typer.Exit(FINDING)
