"""`/api/v1`: the key images of a study, and the notes that name an image (IHE KIN); the same for the desk."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from api import auth, viewer
from api.answers import as_json
from api.pictures import Picture, pictures_of
from archive.access import Action, Actor
from archive.index.asked import audit_query
from archive.index.references import Note, key_images, notes_of
from archive.studies import Study

router = APIRouter(prefix="/api/v1", tags=["key images"])

MayFind = Annotated[Actor, Depends(auth.Right(Action.FIND))]
TITLES = {  # CID 7010
    "113000": "Images d’intérêt",
    "113002": "Pour le médecin demandeur",
    "113003": "Pour la chirurgie",
    "113004": "Pour l’enseignement",
    "113005": "Pour une conférence",
    "113006": "Pour le traitement",
    "113007": "Pour le patient",
    "113008": "Pour une relecture par des pairs",
    "113009": "Pour la recherche",
    "113010": "Problème de qualité",
    "113013": "Meilleures images",
}


@router.get("/studies/{study}/key-images")
def key_images_of(
    request: Request,
    study: str,
    actor: MayFind,
    *,
    instance: Annotated[str | None, Query(max_length=64, description="SOP Instance UID: of this image alone")] = None,
) -> Response:
    """Images that key object notes select, each with its notes, what they are titled, and what stands for it now."""
    archive, uid = auth.archive_of(request), study[:64]
    with archive.reading() as conn:
        found = key_images(conn, uid) if instance is None else notes_of(conn, instance)
    audit_query(archive.commit, actor, parameters={"query": {"key_images": instance or "all"}}, study=uid)
    items = [one.shape() for one in found if one.study_instance_uid == uid]
    return as_json({"items": items, "next": None})


def shown(request: Request, found: Study) -> list[dict[str, Any]]:
    """What the page of a study, that is shown (and audited) already, says of key images: by note, with pictures."""
    with auth.archive_of(request).reading() as conn:
        images = key_images(conn, found.study_instance_uid)
    pictures = {one.uid: one for part in found.series for one in pictures_of(found, part)}
    notes: dict[str, tuple[Note, list[Picture], int]] = {}
    for image in images:
        for note in {one.sop_instance_uid: one for one, _, _ in image.notes}.values():
            _, some, count = notes.setdefault(note.sop_instance_uid, (note, [], 0))
            if image.current is not None and (picture := pictures.get(image.current[0])) is not None:
                some.append(picture)
            notes[note.sop_instance_uid] = (note, some, count + 1)
    return [
        {
            "title": TITLES.get(note.title[0], note.title[2] or "Sélection"),
            "date": note.content_date,
            "count": count,
            "pictures": some,
            "opened": viewer.address_of(request, note.study_instance_uid, series=note.series_instance_uid),
        }
        for note, some, count in notes.values()
    ]
