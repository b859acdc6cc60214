"""WADO-RS frames: as they are stored, or decoded (PS3.18 10.4.1.1.6, REQ-DCM-90)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api import accept, auth, conditional, multipart
from api.wado import INSTANCE, address_of, begin, head, selected, wish_of
from archive.access import Action
from archive.dicom import frame_index, pixels, syntaxes
from archive.dicom.frames import Frames
from archive.errors import InvalidRequest, NotAcceptable, NotFound, StorageFailed, UnreadableInstance, Unsupported
from archive.retrieve import Access, Stored

_LIST = re.compile(r"[0-9]{1,9}(,[0-9]{1,9}){0,99999}", re.ASCII)


def retrieve_frames(request: Request) -> Response:
    """The frames of the address, in its order: each one part, or alone if one was asked for."""
    actor = auth.demand_right(request, Action.SEE)
    one = selected(request)
    text = str(request.path_params["frames"])
    if not _LIST.fullmatch(text):
        raise InvalidRequest("frames are numbers from 1, separated by commas")
    numbers = [int(number) for number in text.split(",")]
    if (
        one.pixel_offset is None and one.transfer_syntax_uid != syntaxes.DEFLATED_LE
    ):  # whose offsets are not in the file
        raise NotFound("this instance has no frames")
    stored = one.transfer_syntax_uid
    offers = accept.of_frames(
        stored, decodable=pixels.can_decode(stored), lossy=stored in syntaxes.LOSSY, single=len(numbers) == 1
    )
    chosen = wish_of(request).demand(offers)
    tag = conditional.tag_of(request, [one], chosen, numbers, weak=chosen.multipart)
    if conditional.is_known(request, tag):
        begin(request, [one], actor)
        return conditional.not_modified(tag)
    decoded = stored not in syntaxes.NATIVE and chosen.transfer_syntax == syntaxes.EXPLICIT_LE
    frames = _read(one, numbers, decoded=decoded)
    size, first = _first(frames)  # before anything is said: there may be no such frame
    kind = accept.content_type(replace(chosen, multipart=False))
    boundary = multipart.new_boundary()
    whole = multipart.related_type(chosen.media_type, boundary) if chosen.multipart else kind
    headers = {"Content-Type": whole, **conditional.headers(tag)}
    if request.method == "HEAD":
        return head(200, headers)
    access = begin(request, [one], actor)
    address = f"{address_of(request, one)}/frames"
    parts = (
        multipart.Part(kind, pieces, f"{address}/{number}", size)
        for number, (size, pieces) in zip(numbers, chain(((size, first),), frames), strict=True)
    )
    if len(numbers) > 1:
        body = multipart.related(_counted(parts, access, one), boundary)
        return StreamingResponse(multipart.in_threads(body), headers=headers)
    access.count(one, size)
    body = multipart.related(parts, boundary) if chosen.multipart else first
    if size <= multipart.PIECE_BYTES:
        return multipart.Pieces(body, headers)
    if chosen.multipart:
        size += multipart.length([multipart.Part(kind, iter(()), f"{address}/{numbers[0]}", 0)], boundary) or 0
    headers["Content-Length"] = str(size)
    return StreamingResponse(multipart.in_threads(_kept_open(body, frames)), headers=headers)


def _counted(parts: Iterator[multipart.Part], access: Access, one: Stored) -> Iterator[multipart.Part]:
    """The parts, whose sizes are known; when all have left they are counted."""
    sent = 0
    for part in parts:
        yield part
        sent += part.size or 0
    access.count(one, sent)


Frame = tuple[int, Iterator[bytes]]  # its length, its bytes


def _kept_open(body: Iterator[bytes], frames: Iterator[Frame]) -> Iterator[bytes]:
    """The body; the file that it is read from is open as long as `frames` is not forgotten."""
    yield from body
    del frames


def _first(frames: Iterator[Frame]) -> Frame:
    """The first frame, of which the first bytes are read."""
    try:
        size, pieces = next(frames)
        return size, chain((next(pieces, b""),), pieces)
    except OSError as error:
        raise StorageFailed(f"the copy cannot be read: {error.strerror}") from error
    except (Unsupported, UnreadableInstance) as error:
        raise NotAcceptable(f"these frames cannot be given: {error}") from error


def _read(one: Stored, numbers: list[int], *, decoded: bool) -> Iterator[Frame]:
    """The frames: encoded as they lie, native ones in little endian; or decoded. The file is open meanwhile."""
    with frame_index.opened(
        one.path, data_set_offset=one.data_set_offset, transfer_syntax_uid=one.transfer_syntax_uid
    ) as found:
        missing = [number for number in numbers if not 1 <= number <= len(found)]
        if missing:
            raise NotFound(f"there is no frame {missing[0]}: the instance has {len(found)}")
        for number in numbers:
            if found.as_they_lie and not decoded:
                yield found.length(number), found.pieces(number)
            else:
                frame = _pixels(found, number) if decoded else found.read(number)
                yield len(frame), iter((frame,))


def _pixels(found: Frames, number: int) -> bytes:
    """A frame's pixels in little endian, laid out as its Planar Configuration says."""
    values = pixels.decode(found, number).values
    if found.image.planar == 1 and values.ndim == 3:
        values = values.transpose(2, 0, 1)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


routes = [Route(f"{INSTANCE}/frames/{{frames}}", retrieve_frames)]
