"""`DELETE` of a study, a series or an instance: refused with the reasons that keep it, else a rejection (IHE IOCM).

Not of PS3.18, but what clients of other archives know. No file is removed by it: what is rejected is seen no more, a
person may take it back (`/api/v1/rejections`), and files go with the purge of their study.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import auth
from api.wado import INSTANCE, SERIES, STUDY, current, place_of, uid_of
from archive.access import Action
from archive.instance import Rejection
from archive.rejecting import dismiss

REASON = "deleted over DICOMweb"


def delete(request: Request) -> Response:
    """204: rejected, for `code` (113001 unless said) and `reason`. 409: kept until, and why."""
    actor = auth.demand_right(request, Action.REJECT)
    current(request, place_of(request))  # 404 and 410 as at every door
    parts = {name: [uid_of(request, name)] for name in ("series", "instance") if name in request.path_params}
    dismiss(
        auth.archive_of(request),
        uid_of(request, "study"),
        code=request.query_params.get("code", Rejection.QUALITY),
        reason=request.query_params.get("reason", REASON)[:500],
        series=parts.get("series", ()) if "instance" not in parts else (),
        instances=parts.get("instance", ()),
        actor=actor,
    )
    return Response(status_code=204)


routes = [Route(path, delete, methods=["DELETE"]) for path in (STUDY, SERIES, INSTANCE)]
