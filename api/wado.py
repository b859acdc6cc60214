"""WADO-RS: studies, series and instances, and their metadata (PS3.18 10.4, REQ-DCM-90).

What can be given as it lies is streamed as it lies, a mebibyte at a time; what was corrected leaves corrected
(REQ-DCM-70). Nothing leaves before the opening row of the access is committed (law 4); nothing is ever given with a new
loss (REQ-DCM-41).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.documents import parts
from api.manifests import named_by
from archive.access import Action, Actor
from archive.core import Archive
from archive.dicom.syntaxes import EXPLICIT_BE, EXPLICIT_LE, LOSSY
from archive.dicom.transcode import alternatives
from archive.errors import Gone, InvalidRequest, NotAcceptable, NotFound, StorageFailed, UnreadableInstance
from archive.outgoing import outgoing
from archive.retrieve import Access, Stored, open_access, select, why_gone

log = structlog.get_logger(__name__)

_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)


def uid_of(request: Request, name: str) -> str:
    """A UID of the address. Raises InvalidRequest when it is none (400)."""
    uid = str(request.path_params[name])
    if not _UID.fullmatch(uid):
        raise InvalidRequest(f"the {name} of the address is not a UID")
    return uid


def selected(request: Request) -> list[Stored]:
    """The current instances that the address means; errors as of `current`."""
    levels = ("study", "series", "instance")
    return current(request, {name: uid_of(request, name) for name in levels if name in request.path_params})


def current(request: Request, given: Mapping[str, str]) -> list[Stored]:
    """The current instances of a study, a series or an instance, by the UIDs of each level down to it.

    Raises:
        Gone: it was replaced, and by what; or purged, or rejected (REQ-DCM-84, 92).
        NotFound: there is none.
    """
    archive = auth.archive_of(request)
    quality = Action.QUALITY in request.state.actor.may
    found = _select(archive, given, quality=quality)
    # one that does not stand was moved to the other tier, or replaced, since the index was read
    if any(not one.replaced and not one.stands() for one in found):
        found = _select(archive, given, quality=quality)
    standing = [one for one in found if not one.replaced]
    if standing:
        return standing
    if found:
        raise _replaced(found)
    why = why_gone(
        archive,
        study_uid=given["study"],
        series_uid=given.get("series", ""),
        instance_uid=given.get("instance", ""),
    )
    if why:
        raise Gone(f"this {list(given)[-1]} {why}")
    raise NotFound(f"no such {list(given)[-1]}")


def _select(archive: Archive, given: Mapping[str, str], *, quality: bool) -> list[Stored]:
    """Originals that were replaced come too, where something smaller than a study is meant."""
    return select(
        archive,
        study_uids=[given["study"]],
        series_uids=[given[name] for name in ("series",) if name in given],
        instance_uids=[given[name] for name in ("instance",) if name in given],
        replaced="series" in given,
        quality=quality,
    )


def _replaced(found: Sequence[Stored]) -> Gone:
    """Of one instance; of a series, whose copies lie in one series too."""
    if len(found) == 1:
        return found[0].gone
    parts = {one.alternate_series for one in found}
    place = (found[0].study_instance_uid, *parts) if len(parts) == 1 and all(parts) else ()
    return Gone("only lossy copies of these instances are left, under UIDs of their own", place=place)


def wish_of(request: Request) -> accept.Wish:
    """What the request accepts."""
    return accept.wish(",".join(request.headers.getlist("accept")), request.url.query)


def address_of(request: Request, one: Stored) -> str:
    """The address of an instance, absolute."""
    study = study_address(request, one.study_instance_uid)
    return f"{study}/series/{one.series_instance_uid}/instances/{one.sop_instance_uid}"


def study_address(request: Request, study: str) -> str:
    """The address of a study, absolute."""
    return f"{request.base_url}dicom-web/studies/{study}"


def begin(request: Request, stored: Sequence[Stored], actor: Actor) -> Access:
    """Commit that these instances are handed over, and by which manifest; then bytes may leave."""
    return open_access(auth.archive_of(request), stored, actor=actor, scope=named_by(request, stored))


def retrieve(request: Request) -> Response:
    """The instances of a study, of a series, or one: application/dicom in a syntax that is accepted."""
    actor = auth.demand_right(request, Action.SEE)
    found = selected(request)
    wish = wish_of(request)
    single = "instance" in request.path_params
    plan: list[tuple[Stored, accept.Representation]] = []
    offers: tuple[accept.Representation, ...] = ()
    missing: list[Stored] = []
    for one in found:
        if not one.stands():
            missing.append(one)
            continue
        offers = _offers(one.transfer_syntax_uid, single=single)
        chosen = wish.choose(offers)
        if chosen is not None:
            plan.append((one, chosen))
    if not plan and len(missing) == len(found):
        raise _no_copy()
    if not plan:
        raise accept.not_acceptable(offers)
    if missing:
        log.error("copies are missing", study=found[0].study_instance_uid, instances=len(missing))
    if not plan[0][1].multipart:
        return alone(request, plan[0][0], actor, wish)
    tag = conditional.tag_of(found, *(chosen.transfer_syntax for _, chosen in plan), len(missing), weak=True)
    if conditional.is_known(request, tag):
        begin(request, [one for one, _ in plan], actor)
        return conditional.not_modified(tag)
    boundary = multipart.new_boundary()
    syntaxes = {chosen.transfer_syntax for _, chosen in plan}
    common = f"; transfer-syntax={syntaxes.pop()}" if len(syntaxes) == 1 else ""
    kind = multipart.related_type(accept.DICOM, boundary) + common
    headers = {"Content-Type": kind, **conditional.headers(tag)}
    status = 200 if len(plan) == len(found) else 206
    if request.method == "HEAD":
        return Response(None, status, headers)
    forms: Iterator[_Form] = (_Form(request, one, chosen, wish) for one, chosen in plan)
    if len(plan) == 1:
        forms = iter([next(forms)])  # opened before anything is said: it may not be possible
    access = begin(request, [*(one for one, _ in plan), *missing], actor)
    for one in missing:
        access.failed(one)
    body = multipart.related((form.part(access) for form in forms), boundary)
    return StreamingResponse(multipart.in_threads(body), status, headers)


class _Form:
    """One instance in the form that was chosen for it, begun: what cannot be made is known from the first piece.

    What cannot be transcoded after all (too long for a native syntax, pixels that a codec does not take) comes in the
    next form that is accepted, as it is stored where nothing else can be made of it (PS3.18 8.7.3.1). Raises
    NotAcceptable where there is none.
    """

    def __init__(self, request: Request, one: Stored, chosen: accept.Representation, wish: accept.Wish) -> None:
        self._one = one
        self._address = address_of(request, one)
        self.leaving = leaving = outgoing(auth.archive_of(request), one)
        impossible: set[str] = set()
        while True:
            syntax = chosen.transfer_syntax or ""
            try:
                self._pieces = leaving.file(syntax)
                self._first = next(self._pieces)
                break
            except (NotAcceptable, UnreadableInstance) as error:
                impossible.add(syntax)
                offers = _offers(one.transfer_syntax_uid, single=not chosen.multipart, without=frozenset(impossible))
                again = wish.choose([offer for offer in offers if offer.multipart == chosen.multipart])
                if again is None:
                    raise NotAcceptable(f"an instance can be given only as it is stored: {error}") from error
                chosen = again
        self.transfer_syntax_uid = syntax
        self.content_type = accept.content_type(accept.Representation(accept.DICOM, syntax))

    def counted(self, access: Access) -> Iterator[bytes]:
        """Its bytes; at the end they are counted."""
        sent = len(self._first)
        yield self._first
        for piece in self._pieces:
            sent += len(piece)
            yield piece
        access.count(self._one, sent)

    def part(self, access: Access) -> multipart.Part:
        """It, as a part of a multipart message."""
        return multipart.Part(self.content_type, self.counted(access), self._address)


def read(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces; a file that cannot be read is StorageFailed. The head comes together with what follows it."""
    try:
        head = next(pieces, b"")
        yield head + next(pieces, b"")
        yield from pieces
    except OSError as error:
        raise StorageFailed(f"the copy cannot be read: {error.strerror}") from error


