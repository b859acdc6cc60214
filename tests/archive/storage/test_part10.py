"""Files as others write them: what can be told for certain is taken, the rest is refused in words."""

from __future__ import annotations

import os
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from archive.dicom.syntaxes import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import UnreadableInstance
from archive.storage.filesystem import Tier
from archive.storage.incoming import Incoming
from archive.storage.part10 import Part10
from tests.builders import ct_slice, data_set, part10

AT = datetime(2026, 1, 5, 10, 15, tzinfo=UTC)


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier(tmp_path / "hot")


def take(tier: Tier, raw: bytes, piece: int = 1 << 20) -> Incoming:
    reader = Part10(tier, at=AT)
    for start in range(0, len(raw), piece):
        reader.feed(raw[start : start + piece])
    return reader.finish()


def body(incoming: Incoming) -> bytes:
    return Path(incoming.path).read_bytes()[incoming.data_set_offset :]


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE])
@pytest.mark.parametrize("piece", [1 << 20, 100])
def test_a_file_is_split_into_meta_and_data_set(tier: Tier, syntax: str, piece: int) -> None:
    ds = ct_slice(transfer_syntax=syntax, rows=256, columns=256)
    incoming = take(tier, part10(ds), piece)
    assert incoming.meta.transfer_syntax_uid == syntax
    assert incoming.meta.sop_instance_uid == ds.SOPInstanceUID
    assert body(incoming) == data_set(ds)


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE])
def test_a_bare_data_set_is_recognised(tier: Tier, syntax: str) -> None:
    ds = ct_slice(transfer_syntax=syntax)
    incoming = take(tier, data_set(ds))
    assert incoming.meta.transfer_syntax_uid == syntax
    assert incoming.meta.sop_instance_uid == ds.SOPInstanceUID
    assert incoming.meta.sop_class_uid == ds.SOPClassUID
    assert body(incoming) == data_set(ds)


def test_the_prefix_inside_a_value_is_not_taken_for_one(tier: Tier) -> None:
    raw = data_set(ct_slice(ImageType=["X" * 16] * 10))
    assert raw.index(b"X" * 16) < 128
    raw = raw[:128] + b"DICM" + raw[132:]
    assert body(take(tier, raw)) == raw


def test_group_2_without_its_uids_is_completed_from_the_data_set(tier: Tier) -> None:
    ds = ct_slice(transfer_syntax=DEFLATED_LE)
    raw = part10(ds)
    head = bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x16\x00" + DEFLATED_LE.encode()
    incoming = take(tier, head + data_set(ds))
    assert len(raw) > len(head)
    assert incoming.meta.sop_instance_uid == ds.SOPInstanceUID
    assert zlib.decompress(body(incoming), -15)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not dicom at all, but long enough to be looked at",
        b"\x1f\x8b\x08" + bytes(200),
        b"PK\x03\x04" + bytes(200),
    ],
)
def test_what_is_not_dicom_is_refused(tier: Tier, raw: bytes) -> None:
    with pytest.raises(UnreadableInstance):
        take(tier, raw)
    assert list(tier.incoming_dir.iterdir()) == []


@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_taken_or_refused(tier: Tier, raw: bytes, preamble: bool) -> None:
    try:
        incoming = take(tier, bytes(128) + b"DICM" + raw if preamble else raw)
    except UnreadableInstance:
        return
    incoming.discard()
    assert not os.path.exists(incoming.path)
