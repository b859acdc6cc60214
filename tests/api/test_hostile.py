"""Requests that no client of ours would send: each gets a clear no, none is a bug."""

from __future__ import annotations

import httpx
import pytest

from tests.api.conftest import on_both_databases


@on_both_databases
@pytest.mark.parametrize(
    "address",
    [
        "/api/v1/studies/%00",
        "/api/v1/audit?patient=%00",
        "/api/v1/audit?user=a%00b",
        "/api/v1/work-items?kind=%00",
        "/api/v1/studies?patient_id=%00",
        "/dicom-web/studies/%00",
        "/dicom-web/studies?PatientID=%00",
        "/etudes/%00",
        "/?nom=%00",
    ],
)
def test_a_nul_in_an_address_is_400(client: httpx.Client, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert answer.headers["x-content-type-options"] == "nosniff"
