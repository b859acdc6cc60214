"""Command sets, judged by pynetdicom and pydicom, and by garbage."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom.dsutils import encode as encode_ds

from dicom_scp import dimse
from dicom_scp.dimse import Counts, Field
from dicom_scp.ends import ProtocolError
from dicom_scp.messages import Answer
from dicom_scp.status import Status

CT = "1.2.840.10008.5.1.4.1.1.2"


def command_set(**values: object) -> bytes:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    encoded = encode_ds(ds, True, True)
    assert encoded is not None
    return encoded


def read(data: bytes) -> Dataset:
    return read_dataset(BytesIO(data), True, True)


def test_a_store_request_is_read() -> None:
    command = dimse.decode(
        command_set(
            CommandGroupLength=0,
            AffectedSOPClassUID=CT,
            CommandField=1,
            MessageID=7,
            Priority=0,
            CommandDataSetType=1,
            AffectedSOPInstanceUID="1.2.3",
        )
    )
    assert (command.field, command.message_id, command.has_data_set) == (Field.C_STORE_RQ, 7, True)
    assert (command.sop_class_uid, command.sop_instance_uid) == (CT, "1.2.3")


def test_an_answer_says_status_comment_and_offending_element() -> None:
    request = dimse.decode(dimse.store_request(9, CT, "1.2.3"))
    ds = read(
        dimse.response(
            request, Answer(Status.DOES_NOT_MATCH_CLASS, comment="x" * 80, offending=(0x00080018, 0x0020000D))
        )
    )
    assert (ds.CommandField, ds.MessageIDBeingRespondedTo, ds.Status) == (0x8001, 9, 0xA900)
    assert (ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert ds.ErrorComment == "x" * 64
    assert list(ds.OffendingElement) == [0x00080018, 0x0020000D]
    assert ds.CommandDataSetType == 0x0101
    assert (
        ds.CommandGroupLength == len(dimse.response(request, Answer(0xA900, comment="x" * 80, offending=(1, 2)))) - 12
    )


def test_counts_above_sixteen_bits_stop_at_the_largest() -> None:
    request = dimse.decode(dimse.echo_request(3))
    ds = read(dimse.response(request, Answer(Status.PENDING), counts=Counts(remaining=70_000, completed=65_536)))
    assert (ds.NumberOfRemainingSuboperations, ds.NumberOfCompletedSuboperations) == (65_535, 65_535)
    final = read(dimse.response(request, Answer(0), counts=Counts(remaining=0, completed=2), remaining=False))
    assert "NumberOfRemainingSuboperations" not in final
    assert (final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (2, 0)


def test_a_sub_operation_names_its_originator() -> None:
    ds = read(dimse.store_request(1, CT, "1.2.3", originator=("WS", 12)))
    assert (ds.MoveOriginatorApplicationEntityTitle, ds.MoveOriginatorMessageID) == ("WS", 12)


@pytest.mark.parametrize("missing", ["CommandField", "MessageID", "CommandDataSetType"])
def test_a_command_that_cannot_be_answered_is_an_error(missing: str) -> None:
    values: dict[str, object] = {"CommandField": 1, "MessageID": 7, "CommandDataSetType": 1}
    del values[missing]
    with pytest.raises(ProtocolError):
        dimse.decode(command_set(**values))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        dimse.decode(data)


@pytest.mark.parametrize(
    ("operation", "named", "type_element"),
    [
        (Field.N_CREATE_RQ, "Affected", None),
        (Field.N_EVENT_REPORT_RQ, "Affected", "EventTypeID"),
        (Field.N_SET_RQ, "Requested", None),
        (Field.N_ACTION_RQ, "Requested", "ActionTypeID"),
    ],
)
def test_normalized_requests_and_their_answers(operation: Field, named: str, type_element: str | None) -> None:
    kind = 1 if type_element else None
    data = dimse.normalized_request(operation, 4, "1.2.840.10008.1.20.1", "1.2.3", type=kind)
    ds = read(data)
    assert (ds.CommandField, ds.MessageID, ds.CommandDataSetType) == (operation, 4, 1)
    assert (ds[f"{named}SOPClassUID"].value, ds[f"{named}SOPInstanceUID"].value) == ("1.2.840.10008.1.20.1", "1.2.3")
    assert type_element is None or ds[type_element].value == 1
    asked = dimse.decode(data)
    assert (asked.sop_class_uid, asked.sop_instance_uid, asked.type) == ("1.2.840.10008.1.20.1", "1.2.3", kind)
    answer = read(dimse.response(asked, Answer(Status.PROCESSING_FAILURE, error_id=0xA710)))
    assert (answer.CommandField, answer.Status, answer.ErrorID) == (operation | 0x8000, 0x0110, 0xA710)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == ("1.2.840.10008.1.20.1", "1.2.3")
    assert type_element is None or answer[type_element].value == 1


def test_an_instance_that_was_made_without_a_uid_is_named_in_the_answer() -> None:
    asked = dimse.decode(dimse.normalized_request(Field.N_CREATE_RQ, 4, "1.2.840.10008.3.1.2.3.3", ""))
    assert read(dimse.response(asked, Answer(0, sop_instance_uid="2.25.7"))).AffectedSOPInstanceUID == "2.25.7"
