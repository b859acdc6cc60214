"""An archive at the day of the exams, and a way to change its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from archive.config import Settings
from archive.core import Archive, open_archive
from tests.retention.life import put_clock

EXAM = "2026-01-05T09:00:00"


@pytest.fixture
def archive(archive: Archive) -> Archive:
    """The archive of every test, on the day of `tests.retention.life.exam`."""
    put_clock(archive, EXAM)
    return archive


@pytest.fixture
def with_retention(settings: Settings) -> Iterator[Callable[..., Archive]]:
    """Opens the archive with other settings of retention, on the day of the exams."""
    with ExitStack() as opened:

        def open_with(**retention: Any) -> Archive:
            values = settings.model_dump()
            values["retention"] |= retention
            made = opened.enter_context(open_archive(Settings.model_validate(values), process="other"))
            put_clock(made, EXAM)
            return made

        yield open_with
