"""A patient's identifier as text."""

from __future__ import annotations

import pytest

from archive.dicom.patient_id import cx


@pytest.mark.parametrize(
    ("patient_id", "issuer", "expected"),
    [("IPP1", "HÔPITAL", "IPP1^^^HÔPITAL"), ("IPP1", "", "IPP1"), ("", "", ""), ("", "HÔPITAL", "")],
)
def test_an_identifier_is_written_with_its_issuer_if_it_has_one(patient_id: str, issuer: str, expected: str) -> None:
    assert cx(patient_id, issuer) == expected
