"""The desk: pages for people, in French, rendered here. No script: a browser with a keyboard is enough."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import auth, key_images, rejections, viewer
from api.french import MODALITIES
from api.keeping import life_of
from api.layout import PLACES, page_of
from api.peers import sending_of
from api.pictures import Picture, SeriesView, pictures_of, series_of
from api.studies import Search, StudyLine, described, find_studies, line
from archive.access import Action, Actor
from archive.errors import Busy, InvalidQuery, NotAuthenticated, NotFound
from archive.instance import CopyState
from archive.studies import Study

router = APIRouter(include_in_schema=False, max_body_size=64 << 10)

STUDIES_PER_PAGE = 50
PICTURES_PER_PAGE = 60
SAMPLES = 6
_STUDY_PAGE = re.compile(r"/etudes/[0-9A-Za-z./]*")
_VIEWER_PAGE = re.compile(r"/viewer/[a-z]{0,32}(\?[0-9A-Za-z=&.,%+_-]{0,4096})?", re.ASCII)
_PLACES = frozenset(path for path, _, _ in PLACES)
_AVAILABILITY = {
    "ONLINE": "immédiate",
    "NEARLINE": "différée (archive froide)",
    "OFFLINE": "hors ligne",
    "UNAVAILABLE": "aucune bonne copie",
}


@router.get("/connexion")
def login_form(request: Request, suite: str = "/") -> Response:
    """The form to log in."""
    return page_of(request, "login.html", then=_own(suite), name="", message="")


@router.post("/connexion")
async def log_in(request: Request) -> Response:
    """Log in, then go where one was going."""
    async with request.form(max_files=0, max_fields=8) as form:
        name, password, suite = (str(form.get(field) or "") for field in ("name", "password", "suite"))
    then = _own(suite)
    try:
        _, secret = await auth.log_in(request, name, password)
    except NotAuthenticated:
        recognition = auth.archive_of(request).recognition
        wait = math.ceil(recognition.throttle.barred_seconds(name, auth.source_of(request)))
        message = (
            f"Trop d’essais infructueux : attendez {wait} s avant le prochain."
            if wait
            else "Identifiant ou mot de passe incorrect."
        )
        return page_of(request, "login.html", 401, then=then, name=name, message=message)
    except Busy:
        message = "Trop de connexions à cet instant : réessayez dans quelques secondes."
        return page_of(request, "login.html", 503, then=then, name=name, message=message)
    response = RedirectResponse(then, 303)
    auth.set_cookie(request, response, secret)
    return response


@router.post("/deconnexion")
def log_out(request: Request) -> Response:
    """Log out."""
    auth.log_out(request)
    response = RedirectResponse("/connexion", 303)
    auth.clear_cookie(response)
    return response


Finder = Annotated[Actor, Depends(auth.Right(Action.FIND))]


@router.get("/")
def home(request: Request, page: int = 1) -> Response:
    """The list of studies, searched."""
    if auth.COOKIE not in request.cookies and "authorization" not in request.headers:
        request.state.audited = True  # the front door: nothing was asked for, nothing is refused
    actor = auth.current_actor(request)
    if Action.FIND not in actor.may:
        return page_of(request, "message.html", heading="Pas d’accès aux examens", texts=_no_access(actor), home=True)
    form = {name: request.query_params.get(name, "").strip()[:256] for name in _FIELDS}
    page = min(max(page, 1), 10_000)
    offset = (page - 1) * STUDIES_PER_PAGE
    message, studies, more = "", list[StudyLine](), False
    try:
        search = _search(form)
        studies, more = find_studies(
            auth.archive_of(request), search, actor=actor, limit=STUDIES_PER_PAGE, offset=offset
        )
    except InvalidQuery:
        message = "Une valeur de la recherche n’est pas correcte : vérifiez les dates."
    settings = auth.archive_of(request).settings
    return page_of(
        request,
        "studies.html",
        400 if message else 200,
        search=form,
        searching=any(form.values()),
        modalities=sorted(MODALITIES.items(), key=lambda pair: pair[1].lower()),
        message=message,
        studies=studies,
        opened=_opened(request, studies, actor),
        previous=_home_address(form, page - 1) if page > 1 else None,
        next=_home_address(form, page + 1) if more else None,
        first=offset + 1,
        last=offset + len(studies),
        ae_title=settings.dicom.ae_title,
        dicom_host=settings.dicom.host,
        dicom_port=settings.dicom.port if settings.dicom_in_clear else None,
        dicom_tls_port=settings.dicom.tls_port if settings.tls.on else None,
    )


def _opened(request: Request, studies: list[StudyLine], actor: Actor) -> dict[str, str | None]:
    """Where each study opens in the viewer, for whoever may see images."""
    return {one.study: viewer.address_of(request, one.study) for one in studies if Action.SEE in actor.may}


_FIELDS = ("nom", "id", "demande", "du", "au", "modalite")


def _search(form: dict[str, str]) -> Search:
    return Search(
        name=form["nom"],
        patient_id=form["id"],
        accession=form["demande"],
        date_from=form["du"].replace("-", ""),
        date_to=form["au"].replace("-", ""),
        modality=form["modalite"],
    )


def _home_address(form: dict[str, str], page: int) -> str:
    asked = {name: value for name, value in form.items() if value} | ({"page": str(page)} if page > 1 else {})
    return f"/?{urlencode(asked)}" if asked else "/"


def _no_access(actor: Actor) -> list[str]:
    texts = ["Votre compte ne donne accès ni aux listes d’examens, ni aux images."]
    if Action.ADMINISTER in actor.may:
        texts.append(
            "C’est voulu : la personne qui administre l’archive ne voit pas les images. Les comptes, les jetons et la "
            "surveillance se gèrent par la commande « minipacs » sur le serveur et par /api/v1."
        )
    else:
        texts.append("Si c’est une erreur, demandez à la personne qui administre l’archive de compléter vos rôles.")
    return texts


@router.get("/etudes/{study}")
def study(request: Request, study: str, actor: Finder) -> Response:
    """One study: its series, some previews of each, and how it is kept."""
    found = _described(request, study, actor)
    copies = [copy for one in found.instances for copy in one.copies]
    return page_of(
        request,
        "study.html",
        study=_heading(found),
        series=series_of(found, samples=SAMPLES),
        may_see=Action.SEE in actor.may,
        opened=viewer.address_of(request, found.study_instance_uid) if Action.SEE in actor.may else None,
        received_at=found.received_at,
        availability=_AVAILABILITY[found.availability],
        size_bytes=sum(copy.file_bytes for copy in copies),
        copies=len(copies),
        damaged=sum(copy.state != CopyState.OK for copy in copies),
        life=life_of(auth.archive_of(request), found.study_instance_uid, actor),
        sending=sending_of(auth.archive_of(request), found.study_instance_uid, actor),
        key_images=key_images.shown(request, found),
        rejections=rejections.shown(auth.archive_of(request), found.study_instance_uid, actor),
    )


@router.get("/etudes/{study}/series/{series}")
def series(request: Request, study: str, series: str, actor: Finder, page: int = 1) -> Response:
    """All images of one series, page by page."""
    auth.demand_right(request, Action.SEE)
    found = _described(request, study, actor)
    part = next((one for one in series_of(found, samples=None) if one.uid == series), None)
    pages = math.ceil(len(part.samples) / PICTURES_PER_PAGE) if part else 0
    if part is None or not 1 <= page <= pages:
        raise NotFound("no such series, or no such page")
    first = (page - 1) * PICTURES_PER_PAGE
    shown = part.samples[first : first + PICTURES_PER_PAGE]
    return page_of(
        request,
        "series.html",
        study=_heading(found),
        part=part.showing(shown),
        first=first + 1,
        last=first + len(shown),
        previous=page - 1 if page > 1 else None,
        next=page + 1 if page < pages else None,
    )


@router.get("/etudes/{study}/images/{instance}")
def image(request: Request, study: str, instance: str, actor: Finder, coupe: int = 1) -> Response:
    """One image, large, and the way to its neighbours."""
    auth.demand_right(request, Action.SEE)
    found = _described(request, study, actor)
    for part in found.series:
        pictures = pictures_of(found, part)
        position = next((at for at, one in enumerate(pictures) if one.uid == instance), None)
        if position is not None and 1 <= coupe <= pictures[position].frames:
            view = SeriesView.of(found, part, samples=0)
            return _image(request, found, part=view, pictures=pictures, position=position, frame=coupe)
    raise NotFound("no such image")


def _image(
    request: Request, found: Study, *, part: SeriesView, pictures: list[Picture], position: int, frame: int
) -> Response:
    shown = pictures[position]

    def address(picture: Picture, frame: int = 1) -> str:
        suffix = f"?coupe={frame}" if frame > 1 else ""
        return f"/etudes/{found.study_instance_uid}/images/{picture.uid}{suffix}"

    previous: str | None
    following: str | None
    if frame > 1:
        previous = address(shown, frame - 1)
    else:
        before = pictures[position - 1] if position else None
        previous = address(before, before.frames) if before else None
    if frame < shown.frames:
        following = address(shown, frame + 1)
    else:
        following = address(pictures[position + 1]) if position + 1 < len(pictures) else None
    return page_of(
        request,
        "image.html",
        study=_heading(found),
        part=part,
        src=shown.frame_src(frame),
        position=position + 1,
        count=len(pictures),
        frame=frame,
        frames=shown.frames,
        lossy=shown.lossy,
        previous=previous,
        next=following,
    )


def _described(request: Request, study: str, actor: Actor) -> Study:
    found = described(auth.archive_of(request), study, actor=actor)
    if found is None:
        raise NotFound("no such study")
    return found


def _heading(found: Study) -> dict[str, Any]:
    known = line(found.attributes)
    return {
        "uid": found.study_instance_uid,
        "name": known.patient_name,
        "patient_id": known.patient_id,
        "birth_date": known.birth_date,
        "sex": known.sex,
        "date": known.study_date,
        "time": known.study_time,
        "accession": known.accession,
        "description": known.description,
        "referring": known.referring_physician,
    }


def _own(suite: str) -> str:
    """Where to go after the log-in: only to a page of ours."""
    known = suite in _PLACES or _STUDY_PAGE.fullmatch(suite) or _VIEWER_PAGE.fullmatch(suite)
    return suite if known else "/"
