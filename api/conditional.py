"""Conditional requests and ranges of bytes (RFC 9110 §13 and §14, REQ-DCM-96).

What an ETag stands for are the stored bytes, the corrections they leave with, the form that was chosen and what makes
it of them: the same tag means the same answer, without a file having been opened. Answers may be kept by the browser of
the person alone, and have to be asked for again each time, so that every look at an image passes `archive.access` and
the audit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from importlib.metadata import version

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api import auth
from archive.retrieve import Stored

# Of what is made of the stored bytes: to be raised with whatever changes it, as each version of the program may.
FORM = f"1 minipacs {version('minipacs')}"
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


def tag_of(request: Request, stored: Iterable[Stored], *form: object, weak: bool = False) -> str:
    """The ETag of these instances in a form. `weak`: bytes may differ that mean nothing, boundaries of parts."""
    charset = auth.archive_of(request).settings.dicom.default_charset
    digest = hashlib.sha256(repr((FORM, charset, form)).encode())
    for one in stored:
        facts = (one.sop_instance_uid, one.digest, one.transfer_syntax_uid, one.path)
        digest.update(repr((*facts, one.patient_corrections, one.study_corrections)).encode())
    return f'{"W/" * weak}"{digest.hexdigest()[:32]}"'


def headers(tag: str) -> dict[str, str]:
    """What an answer with images says of its being kept: by one person's browser, and asked for again each time."""
    return {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept, Authorization, Cookie"}


def is_known(request: Request, tag: str) -> bool:
    """Whether the asker holds this very representation (If-None-Match, compared weakly: RFC 9110 §13.1.2)."""
    given = request.headers.get("if-none-match", "")
    if given.strip() == "*":
        return True
    return tag.removeprefix("W/") in {one.removeprefix("W/") for one in _TAG.findall(given)}


def not_modified(tag: str) -> Response:
    """304: what the asker holds is what there is."""
    return Response(None, 304, headers(tag))


def range_of(request: Request, tag: str, length: int) -> tuple[int, int] | None:
    """The one range of bytes that is asked for of a body of this length: first, and the one behind the last.

    None: all of it. Several ranges, other units, a range of something that was changed since (If-Range) and one with
    another method than GET come as all of it too (RFC 9110 §14.2).

    Raises:
        HTTPException: 416, no byte of it is there.
    """
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip())
    expected = request.headers.get("if-range", tag)
    if request.method != "GET" or asked is None or not any(asked.groups()) or expected != tag or tag.startswith("W/"):
        return None
    first, last = asked.groups()
    if not first:
        start, end = max(0, length - int(last)), length
    else:
        start, end = int(first), min(length, int(last) + 1 if last else length)
        if last and int(last) < start:
            return None  # not a range at all
    if start >= end:
        raise HTTPException(416, "no byte of this range is there", {"Content-Range": f"bytes */{length}"})
    return start, end


def span(asked: tuple[int, int] | None, length: int) -> tuple[int, dict[str, str]]:
    """Status and header fields of a body whose length is known, or of a range of it."""
    start, end = asked or (0, length)
    fields = {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if asked is None:
        return 200, fields
    return 206, fields | {"Content-Range": f"bytes {start}-{end - 1}/{length}"}
