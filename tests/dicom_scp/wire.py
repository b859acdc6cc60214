"""A raw DICOM peer: says exactly what a test wants said, right or wrong."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Self

from dicom_scp import dimse
from dicom_scp.associate import (
    AssociateAccept,
    AssociateRequest,
    Proposed,
    UserInformation,
    decode_accept,
    encode_request,
    title,
)
from dicom_scp.pdu import COMMAND, LAST
from tests.dicom_scp.conftest import Running

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.3"
PATIENT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"

REQUEST = AssociateRequest(
    called=title("MINIPACS"),
    calling=title("TESTER"),
    contexts=(
        Proposed(1, VERIFICATION, (IMPLICIT,)),
        Proposed(3, CT, (EXPLICIT,)),
        Proposed(5, STUDY_FIND, (IMPLICIT,)),
        Proposed(7, STUDY_GET, (EXPLICIT,)),
        Proposed(9, STUDY_MOVE, (EXPLICIT,)),
    ),
    user=UserInformation(max_pdu=16384, implementation_class_uid="1.2.3"),
)


def request(**changes: object) -> AssociateRequest:
    return replace(REQUEST, **changes)  # type: ignore[arg-type]


def pdv(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context_id, control) + data


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BxI", 4, len(body)) + body


def command(context_id: int, data: bytes) -> bytes:
    return p_data(pdv(context_id, COMMAND | LAST, data))


def data_set(context_id: int, data: bytes) -> bytes:
    return p_data(pdv(context_id, LAST, data))


class Peer:
    """One connection to the server under test."""

    def __init__(self, server: Running) -> None:
        self.sock = server.connect()
        self.longest = 0  # PDU that was heard
        self.last_command = self.last_data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def hear(self) -> tuple[int, bytes]:
        """The next PDU: type and body. Type 0: the connection was closed."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", head)
        self.longest = max(self.longest, length)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        collected = b""
        while len(collected) < count:
            try:
                piece = self.sock.recv(count - len(collected))
            except ConnectionResetError:
                return b""
            if not piece:
                return b""
            collected += piece
        return collected

    def associate(self, request: AssociateRequest = REQUEST) -> AssociateAccept:
        self.say(encode_request(request))
        kind, body = self.hear()
        assert kind == 2, (kind, body)
        return decode_accept(body)

    def message(self) -> tuple[int, dimse.Command, bytes]:
        """The next message whole: context, command set, data set."""
        parts = {True: b"", False: b""}
        wanted = {True}
        while wanted:
            kind, body = self.hear()
            assert kind == 4, (kind, body)
            while body:
                length, context_id, control = struct.unpack_from(">IBB", body)
                parts[bool(control & COMMAND)] += body[6 : 4 + length]
                if control & LAST:
                    wanted.discard(bool(control & COMMAND))
                    if control & COMMAND and dimse.decode(parts[True]).has_data_set:
                        wanted.add(False)
                body = body[4 + length :]
        self.last_command, self.last_data = parts[True], parts[False]
        return context_id, dimse.decode(parts[True]), parts[False]

    def answer(self) -> dimse.Command:
        """The command set of the next message; it has to come in one PDU."""
        kind, body = self.hear()
        assert kind == 4, (kind, body)
        return dimse.decode(body[6:])

    def echoes(self) -> bool:
        """Whether the association still works."""
        self.say(command(1, dimse.echo_request(99)))
        return self.answer().status == 0
