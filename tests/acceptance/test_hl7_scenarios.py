"""The shared HL7 scenarios that this version promises (sheet 20 §11), each on an empty archive; those with patients
and orders of their own share one, where nothing of theirs was before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from tests.acceptance.hl7_scenarios import Failed, compare, playing
from tests.conftest import STRICT

PROMISED = {
    "pam-a28-ins-valid": ("REQ-IHE-03", "REQ-HL7-60", "REQ-HL7-62"),
    "pam-a31-null-absent": ("REQ-IHE-03", "REQ-HL7-13"),
    "ins-withdrawn-a31": ("REQ-IHE-03", "REQ-HL7-64"),
    "ins-bad-key": ("REQ-IHE-03", "REQ-HL7-66"),
    "merge-both-known": ("REQ-IHE-02", "REQ-HL7-40"),
    "a47-ins-removal": ("REQ-IHE-03", "REQ-HL7-41"),
    "a47-ins-change": ("REQ-IHE-03", "REQ-HL7-41", "REQ-HL7-67"),
    "pdq": ("REQ-HL7-90", "REQ-HL7-91", "REQ-HL7-92", "REQ-IHE-04"),
}
TOGETHER = {
    "pam-a28-8859-1": ("REQ-IHE-03", "REQ-HL7-12"),
    "pam-a28-8859-15": ("REQ-IHE-03", "REQ-HL7-12", "REQ-DCM-61"),
    "ins-not-vali": ("REQ-IHE-03", "REQ-HL7-62"),
    "ins-corse": ("REQ-IHE-03", "REQ-HL7-60"),
    "names-french": ("REQ-IHE-03",),
    "pir-unidentified": ("REQ-IHE-02", "REQ-HL7-95", "REQ-DCM-70", "REQ-DCM-71"),
    "a47-rename": ("REQ-IHE-03", "REQ-HL7-41"),
    "a24-a37": ("REQ-IHE-03",),
    "pam-iti31-all": ("REQ-IHE-03",),
    "pam-a44": ("REQ-IHE-03",),  # plays pam-a01-a08 first
    "rad-1-12-v231": ("REQ-IHE-01",),
    "order-omi-lifecycle": ("REQ-IHE-01", "REQ-HL7-70", "REQ-HL7-71", "REQ-HL7-73"),
    "order-orm-231": ("REQ-IHE-01", "REQ-HL7-70"),
    "order-orm-251-fr": ("REQ-IHE-01", "REQ-HL7-20"),
    "order-omg": ("REQ-IHE-01", "REQ-HL7-70"),
    "order-errors": ("REQ-IHE-01", "REQ-HL7-72", "REQ-HL7-75"),
}


def named(scenarios: dict[str, tuple[str, ...]]) -> list[ParameterSet]:
    return [pytest.param(name, marks=pytest.mark.req(*ids) if ids else ()) for name, ids in scenarios.items()]


@pytest.fixture(scope="module")
def samples() -> Path:
    shared = os.environ.get("MINIPACS_TEST_DATA", "")
    folder = Path(shared) / "spec" / "samples"
    if not shared or not folder.is_dir():
        if STRICT and shared:
            pytest.fail(f"{folder} is not there")
        pytest.skip("MINIPACS_TEST_DATA names no folder with spec/samples: no shared HL7 scenarios")
    return folder


@pytest.fixture(scope="module")
def play(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """Plays scenarios on one archive."""
    with playing(samples, workspace=tmp_path_factory.mktemp("together") / "server") as played:
        yield played.play


@pytest.mark.parametrize("name", named(PROMISED))
def test_a_shared_scenario_passes(name: str, samples: Path, tmp_path: Path) -> None:
    with playing(samples, workspace=tmp_path / "server") as played:
        played.play(name)


@pytest.mark.parametrize("name", named(TOGETHER))
def test_a_shared_scenario_passes_beside_others(name: str, play: Callable[[str], None]) -> None:
    play(name)


def test_an_assertion_that_cannot_be_checked_counts_as_failed() -> None:
    with pytest.raises(Failed, match="not in the answer"):
        compare({"exists": True}, {"exists": True, "sex": "F"}, "patient")
    with pytest.raises(Failed, match="expected"):
        compare({"exists": True}, {"exists": False}, "patient")
