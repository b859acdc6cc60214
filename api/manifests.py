"""`/api/v1`: the manifest of a study, for a sharing network; and what a WADO-RS request that names one may get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from archive import manifests
from archive.access import Action, Actor
from archive.dicom.header import is_legal_uid
from archive.errors import InvalidRequest
from archive.retrieve import Stored

router = APIRouter(prefix="/api/v1", tags=["manifests"])

MaySee = Annotated[Actor, Depends(auth.Right(Action.SEE))]
HEADER: Final = "KOS-SOPInstanceUID"


@router.get("/studies/{study}/manifest", responses={409: {"description": "no INS that may be used, or opposition"}})
def manifest_of(request: Request, study: str, actor: MaySee) -> Response:
    """The manifest (KOS) of a study as it stands, a DICOM file: the same as before when nothing changed."""
    archive = auth.archive_of(request)
    base_url = archive.settings.sharing.retrieve_url or f"{request.base_url}dicom-web"
    made = manifests.make(archive, study[:64], base_url=base_url, actor=actor)
    name = f'attachment; filename="{made.sop_instance_uid}.dcm"'
    return Response(made.content, media_type="application/dicom", headers={"Content-Disposition": name})


def named_by(request: Request, stored: Sequence[Stored]) -> str:
    """The manifest that a retrieval goes by, as the audit tells it (`scope`); "" when the request names none. With
    `sharing.check_manifest` it has to list all that is retrieved (REQ-DRIM-30).

    Raises:
        InvalidRequest: the header is no UID. NotFound: no such manifest, or something is not in it.
    """
    uid = request.headers.get(HEADER, "").strip()
    if not uid:
        return ""
    if not is_legal_uid(uid):
        raise InvalidRequest(f"{HEADER} is not a UID")
    archive = auth.archive_of(request)
    if archive.settings.sharing.check_manifest:
        manifests.demand_listed(archive, uid, {one.sop_instance_uid for one in stored})
    return f"KOS {uid}"
