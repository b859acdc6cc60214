"""The database fails while the port is up: each service says so in its own words, and goes on afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from dicom_scp.associate import Identity, encode_request
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set
from tests.dicom_scp.conftest import Running
from tests.dicom_scp.retrieving import GETTER, Getter, identifier, keep
from tests.dicom_scp.test_negotiate import answered, user
from tests.dicom_scp.test_server import ask
from tests.dicom_scp.test_store import send_on
from tests.dicom_scp.wire import Peer, request


@contextmanager
def without(server: Running, *tables: str) -> Iterator[None]:
    """These tables are not where they belong, as after a broken migration."""
    _rename(server, {table: f"{table}_away" for table in tables})
    try:
        yield
    finally:
        _rename(server, {f"{table}_away": table for table in tables})


def _rename(server: Running, names: dict[str, str]) -> None:
    with server.archive.engine.begin() as conn:
        for old, new in names.items():
            conn.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


@pytest.mark.req("REQ-DCM-13", "REQ-DCM-38", "REQ-DCM-39", "REQ-DCM-46")
def test_every_service_says_that_the_index_is_away_and_goes_on_when_it_is_back(server: Running) -> None:
    kept, sent = keep(server.archive, ct_slice(number=1))[0], ct_slice(number=2)
    with Getter(server) as peer:
        peer.associate(GETTER)
        with without(server, "instance"):
            assert send_on(peer, data_set(sent), sent.SOPInstanceUID).status == Status.OUT_OF_RESOURCES
            _, [response] = peer.get(identifier())
            assert response.Status == Status.CANNOT_COUNT_MATCHES
            [(status, _)] = ask(peer)
            assert status == Status.OUT_OF_RESOURCES
            assert peer.echoes()
        assert send_on(peer, data_set(sent), sent.SOPInstanceUID).status == Status.SUCCESS
        came, _ = peer.get(identifier())
        assert came.keys() == {kept.SOPInstanceUID, sent.SOPInstanceUID}
    assert server.incoming_files() == []


@pytest.mark.req("REQ-DCM-08")
def test_a_passcode_that_cannot_be_checked_now_is_rejected_for_now(server: Running) -> None:
    """Temporary congestion, not «wrong»: trying again later helps."""
    asked = user(identity=Identity(2, True, b"anne", b"correct horse battery"))
    with without(server, "account"):
        assert answered(server, user=asked) == (3, bytes((2, 3, 1)))
        with Peer(server) as peer:  # who gives none is let in
            peer.say(encode_request(request()))
            assert peer.hear()[0] == 2
    assert answered(server, user=asked) == (3, bytes((1, 2, 1)))
