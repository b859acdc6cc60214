"""multipart/related, written and read piece by piece (RFC 2387, PS3.18 8.6.1.2). Memory stays flat for any size."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from archive.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE_BYTES = 1 << 20
SMALL_BYTES = 64 << 10
HEADER_BYTES = 8 << 10  # of one header line of a part


@dataclass(frozen=True, slots=True)
class Part:
    """One part to write: Content-Type, bytes, where it can be had alone, and its length in bytes, if it is known."""

    content_type: str
    body: Iterator[bytes]
    location: str = ""
    size: int | None = None

    def head(self) -> bytes:
        """Its header lines."""
        location = f"Content-Location: {self.location}\r\n" if self.location else ""
        return f"Content-Type: {self.content_type}\r\n{location}\r\n".encode("latin-1")


def new_boundary() -> str:
    """A boundary that no data set contains: 122 random bits."""
    return f"minipacs-{uuid.uuid4().hex}"


def related_type(media_type: str, boundary: str) -> str:
    """The Content-Type of the message that `related` writes, its parts being of `media_type`."""
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def related(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    """The body of a multipart/related message, in pieces as the parts give them."""
    opening = f"--{boundary}\r\n".encode("latin-1")
    for part in parts:
        yield opening + part.head()
        yield from part.body
        opening = f"\r\n--{boundary}\r\n".encode("latin-1")
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


def _end(boundary: str) -> bytes:
    return f"\r\n--{boundary}--\r\n".encode("latin-1")


class Pieces(Response):
    """An answer that lies in memory in pieces, which are sent as they are: to join large ones costs more than to send
    them."""

    def __init__(self, pieces: Iterable[bytes], headers: Mapping[str, str]) -> None:
        self._pieces = tuple(pieces)
        super().__init__(None, headers={**headers, "Content-Length": str(sum(map(len, self._pieces)))})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


async def in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pull `pieces`, which may block, in worker threads; about a mebibyte for each visit to one, the next of them while
    the one before is sent.

    Whoever stops listening closes the iterator: a cancelled download stops work.
    """
    coming = _next(pieces)
    try:
        while batch := await asyncio.shield(coming):  # a thread within the iterator is waited for, not left alone
            coming = _next(pieces)
            for piece in batch:
                yield piece
    finally:
        coming.add_done_callback(lambda _: _close(pieces))


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        with suppress(ValueError):  # the loop ends before the thread does
            close()


def _next(pieces: Iterator[bytes]) -> asyncio.Task[list[bytes]]:
    task = asyncio.ensure_future(to_thread.run_sync(partial(_batch, pieces)))
    task.add_done_callback(_seen)
    return task


def _seen(task: asyncio.Task[list[bytes]]) -> None:
    """What failed after nobody listened any more is no news."""
    if not task.cancelled():
        task.exception()


def _batch(pieces: Iterator[bytes]) -> list[bytes]:
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= PIECE_BYTES:
            break
    return _joined(batch)


def _joined(pieces: list[bytes]) -> list[bytes]:
    """The same bytes, small neighbours in one piece: each piece costs a system call."""
    joined: list[bytes] = []
    small: list[bytes] = []
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
