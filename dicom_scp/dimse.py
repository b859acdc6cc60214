"""DIMSE command sets (PS3.7 §6.3, §9.3, Annex E): reading what came, writing what is answered.

A command set is always implicit little endian, group 0000. Reading keeps the few elements that our services use.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from dicom_scp.classes import VERIFICATION
from dicom_scp.ends import ProtocolError
from dicom_scp.messages import Answer

NO_DATA_SET = 0x0101
PRIORITY_MEDIUM = 0
COUNT_LIMIT = 0xFFFF  # the counts of sub-operations are 16 bits wide: more is said as this many
_COMMENT_LIMIT = 64  # LO


class Field(IntEnum):
    """Command Field (0000,0100). A response is its request with the highest bit set."""

    C_STORE_RQ = 0x0001
    C_GET_RQ = 0x0010
    C_FIND_RQ = 0x0020
    C_MOVE_RQ = 0x0021
    C_ECHO_RQ = 0x0030
    N_EVENT_REPORT_RQ = 0x0100
    N_GET_RQ = 0x0110
    N_SET_RQ = 0x0120
    N_ACTION_RQ = 0x0130
    N_CREATE_RQ = 0x0140
    N_DELETE_RQ = 0x0150
    C_CANCEL_RQ = 0x0FFF
    C_STORE_RSP = 0x8001
    C_ECHO_RSP = 0x8030


RESPONSE = 0x8000
_AFFECTED = frozenset({Field.C_STORE_RQ, Field.N_EVENT_REPORT_RQ, Field.N_CREATE_RQ})  # others name what is requested
_TYPES = {Field.N_EVENT_REPORT_RQ: 0x1002, Field.N_ACTION_RQ: 0x1008}  # Event Type ID, Action Type ID
_NAMES_INSTANCE = frozenset(  # in its response (PS3.7 §9.3.1, §10.3)
    {
        Field.C_STORE_RQ,
        Field.N_EVENT_REPORT_RQ,
        Field.N_GET_RQ,
        Field.N_SET_RQ,
        Field.N_ACTION_RQ,
        Field.N_CREATE_RQ,
        Field.N_DELETE_RQ,
    }
)


class Command(NamedTuple):
    """A command set that was received. An absent element is "" or 0; `status` and `type` are None when absent.

    `type` is the Event Type ID of an N-EVENT-REPORT, the Action Type ID of an N-ACTION.
    """

    field: int
    message_id: int
    responding_to: int
    has_data_set: bool
    sop_class_uid: str
    sop_instance_uid: str
    move_destination: str
    status: int | None
    type: int | None = None
    originator: str = ""  # AE title of who asked for the C-MOVE that this C-STORE belongs to
    comment: str = ""  # Error Comment (0000,0902)

    @property
    def is_response(self) -> bool:
        return bool(self.field & RESPONSE)


_ELEMENT = struct.Struct("<HHI")
_US_ELEMENT = struct.Struct("<HHIH")
_ID = struct.Struct("<H")
_MESSAGE_ID = _ELEMENT.pack(0, 0x0110, 2)  # before its value
_C_FIND_RQ = _US_ELEMENT.pack(0, 0x0100, 2, Field.C_FIND_RQ)
_RECOGNISED_BYTES = 256


def decode(data: bytes) -> Command:
    """Read a command set. Clients repeat their C-FIND-RQ with another Message ID: that is all that is read again.

    Raises:
        ProtocolError: it cannot be cut into elements, is not group 0000, or does not say what it is, which message
            it is or answers, and whether a data set follows. There is nothing that could be answered then.
    """
    before, found, after = data.partition(_MESSAGE_ID)
    if found and _C_FIND_RQ in before and len(data) <= _RECOGNISED_BYTES:
        fields = _find_request(before, after[2:])
        if fields is not None:
            return Command(fields[0], _ID.unpack_from(after)[0], *fields[2:])
    return _decode(data)


@lru_cache(maxsize=256)
def _find_request(before: bytes, after: bytes) -> Command | None:
    """The C-FIND-RQ whose Message ID has its value between `before` and `after`; None: that is not what is there."""
    try:
        tried = [_decode(before + _MESSAGE_ID + _ID.pack(number) + after) for number in (0x1234, 0x4321)]
    except ProtocolError:
        return None
    same = tried[0] == tried[1]._replace(message_id=0x1234) and tried[1].message_id == 0x4321
    return tried[0] if same and tried[0].field == Field.C_FIND_RQ else None


def _decode(data: bytes) -> Command:
    values: dict[int, bytes] = {}
    offset, end = 0, len(data)
    unpack = _ELEMENT.unpack_from
    while offset < end:
        if offset + 8 > end:
            raise ProtocolError("a command set ends inside an element")
        group, element, length = unpack(data, offset)
        value = offset + 8
        offset = value + length
        if group or offset > end:
            raise ProtocolError("a command set holds another group, or a length goes past its end")
        values[element] = data[value:offset]
    field, kind = _number(values, 0x0100), _number(values, 0x0800)
    if field is None or kind is None:
        raise ProtocolError("a command set without Command Field or Command Data Set Type")
    message_id, responding_to = _number(values, 0x0110), _number(values, 0x0120)
    if (responding_to if field & RESPONSE or field == Field.C_CANCEL_RQ else message_id) is None:
        raise ProtocolError("a command set without Message ID")
    return Command(
        field=field,
        message_id=message_id or 0,
        responding_to=responding_to or 0,
        has_data_set=kind != NO_DATA_SET,
        sop_class_uid=_text(values, 0x0002) or _text(values, 0x0003),
        sop_instance_uid=_text(values, 0x1000) or _text(values, 0x1001),
        move_destination=_text(values, 0x0600).strip(),
        status=_number(values, 0x0900),
        type=_number(values, _TYPES[Field(field & ~RESPONSE)]) if field & ~RESPONSE in _TYPES else None,
        originator=_text(values, 0x1030).strip(),
        comment=_text(values, 0x0902).strip(),
    )


def _number(values: dict[int, bytes], element: int) -> int | None:
    raw = values.get(element)
    return int.from_bytes(raw, "little") if raw is not None and len(raw) == 2 else None


def _text(values: dict[int, bytes], element: int) -> str:
    raw = values.get(element)
    return raw.decode("ascii", "replace").rstrip("\0 ") if raw else ""


def _us(element: int, value: int) -> bytes:
    return _US_ELEMENT.pack(0, element, 2, value)


def _ui(element: int, uid: str) -> bytes:
    raw = uid.encode("ascii", "replace")
    raw += b"\0" * (len(raw) % 2)
    return _ELEMENT.pack(0, element, len(raw)) + raw


def _lo(element: int, text: str) -> bytes:
    raw = text.encode("ascii", "replace")
    raw += b" " * (len(raw) % 2)
    return _ELEMENT.pack(0, element, len(raw)) + raw


def _set(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(body)) + body


@dataclass(slots=True)
class Counts:
    """Sub-operations of a C-GET or C-MOVE (PS3.7 §9.1.3.1, §9.1.4.1)."""

    remaining: int
    completed: int = 0
    failed: int = 0
    warning: int = 0

    def elements(self, *, with_remaining: bool) -> bytes:
        told = [(0x1020, self.remaining)] if with_remaining else []
        told += [(0x1021, self.completed), (0x1022, self.failed), (0x1023, self.warning)]
        return b"".join(_us(element, min(count, COUNT_LIMIT)) for element, count in told)


def response(command: Command, answer: Answer, *, counts: Counts | None = None, remaining: bool = True) -> bytes:
    """The command set that answers `command`. The data set of `answer`, if any, is sent behind it."""
    if command.field == Field.C_FIND_RQ and not answer.comment and not answer.offending and answer.error_id is None:
        before, after = _find_response(command.sop_class_uid, answer.status, answer.data_set is None)
        return before + _ID.pack(command.message_id) + after
    offending = b""
    if answer.offending:
        offending = _ELEMENT.pack(0, 0x0901, 4 * len(answer.offending)) + b"".join(
            struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in answer.offending
        )
    return _set(
        _ui(0x0002, command.sop_class_uid) if command.sop_class_uid else b"",
        _us(0x0100, command.field | RESPONSE),
        _us(0x0120, command.message_id),
        _us(0x0800, NO_DATA_SET if answer.data_set is None else 1),
        _us(0x0900, answer.status),
        offending,
        _lo(0x0902, answer.comment[:_COMMENT_LIMIT]) if answer.comment else b"",
        b"" if answer.error_id is None else _us(0x0903, answer.error_id),
        _ui(0x1000, answer.sop_instance_uid or command.sop_instance_uid) if command.field in _NAMES_INSTANCE else b"",
        b"" if command.type is None else _us(_TYPES[Field(command.field)], command.type),
        b"" if counts is None else counts.elements(with_remaining=remaining),
    )


@lru_cache(maxsize=64)
def _find_response(sop_class_uid: str, status: int, alone: bool) -> tuple[bytes, bytes]:
    """A C-FIND-RSP, cut where its Message ID stands."""
    whole = _set(
        _ui(0x0002, sop_class_uid) if sop_class_uid else b"",
        _us(0x0100, Field.C_FIND_RQ | RESPONSE),
        _us(0x0120, 0),
        _us(0x0800, NO_DATA_SET if alone else 1),
        _us(0x0900, status),
    )
    at = whole.index(_ELEMENT.pack(0, 0x0120, 2)) + _ELEMENT.size
    return whole[:at], whole[at + _ID.size :]


def store_request(
    message_id: int, sop_class_uid: str, sop_instance_uid: str, *, originator: tuple[str, int] | None = None
) -> bytes:
    """A C-STORE-RQ; `originator` is who asked for the C-MOVE, and the Message ID of that request."""
    moved = b""
    if originator is not None:
        moved = _lo(0x1030, originator[0]) + _us(0x1031, originator[1])
    return _set(
        _ui(0x0002, sop_class_uid),
        _us(0x0100, Field.C_STORE_RQ),
        _us(0x0110, message_id),
        _us(0x0700, PRIORITY_MEDIUM),
        _us(0x0800, 1),
        _ui(0x1000, sop_instance_uid),
        moved,
    )


def normalized_request(
    operation: Field, message_id: int, sop_class_uid: str, sop_instance_uid: str, *, type: int | None = None
) -> bytes:
    """An N-EVENT-REPORT, N-SET, N-ACTION or N-CREATE request (PS3.7 §10.3) whose data set follows.

    `type` is the Event Type ID or the Action Type ID of the two that have one.
    """
    affected = operation in _AFFECTED
    return _set(
        _ui(0x0002 if affected else 0x0003, sop_class_uid),
        _us(0x0100, operation),
        _us(0x0110, message_id),
        _us(0x0800, 1),
        _ui(0x1000 if affected else 0x1001, sop_instance_uid) if sop_instance_uid else b"",
        b"" if type is None else _us(_TYPES[operation], type),
    )


def query_request(operation: Field, message_id: int, sop_class_uid: str, *, destination: str = "") -> bytes:
    """A C-FIND, C-GET or C-MOVE request (PS3.7 §9.3) whose identifier follows; `destination` of a C-MOVE."""
    return _set(
        _ui(0x0002, sop_class_uid),
        _us(0x0100, operation),
        _us(0x0110, message_id),
        _lo(0x0600, destination) if destination else b"",
        _us(0x0700, PRIORITY_MEDIUM),
        _us(0x0800, 1),
    )


def echo_request(message_id: int) -> bytes:
    """A C-ECHO-RQ."""
    return _set(
        _ui(0x0002, VERIFICATION),
        _us(0x0100, Field.C_ECHO_RQ),
        _us(0x0110, message_id),
        _us(0x0800, NO_DATA_SET),
    )
