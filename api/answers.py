"""What all of `/api/v1` has in common: answers in JSON, and the cursors of its lists."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from archive.errors import InvalidRequest


def as_json(value: object, status: int = 200) -> Response:
    """An answer; times in it are written with `Z`."""
    return Response(orjson.dumps(value, option=orjson.OPT_UTC_Z), status, media_type="application/json")


def given_as(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """What a successful answer of an operation is given as, for its description (`responses` of a route)."""
    return {200: {"content": {media_type: {} for media_type in media_types}}}


def position(cursor: str | None) -> int:
    """Where a list goes on: the number that `next` of the answer before was, 0 without one.

    Raises:
        InvalidRequest: no earlier answer gave it.
    """
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 12):
        raise InvalidRequest("this is no cursor of an earlier answer")
    return int(cursor)
