"""Schemathesis holds `/api/v1` against its own description: hundreds of requests that are right, wrong and strange."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from archive.core import Archive

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
AWAY = ("/readyz", "/api/v1/retention/run")  # 503 without the other processes, as they should


def test_whatever_is_asked_is_answered_as_it_is_described(
    archive: Archive, studies: None, url: str, token: Callable[..., str], tmp_path: Path
) -> None:
    secret = token("radiologist", "it_admin", "auditor", "service", "quality")
    run = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/api/openapi.json",
            "--header", f"Authorization: Bearer {secret}", "--seed", "1", "--max-examples", "6",
            "--phases", "fuzzing", "--checks", CHECKS, "--generation-database", "none",
            *(argument for path in AWAY for argument in ("--exclude-path", path)),
        ],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_errors_are_described_as_problems(client: httpx.Client) -> None:
    described = client.get("/api/openapi.json").json()
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for operations in described["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert set(operation["responses"]["4XX"]["content"]) == {"application/problem+json"}
