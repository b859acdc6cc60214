"""The PDU reader against every cut of a stream, and against garbage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_scp import pdu
from dicom_scp.ends import AbortReason, AssociationEnd, ConnectionGone, ProtocolError
from dicom_scp.pdu import COMMAND, LAST, Fragment, Pdu, PduType, Reader

LIMIT = 4096


class Stream:
    """Bytes that arrive in pieces of given sizes."""

    def __init__(self, data: bytes, sizes: list[int] | None = None) -> None:
        self._data = data
        self._sizes = sizes or []
        self._turn = 0

    def read_into(self, view: memoryview, until: float) -> int:
        if not self._data:
            raise ConnectionGone("the connection was closed")
        wanted = self._sizes[self._turn % len(self._sizes)] if self._sizes else len(view)
        self._turn += 1
        size = max(1, min(wanted, len(view), len(self._data)))
        view[:size] = self._data[:size]
        self._data = self._data[size:]
        return size


def reader(data: bytes, sizes: list[int] | None = None) -> Reader:
    return Reader(Stream(data, sizes), limit=LIMIT, seconds=5)


def pdv(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context_id, control) + data


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BxI", 4, len(body)) + body


def everything(source: Reader) -> list[tuple[object, ...]]:
    """What is read until the end, neighbouring pieces of a PDV joined."""
    found: list[tuple[object, ...]] = []
    piece = b""
    while True:
        try:
            got = source.next(0)
        except ConnectionGone:
            return found
        if isinstance(got, Pdu):
            found.append((got.type, got.body))
            continue
        piece += bytes(got.data)
        if got.last or not source._pdv:
            found.append((got.context_id, got.command, got.last, piece))
            piece = b""


def test_several_split_and_empty_pdvs_are_read_in_order() -> None:
    stream = (
        p_data(pdv(1, COMMAND, b"ab"), pdv(1, COMMAND | LAST, b""))
        + p_data(pdv(1, 0, b""), pdv(1, 0, b"cdef"), pdv(1, LAST, b"gh"))
        + pdu.RELEASE_RQ
    )
    assert everything(reader(stream)) == [
        (1, True, False, b"ab"),
        (1, True, True, b""),
        (1, False, False, b""),
        (1, False, False, b"cdef"),
        (1, False, True, b"gh"),
        (PduType.RELEASE_RQ, bytes(4)),
    ]


@given(
    pieces=st.lists(
        st.lists(
            st.tuples(st.sampled_from([1, 3, 255]), st.integers(0, 3), st.binary(max_size=40)), min_size=1, max_size=4
        ),
        max_size=6,
    ),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_the_cut_of_the_stream_makes_no_difference(
    pieces: list[list[tuple[int, int, bytes]]], sizes: list[int]
) -> None:
    stream = b"".join(p_data(*(pdv(*one) for one in one_pdu)) for one_pdu in pieces) + pdu.USER_ABORT
    expected = [
        (context, bool(control & COMMAND), bool(control & LAST), data)
        for one_pdu in pieces
        for context, control, data in one_pdu
    ]
    assert everything(reader(stream, sizes)) == [*expected, (PduType.ABORT, bytes(4))]


@given(data=st.binary(max_size=400), sizes=st.lists(st.integers(1, 50), max_size=4))
@settings(max_examples=300, deadline=None)
def test_garbage_ends_the_association_and_nothing_else(data: bytes, sizes: list[int]) -> None:
    source = reader(data, sizes)
    with pytest.raises(AssociationEnd):
        while True:
            source.next(0)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", AbortReason.UNRECOGNIZED_PDU),
        (struct.pack(">BxI", 4, LIMIT + 1), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 1, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 7, 5), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 0), AbortReason.INVALID_PARAMETER),
        (p_data(struct.pack(">IBB", 1, 1, 0)), AbortReason.INVALID_PARAMETER),
        (p_data(struct.pack(">IBB", 50, 1, 0) + bytes(10)), AbortReason.INVALID_PARAMETER),
        (p_data(pdv(1, 0, b"ab") + b"\0\0"), AbortReason.INVALID_PARAMETER),
    ],
    ids=[
        "http",
        "above the limit",
        "4 GiB data",
        "4 GiB request",
        "long abort",
        "empty",
        "short PDV",
        "long PDV",
        "rest",
    ],
)
def test_absurd_lengths_are_refused_on_the_head(stream: bytes, reason: AbortReason) -> None:
    source = reader(stream + bytes(64))
    with pytest.raises(ProtocolError) as caught:
        while True:
            source.next(0)
    assert caught.value.reason is reason


def test_a_long_pdu_is_handed_out_while_it_arrives() -> None:
    """Memory follows what arrives, not what is announced."""
    source = Reader(Stream(p_data(pdv(1, LAST, bytes(100_000))), [1000]), limit=1 << 24, seconds=5)
    first = source.next(0)
    assert isinstance(first, Fragment)
    assert 0 < len(first.data) <= 1000
    assert not first.last


@given(data=st.binary(max_size=300), payload=st.integers(2, 64).map(lambda n: 2 * n))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(data: bytes, payload: int) -> None:
    stream = b"".join(bytes(part) for part in pdu.p_data(5, data, COMMAND, payload))
    source = reader(stream)
    collected, last = b"", False
    while not last:
        got = source.next(0)
        assert isinstance(got, Fragment)
        assert (got.context_id, got.command) == (5, True)
        collected, last = collected + bytes(got.data), got.last
    assert collected == data


@given(
    pieces=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_pieces_that_are_gathered_stay_as_they_came(pieces: list[list[bytes]], sizes: list[int]) -> None:
    """However the stream is cut: to the first byte of a piece, or in the middle of the heads before it."""
    stream = b"".join(p_data(*(pdv(1, 0, data) for data in pdvs)) for pdvs in pieces)
    source = reader(stream, sizes)
    arrived, gathered = b"", []
    try:
        while True:
            got = source.next(0)
            assert isinstance(got, Fragment)
            gathered.append(got.data)
            if not source.holds_piece:
                arrived += b"".join(gathered)
                gathered = []
    except ConnectionGone:
        pass
    assert not gathered
    assert arrived == b"".join(data for pdvs in pieces for data in pdvs)
