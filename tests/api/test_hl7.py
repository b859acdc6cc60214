"""The journal of HL7 messages, seen over the API."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from archive import messages
from archive.core import Archive
from archive.messages import Head, State
from tests.api.conftest import on_both_databases
from tests.api.test_auth import rows

RAW = b"MSH|^~\\&|RIS|F|P|F|2026||ADT^A28|{n}|P|2.5\rPID|||SECRET\r\xff"


def fill(archive: Archive, count: int) -> None:
    """Messages of the journal, the last of them refused."""
    for n in range(count):
        head = Head("RIS|F", f"M{n}", "ADT^A28", "0" * 64)
        pk = archive.commit.run(
            lambda conn, head=head: messages.keep(conn, RAW, head, connection="1", at=archive.clock())
        )
        code, state, error = ("AE", State.REFUSED, "101 PID^1^3") if n == count - 1 else ("AA", State.APPLIED, None)
        archive.commit.run(
            lambda conn, pk=pk, code=code, state=state, error=error: messages.close(
                conn, pk, state, code=code, ack=b"MSH\rMSA\r", error=error, at=archive.clock()
            )
        )


@on_both_databases
@pytest.mark.req("REQ-HL7-07")
def test_messages_are_listed_without_their_content_in_pages(
    archive: Archive, url: str, token: Callable[..., str]
) -> None:
    fill(archive, 3)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token('it_admin')}"}) as client:
        first = client.get("/api/v1/hl7/messages", params={"limit": 2})
        assert first.status_code == 200
        assert b"SECRET" not in first.content
        page = first.json()
        assert [(one["control_id"], one["state"], one["ack"], one["error"]) for one in page["items"]] == [
            ("M2", "refused", "AE", "101 PID^1^3"),
            ("M1", "applied", "AA", None),
        ]
        rest = client.get("/api/v1/hl7/messages", params={"limit": 2, "cursor": page["next"]}).json()
        assert [one["control_id"] for one in rest["items"]] == ["M0"]
        assert rest["next"] is None
        refused = client.get("/api/v1/hl7/messages", params={"state": "refused"}).json()
        assert [one["control_id"] for one in refused["items"]] == ["M2"]
        for wrong in ({"state": "lost"}, {"cursor": "x"}, {"limit": 0}):
            assert client.get("/api/v1/hl7/messages", params=wrong).status_code == 400


@on_both_databases
@pytest.mark.req("REQ-HL7-07", "REQ-SEC-20")
def test_the_bytes_are_given_to_those_who_may_know_of_patients_and_that_is_written_down(
    archive: Archive, url: str, token: Callable[..., str]
) -> None:
    fill(archive, 1)
    with httpx.Client(base_url=url) as client:
        headers = {"Authorization": f"Bearer {token('it_admin', name='technician')}"}
        assert client.get("/api/v1/hl7/messages/1/raw", headers=headers).status_code == 403
        headers = {"Authorization": f"Bearer {token('radiologist', name='doctor')}"}
        answer = client.get("/api/v1/hl7/messages/1/raw", headers=headers)
        assert answer.content == RAW
        assert answer.headers["content-type"] == "application/hl7-v2"
        assert client.get("/api/v1/hl7/messages/2/raw", headers=headers).status_code == 404
    (row,) = rows(archive, user="doctor")
    assert (row["event"], row["action"], row["outcome"]) == ("110110", "R", 0)
    assert row["detail"] == {"hl7_message": 1}
