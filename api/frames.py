"""WADO-RS frames: as stored, decoded, or compressed without loss (PS3.18 10.4.1.1.6, REQ-DCM-90, REQ-DCM-91)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.wado import INSTANCE, address_of, begin, demand_begun, head, selected
from archive import waiting
from archive.access import Action
from archive.dicom import frame_index, lossless, pixels, syntaxes
from archive.dicom.frames import Frames
from archive.errors import InvalidRequest, NotAcceptable, NotFound, UnreadableInstance, Unsupported, unreadable
from archive.retrieve import Access, Stored

_LIST = re.compile(r"[0-9]{1,9}(,[0-9]{1,9}){0,99999}", re.ASCII)


def retrieve_frames(request: Request) -> Response:
    """The frames of the address, in its order: each one part, or alone if one was asked for."""
    actor = auth.demand_right(request, Action.SEE)
    demand_begun(request, actor)
    one = selected(request)
    text = str(request.path_params["frames"])
    if "," in text:
        waiting.demand()
    if not _LIST.fullmatch(text):
        raise InvalidRequest("frames are numbers from 1, separated by commas")
    numbers = [int(number) for number in text.split(",")]
    if (
        one.pixel_offset is None and one.transfer_syntax_uid != syntaxes.DEFLATED_LE
    ):  # whose offsets are not in the file
        raise NotFound("this instance has no frames")
    stored = one.transfer_syntax_uid
    boundary, address = multipart.new_boundary(), f"{address_of(request, one)}/frames"
    refused: tuple[str | None, ...] = ()
    while True:
        chosen = _form(request, stored, single=len(numbers) == 1, refused=refused)
        tag = conditional.tag_of(request, [one], chosen, numbers, weak=chosen.multipart)
        if conditional.is_known(request, tag):
            begin(request, [one], actor)
            return conditional.not_modified(tag)
        kind, around = accept.part_type(chosen), (b"", b"")
        if chosen.multipart and len(numbers) == 1:
            around = multipart.around(multipart.Part(kind, iter(()), f"{address}/{numbers[0]}"), boundary)
        frames = _read(one, numbers, around, chosen.transfer_syntax or "")
        try:
            size, first = _first(frames)  # before anything is said: there may be no such frame
            break
        except NotAcceptable:
            if chosen.transfer_syntax not in lossless.SYNTAXES or chosen.stored:
                raise
            refused += (chosen.transfer_syntax,)  # what a codec does not take comes in the next form that is accepted
    whole = multipart.related_type(chosen.media_type, boundary) if chosen.multipart else kind
    headers = {"Content-Type": whole, **conditional.headers(tag)}
    if request.method == "HEAD":
        return head(200, headers)
    access = begin(request, [one], actor)
    if len(numbers) > 1:
        parts = (
            multipart.Part(kind, pieces, f"{address}/{number}", size)
            for number, (size, pieces) in zip(numbers, chain(((size, first),), frames), strict=True)
        )
        body = multipart.related(_counted(parts, access, one), boundary)
        return multipart.Stream(body, headers=headers)
    if size <= multipart.PIECE_BYTES:
        answer: Response = multipart.Pieces(first, headers)  # it may have to wait: nothing is counted before
    else:
        headers["Content-Length"] = str(size + sum(map(len, around)))
        answer = multipart.Stream(_kept_open(first, frames), headers=headers)
    access.count(one, size)
    return answer


def _form(request: Request, stored: str, *, single: bool, refused: tuple[str | None, ...]) -> accept.Representation:
    """The form that is given of frames that are kept in this syntax, none of those that codecs `refused`; clients ask
    for one after the other in the same words. Raises NotAcceptable."""
    header, query = ",".join(request.headers.getlist("accept")), request.scope["query_string"].decode("latin-1")
    short = len(header) + len(query) <= accept.REMEMBERED_BYTES
    return (_chosen if short else _chosen.__wrapped__)(header, query, stored, single, refused)


@lru_cache(maxsize=256)
def _chosen(
    header: str, query: str, stored: str, single: bool, refused: tuple[str | None, ...]
) -> accept.Representation:
    decodable, lossy = pixels.can_decode(stored), stored in syntaxes.LOSSY
    offers = accept.of_frames(stored, decodable=decodable, lossy=lossy, single=single)
    left = tuple(offer for offer in offers if offer.transfer_syntax not in refused)
    return accept.wish(header, query).demand(left)


def _counted(parts: Iterator[multipart.Part], access: Access, one: Stored) -> Iterator[multipart.Part]:
    """The parts, whose sizes are known; when all have left they are counted."""
    sent = 0
    for part in parts:
        yield part
        sent += part.size or 0
    access.count(one, sent)


Frame = tuple[int, Iterator[multipart.Piece]]  # its length, its bytes and what is around them


def _kept_open(body: Iterator[multipart.Piece], frames: Iterator[Frame]) -> Iterator[multipart.Piece]:
    """The body; the file that it is read from is open as long as `frames` is not forgotten."""
    yield from body
    del frames


def _first(frames: Iterator[Frame]) -> Frame:
    """The first frame, of which the first bytes are read, all of one that leaves in one piece."""
    try:
        size, pieces = next(frames)
        if size <= multipart.PIECE_BYTES:
            return size, iter(list(pieces))
        return size, chain((next(pieces, b""),), pieces)
    except OSError as error:
        raise unreadable(error) from error
    except (Unsupported, UnreadableInstance) as error:
        raise NotAcceptable(f"these frames cannot be given: {error}") from error


def _read(one: Stored, numbers: list[int], around: tuple[bytes, bytes], syntax: str) -> Iterator[Frame]:
    """The frames, what goes `around` each before and behind it: encoded as they lie, native ones in little endian; or
    decoded, or compressed. The file is open meanwhile."""
    before, behind = around
    native = one.transfer_syntax_uid in syntaxes.NATIVE
    decoded = not native and syntax == syntaxes.EXPLICIT_LE
    made = syntax in lossless.SYNTAXES and syntax != one.transfer_syntax_uid
    with frame_index.opened(
        one.path, data_set_offset=one.data_set_offset, transfer_syntax_uid=one.transfer_syntax_uid
    ) as found:
        missing = [number for number in numbers if not 1 <= number <= len(found)]
        if missing:
            raise NotFound(f"there is no frame {missing[0]}: the instance has {len(found)}")
        for number in numbers:
            if found.as_they_lie and not decoded and not made:
                size = found.length(number)
                if stretches := found.stretches(number):
                    yield size, filter(None, (before, *stretches, behind))
                else:
                    yield size, found.pieces(number, head=before, tail=behind)
            else:
                waiting.demand()
                if made:
                    frame = lossless.encode_frame(found, number, syntax)
                else:
                    frame = _pixels(found, number) if decoded else found.read(number)
                yield len(frame), filter(None, (before, frame, behind))


def _pixels(found: Frames, number: int) -> bytes:
    """A frame's pixels in little endian, laid out as its Planar Configuration says."""
    values = pixels.decode(found, number).values
    if found.image.planar == 1 and values.ndim == 3:
        values = values.transpose(2, 0, 1)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


routes = [Route(f"{INSTANCE}/frames/{{frames}}", retrieve_frames)]