def demand_copy(one: Stored) -> None:
    """Raise StorageFailed unless a good copy is there."""
    if not one.stands():
        raise _no_copy()


def _no_copy() -> StorageFailed:
    return StorageFailed("no good copy is left of what was asked for: see «minipacs verify»")


@lru_cache(maxsize=256)
def _offers(kept_in: str, *, single: bool, without: frozenset[str] = frozenset()) -> tuple[accept.Representation, ...]:
    """Forms of an instance that is kept in this syntax, but those that turned out to be impossible."""
    stored = kept_in
    if stored == EXPLICIT_BE:  # retired: never served, its objects leave as little endian (sheet 10 §2.2)
        stored = EXPLICIT_LE
    syntaxes = {stored, *alternatives(kept_in)} - without
    as_default = EXPLICIT_LE if EXPLICIT_LE in syntaxes and stored not in LOSSY else stored
    offers = accept.of_objects(stored, alternatives(kept_in), as_default=as_default, single=single)
    return tuple(offer for offer in offers if offer.transfer_syntax in syntaxes)


def alone(request: Request, one: Stored, actor: Actor, wish: accept.Wish) -> Response:
    """One instance as the body itself, in a syntax that is accepted; ranges of what leaves as it lies.

    Raises:
        NotAcceptable: it cannot be given so (406).
        HTTPException: the range that is asked for is outside (416).
    """
    demand_copy(one)
    offers = [offer for offer in _offers(one.transfer_syntax_uid, single=True) if not offer.multipart]
    form = _Form(request, one, wish.demand(offers), wish)
    intact = form.leaving.intact(form.transfer_syntax_uid)
    tag = conditional.tag_of([one], form.content_type, weak=not intact)
    headers = {"Content-Type": form.content_type, **conditional.headers(tag)}
    status, asked = 200, None
    if intact:
        asked = conditional.range_of(request, tag, one.file_bytes)
        status, length = conditional.span(asked, one.file_bytes)
        headers |= length
    if request.method == "HEAD":
        return Response(None, status, headers)
    access = begin(request, [one], actor)
    if conditional.is_known(request, tag):
        return conditional.not_modified(tag)
    body = form.counted(access) if asked is None else form.leaving.stretch(*asked)
    return StreamingResponse(multipart.in_threads(body), status, headers)


