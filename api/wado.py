"""WADO-RS: studies, series and instances (PS3.18 10.4, REQ-DCM-90).

What can be given as it lies leaves as it lies, unread where the server can (`api.wire`); what was corrected leaves
corrected (REQ-DCM-70). Nothing leaves before the opening row of the access is committed (law 4); nothing is ever given
with a new loss (REQ-DCM-41).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.manifests import HEADER, named_by
from archive import waiting
from archive.access import Action, Actor
from archive.audit.record import Event
from archive.core import Archive
from archive.dicom.header import is_legal_uid
from archive.dicom.syntaxes import EXPLICIT_BE, EXPLICIT_LE, LOSSY
from archive.dicom.transcode import alternatives
from archive.errors import Gone, InvalidRequest, NotAcceptable, NotFound, StorageFailed, UnreadableInstance, unreadable
from archive.outgoing import Outgoing, outgoing
from archive.retrieve import Access, Stored, named, open_access, select, why_gone

log = structlog.get_logger(__name__)
P = TypeVar("P", bound=multipart.Piece)


def uid_of(request: Request, name: str) -> str:
    """A UID of the address. Raises InvalidRequest when it is none (400)."""
    uid = str(request.path_params[name])
    if not is_legal_uid(uid):
        raise InvalidRequest(f"the {name} of the address is not a UID")
    return uid


def place_of(request: Request) -> dict[str, str]:
    """The UIDs of the address, of each level down to what it means."""
    return {name: uid_of(request, name) for name in ("study", "series", "instance") if name in request.path_params}


def chosen(request: Request, given: Mapping[str, str] | None = None) -> tuple[list[Stored], list[Stored]]:
    """The current instances that are to be retrieved, by the address unless their UIDs are given, as `current` gives
    them. Whatever the method and whatever comes of it: a manifest that the request names has to list them.

    Raises:
        InvalidRequest, NotFound: as `named_by`.
    """
    standing, missing = current(request, given or place_of(request))
    request.state.scope = named_by(request, [*standing, *missing])
    return standing, missing


def selected(request: Request, given: Mapping[str, str] | None = None) -> Stored:
    """The current instance that is meant, by the address unless its UIDs are given.

    Raises:
        Gone, NotFound, InvalidRequest: as `chosen`.
        StorageFailed: its copy does not stand.
    """
    standing, _ = chosen(request, given)
    if not standing:
        raise no_copy()
    return standing[0]


def current(request: Request, given: Mapping[str, str]) -> tuple[list[Stored], list[Stored]]:
    """The current instances of a study, a series or an instance, by the UIDs of each level down to it: those whose copy
    stands, in order, and those whose does not.

    Raises:
        Gone: it was replaced, and by what; or purged, or rejected (REQ-DCM-84, 92).
        NotFound: there is none.
    """
    archive = auth.archive_of(request)
    quality = Action.QUALITY in request.state.actor.may
    found = named(archive, *given.values(), quality=quality)
    standing, missing = _standing(found)
    if missing or not found:  # moved to the other tier, or replaced: before, or since the index was read
        found = _select(archive, given, quality=quality)
        standing, missing = _standing([one for one in found if not one.replaced])
    if standing or missing:
        return standing, missing
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


def _standing(found: Sequence[Stored]) -> tuple[list[Stored], list[Stored]]:
    standing: list[Stored] = []
    missing: list[Stored] = []
    for one in found:
        (standing if one.stands() else missing).append(one)
    return standing, missing


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
    return accept.wish(",".join(request.headers.getlist("accept")), request.scope["query_string"].decode("latin-1"))


def address_of(request: Request, one: Stored) -> str:
    """The address of an instance, absolute."""
    study = study_address(request, one.study_instance_uid)
    return f"{study}/series/{one.series_instance_uid}/instances/{one.sop_instance_uid}"


def study_address(request: Request, study: str) -> str:
    """The address of a study, absolute."""
    return f"{service_address(request)}/studies/{study}"


def service_address(request: Request) -> str:
    """The address of DICOMweb, absolute."""
    scope = request.scope
    known: str | None = scope.get(_ADDRESS)
    if known is None:
        root = scope.get("app_root_path", scope.get("root_path", ""))
        known = _service_address(scope["scheme"], request.headers.get("host"), scope.get("server"), root)
        scope[_ADDRESS] = known
    return known


_ADDRESS = "minipacs.service_address"  # in the scope of a request: asked for with each instance


@lru_cache(maxsize=64)
def _service_address(scheme: str, host: str | None, server: tuple[str, int | None] | None, root: str) -> str:
    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    scope = {"type": "http", "scheme": scheme, "server": server, "headers": headers, "path": "/", "root_path": root}
    return f"{Request(scope).base_url}dicom-web"


def begin(request: Request, stored: Sequence[Stored], actor: Actor) -> Access:
    """Commit that what was `chosen` is handed over, or a part of it, and by which manifest; then bytes may leave."""
    return open_access(auth.archive_of(request), stored, actor=actor, scope=request.state.scope)


def demand_begun(request: Request, actor: Actor) -> None:
    """Raise WouldWait where nobody may wait, unless this actor has the study of the address open: who has, asked for it
    just now, so that what the index says of it lies in memory."""
    study = str(request.path_params["study"])
    if not auth.archive_of(request).accesses.is_open(actor, Event.INSTANCES_TRANSFERRED, "R", study=study):
        waiting.demand()


def head(status: int, headers: Mapping[str, str]) -> Response:
    """The answer to HEAD: what GET would say, of which no byte leaves. A length that is not known is not said."""
    answer = Response(None, status, headers)
    if "Content-Length" not in headers:
        del answer.headers["content-length"]
    return answer


def retrieve(request: Request) -> Response:
    """The instances of a study, of a series, or one: application/dicom in a syntax that is accepted."""
    actor = auth.demand_right(request, Action.SEE)
    standing, missing = chosen(request)
    wish = wish_of(request)
    single = "instance" in request.path_params
    plan: list[tuple[Stored, accept.Representation]] = []
    offers: tuple[accept.Representation, ...] = ()
    choices: dict[str, accept.Representation | None] = {}
    for one in standing:
        syntax = one.transfer_syntax_uid
        if syntax not in choices:
            offers = _offers(syntax, single=single)
            choices[syntax] = wish.choose(offers)
        if (best := choices[syntax]) is not None:
            plan.append((one, best))
    if not standing:
        raise no_copy()
    if not plan:
        raise accept.not_acceptable(offers)
    if missing:
        log.error("copies are missing", study=missing[0].study_instance_uid, instances=len(missing))
    if not plan[0][1].multipart:
        return alone(request, plan[0][0], actor, wish)
    tag = conditional.tag_of(request, standing, *(form.transfer_syntax for _, form in plan), len(missing), weak=True)
    if conditional.is_known(request, tag):
        begin(request, [one for one, _ in plan], actor)
        return conditional.not_modified(tag)
    boundary = multipart.new_boundary()
    syntaxes = {form.transfer_syntax for _, form in plan}
    as_stored = all(form.stored for _, form in plan)  # what is made may come in another syntax after all
    kind = multipart.related_type(accept.DICOM, boundary)
    headers = {"Content-Type": _in_syntax(kind, syntaxes if as_stored else ()), **conditional.headers(tag)}
    status = 200 if len(plan) == len(standing) + len(missing) else 206
    if (size := _length_as_it_lies(request, plan, boundary)) is not None:
        headers["Content-Length"] = str(size)
    if request.method == "HEAD":
        return head(status, headers)
    forms: Iterable[_Form] = (_Form(request, one, form, wish) for one, form in plan)
    if len(plan) == 1:
        forms = list(forms)  # begun before anything is said: it may not be possible
        headers["Content-Type"] = _in_syntax(kind, [form.transfer_syntax_uid for form in forms])
    access = begin(request, [*(one for one, _ in plan), *missing], actor)
    for one in missing:
        access.failed(one)
    body = multipart.related((form.part(access) for form in forms), boundary)
    return multipart.Stream(body, status, headers)


def _in_syntax(kind: str, syntaxes: Collection[str | None]) -> str:
    """The Content-Type of a multipart answer, with the transfer syntax of its parts if they have one in common."""
    return f"{kind}; transfer-syntax={next(iter(syntaxes))}" if len(syntaxes) == 1 else kind


def _length_as_it_lies(
    request: Request, plan: Sequence[tuple[Stored, accept.Representation]], boundary: str
) -> int | None:
    """How long the answer is when every file leaves as it lies; None: something is made on the way.

    A length that is known spares the server to cut the answer into chunks, and tells a viewer how much is to come.
    """
    if HEADER in request.headers:
        return None  # a DRIMbox is answered in chunks (DRIM-M, sheet 50 §4)
    archive = auth.archive_of(request)
    parts: list[multipart.Part] = []
    for one, form in plan:
        if not _is_intact(outgoing(archive, one), form):
            return None
        kind = accept.part_type(form)
        parts.append(multipart.Part(kind, iter(()), address_of(request, one), one.file_bytes))
    return multipart.length(parts, boundary)


def _is_intact(leaving: Outgoing, form: accept.Representation) -> bool:
    """Whether an instance leaves in this form as it lies, so that nothing has to be made, nor can fail to be."""
    try:
        return leaving.intact(form.transfer_syntax or "")
    except UnreadableInstance:
        return False


class _Form:
    """One instance in the form that was chosen for it, begun: what cannot be made is known from the first piece.

    What cannot be transcoded after all (too long for a native syntax, pixels that a codec does not take) comes in the
    next form that is accepted, as it is stored where nothing else can be made of it (PS3.18 8.7.3.1). Raises
    NotAcceptable where there is none.
    """

    def __init__(self, request: Request, one: Stored, chosen: accept.Representation, wish: accept.Wish) -> None:
        self._one = one
        self._address = address_of(request, one)
        leaving = outgoing(auth.archive_of(request), one)
        impossible: set[str] = set()
        while True:
            syntax = chosen.transfer_syntax or ""
            try:
                self._pieces: Iterator[multipart.Piece]
                if leaving.intact(syntax):
                    self._pieces = iter((leaving.stretch(),))
                else:
                    made = leaving.file(syntax)
                    self._pieces = chain((next(made),), made)
                break
            except (NotAcceptable, UnreadableInstance) as error:
                impossible.add(syntax)
                offers = _offers(one.transfer_syntax_uid, single=not chosen.multipart, without=frozenset(impossible))
                again = wish.choose([offer for offer in offers if offer.multipart == chosen.multipart])
                if again is None:
                    raise NotAcceptable(f"an instance can be given only as it is stored: {error}") from error
                chosen = again
        self.transfer_syntax_uid = syntax
        self.content_type = accept.part_type(chosen)

    def counted(self, access: Access) -> Iterator[multipart.Piece]:
        """Its bytes; at the end they are counted."""
        return counted(self._pieces, access, self._one)

    def part(self, access: Access) -> multipart.Part:
        """It, as a part of a multipart message."""
        return multipart.Part(self.content_type, self.counted(access), self._address)


def counted(pieces: Iterator[P], access: Access, *stored: Stored) -> Iterator[P]:
    """The pieces, of instances of one study; when all have left they are counted."""
    sent = 0
    for piece in pieces:
        sent += len(piece)
        yield piece
    access.count(stored[0], sent, instances=len(stored))


def read(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces; a file that cannot be read is StorageFailed. The head comes together with what follows it."""
    try:
        head = next(pieces, b"")
        yield head + next(pieces, b"")
        yield from pieces
    except OSError as error:
        raise unreadable(error) from error


