"""Command sets, judged by pynetdicom and pydicom, and by garbage."""

from __future__ import annotations

import struct
from collections.abc import Callable
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


def find_request(message_id: int, **more: object) -> bytes:
    return command_set(
        CommandGroupLength=0,
        AffectedSOPClassUID="1.2.840.10008.5.1.4.1.2.2.1",
        CommandField=0x20,
        MessageID=message_id,
        Priority=0,
        CommandDataSetType=1,
        **more,
    )


def test_a_find_request_that_is_known_is_told_from_its_next_by_the_message_id_alone() -> None:
    commands = [dimse.decode(find_request(number)) for number in (1, 2, 0x1234, 0x4321, 65535, 1)]
    assert [one.message_id for one in commands] == [1, 2, 0x1234, 0x4321, 65535, 1]
    assert {one._replace(message_id=0) for one in commands} == {commands[0]._replace(message_id=0)}
    assert (commands[0].field, commands[0].has_data_set) == (Field.C_FIND_RQ, True)


@pytest.mark.parametrize("number", [0, 9, 0x1234, 0x4321])
def test_what_only_looks_like_the_message_id_of_a_find_request_is_none(number: int) -> None:
    """Its bytes inside another value, before the element itself; or of a length that hides it."""
    hidden = dimse._MESSAGE_ID + number.to_bytes(2, "little")
    text = struct.pack("<HHI", 0, 0x0003, len(hidden)) + hidden
    field, kind = struct.pack("<HHIH", 0, 0x0100, 2, 0x20), struct.pack("<HHIH", 0, 0x0800, 2, 1)
    identified = dimse._MESSAGE_ID + b"\x07\0"
    assert dimse.decode(field + text + identified + kind).message_id == 7
    assert dimse.decode(field + identified + kind + text).message_id == 7
    with pytest.raises(ProtocolError):
        dimse.decode(field + text + kind)
    with pytest.raises(ProtocolError):
        dimse.decode(field + dimse._MESSAGE_ID)
    twice = dimse.decode(field + hidden + identified + kind)
    assert twice.message_id == 7


@given(st.binary(max_size=60), st.integers(0, 0xFFFF), st.integers(0, 70))
@settings(max_examples=200, deadline=None)
def test_a_find_request_is_read_as_any_other_whatever_stands_in_it(noise: bytes, number: int, at: int) -> None:
    whole = find_request(number)
    data = whole[:at] + noise + whole[at:]

    def told(read: Callable[[bytes], dimse.Command]) -> dimse.Command | str:
        try:
            return read(data)
        except ProtocolError as error:
            return str(error)

    assert told(dimse.decode) == told(dimse._decode)


def test_answers_to_a_find_request_name_it() -> None:
    for number in (1, 65535):
        request = dimse.decode(find_request(number))
        for answer in (Answer(Status.PENDING, b"ab"), Answer(Status.PENDING_WITHOUT_KEYS, b"ab"), Answer(0)):
            ds = read(dimse.response(request, answer))
            assert (ds.CommandField, ds.MessageIDBeingRespondedTo, ds.Status) == (0x8020, number, answer.status)
            assert ds.CommandDataSetType == (0x0101 if answer.data_set is None else 1)
            assert ds.AffectedSOPClassUID == "1.2.840.10008.5.1.4.1.2.2.1"
            assert ds.CommandGroupLength == len(dimse.response(request, answer)) - 12
        ds = read(dimse.response(request, Answer(Status.OUT_OF_RESOURCES, comment="more than 2 matches")))
        assert (ds.Status, ds.ErrorComment) == (0xA700, "more than 2 matches")
