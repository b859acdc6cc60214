"""A caller of C-GET and C-MOVE, and what it says."""

from __future__ import annotations

import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import dcmread, read_dataset
from pynetdicom.dsutils import encode as encode_ds

from archive.access import EVERYTHING, Actor, Door
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.ingest import ingest
from dicom_scp import dimse
from dicom_scp.associate import Role
from dicom_scp.dimse import Field
from dicom_scp.messages import Answer
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set, new_uid
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running
from tests.dicom_scp.wire import CT, STUDY_GET, STUDY_MOVE, Peer, request

STUDY = new_uid("study")
BIG_ENDIAN, DEFLATED, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
GETTER = request(user=replace(wire.REQUEST.user, roles={CT: Role(scu=False, scp=True)}))


def keep(archive: Archive, *objects: Dataset) -> list[Dataset]:
    """Put objects into the archive without the network."""
    who = Actor(user="tester", source="", door=Door.SYSTEM, may=EVERYTHING)
    for ds in objects:
        meta = FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID)
        incoming = archive.hot.receive(meta, at=archive.real_clock())
        incoming.write(data_set(ds))
        ingest(archive, incoming, actor=who)
    return list(objects)


def identifier(*, implicit: bool = False, **keys: Any) -> bytes:
    ds = Dataset()
    for keyword, value in (keys or {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}).items():
        setattr(ds, keyword, value)
    encoded = encode_ds(ds, implicit, True)
    assert encoded is not None
    return encoded


def retrieve_command(field: Field, sop_class: str, destination: str = "", message_id: int = 5) -> bytes:
    ds = Dataset()
    ds.CommandGroupLength = 0
    ds.AffectedSOPClassUID = sop_class
    ds.CommandField = int(field)
    ds.MessageID = message_id
    ds.Priority = 0
    ds.CommandDataSetType = 1
    if destination:
        ds.MoveDestination = destination
    encoded = encode_ds(ds, True, True)
    assert encoded is not None
    return encoded


def cancel(message_id: int = 5) -> bytes:
    ds = Dataset()
    ds.CommandField = int(Field.C_CANCEL_RQ)
    ds.MessageIDBeingRespondedTo = message_id
    ds.CommandDataSetType = 0x0101
    encoded = encode_ds(ds, True, True)
    assert encoded is not None
    return encoded


class Getter(Peer):
    """A caller of C-GET and C-MOVE that sees every message."""

    def ask(self, context: int, field: Field, keys: bytes, destination: str = "") -> None:
        sop_class = STUDY_GET if field is Field.C_GET_RQ else STUDY_MOVE
        self.say(wire.command(context, retrieve_command(field, sop_class, destination)))
        self.say(wire.data_set(context, keys))

    def get(self, keys: bytes, *, status: int = 0) -> tuple[dict[str, bytes], list[Dataset]]:
        """What came, and the C-GET responses; `status` is answered to each C-STORE."""
        self.ask(7, Field.C_GET_RQ, keys)
        return self.collect(status=status)

    def collect(self, *, status: int = 0) -> tuple[dict[str, bytes], list[Dataset]]:
        came: dict[str, bytes] = {}
        responses: list[Dataset] = []
        while True:
            context, command, data = self.message()
            if command.field == Field.C_STORE_RQ:
                came[command.sop_instance_uid] = data
                self.say(wire.command(context, stored(command, status)))
                continue
            responses.append(self.last_set)
            if command.status != Status.PENDING:
                return came, responses

    @property
    def last_set(self) -> Dataset:
        ds = read_dataset(BytesIO(self.last_command), True, True)
        if self.last_data:
            ds.identifier = read_dataset(BytesIO(self.last_data), False, True)
        return ds


def stored(command: dimse.Command, status: int) -> bytes:
    return dimse.response(command, Answer(status))


def counts(ds: Dataset) -> tuple[int | None, int, int, int]:
    return (
        ds.get("NumberOfRemainingSuboperations"),
        ds.NumberOfCompletedSuboperations,
        ds.NumberOfFailedSuboperations,
        ds.NumberOfWarningSuboperations,
    )


def write_study(server: Running) -> list[Dataset]:
    return keep(server.archive, *(ct_slice(rows=128, columns=128, number=number) for number in range(1, 8)))


def bodies(folder: Path) -> dict[str, bytes]:
    """The data sets of the files in a folder, by SOP Instance UID."""
    found = {}
    for path in folder.iterdir():
        whole = path.read_bytes()
        (length,) = struct.unpack_from("<I", whole, 140)
        found[str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = whole[144 + length :]
    return found
