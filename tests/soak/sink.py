"""A move destination that takes everything and keeps nothing."""

from __future__ import annotations

import socket
import struct
import threading
from typing import BinaryIO

from dicom_scp import dimse, pdu
from dicom_scp.associate import AssociateAccept, Result, UserInformation, decode_request, encode_accept
from dicom_scp.messages import Answer
from tests.dicom_scp import wire


class Sink:
    """Listens on `port` from the start; one thread for each association."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb", buffering=1 << 18) as reader:
            command = b""
            while head := reader.read(6):
                kind, length = struct.unpack(">BxI", head)
                if kind == 4:
                    command = self._data(sock, reader, length, command)
                    continue
                body = reader.read(length)
                if kind == 1:
                    asked = decode_request(body)
                    results = tuple(
                        Result(one.id, 0 if wire.EXPLICIT in one.transfer_syntaxes else 4, wire.EXPLICIT)
                        for one in asked.contexts
                    )
                    user = UserInformation(max_pdu=1 << 17, implementation_class_uid="1.2.3")
                    sock.sendall(encode_accept(AssociateAccept(asked.called, asked.calling, results, user)))
                elif kind == 5:
                    sock.sendall(pdu.RELEASE_RP)
                else:
                    return

    def _data(self, sock: socket.socket, reader: BinaryIO, length: int, command: bytes) -> bytes:
        """The PDVs of one PDU; the command set that is being heard, or whose data set is."""
        while length > 0:
            size, context_id, control = struct.unpack(">IBB", reader.read(6))
            value = reader.read(size - 2)
            length -= 4 + size
            if control & 1:
                command = command + value if command and not control & 2 else value
            elif control & 2:
                self.received += 1
                sock.sendall(wire.command(context_id, dimse.response(dimse.decode(command), Answer(0))))
                command = b""
        return command
