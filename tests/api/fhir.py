"""A FHIR client that believes nothing: every answer is read by the models of R4B, where the resources here are as in R4
(docs/decisions/0017-fhir-models-in-tests.md)."""

from __future__ import annotations

from typing import Any

import httpx
from fhir.resources.R4B import get_fhir_model_class

JSON = "application/fhir+json; charset=utf-8"


def valid(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource, once every element, type and cardinality of it is one of its definition."""
    get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    return resource


def get(client: httpx.Client, address: str, status: int = 200, /, **params: Any) -> dict[str, Any]:
    """The resource at an address under `/fhir`."""
    answer = client.get(f"/fhir/{address}", params=params or None)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == JSON
    return valid(answer.json())


def found(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    """The resources of a searchset."""
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "searchset")
    return [one["resource"] for one in bundle.get("entry", ()) if one["search"]["mode"] == "match"]


def link(bundle: dict[str, Any], relation: str) -> str | None:
    return next((one["url"] for one in bundle["link"] if one["relation"] == relation), None)


def refusal(answer: dict[str, Any]) -> tuple[str, str]:
    """Severity and code of the one issue."""
    assert answer["resourceType"] == "OperationOutcome"
    [issue] = answer["issue"]
    return issue["severity"], issue["code"]
