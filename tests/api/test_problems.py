"""Errors of the archive, as RFC 9457 problems."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

from api import problems
from archive.errors import (
    ArchiveError,
    AttributeRefused,
    Gone,
    IdentifierInUse,
    MergedAway,
    NotAuthenticated,
    RejectedBefore,
    StillKept,
    StorageFull,
    UidMismatch,
    Unavailable,
)


def every(kind: type[ArchiveError]) -> Iterator[type[ArchiveError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every(below)


FACTS: dict[type[ArchiveError], dict[str, object]] = {
    UidMismatch: {"tag": 0x00080018},
    AttributeRefused: {"tag": 0x00400252, "fault": "missing"},
    RejectedBefore: {"code": "113037"},
    StillKept: {"until": "2031-01-05", "reasons": [{"rule": "floor", "text": "durée légale"}]},
    IdentifierInUse: {"what": "patient"},
    MergedAway: {"old": "1", "survivor": "2"},
}


def made(kind: type[ArchiveError]) -> ArchiveError:
    return kind("no", **FACTS.get(kind, {}))


@pytest.mark.parametrize("kind", sorted(every(ArchiveError), key=lambda kind: kind.__name__))
def test_every_error_of_the_archive_has_a_status(kind: type[ArchiveError]) -> None:
    problem = problems.of_archive(made(kind))
    expected = {400, 401, 403, 404, 406, 409, 410, 413, 415} if not issubclass(kind, Unavailable) else {503, 507}
    assert problem.status in expected | ({500} if kind is ArchiveError else set())
    assert ("Retry-After" in problem.headers) == issubclass(kind, Unavailable)
    body = orjson.loads(problem.response().body)
    assert body["status"] == problem.status
    assert body["type"].startswith("urn:minipacs:problem:")
    assert body["title"]
    assert body["detail"] == "no"


def test_a_full_volume_is_507_and_may_be_tried_again() -> None:
    problem = problems.of_archive(StorageFull("the volume is full"))
    assert (problem.status, problem.headers["Retry-After"]) == (507, "10")


def test_who_is_not_known_is_told_how_to_present_himself() -> None:
    assert "Bearer" in problems.of_archive(NotAuthenticated("log in")).headers["WWW-Authenticate"]


def test_what_is_gone_names_its_alternate() -> None:
    assert problems.of_archive(Gone("replaced", alternate="1.2.3")).facts == {"alternate": "1.2.3"}


def test_a_bug_tells_nothing() -> None:
    body = orjson.loads(problems.of_bug().response().body)
    assert set(body) == {"type", "title", "status"}
