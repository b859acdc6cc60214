"""PDUs of PS3.8 §9.3: an incremental reader, and what writes P-DATA, A-RELEASE, A-ABORT.

The reader keeps one small buffer whatever the peer announces: a P-DATA PDU is handed out piece by piece as it
arrives, so memory does not follow a length field, and an absurd length is refused on its first six bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from archive.clock import monotonic
from dicom_scp.ends import AbortReason, ProtocolError

PDU_HEAD = struct.Struct(">BxI")
PDV_HEAD = struct.Struct(">IBB")
_PIECE_HEADS = PDU_HEAD.size + PDV_HEAD.size  # read before a piece, at most
_WRITTEN_HEAD = struct.Struct(">BxIIBB")
COMMAND, LAST = 1, 2  # bits of the message control header, PS3.8 §E.2
BUFFER_BYTES = 1 << 18  # takes memory as it is filled: not of an association that says little
ASSOCIATE_LIMIT = 1 << 20  # 128 contexts with every transfer syntax stay far below


class PduType(IntEnum):
    """First byte of a PDU."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


_LIMITS = {PduType.ASSOCIATE_RQ: ASSOCIATE_LIMIT, PduType.ASSOCIATE_AC: ASSOCIATE_LIMIT}
_SHORT = 4  # A-ASSOCIATE-RJ, A-RELEASE, A-ABORT


@dataclass(frozen=True, slots=True)
class Pdu:
    """A PDU other than P-DATA: what follows its six byte head."""

    type: PduType
    body: bytes


@dataclass(slots=True)
class Fragment:
    """A piece of a presentation data value. `data` is good until the reader is asked again (see `holds_piece`).

    `last`: the message's command, or its data set, ends with this piece.
    """

    context_id: int
    command: bool
    last: bool
    data: memoryview


class Source(Protocol):
    """Where bytes come from: a transport, or a test."""

    def read_into(self, view: memoryview, until: float) -> int: ...


class Reader:
    """Cuts a stream into PDUs.

    Args:
        limit: largest P-DATA length that was announced to the peer (PS3.8 §D.1); a longer one is an error.
        seconds: patience for the rest of a PDU once its first byte is there.
    """

    def __init__(self, source: Source, *, limit: int, seconds: float) -> None:
        self._source = source
        self._limit = limit
        self._seconds = seconds
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._deadline = 0.0
        self._pdu_left = 0  # of the current P-DATA PDU
        self._pdv_left = 0
        self._pdv: tuple[int, bool, bool] | None = None  # context, command, last

    @property
    def holds_bytes(self) -> bool:
        """Whether something was read that was not asked for yet."""
        return self._end > self._start or self._pdu_left > 0

    @property
    def holds_piece(self) -> bool:
        """Whether the next piece of P-DATA is here, if only its first byte: nothing has to be read for it, and those
        that were handed out stay good when it is asked for."""
        return self._end - self._start > _PIECE_HEADS

    def next(self, until: float, *, whole: bool = False) -> Pdu | Fragment:
        """The next PDU, or the next piece of P-DATA.

        `until` is when to give up waiting for its first byte; with `whole`, for its last byte too.

        Raises:
            ProtocolError, ConnectionGone, TooSlow.
        """
        if self._pdu_left or self._pdv is not None:
            return self._fragment()
        if self._start == self._end:
            self._fill(until)
        self._deadline = until if whole else monotonic() + self._seconds
        self._need(6)
        number, length = PDU_HEAD.unpack_from(self._buffer, self._start)
        self._start += 6
        if number == PduType.P_DATA:
            if not 6 <= length <= self._limit:
                raise ProtocolError(f"a P-DATA PDU of {length} bytes")
            self._pdu_left = length
            return self._fragment()
        try:
            kind = PduType(number)
        except ValueError:
            raise ProtocolError(f"a PDU of type {number}", AbortReason.UNRECOGNIZED_PDU) from None
        if length > _LIMITS.get(kind, _SHORT):
            raise ProtocolError(f"a PDU of type {number} with {length} bytes")
        return Pdu(kind, self._collect(length))

    def _fragment(self) -> Fragment:
        if self._pdv is None:
            if self._pdu_left < 6:
                raise ProtocolError("a P-DATA PDU ends inside a PDV")
            self._need(6)
            length, context_id, control = PDV_HEAD.unpack_from(self._buffer, self._start)
            if not 2 <= length <= self._pdu_left - 4:
                raise ProtocolError(f"a PDV of {length} bytes")
            self._start += 6
            self._pdu_left -= 6
            self._pdv_left = length - 2
            self._pdv = (context_id, bool(control & COMMAND), bool(control & LAST))
        if self._pdv_left and self._start == self._end:
            self._fill(self._deadline)
        size = min(self._pdv_left, self._end - self._start)
        data = self._view[self._start : self._start + size]
        self._start += size
        self._pdv_left -= size
        self._pdu_left -= size
        context_id, command, last = self._pdv
        if self._pdv_left:
            last = False
        else:
            self._pdv = None
        return Fragment(context_id, command, last, data)

    def _need(self, count: int) -> None:
        while self._end - self._start < count:
            self._fill(self._deadline)

    def _fill(self, until: float) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:  # a few bytes of a head
            kept = self._end - self._start
            self._view[:kept] = self._view[self._start : self._end]
            self._start, self._end = 0, kept
        self._end += self._source.read_into(self._view[self._end :], until)

    def _collect(self, length: int) -> bytes:
        body = bytearray()  # grows with what arrives, not with what is announced
        while len(body) < length:
            if self._start == self._end:
                self._fill(self._deadline)
            size = min(length - len(body), self._end - self._start)
            body += self._view[self._start : self._start + size]
            self._start += size
        return bytes(body)


def payload_bytes(peer_limit: int) -> int:
    """How many bytes of a message fit into one P-DATA PDU for a peer that takes `peer_limit` (PS3.8 §D.1)."""
    return (peer_limit - 6) & ~1


def p_data_head(context_id: int, size: int, control: int) -> bytes:
    """PDU and PDV head for `size` bytes that follow."""
    return _WRITTEN_HEAD.pack(PduType.P_DATA, size + 6, size + 2, context_id, control)


def p_data(context_id: int, data: bytes, control: int, payload: int) -> list[bytes | memoryview]:
    """The PDUs of a whole command set (`control` = COMMAND) or data set (0), as buffers to send in order."""
    if len(data) <= payload:
        return [p_data_head(context_id, len(data), control | LAST), data]
    view = memoryview(data)
    parts: list[bytes | memoryview] = []
    for start in range(0, len(data), payload):
        piece = view[start : start + payload]
        last = LAST if start + payload >= len(data) else 0
        parts += (p_data_head(context_id, len(piece), control | last), piece)
    return parts


RELEASE_RQ = PDU_HEAD.pack(PduType.RELEASE_RQ, 4) + bytes(4)
RELEASE_RP = PDU_HEAD.pack(PduType.RELEASE_RP, 4) + bytes(4)


def abort(reason: AbortReason) -> bytes:
    """A-ABORT by the service provider (source 2)."""
    return PDU_HEAD.pack(PduType.ABORT, 4) + bytes((0, 0, 2, reason))


USER_ABORT = PDU_HEAD.pack(PduType.ABORT, 4) + bytes(4)


def reject(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""
    return PDU_HEAD.pack(PduType.ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))
