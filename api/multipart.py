"""multipart/related, written and read piece by piece (RFC 2387, PS3.18 8.6.1.2). Memory stays flat for any size."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.wire import EXTENSION, Batch
from archive.errors import InvalidRequest, Unsupported
from archive.stretch import Stretch

if TYPE_CHECKING:
    from typing_extensions import Buffer

Bytes = bytes | memoryview  # as ASGI servers take them
Piece = Bytes | Stretch
PIECE_BYTES = 1 << 20
BATCH_BYTES = 8 << 20  # that leave without being read
SMALL_BYTES = 64 << 10
HEADER_BYTES = 8 << 10  # of one header line of a part


@dataclass(frozen=True, slots=True)
class Part:
    """One part to write: Content-Type, bytes, where it can be had alone, and its length in bytes, if it is known."""

    content_type: str
    body: Iterator[Piece]
    location: str = ""
    size: int | None = None

    def head(self) -> bytes:
        """Its header lines, and the empty one behind them."""
        location = f"Content-Location: {self.location}\r\n" if self.location else ""
        return f"Content-Type: {self.content_type}\r\n{location}\r\n".encode("latin-1")


def new_boundary() -> str:
    """A boundary that no data set contains: 128 random bits."""
    return f"minipacs-{os.urandom(16).hex()}"


def related_type(media_type: str, boundary: str) -> str:
    """The Content-Type of the message that `related` writes, its parts being of `media_type`."""
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def around(part: Part, boundary: str) -> tuple[bytes, bytes]:
    """What stands before and behind the body of the only part of a multipart/related message."""
    return _delimiter(boundary)[2:] + part.head(), _end(boundary)


def related(parts: Iterable[Part], boundary: str) -> Iterator[Piece]:
    """The body of a multipart/related message, in pieces as the parts give them."""
    delimiter = _delimiter(boundary)
    opening = delimiter[2:]
    for part in parts:
        yield opening + part.head()
        yield from part.body
        opening = delimiter
    yield _end(boundary)


def length(parts: Iterable[Part], boundary: str) -> int | None:
    """How many bytes `related` gives for these parts, whose bodies are not looked at; None: that is not known."""
    total, opening = len(_end(boundary)), len(boundary) + 4
    for part in parts:
        if part.size is None:
            return None
        total += opening + len(part.head()) + part.size
        opening = len(boundary) + 6
    return total


def _delimiter(boundary: str) -> bytes:
    return f"\r\n--{boundary}\r\n".encode("latin-1")


def _end(boundary: str) -> bytes:
    return f"\r\n--{boundary}--\r\n".encode("latin-1")


class Pieces(Response):
    """An answer in pieces that lie in memory, stretches of files among them: they are sent as they are, for to join
    large ones, or to read them, costs more than to send them.

    Raises WouldWait: a stretch does not lie in memory, and nobody may wait here. StorageFailed: it cannot be read.
    """

    def __init__(self, pieces: Iterable[Piece], headers: Mapping[str, str]) -> None:
        self._pieces = tuple(pieces) or (b"",)
        self._lying = [piece for piece in self._pieces if isinstance(piece, Stretch)]
        for piece in self._lying:
            piece.fetch()
        super().__init__(None, headers={**headers, "Content-Length": str(sum(map(len, self._pieces)))})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: Sequence[Bytes | Batch]
        offered = scope.get("extensions", {}).get(EXTENSION) if self._lying else None
        if offered is not None:
            offered["wire"].hold()
            pieces = [Batch(self._pieces, fetched=True), b""]
        else:
            pieces = list(flat(iter(self._pieces)))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = len(pieces) - 1
        for n, piece in enumerate(pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": n < last})


class Stream(StreamingResponse):
    """An answer in pieces, which may block: they are pulled in worker threads, about a mebibyte for each visit to one,
    the next of them while the one before is sent. Stretches of files leave unread where the server can (`api.wire`).

    Whoever stops listening closes the iterator: a cancelled download stops work.
    """

    def __init__(self, pieces: Iterator[Piece], status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__((), status, headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = EXTENSION in scope.get("extensions", ()) and "Content-Length" in self.headers
        self.body_iterator: AsyncGenerator[Any] = in_threads(self._pieces, unread=unread)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.body_iterator):
            async for piece in self.body_iterator:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def in_threads(pieces: Iterator[Piece], *, unread: bool = False) -> AsyncGenerator[Any]:
    """Pull `pieces` in worker threads: as bytes, or with `unread` as a `Batch` where there are stretches of files."""
    pieces = pieces if unread else flat(pieces)
    coming = _next(pieces)
    batch: list[Any] = []
    try:
        while batch := await asyncio.shield(coming):  # a thread within the iterator is waited for, not left alone
            coming = _next(pieces)
            for piece in batch:
                yield piece
    finally:
        _give_up(batch)
        coming.add_done_callback(partial(_forget, pieces))


def _forget(pieces: Iterator[Piece], last: asyncio.Task[list[Any]]) -> None:
    """Nobody listens any more."""
    if not last.cancelled() and last.exception() is None:
        _give_up(last.result())
    _close(pieces)


def _give_up(batch: list[Any]) -> None:
    for piece in batch:
        if isinstance(piece, Batch):
            piece.give_up()


def _close(pieces: object) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        with suppress(ValueError):  # the loop ends before the thread does
            close()


def _next(pieces: Iterator[Piece]) -> asyncio.Task[list[Any]]:
    task = asyncio.ensure_future(to_thread.run_sync(partial(_batch, pieces)))
    task.add_done_callback(_seen)
    return task


def _seen(task: asyncio.Task[list[Any]]) -> None:
    """What failed after nobody listened any more is no news."""
    if not task.cancelled():
        task.exception()


def flat(pieces: Iterator[Piece]) -> Iterator[Bytes]:
    """The pieces, stretches of files as their bytes."""
    try:
        for piece in pieces:
            if isinstance(piece, Stretch):
                yield from piece.pieces()
            else:
                yield piece
    finally:
        _close(pieces)


def _batch(pieces: Iterator[Piece]) -> list[Any]:
    """The next pieces, about a mebibyte of bytes, or more of what is not read."""
    batch: list[Any] = []
    read = size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if not isinstance(piece, Stretch):
            read += len(piece)
        if read >= PIECE_BYTES or size >= BATCH_BYTES:
            break
    return [Batch(batch)] if size > read else _joined(batch)


def _joined(pieces: list[Bytes]) -> list[Bytes]:
    """The same bytes, small neighbours in one piece: each piece costs a system call."""
    joined: list[Bytes] = []
    small: list[Bytes] = []
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small.append(piece)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(piece)
    if small:
        joined.append(b"".join(small))
    return joined


class Receiver(Protocol):
    """Takes what a `Reader` finds."""

    def begin(self, headers: dict[str, str]) -> None:
        """A part begins; header names are in lower case."""

    def data(self, data: Buffer) -> None:
        """The next bytes of the part; the buffer is theirs only during the call."""

    def end(self) -> None:
        """The part is complete."""


class Reader:
    """A push parser for one multipart body: `feed` its bytes, then `finish`."""

    def __init__(self, boundary: str, receiver: Receiver) -> None:
        self._receiver = receiver
        self._headers: dict[str, str] = {}
        self._name = b""
        self._value = b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary.encode("latin-1"),
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": receiver.end,
                    "on_end": self._end,
                },
                max_header_size=HEADER_BYTES,
            )
        except (FormParserError, UnicodeEncodeError) as error:
            raise InvalidRequest("the boundary of the multipart body is not one") from error

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises InvalidRequest when they are not multipart (400)."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"the multipart body is malformed: {str(error)[:200]}") from error

    def finish(self) -> None:
        """All bytes are in. Raises InvalidRequest when the closing boundary was not among them."""
        if not self._ended:
            raise InvalidRequest("the multipart body ends before its closing boundary")

    def _part_begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        self._receiver.begin(self._headers)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._receiver.data(memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True


def media_type(header: str) -> tuple[str, dict[str, str]]:
    """The type and the parameters of a Content-Type, in lower case where case does not count."""
    name, options = parse_options_header(header)
    return name.decode("latin-1").lower(), {
        key.decode("latin-1").lower(): value.decode("latin-1") for key, value in options.items()
    }


def boundary_of(parameters: dict[str, str], root_type: str) -> str:
    """The boundary of a multipart/related body whose parts are `root_type`.

    Raises:
        InvalidRequest: there is none (400).
        Unsupported: its parts are announced as something else (415).
    """
    announced = parameters.get("type", root_type).strip().lower()
    if announced != root_type:
        raise Unsupported(f'parts of type "{announced[:80]}" are not taken in; send {root_type}')
    boundary = parameters.get("boundary", "")
    if not boundary:
        raise InvalidRequest("the Content-Type of the multipart body names no boundary")
    return boundary
