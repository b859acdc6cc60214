"""Normalized operations that we ask for, answered by pynetdicom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from archive.config import Settings
from archive.sections import Peer
from dicom_scp.associate import Proposed
from dicom_scp.dimse import Field
from dicom_scp.ends import NotAssociated
from dicom_scp.normalized import decode, encode
from dicom_scp.requestor import Requestor
from tests.server import free_port

IAN = "1.2.840.10008.5.1.4.33"
MPPS = "1.2.840.10008.3.1.2.3.3"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
SAID: dict[str, Any] = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "LEFÈVRE^Anaïs"}]},
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "00081115": {"vr": "SQ", "Value": [{"00081190": {"vr": "UR", "Value": ["http://localhost"]}}]},
}


@pytest.fixture
def listener() -> Iterator[tuple[int, list[Dataset]]]:
    """A peer that takes every N-CREATE: its port, what it was told."""
    heard: list[Dataset] = []

    def create(event: evt.Event) -> tuple[int, Dataset | None]:
        heard.append(event.attribute_list)
        return 0x0000, None

    ae = AE("LISTENER")
    ae.add_supported_context(IAN, [EXPLICIT, IMPLICIT])
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_CREATE, create)])
    yield port, heard
    server.shutdown()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_peer_is_told_and_its_answer_heard(listener: tuple[int, list[Dataset]], syntax: str) -> None:
    port, heard = listener
    peer = Peer(host="127.0.0.1", port=port)
    with Requestor.open(Settings(), "LISTENER", peer, (Proposed(1, IAN, (syntax,)),)) as requestor:
        answers = [requestor.perform(Field.N_CREATE_RQ, IAN, f"1.2.{one}", SAID) for one in (4, 5)]
    assert [(one.status, one.sop_instance_uid) for one in answers] == [(0, "1.2.4"), (0, "1.2.5")]
    assert [str(ds.PatientName) for ds in heard] == ["LEFÈVRE^Anaïs"] * 2
    assert heard[0].SpecificCharacterSet == "ISO_IR 192"
    assert heard[0].ReferencedSeriesSequence[0].RetrieveURL == "http://localhost"


def test_a_class_that_the_peer_does_not_take_is_not_asked_for(listener: tuple[int, list[Dataset]]) -> None:
    peer = Peer(host="127.0.0.1", port=listener[0])
    proposed = (Proposed(1, IAN, (EXPLICIT,)), Proposed(3, MPPS, (EXPLICIT,)))
    with (
        Requestor.open(Settings(), "LISTENER", peer, proposed) as requestor,
        pytest.raises(NotAssociated),
    ):
        requestor.perform(Field.N_CREATE_RQ, MPPS, "1.2.3", SAID)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_is_encoded_is_decoded_as_it_was(syntax: str) -> None:
    again = decode(encode(SAID, syntax), syntax, default_charset="ISO_IR 100")
    assert again.pop("00080005") == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert again == dict(sorted(SAID.items()))
