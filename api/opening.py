"""A series opened as the viewer opens it: study, series, metadata, the first frame, then all (`archive.probing`).

The requests are the viewer's own (tests/ohif.py has them recorded) and go through the whole application, but for
the socket, as an actor that is nobody's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import orjson
from starlette.types import ASGIApp, Message

from archive.access import Door
from archive.clock import monotonic
from archive.core import Archive
from archive.errors import Busy, NotFound
from archive.probing import PROBE, Measured, Prober, Subject

_JSON = b"application/dicom+json"
_FRAME = b"multipart/related; type=application/octet-stream; transfer-syntax=*"


def prober(archive: Archive, app: ASGIApp) -> Prober:
    """What measures this door, now and then."""
    return Prober(archive, Door.DICOMWEB, partial(open_series, app))


def open_series(app: ASGIApp, archive: Archive, subject: Subject, goes_on: Callable[[], bool]) -> Measured:
    """One request after the other, in an event loop of its own.

    Raises NotFound: a request was not answered as the viewer needs it. Busy: it was told not to go on.
    """
    return asyncio.run(_open(app, subject, goes_on))


async def _open(app: ASGIApp, subject: Subject, goes_on: Callable[[], bool]) -> Measured:
    study = f"/dicom-web/studies/{subject.study_instance_uid}"
    series = f"{study}/series/{subject.series_instance_uid}"
    started = monotonic()
    await _get(app, "/dicom-web/studies", f"StudyInstanceUID={subject.study_instance_uid}&limit=101", _JSON)
    await _get(app, f"{study}/series", "includefield=00080021,00080031,0008103E,00200011", _JSON)
    listed = orjson.loads(await _get(app, f"{series}/metadata", "", _JSON))
    shown = [uid for one in listed if (uid := one["00080018"]["Value"][0]) in subject.instances]
    if not shown:
        raise NotFound("nothing of this series is there any more")
    first, sent = 0.0, 0
    for sop_instance_uid in shown:
        if not goes_on():
            raise Busy("the archive stops")
        sent += len(await _get(app, f"{series}/instances/{sop_instance_uid}/frames/1", "", _FRAME))
        first = first or monotonic() - started
    return Measured(len(shown), sent, first, monotonic() - started)


async def _get(app: ASGIApp, path: str, query: str, accept: bytes) -> bytes:
    """The body of an answer. Raises NotFound unless it is 200."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"accept", accept)],
        "client": None,
        "server": ("localhost", 80),
        "state": {"actor": PROBE},  # recognised already (api.auth): no credential is made for it
    }
    status, body = 0, bytearray()
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()  # nobody hangs up
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, send)
    if status != 200:
        raise NotFound(f"a request of the viewer was answered {status}")
    return bytes(body)
