"""The desk's page of what waits for a person: why, about whom, and how it is settled."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Path, Query
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import auth
from api.layout import page_of
from api.studies import lines
from archive import lookup
from archive.access import Action, Actor
from archive.index.asked import audit_query
from archive.settling import MAX_REASON, settle
from archive.work_items import How, Kind, list_items, ways

router = APIRouter(include_in_schema=False, max_body_size=64 << 10)

ITEMS = 50  # on one page
KINDS = {
    Kind.UID_CONFLICT: "Deux contenus différents sous le même numéro d’image : le second est mis de côté",
    Kind.IDENTITY_CONFLICT: "Une image contredit l’identité de l’étude : elle est retenue, invisible",
    Kind.TRUNCATED: "Une image est arrivée incomplète",
    Kind.UNKNOWN_PATIENT: "Des images d’un patient que le RIS n’a pas encore envoyé",
    Kind.INS_REFUSED: "Un INS reçu ne peut pas être utilisé",
    Kind.INS_COLLISION: "Le même INS chez deux patients : doublon possible",
    Kind.MERGE_CONFLICT: "Une fusion contredit une fusion précédente",
    Kind.MERGED_ID_USED: "Un message concerne un identifiant qui a été fusionné",
    Kind.STALE_UPDATE: "Une mise à jour d’identité plus ancienne que celle connue",
    Kind.ACCOUNT_MOVED: "Un séjour et ses demandes passés à un autre patient, mais pas leurs images",
    Kind.ORDER_CLOSED_WITH_IMAGES: "Une demande annulée alors que des images existent",
    Kind.STUDY_UID_CHANGED: "Une demande a changé de numéro d’étude après les images",
    Kind.ORDER_UNMATCHED: "Une demande et son étude n’ont pas le même patient, ou pas le même numéro",
    Kind.WRONG_WORKLIST_ENTRY: "L’appareil s’est trompé de ligne dans la liste de travail : à qui sont ces images ?",
    Kind.IMAGES_MISSING: "L’appareil annonce des images qui ne sont pas arrivées",
}
WAYS = {
    How.DONE: "corrigé à la source",
    How.ACCEPTED: "accepté tel quel",
    How.UNFOUNDED: "sans objet",
    How.ACCEPT: "accepter : visible dans cette étude",
    How.REJECT: "écarter : reste invisible",
    How.KEEP: "garder le premier, supprimer le second",
    How.REPLACE: "remplacer par le dernier reçu",
}

Finder = Annotated[Actor, Depends(auth.Right(Action.FIND))]
Settler = Annotated[Actor, Depends(auth.Right(Action.SETTLE))]


@router.get("/travail")
def waiting(request: Request, actor: Finder, apres: Annotated[int, Query(ge=0)] = 0) -> Response:
    """What is open, the oldest first."""
    archive = auth.archive_of(request)
    with archive.reading() as conn:
        found = list_items(conn, state="open", after=apres, limit=ITEMS + 1)
    audit_query(archive.commit, actor, parameters={"query": {"work_items": "all", "state": "open"}})
    items = found[:ITEMS]
    settled = {kind: [(str(way), WAYS[way]) for way in ways(kind)] for kind in {one["kind"] for one in items}}
    studies = lines(archive, list(dict.fromkeys(one["study"] for one in items if one["study"])))
    known = {one.study: one for one in studies}
    return page_of(
        request,
        "work.html",
        items=[(one, KINDS.get(one["kind"], one["kind"]), known.get(one["study"])) for one in items],
        ways=settled,
        next=f"/travail?apres={items[-1]['id']}" if len(found) > ITEMS else None,
        may_settle=Action.SETTLE in actor.may,
        may_look_up=lookup.is_on(archive),
    )


@router.post("/travail/{item}")
def settled(
    request: Request,
    item: Annotated[int, Path(ge=0, lt=1 << 63)],
    actor: Settler,
    comment: Annotated[str, Form(max_length=32)],
    raison: Annotated[str, Form(max_length=MAX_REASON)],
) -> Response:
    """A person has dealt with it."""
    settle(auth.archive_of(request), item, how=comment, reason=raison, actor=actor)
    return RedirectResponse("/travail", 303)
