"""Real DICOM data, where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import STRICT


def shared(name: str) -> Path:
    """A place under MINIPACS_TEST_DATA; skips, or under MINIPACS_TEST_STRICT fails, when there is none."""
    folder = os.environ.get("MINIPACS_TEST_DATA")
    if not folder:
        message = "MINIPACS_TEST_DATA is not set: no real DICOM files to read"
        if STRICT:
            pytest.fail(message)
        pytest.skip(message)
    return Path(folder) / name
