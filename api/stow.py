"""STOW-RS: POST /studies and /studies/{study} (PS3.18 10.5, REQ-DCM-94).

Each part streams into the same hot tier as C-STORE, then takes the same way in (`archive.ingest`). Memory stays flat
for any size: bytes are written as they come, and a few complete instances at most wait for their commit while the
next one arrives, so that one commit serves several.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, multipart, problems
from api.described import Described
from api.wado import address_of, study_address, uid_of, wish_of
from archive import errors
from archive.access import Action, Actor
from archive.core import Archive
from archive.dicom import xml
from archive.dicom.header import read_header
from archive.errors import ArchiveError, Rejected, Unavailable
from archive.ingest import ingest
from archive.instance import Outcome
from archive.retrieve import select
from archive.storage.incoming import Incoming
from archive.storage.part10 import Part10

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = structlog.get_logger(__name__)

MOST_INSTANCES = 50_000  # of one request: of each there is a line in its answer
IN_FLIGHT = 8  # complete instances of one request that wait for their commit
GATHER_BYTES = 256 << 10  # bytes of a body handed to a worker thread at once

# Failure and warning reasons (PS3.18 I.2.2, the codes of C-STORE).
OUT_OF_RESOURCES = 0xA700
OTHER_STUDY = 0xA901
ANOTHER_CONTENT = 0xC0D1
WARNINGS = {  # Warning Reason (0008,1196), PS3.18 I.2.2.2: stored, but…
    Outcome.COERCED: 0xB000,
    Outcome.TRUNCATED: 0xB007,
    Outcome.WITHOUT_MODALITY: 0xB007,
    Outcome.WITHOUT_SIZE: 0xB007,
}
NOT_DICOM = 0x0110
_REASONS: dict[type[ArchiveError], int] = {
    errors.UidMismatch: 0xA900,
    errors.UnreadableInstance: 0xC001,
    errors.Unsupported: 0x0122,
    errors.NotAllowed: 0x0124,
    errors.Gone: 0xC0F2,
    errors.RejectedBefore: 0xC0F3,
    errors.Rejected: 0xC000,
    errors.Unavailable: OUT_OF_RESOURCES,
}


@dataclass(slots=True)
class _Item:
    """One part of the request, and what became of it."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    outcome: Outcome | None = None
    reason: int | None = None  # of a failure
    error: ArchiveError | None = None

    def fail(self, error: ArchiveError, reason: int | None = None) -> None:
        self.error = error.with_traceback(None)  # which would keep all that was at hand
        self.reason = reason or reason_of(error)


def reason_of(error: ArchiveError) -> int:
    """The failure reason of an error of the archive."""
    for kind in type(error).__mro__:
        if kind in _REASONS:
            return _REASONS[kind]
    return NOT_DICOM


