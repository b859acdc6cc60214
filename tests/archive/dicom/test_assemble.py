"""Metadata that somebody sent, whatever they are, become a data set or are refused (PS3.18 10.5.1.1.2)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.dicom.assemble import Bulk, assembled
from archive.errors import UnreadableInstance

NAMES = {"00080016": {"vr": "UI", "Value": ["1.2.3"]}, "00080018": {"vr": "UI", "Value": ["1.2.4"]}}
OCTETS = Bulk("application/octet-stream", "", 3, lambda: iter((b"abc",)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ELEMENT = st.fixed_dictionaries(
    {"vr": st.sampled_from(["SQ", "PN", "US", "DS", "IS", "OB", "AT", "LO", "FD", "UI"]) | JSON},
    optional={"Value": JSON, "InlineBinary": JSON, "BulkDataURI": st.just("here") | JSON},
)
KEY = st.sampled_from(["00081140", "00100010", "00280010", "7FE00010", "FFFEE00D", "00020010"]) | st.text(max_size=9)


def made(found: dict[str, Any]) -> bytes:
    return b"".join(assembled(found, {"here": [OCTETS]}))


@given(st.dictionaries(KEY, ELEMENT | JSON, max_size=4))
def test_anything_is_written_or_refused(found: dict[str, Any]) -> None:
    with suppress(UnreadableInstance):
        assert made(NAMES | found)[128:132] == b"DICM"


@pytest.mark.parametrize(
    "found",
    [
        {"FFFEE00D": {"vr": "OB"}},  # would end an item that nobody began
        {"00081140": {"vr": "SQ", "Value": [{"FFFEE000": {"vr": "LO", "Value": ["x"]}}]}},
        {"00081140": {"vr": "SQ", "Value": 7}},
        {"00100010": {"vr": []}},
        {"00280010": {"vr": "US", "Value": [70000]}},
        {"00420011": {"vr": "OB", "BulkDataURI": "elsewhere"}},
    ],
)
def test_what_would_break_the_structure_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(UnreadableInstance):
        made(NAMES | found)