def retrieve_metadata(request: Request) -> Response:
    """Everything but bulk data, as DICOM JSON (PS3.18 Annex F), or as XML (PS3.19 Annex A.1), a part for each."""
    actor = auth.demand_right(request, Action.SEE)
    found = selected(request)
    chosen = wish_of(request).demand(accept.METADATA)
    boundary = multipart.new_boundary()
    as_xml = chosen.media_type == accept.XML
    headers = {"Content-Type": multipart.related_type(accept.XML, boundary) if as_xml else chosen.media_type}
    if request.method == "HEAD":
        return Response(None, 200, headers)
    missing = [one for one in found if not one.stands()]
    if len(missing) == len(found):
        raise _no_copy()
    begin(request, found, actor)
    if as_xml:
        pieces = parts((_metadata_of(request, one) for one in found if one.stands()), boundary)
    else:
        pieces = _metadata(request, found)
    return StreamingResponse(multipart.in_threads(pieces), 206 if missing else 200, headers)


def _metadata(request: Request, found: Sequence[Stored]) -> Iterator[bytes]:
    separator = b"["
    for one in found:
        if one.stands():
            yield separator + orjson.dumps(_metadata_of(request, one))
            separator = b","
    yield b"]"


def _metadata_of(request: Request, one: Stored) -> dict[str, object]:
    address = address_of(request, one)
    leaving = outgoing(auth.archive_of(request), one)
    try:
        return leaving.metadata(lambda path: f"{address}/bulkdata/{path}")
    except UnreadableInstance:  # it is there and can be had; of its elements only these are known
        log.warning("the metadata of an instance cannot be read", sop_instance_uid=one.sop_instance_uid)
        known = {
            "00080016": one.sop_class_uid,
            "00080018": one.sop_instance_uid,
            "0020000D": one.study_instance_uid,
            "0020000E": one.series_instance_uid,
        }
        return {key: {"vr": "UI", "Value": [uid]} for key, uid in known.items()}


STUDY = "/studies/{study}"
SERIES = f"{STUDY}/series/{{series}}"
INSTANCE = f"{SERIES}/instances/{{instance}}"
routes = [
    *(Route(path, retrieve) for path in (STUDY, SERIES, INSTANCE)),
    *(Route(f"{path}/metadata", retrieve_metadata) for path in (STUDY, SERIES, INSTANCE)),
]