class _Intake:
    """The instances of one request. Used by one thread at a time; commits run in `pool`."""

    def __init__(self, archive: Archive, actor: Actor, study: str | None, pool: ThreadPoolExecutor) -> None:
        self._archive = archive
        self._actor = actor
        self._study = study
        self._pool = pool
        self._file: Part10 | None = None
        self._waiting: deque[tuple[_Item, Future[Outcome]]] = deque()
        self.items: list[_Item] = []

    def begin(self, headers: dict[str, str]) -> None:
        """An instance begins. Raises TooLarge: the request has too many; those before stay stored."""
        if len(self.items) >= MOST_INSTANCES:
            raise errors.TooLarge(f"more than {MOST_INSTANCES} instances in one request")
        self.items.append(_Item())
        kind, _ = multipart.media_type(headers.get("content-type", accept.DICOM))
        if kind != accept.DICOM:
            self.items[-1].fail(errors.Unsupported("the part is not application/dicom"), NOT_DICOM)
            return
        by = self._archive.settings.sharing.imports_by.get(self._actor.user, "")
        self._file = Part10(self._archive.hot, at=self._archive.clock(), brought_by=by)

    def data(self, data: Buffer) -> None:
        """Its next bytes."""
        if self._file is None:
            return
        try:
            self._file.feed(data)
        except ArchiveError as error:
            self._file.discard()
            self._file = None
            self.items[-1].fail(error)

    def end(self) -> None:
        """It is complete."""
        file, self._file = self._file, None
        if file is None:
            return
        item = self.items[-1]
        try:
            incoming = file.finish()
        except ArchiveError as error:
            file.discard()
            item.fail(error)
            return
        item.sop_class_uid = incoming.meta.sop_class_uid
        item.sop_instance_uid = incoming.meta.sop_instance_uid
        if self._study is not None and not self._belongs(incoming, item):
            incoming.discard()
            return
        while len(self._waiting) >= IN_FLIGHT:
            self._settle()
        self._waiting.append((item, self._pool.submit(ingest, self._archive, incoming, actor=self._actor)))

    def refuse(self, error: Rejected, sop_class_uid: str, sop_instance_uid: str) -> None:
        """The instance that has begun, and that these name, cannot be had."""
        self.abandon()
        item = self.items[-1]
        item.sop_class_uid, item.sop_instance_uid = sop_class_uid[:64], sop_instance_uid[:64]
        item.fail(error)

    def finish(self) -> None:
        """Wait until every instance has its outcome."""
        while self._waiting:
            self._settle()

    def abandon(self) -> None:
        """The request broke off: forget the instance that is not complete. The others settle by themselves."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _belongs(self, incoming: Incoming, item: _Item) -> bool:
        try:
            header = read_header(
                incoming.fd,
                offset=incoming.data_set_offset,
                length=incoming.data_set_bytes,
                transfer_syntax_uid=incoming.meta.transfer_syntax_uid,
                default_charset=self._archive.settings.dicom.default_charset,
            )
        except Rejected as error:
            item.fail(error)
            return False
        if header.study_instance_uid != self._study:
            elsewhere = errors.UidMismatch("the Study Instance UID is not the one of the address", tag=0x0020000D)
            item.fail(elsewhere, OTHER_STUDY)
            return False
        return True

    def _settle(self) -> None:
        item, future = self._waiting.popleft()
        try:
            item.outcome = future.result()
        except ArchiveError as error:
            item.fail(error)
        if item.outcome is Outcome.QUARANTINED:
            item.reason = ANOTHER_CONTENT


async def store(request: Request) -> Response:
    """Take in the instances of the body, and say of each what became of it."""
    archive = auth.archive_of(request)
    actor = await run_in_threadpool(auth.demand_right, request, Action.STORE)
    study = uid_of(request, "study") if "study" in request.path_params else None
    content_type = request.headers.get("content-type", "")
    kind, parameters = multipart.media_type(content_type)
    wish_of(request).demand(accept.STORED)
    intake = _Intake(archive, actor, study, request.app.state.ingest_pool)
    described: Described | None = None
    feed: Callable[[bytes], None]
    end: Callable[[], None]
    root_type = parameters.get("type", accept.DICOM).strip().lower()
    if kind == accept.RELATED:
        if root_type in (accept.JSON, accept.XML):
            described = Described(root_type, intake, archive.hot)
        else:
            root_type = accept.DICOM
        reader = multipart.Reader(multipart.boundary_of(parameters, root_type), described or intake)
        feed, end = reader.feed, reader.finish
    elif kind == accept.DICOM:
        intake.begin({"content-type": content_type})
        feed, end = intake.data, intake.end
    else:
        raise errors.Unsupported(
            f'"{kind[:80]}" is not taken in; send multipart/related of application/dicom, application/dicom+json or '
            "application/dicom+xml, or application/dicom"
        )
    try:
        await _pour(request, feed)
        await run_in_threadpool(end)
        if described is not None:
            async with request.app.state.assembling:
                await run_in_threadpool(described.assemble)
    finally:
        if described is not None:
            described.close()
        await run_in_threadpool(intake.abandon)
        await run_in_threadpool(intake.finish)
    return await run_in_threadpool(_answer, request, archive, intake.items, study)


async def _pour(request: Request, feed: Callable[[bytes], None]) -> None:
    """Hand the body over to worker threads, one at a time, in pieces worth the visit; the next arrives meanwhile."""

    def take(chunks: list[bytes]) -> None:
        for chunk in chunks:
            feed(chunk)

    gathered: list[bytes] = []
    size = 0
    taking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    taking.set_result(None)
    try:
        async for chunk in request.stream():
            gathered.append(chunk)
            size += len(chunk)
            if size >= GATHER_BYTES:
                await asyncio.shield(taking)  # a thread is waited for, not left alone
                taking = asyncio.ensure_future(run_in_threadpool(take, gathered))
                gathered, size = [], 0
        await asyncio.shield(taking)
        await run_in_threadpool(take, gathered)
    except ClientDisconnect:
        raise errors.InvalidRequest("the request broke off") from None
    finally:
        await asyncio.wait([taking])
        if not taking.cancelled():
            taking.exception()  # where another came first, it is no news


def _answer(request: Request, archive: Archive, items: list[_Item], study: str | None) -> Response:
    if not items:
        raise errors.InvalidRequest("the body holds no instance")
    failed = [item for item in items if item.reason is not None]
    for item in failed:
        if item.error is not None:
            route = request.scope["endpoint"].__name__
            problems.note(item.error, method="POST", route=route, user=request.state.actor.user)
        else:
            log.warning("an instance was kept aside", sop_instance_uid=item.sop_instance_uid)
    unavailable = [item.error for item in failed if isinstance(item.error, Unavailable)]
    if len(unavailable) == len(items):
        raise unavailable[0]  # nothing was stored, and sending it again may help: 503 or 507
    warned = any(item.outcome in WARNINGS for item in items)
    status = 409 if len(failed) == len(items) else 202 if failed or warned else 200
    body = _report(request, archive, items, study)
    form = wish_of(request).demand(accept.STORED).media_type
    content = xml.written(body) if form == accept.XML else orjson.dumps(body)
    return Response(content, status, headers={"Content-Type": form})


def _report(request: Request, archive: Archive, items: Iterable[_Item], study: str | None) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 I.2) as DICOM JSON."""
    kept = [item for item in items if item.reason is None]
    where = {
        one.sop_instance_uid: one for one in select(archive, instance_uids=[item.sop_instance_uid for item in kept])
    }
    studies = {one.study_instance_uid for one in where.values()} | ({study} if study and kept else set())
    referenced, failed, others = [], [], []
    for item in items:
        line = {
            "00081150": _element("UI", item.sop_class_uid),
            "00081155": _element("UI", item.sop_instance_uid),
        }
        if item.reason is not None:
            reason = {"00081197": _element("US", item.reason)}
            if item.sop_instance_uid:
                failed.append({**line, **reason})
            else:
                others.append(reason)
            continue
        found = where.get(item.sop_instance_uid)
        if found is not None:
            line["00081190"] = _element("UR", address_of(request, found))
        if item.outcome in WARNINGS:
            line["00081196"] = _element("US", WARNINGS[item.outcome])
        referenced.append(line)
    body: dict[str, Any] = {}
    if len(studies) == 1:
        body["00081190"] = _element("UR", study_address(request, studies.pop()))
    for key, sequence in (("00081198", failed), ("00081199", referenced), ("0008119A", others)):
        if sequence:
            body[key] = {"vr": "SQ", "Value": sequence}
    return dict(sorted(body.items()))


def _element(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value != "" else {"vr": vr}


routes = [
    Route("/studies", store, methods=["POST"]),
    Route("/studies/{study}", store, methods=["POST"]),
]
