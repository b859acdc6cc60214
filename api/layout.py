"""The frame of every page of the desk: who is logged in, where one can go, the test bed's banner, errors."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api import auth
from api.french import ENVIRONMENT, STYLE_VERSION
from api.problems import Problem
from archive.access import Action

PLACES = (
    ("/", "Études", Action.FIND),
    ("/travail", "À traiter", Action.FIND),
    ("/conservation", "Conservation", Action.FORESEE),
)
_PROBLEMS = {
    400: ("Demande incorrecte", "L’adresse ou le formulaire contient une valeur incorrecte."),
    403: ("Accès refusé", "Votre rôle ne permet pas cet accès. Le refus a été enregistré."),
    404: ("Page introuvable", "Cette adresse ne correspond à rien, ou plus à rien, dans cette archive."),
    405: ("Action impossible", "Cette page n’accepte pas cette action."),
    410: ("Images retirées", "Ces images ont été retirées ou remplacées."),
    413: ("Formulaire trop long", "Le formulaire envoyé est trop long."),
    503: ("Service momentanément indisponible", "Réessayez dans quelques secondes."),
    507: ("Espace de stockage insuffisant", "Prévenez la personne qui administre l’archive."),
}


def page_of(request: Request, template: str, status: int = 200, /, **values: Any) -> Response:
    """A page, from its template."""
    archive = auth.archive_of(request)
    actor = getattr(request.state, "actor", None)
    text = ENVIRONMENT.get_template(template).render(
        actor=actor,
        places=[(path, name) for path, name, action in PLACES if actor is not None and action in actor.may],
        here=request.url.path,
        site_name=archive.settings.site.name,
        test_mode=archive.settings.test_mode,
        simulated=archive.time.simulated,
        now=archive.clock(),
        style_version=STYLE_VERSION,
        **values,
    )
    return Response(text, status, media_type="text/html; charset=utf-8")


def problem_page(request: Request, problem: Problem) -> Response:
    """An error, as a page; somebody whom we do not know is shown the way in."""
    if problem.status == 401 and request.method == "GET":
        then = request.url.path
        if then.startswith("/viewer") and request.url.query:  # it says there which study
            then = f"{then}?{request.url.query}"
        return RedirectResponse(f"/connexion?{urlencode({'suite': then})}", 303)
    heading, text = _PROBLEMS.get(problem.status, ("Erreur", "La page n’a pas pu être affichée."))
    response = page_of(request, "message.html", problem.status, heading=heading, texts=[text], home=False)
    response.headers.update(problem.headers)
    return response
