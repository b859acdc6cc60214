"""`/api/v1`: rejecting images, what was rejected, and taking it back (IHE IOCM). The desk's forms for the same."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import auth, multipart
from api.answers import as_json, given_as
from archive.access import Action, Actor
from archive.core import Archive
from archive.instance import Rejection
from archive.rejecting import BY_HAND, Note, note_file, reject, rejections, revoke_note

router = APIRouter(prefix="/api/v1", tags=["rejections"], max_body_size=4 << 20)
pages = APIRouter(include_in_schema=False, max_body_size=64 << 10)

MayReject = Annotated[Actor, Depends(auth.Right(Action.REJECT))]
MayReview = Annotated[Actor, Depends(auth.Right(Action.REVIEW))]
Uid = Annotated[str, Field(min_length=1, max_length=64)]
MEANINGS = {
    Rejection.QUALITY: "qualité insuffisante",
    Rejection.WORKLIST: "mauvais patient ou mauvaise demande choisis à la modalité",
    Rejection.SAFETY: "sécurité du patient",
    Rejection.EXPIRED: "fin de la durée de conservation",
}


class Wish(BaseModel):
    """What is rejected, and why. Without series and instances it is the whole study."""

    model_config = ConfigDict(extra="forbid")
    code: Literal["113001", "113037", "113038"] = Field(description="of DCM: quality, patient safety, wrong worklist")
    reason: str = Field(max_length=500, description="said in the note")
    series: list[Uid] = Field([], max_length=1000, description="Series Instance UIDs")
    instances: list[Uid] = Field([], max_length=20000, description="SOP Instance UIDs")


@router.post("/studies/{study}/reject", status_code=201)
def reject_study(request: Request, study: str, wish: Wish, actor: MayReject) -> Response:
    """Reject a study, series or instances: makes a rejection note, which is answered with what it rejects."""
    made = reject(
        auth.archive_of(request),
        study[:64],
        code=wish.code,
        reason=wish.reason,
        series=wish.series,
        instances=wish.instances,
        actor=actor,
    )
    return as_json(made.shape(), 201)


@router.get("/studies/{study}/rejections")
def rejections_of(request: Request, study: str, actor: MayReview) -> Response:
    """The rejection notes about a study, also those that were revoked."""
    found = rejections(auth.archive_of(request), study, actor=actor)
    return as_json({"items": [one.shape() for one in found], "next": None})


@router.get("/rejections/{note}", responses=given_as("application/dicom"))
def note(request: Request, note: str, actor: MayReview) -> Response:
    """A rejection note as DICOM, also one that no query shows."""
    pieces = note_file(auth.archive_of(request), note, actor=actor)
    return multipart.Stream(pieces, headers={"Content-Type": "application/dicom"})


@router.delete("/rejections/{note}", status_code=204)
def revoke(
    request: Request, note: str, actor: MayReject, *, reason: Annotated[str, Query(max_length=500)] = ""
) -> Response:
    """Take a rejection back. 409: it was for the end of retention."""
    revoke_note(auth.archive_of(request), note, reason=reason, actor=actor)
    return Response(status_code=204)


@pages.post("/etudes/{study}/rejet")
def reject_here(
    request: Request,
    study: str,
    actor: MayReject,
    *,
    motif: Annotated[str, Form(max_length=16)],
    raison: Annotated[str, Form(max_length=500)],
    serie: Annotated[str, Form(max_length=64)] = "",
    image: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """Reject a study, one of its series, or one image."""
    reject(
        auth.archive_of(request),
        study[:64],
        code=motif,
        reason=raison,
        series=[serie] if serie and not image else [],
        instances=[image] if image else [],
        actor=actor,
    )
    return RedirectResponse(f"/etudes/{quote(study)}#rejets", 303)


@pages.post("/etudes/{study}/rejets/{note}/fin")
def revoke_here(
    request: Request, study: str, note: str, actor: MayReject, raison: Annotated[str, Form(max_length=500)]
) -> Response:
    """Take a rejection back."""
    revoke_note(auth.archive_of(request), note, reason=raison, actor=actor)
    return RedirectResponse(f"/etudes/{quote(study)}#rejets", 303)


def shown(archive: Archive, study: str, actor: Actor) -> dict[str, Any] | None:
    """What the page of a study says of rejections; None for somebody who may not reject."""
    if Action.REJECT not in actor.may:
        return None
    return {
        "codes": [(str(code), MEANINGS[code]) for code in BY_HAND],
        "notes": [_line(one) for one in rejections(archive, study, actor=actor)],
    }


def _line(one: Note) -> dict[str, Any]:
    return {
        "uid": one.uid,
        "meaning": MEANINGS[Rejection(one.code)],
        "count": len(one.instances),
        "by": one.by.partition(":")[2] or one.by,
        "at": one.at,
        "revoked_at": one.revoked_at,
        "revoked_by": one.revoked_by,
        "revocable": one.revoked_at is None and one.code != Rejection.EXPIRED,
    }
