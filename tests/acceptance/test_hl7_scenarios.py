"""The shared HL7 scenarios that this version promises (sheet 20 §11), each on an empty archive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.acceptance.hl7_scenarios import Failed, compare, run
from tests.conftest import STRICT

PROMISED = {
    "pam-a28-ins-valid": ("REQ-HL7-60", "REQ-HL7-62"),
    "pam-a28-8859-1": ("REQ-HL7-12",),
    "pam-a28-8859-15": ("REQ-HL7-12", "REQ-DCM-61"),
    "pam-a31-null-absent": ("REQ-HL7-13",),
    "ins-withdrawn-a31": ("REQ-HL7-64",),
    "ins-not-vali": ("REQ-HL7-62",),
    "ins-corse": ("REQ-HL7-60",),
    "ins-bad-key": ("REQ-HL7-66",),
    "names-french": (),
    "merge-both-known": ("REQ-HL7-40",),
    "order-orm-231": ("REQ-HL7-70",),
    "pdq": ("REQ-HL7-90", "REQ-HL7-91", "REQ-HL7-92", "REQ-IHE-04"),
    "pir-unidentified": ("REQ-HL7-95", "REQ-DCM-70", "REQ-DCM-71"),
}


@pytest.fixture
def samples() -> Path:
    shared = os.environ.get("MINIPACS_TEST_DATA", "")
    folder = Path(shared) / "spec" / "samples"
    if not shared or not folder.is_dir():
        if STRICT and shared:
            pytest.fail(f"{folder} is not there")
        pytest.skip("MINIPACS_TEST_DATA names no folder with spec/samples: no shared HL7 scenarios")
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.req(*ids) if ids else ()) for name, ids in PROMISED.items()]
)
def test_a_shared_scenario_passes(name: str, samples: Path, tmp_path: Path) -> None:
    run(samples, name, workspace=tmp_path / "server")


def test_an_assertion_that_cannot_be_checked_counts_as_failed() -> None:
    with pytest.raises(Failed, match="not in the answer"):
        compare({"exists": True}, {"exists": True, "sex": "F"}, "patient")
    with pytest.raises(Failed, match="expected"):
        compare({"exists": True}, {"exists": False}, "patient")