def no_copy() -> StorageFailed:
    """Why nothing can be given of what is there."""
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
    """One instance whose copy stands as the body itself, in a syntax that is accepted; ranges of what is not changed.

    Nothing is made for HEAD, nor for whoever has it already: both hear of the form that is made if it can be made.

    Raises:
        NotAcceptable: it cannot be given so (406).
        HTTPException: the range that is asked for is outside (416).
    """
    offers = [offer for offer in _offers(one.transfer_syntax_uid, single=True) if not offer.multipart]
    chosen = wish.demand(offers)
    leaving = outgoing(auth.archive_of(request), one)
    intact = _is_intact(leaving, chosen)
    tag = conditional.tag_of(request, [one], chosen, weak=not intact)
    if conditional.is_known(request, tag):
        begin(request, [one], actor)
        return conditional.not_modified(tag)
    headers = {"Content-Type": accept.content_type(chosen), **conditional.headers(tag)}
    status, asked = 200, None
    if intact:
        asked = conditional.range_of(request, tag, one.file_bytes)
        status, length = conditional.span(asked, one.file_bytes)
        headers |= length
    if request.method == "HEAD":
        return head(status, headers)
    body: Iterator[multipart.Piece]
    if asked is not None:
        stretch = leaving.stretch(*asked)  # before anything is said: it may not be readable
        body = counted(iter((stretch,)), begin(request, [one], actor), one)
    else:
        form = _Form(request, one, chosen, wish)
        headers["Content-Type"] = form.content_type
        body = form.counted(begin(request, [one], actor))
    return multipart.Stream(body, status, headers)


STUDY = "/studies/{study}"
SERIES = f"{STUDY}/series/{{series}}"
INSTANCE = f"{SERIES}/instances/{{instance}}"
routes = [Route(path, retrieve) for path in (STUDY, SERIES, INSTANCE)]
