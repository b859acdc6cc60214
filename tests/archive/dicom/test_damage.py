"""Damaged files are read or refused, in words of ours, and in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from archive.dicom.bulk import bulk_data
from archive.dicom.compare import Copy, same_meaning
from archive.dicom.frame_index import opened
from archive.dicom.json import metadata
from archive.dicom.syntaxes import EXPLICIT_LE as EXPLICIT
from archive.dicom.syntaxes import IMPLICIT_LE as IMPLICIT
from archive.dicom.transcode import pieces, targets
from archive.errors import Rejected
from tests.builders import ct_slice, part10


def source(syntax: str) -> bytes:
    ds = ct_slice(transfer_syntax=syntax if syntax != RLELossless else ExplicitVRLittleEndian, SOPInstanceUID="1.2.3")
    item, inner = Dataset(), Dataset()
    inner.CodeMeaning = "é"
    item.RequestedProcedureCodeSequence = [inner, Dataset()]
    item["RequestedProcedureCodeSequence"].is_undefined_length = True
    ds.RequestAttributesSequence = [item]
    ds.WindowCenter = ["1", "2.5"]
    ds.OtherPatientNames = ["A^B=C", "D"]
    block = ds.private_block(0x0019, "MINIPACS", create=True)
    block.add_new(1, "OB", bytes(30))
    block.add_new(2, "FD", 1.5)
    if syntax == RLELossless:
        ds.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    return part10(ds)


def describe(path: str, offset: int, syntax: str) -> None:
    metadata(path, data_set_offset=offset, transfer_syntax_uid=syntax, bulk_uri=str)


def give_bulk(path: str, offset: int, syntax: str) -> None:
    for tag in ("7FE00010", "00191001", "00400275/1/00321064/1/00080104"):
        for _ in bulk_data(path, tag, data_set_offset=offset, transfer_syntax_uid=syntax):
            pass


def read_frames(path: str, offset: int, syntax: str) -> None:
    with opened(path, data_set_offset=offset, transfer_syntax_uid=syntax) as frames:
        for number in range(1, min(len(frames), 5) + 1):
            frames.read(number)


def transcode(path: str, offset: int, syntax: str) -> None:
    for target in targets(syntax):
        for _ in pieces(path, data_set_offset=offset, source_syntax=syntax, target_syntax=target):
            pass


def compare(path: str, offset: int, syntax: str) -> None:
    del offset
    assert same_meaning(Copy(path, syntax), Copy(path, syntax)) in (True, False)


SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
WHOLE = {syntax: source(syntax) for syntax in SYNTAXES}
OFFSETS = {syntax: 144 + int.from_bytes(raw[140:144], "little") for syntax, raw in WHOLE.items()}


@pytest.mark.parametrize("use", [describe, give_bulk, read_frames, transcode, compare])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data(), syntax=st.sampled_from(SYNTAXES))
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, use: Callable[[str, int, str], None], data: st.DataObject, syntax: str
) -> None:
    raw, offset = bytearray(WHOLE[syntax]), OFFSETS[syntax]
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(offset, len(raw) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert", "ff"]))
        if change == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif change == "ff":
            raw[at : at + 4] = b"\xff\xff\xff\xff"
        elif change == "insert":
            raw[at:at] = data.draw(st.binary(max_size=12))
        elif len(raw) - offset > 40:
            del raw[at : at + data.draw(st.integers(1, 20))]
    path = tmp_path / "damaged.dcm"
    path.write_bytes(raw)
    began = time.thread_time()
    try:
        use(str(path), offset, str(syntax))
    except Rejected as error:
        assert str(error)
    assert time.thread_time() - began < 2


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    for syntax in SYNTAXES:
        path = tmp_path / "whole.dcm"
        path.write_bytes(WHOLE[syntax])
        for use in (describe, read_frames, transcode, compare):
            use(str(path), OFFSETS[syntax], str(syntax))
        assert same_meaning(Copy(str(path), str(syntax)), Copy(str(path), str(syntax)))
    assert {EXPLICIT, IMPLICIT} == set(targets(RLELossless))
