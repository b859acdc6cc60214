"""Asking the supplier of demographics who somebody is (PDQ consumer): `/api/v1/patients/look-up`, and the desk's page.

It shows; it changes nothing (REQ-HL7-93). Names are sent in bodies: addresses are written down by proxies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from api.answers import as_json
from api.layout import page_of
from archive import lookup, work_items
from archive.access import Action, Actor
from archive.core import Archive
from archive.errors import Busy, InvalidRequest
from archive.identity import demographics
from archive.index.asked import audit_query
from archive.lookup import MOST_CHARACTERS, Traits

router = APIRouter(prefix="/api/v1", tags=["identity"], max_body_size=1 << 16)
desk = APIRouter(include_in_schema=False, max_body_size=64 << 10)

MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Written = Annotated[str, Form(max_length=MOST_CHARACTERS)]


class Person(BaseModel):
    """What is known of somebody."""

    model_config = ConfigDict(extra="forbid")
    family: Text = ""
    given: Text = ""
    birth_date: Annotated[str, Field(pattern=r"^([0-9]{4}([0-9]{2}){0,2})?$", description="YYYY[MM[DD]]")] = ""
    sex: Annotated[str, Field(pattern="^[FMUOAN]?$")] = ""
    identifier: Text = ""
    authority: Annotated[str, Field(max_length=MOST_CHARACTERS, description="namespace or OID")] = ""


@router.post("/patients/look-up")
def look_up(request: Request, person: Person, actor: MayFind) -> Response:
    """Whom the supplier of demographics finds (ITI-21). Nothing is kept. 404: none is configured; 503: no answer."""
    return as_json(lookup.look_up(auth.archive_of(request), Traits(**person.model_dump()), actor=actor))


@desk.get("/identite")
def form(
    request: Request,
    actor: MayFind,
    dossier: Annotated[int, Query(ge=0, lt=1 << 63, description="a work item, for what is known of its patient")] = 0,
) -> Response:
    """What to ask, filled in with what is known of the patient of a work item."""
    archive = auth.archive_of(request)
    lookup.demand_supplier(archive)
    return page_of(request, "identity.html", traits=_known(archive, dossier, actor), answer=None, message="")


@desk.post("/identite")
def answered(
    request: Request,
    actor: MayFind,
    *,
    nom: Written = "",
    prenom: Written = "",
    naissance: Written = "",
    ipp: Written = "",
) -> Response:
    """Who it may be."""
    archive = auth.archive_of(request)
    traits = Traits(nom.strip(), prenom.strip(), naissance.strip().replace("-", ""), "", ipp.strip())
    answer, message = None, ""
    try:
        answer = lookup.look_up(archive, traits, actor=actor)
    except InvalidRequest:
        message = "Indiquez un nom, une date de naissance ou un identifiant, comme le RIS les écrit."
    except Busy:
        message = "Le RIS ne répond pas. Rien n’a été modifié ; réessayez dans quelques minutes."
    return page_of(request, "identity.html", traits=traits, answer=answer, message=message)


def _known(archive: Archive, item: int, actor: Actor) -> Traits:
    if not item:
        return Traits()
    with archive.reading() as conn:
        about = work_items.item_of(conn, item)
        found = None if about.patient_pk is None else demographics.found_of(conn, about.patient_pk)
    audit_query(archive.commit, actor, parameters={"query": {"work_item": item}}, patient=about.patient)
    if found is None:
        return Traits()
    name, born = found.record.birth_name, found.record.birth_date or ""
    traits = Traits(family=name.family or "", given=name.given or "", birth_date=born if born.isdigit() else "")
    return replace(traits, **{key: getattr(traits, key)[:MOST_CHARACTERS] for key in ("family", "given")})
