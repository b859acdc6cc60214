"""Messages, and what is said back to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import STRICT

MSH = "MSH|^~\\&|RIS|CABINET|PACS|CABINET|20260105083000||ADT^A28^ADT_A05|{id}|P|2.5^FRA^2.11|||||FRA|UNICODE UTF-8"
EVN = "EVN||20260105083000"
PID = "PID|1||{pid}^^^CABINET^PI||{name}^Anne^^^^^L||19700203|F"


def a28(control_id: str = "1", *, pid: str = "P1", name: str = "DUPONT", msh: str = MSH) -> bytes:
    """A new patient."""
    return lines(msh.format(id=control_id), EVN, PID.format(pid=pid, name=name))


def lines(*segments: str, end: str = "\r", codec: str = "utf-8") -> bytes:
    return "".join(segment + end for segment in segments).encode(codec)


@dataclass(frozen=True)
class Answer:
    """An ACK that was taken apart."""

    segments: list[list[str]]

    @classmethod
    def of(cls, ack: bytes, codec: str = "utf-8") -> Answer:
        return cls([segment.split("|") for segment in ack.decode(codec).rstrip("\r").split("\r")])

    @property
    def code(self) -> str:
        """MSA-1."""
        return next(one for one in self.segments if one[0] == "MSA")[1]

    @property
    def of_message(self) -> str:
        """MSA-2."""
        return [*next(one for one in self.segments if one[0] == "MSA"), ""][2]

    @property
    def errors(self) -> list[tuple[str, str, str]]:
        """Code, place, severity of each ERR (HL7 2.5)."""
        return [(one[3].split("^")[0], one[2], one[4]) for one in self.segments if one[0] == "ERR"]


@pytest.fixture(scope="session")
def sample() -> Callable[[str], bytes]:
    """A message of the shared samples, by its path in `spec/samples`; skips when they are not there."""
    folder = os.environ.get("MINIPACS_TEST_DATA")

    def read(name: str) -> bytes:
        if folder is None:
            message = "MINIPACS_TEST_DATA is not set: no shared HL7 samples"
            if STRICT:
                pytest.fail(message)
            pytest.skip(message)
        return (Path(folder) / "spec" / "samples" / name).read_bytes()

    return read
