"""What others want said to peers is said by the DICOM edge, tried again, and given up with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import monotonic, sleep

import pytest
from pynetdicom import AE

from archive import jobs
from archive.config import Settings
from archive.core import Archive
from archive.errors import Busy
from dicom_scp.duties import DUTIES
from tests.dicom_scp.conftest import running
from tests.server import free_port


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """Of a server with a peer that answers, one that is away, and one of which nobody knows where it is."""
    listener = AE("ANSWERS")
    listener.add_supported_context("1.2.840.10008.1.1")
    port = free_port()
    answering = listener.start_server(("127.0.0.1", port), block=False)
    peers = {
        "ANSWERS": {"host": "127.0.0.1", "port": port},
        "AWAY": {"host": "127.0.0.1", "port": free_port()},
        "NOWHERE": {},
    }
    with running(settings, peers=peers) as started:
        yield started.archive
    answering.shutdown()


@pytest.mark.req("REQ-DCM-01")
def test_an_echo_that_somebody_asks_for_is_sent(archive: Archive) -> None:
    answer = jobs.ask(archive, "dicom.echo", {"ae_title": "ANSWERS"}, seconds=10)
    assert answer == {"status": 0}


def test_a_peer_that_cannot_be_reached_is_tried_again_later(archive: Archive) -> None:
    owe = partial(jobs.put, kind="dicom.echo", payload={"ae_title": "AWAY"}, at=archive.real_clock())
    id = archive.commit.run(owe)
    until = monotonic() + 10
    while (found := jobs.wait(archive, id, seconds=0)).error is None and monotonic() < until:
        sleep(0.05)
    assert (found.state, found.attempts, found.error) == ("due", 1, "the peer cannot be reached")


@pytest.mark.parametrize("ae_title", ["NOWHERE", "UNHEARD_OF"])
def test_a_peer_without_an_address_is_given_up_at_once(archive: Archive, ae_title: str) -> None:
    with pytest.raises(Busy, match="no address"):
        jobs.ask(archive, "dicom.echo", {"ae_title": ae_title}, seconds=10)


def test_a_duty_that_breaks_down_ends_with_its_job_alone(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DUTIES, "dicom.broken", lambda _archive, job: job.payload["missing"])
    with pytest.raises(Busy, match="broke down"):
        jobs.ask(archive, "dicom.broken", {}, seconds=10)
    assert jobs.ask(archive, "dicom.echo", {"ae_title": "ANSWERS"}, seconds=10) == {"status": 0}
