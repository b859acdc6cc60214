"""multipart/related, written and read piece by piece (RFC 2387, PS3.18 8.6.1.2). Memory stays flat for any size."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from archive.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:
    from typing_extensions import Buffer

PIECE_BYTES = 1 << 20
SMALL_BYTES = 64 << 10
HEADER_BYTES = 8 << 10  # of one header line of a part


@dataclass(frozen=True, slots=True)
class Part:
    """One part to write: its Content-Type, where it can be had alone, and its bytes."""

    content_type: str
    body: Iterator[bytes]
    location: str = ""


def new_boundary() -> str:
    """A boundary that no data set contains: 122 random bits."""
    return f"minipacs-{uuid.uuid4().hex}"


def related_type(media_type: str, boundary: str) -> str:
    """The Content-Type of the message that `related` writes, its parts being of `media_type`."""
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def related(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    """The body of a multipart/related message, in pieces as the parts give them."""
    opening = f"--{boundary}\r\n"
    for part in parts:
        location = f"Content-Location: {part.location}\r\n" if part.location else ""
        yield f"{opening}Content-Type: {part.content_type}\r\n{location}\r\n".encode("latin-1")
        yield from part.body
        opening = f"\r\n--{boundary}\r\n"
    yield f"\r\n--{boundary}--\r\n".encode("latin-1")


async def in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pull `pieces`, which may block, in worker threads; about a mebibyte for each visit to one.

    Whoever stops listening closes the iterator: a cancelled download stops work.
    """
    try:
        while batch := await to_thread.run_sync(partial(_batch, pieces)):
            for piece in batch:
                yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            with suppress(ValueError):  # a thread is within it: it ends by itself, with the last reference
                close()


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
