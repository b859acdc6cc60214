"""One line an event, whatever a peer calls itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAY = r"""
import structlog
from minipacs.logs import Form, configure
configure(Form(%r), process="test")
structlog.get_logger().info("association accepted", calling_ae="\x1b[31mRED\x07", other="a\nb")
try:
    raise ValueError("why")
except ValueError:
    structlog.get_logger().exception("a bug")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_are_shown_and_do_nothing(form: str) -> None:
    said = subprocess.run([sys.executable, "-c", SAY % form], capture_output=True, text=True, check=True).stderr
    assert "RED" in said.splitlines()[0]
    assert [letter for letter in said if not letter.isprintable() and letter != "\n"] == []
    assert "Traceback" in said


def test_an_event_is_one_line() -> None:
    said = subprocess.run([sys.executable, "-c", SAY % "text"], capture_output=True, text=True, check=True).stderr
    assert r"a\nb" in said.splitlines()[0]
