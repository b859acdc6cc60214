"""Frames out of a stream of bytes, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hl7_listener.mllp import Framing, TooLong, frame

LIMIT = 1 << 20


def fed(*pieces: bytes, limit: int = LIMIT) -> list[bytes]:
    framing = Framing(max_bytes=limit)
    return [message for piece in pieces for message in framing.feed(piece)]


@pytest.mark.req("REQ-HL7-01", "REQ-HL7-02")
def test_a_frame_in_single_bytes_and_two_frames_in_one_piece_are_the_same_messages() -> None:
    stream = frame("MSH|é\r".encode()) + frame(b"MSH|b\r")
    assert fed(stream) == ["MSH|é\r".encode(), b"MSH|b\r"]
    assert fed(*(bytes((byte,)) for byte in stream)) == fed(stream)


# no 0x0B and no 0x1C: what a message may hold
CONTENT = st.binary(max_size=200).map(lambda raw: b"M" + raw.replace(b"\x0b", b"").replace(b"\x1c", b""))


@pytest.mark.req("REQ-HL7-02")
@given(messages=st.lists(CONTENT, max_size=5), cuts=st.lists(st.integers(1, 40), max_size=60))
def test_however_the_stream_is_cut_each_message_comes_out_once_and_in_order(
    messages: list[bytes], cuts: list[int]
) -> None:
    stream = b"noise".join(frame(message) for message in messages)
    pieces, position = [], 0
    for cut in [*cuts, len(stream)]:
        pieces.append(stream[position : position + cut])
        position += cut
    assert fed(*pieces) == messages


@given(pieces=st.lists(st.binary(max_size=30).map(lambda raw: raw.translate(TABLE)), max_size=30))
def test_no_bytes_break_the_framing_and_what_comes_out_was_sent(pieces: list[bytes]) -> None:
    found = fed(*pieces)
    for message in found:
        assert message.strip()
        assert b"\x0b" not in message
        assert message in b"".join(pieces)


# many frame signs among few letters
TABLE = bytes((0x0B, 0x1C, 0x0D, 0x4D)[byte % 4] for byte in range(256))


@pytest.mark.req("REQ-HL7-03")
def test_bytes_outside_frames_are_ignored_and_so_are_empty_frames() -> None:
    assert fed(b"\r\nhello\x1c\r" + frame(b"") + frame(b"\r\n") + b"\x00" + frame(b"MSH|a\r") + b"bye") == [b"MSH|a\r"]


@pytest.mark.req("REQ-HL7-03")
def test_a_start_inside_a_frame_drops_what_was_begun() -> None:
    assert fed(b"\x0bMSH|first, cut o", frame(b"MSH|second\r")) == [b"MSH|second\r"]
    assert fed(b"\x0b\x0b\x0bMSH|a\r\x1c\r") == [b"MSH|a\r"]


@pytest.mark.req("REQ-HL7-03")
def test_without_its_carriage_return_a_message_ends_with_the_next_start() -> None:
    assert fed(b"\x0bMSH|a\r\x1c", b"\x0bMSH|b\r\x1c\r") == [b"MSH|a\r", b"MSH|b\r"]


@pytest.mark.req("REQ-HL7-03")
def test_without_its_carriage_return_a_message_ends_when_nothing_follows() -> None:
    framing = Framing(max_bytes=LIMIT)
    assert list(framing.feed(b"\x0bMSH|a\r\x1c")) == []
    assert framing.ending
    assert list(framing.settle()) == [b"MSH|a\r"]
    assert not framing.ending
    assert list(framing.settle()) == []
    assert list(framing.feed(b"\r" + frame(b"MSH|b\r"))) == [b"MSH|b\r"]


def test_an_end_sign_before_other_bytes_belongs_to_the_message() -> None:
    assert fed(b"\x0bMSH|a\x1c", b"b\r\x1c\r") == [b"MSH|a\x1cb\r"]


@pytest.mark.req("REQ-HL7-04")
def test_above_the_limit_the_messages_before_are_given_and_the_beginning_is_kept() -> None:
    framing = Framing(max_bytes=10)
    messages = framing.feed(frame(b"MSH|123456") + b"\x0bMSH|1234567")
    assert next(messages) == b"MSH|123456"
    with pytest.raises(TooLong) as caught:
        next(messages)
    assert caught.value.beginning == b"MSH|1234567"


@pytest.mark.req("REQ-HL7-04")
def test_the_limit_counts_over_pieces() -> None:
    framing = Framing(max_bytes=10)
    assert list(framing.feed(b"\x0bMSH|12345")) == []
    assert framing.pending_bytes == 9
    with pytest.raises(TooLong):
        list(framing.feed(b"67"))


@pytest.mark.req("REQ-HL7-03")
def test_a_flood_of_starts_is_told_once() -> None:
    with capture_logs() as logs:
        assert fed(b"\x0b" + b"x\x0b" * 1_000 + b"MSH|a\r\x1c\r") == [b"MSH|a\r"]
    assert len(logs) == 1
