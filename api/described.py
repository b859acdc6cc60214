"""STOW-RS of metadata and bulk data, in JSON and in XML (PS3.18 10.5.1.1.2, REQ-DCM-94).

Metadata are read into memory, within bounds; bulk data wait on the disk, however large, until all is there. Each
instance is then assembled and goes the way of one that came as application/dicom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from api import accept, multipart
from archive.dicom import xml
from archive.dicom.assemble import Bulk, assembled, first_text
from archive.errors import InvalidRequest, Rejected, TooLarge, UnreadableInstance
from archive.storage.filesystem import Tier
from archive.storage.spool import Spool

if TYPE_CHECKING:
    from typing_extensions import Buffer

METADATA_BYTES = 32 << 20  # of all parts of one request together
MOST_PARTS = 200_000
MOST_VALUES = 2_000_000  # of one document: what Python makes of a `{}` is 24 times its size
SHARED_BYTES = 64 << 20  # of bulk data that are used more than once, in one request
_MARKS = {accept.JSON: (b"{", b"[", b","), accept.XML: (b"<",)}  # one of them before each value but the first


class Instances(Protocol):
    """Takes PS3.10 files one after the other (`api.stow`)."""

    def begin(self, headers: dict[str, str]) -> None: ...
    def data(self, data: Buffer) -> None: ...
    def end(self) -> None: ...
    def refuse(self, error: Rejected, sop_class_uid: str, sop_instance_uid: str) -> None: ...


class Described:
    """Receives the parts of one body. `root_type` is the media type of the metadata."""

    def __init__(self, root_type: str, instances: Instances, tier: Tier) -> None:
        self._root_type = root_type
        self._instances = instances
        self._tier = tier
        self._spool: Spool | None = None
        self._metadata: list[bytearray] = []
        self._metadata_bytes = 0
        self._bulk: dict[str, list[Bulk]] = {}
        self._open: tuple[str, str, str, int] | None = None  # of the bulk part that comes: address, type, syntax, start
        self._parts = 0
        self._used_bytes = 0

    def begin(self, headers: dict[str, str]) -> None:
        kind, parameters = multipart.media_type(headers.get("content-type", self._root_type))
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise TooLarge("the body has too many parts")
        if kind in (accept.JSON, accept.XML, "application/json"):
            if kind.removeprefix("application/").removeprefix("dicom+") != self._root_type.rpartition("+")[2]:
                raise InvalidRequest(f"parts of metadata are {self._root_type} here")
            self._open = None
            self._metadata.append(bytearray())
            return
        if not self._metadata:
            raise InvalidRequest("the metadata come before their bulk data")
        if self._spool is None:
            self._spool = Spool(self._tier)
        address = headers.get("content-location", "")
        self._open = (address, kind, parameters.get("transfer-syntax", ""), self._spool.length)

    def data(self, data: Buffer) -> None:
        if self._open is not None and self._spool is not None:
            self._spool.write(data)
            return
        self._metadata_bytes += memoryview(data).nbytes
        if self._metadata_bytes > METADATA_BYTES:
            raise TooLarge(f"metadata of more than {METADATA_BYTES >> 20} MiB")
        self._metadata[-1] += memoryview(data)

    def end(self) -> None:
        if self._open is not None and self._spool is not None:
            address, kind, syntax, start = self._open
            length = self._spool.length - start
            one = Bulk(kind, syntax, length, partial(self._read, start, length))
            self._bulk.setdefault(address, []).append(one)
            self._open = None

    def _read(self, start: int, length: int) -> Iterator[bytes]:
        """The bytes of a bulk part. One part that many instances name would fill the disk."""
        assert self._spool is not None
        self._used_bytes += length
        if self._used_bytes > self._spool.length + SHARED_BYTES:
            raise UnreadableInstance("the same bulk data for too many instances")
        yield from self._spool.read(start, length)

    def assemble(self) -> None:
        """The body is complete: hand over its instances. One request at a time: metadata take much more memory than
        bytes.

        Raises InvalidRequest when the metadata are none (400), TooLarge when they are too many.
        """
        for document in self._metadata:
            if sum(document.count(mark) for mark in _MARKS[self._root_type]) > MOST_VALUES:
                raise TooLarge(f"metadata of more than {MOST_VALUES} values")
            for found in self._data_sets(bytes(document)):
                self._instances.begin({})
                try:
                    for piece in assembled(found, self._bulk):
                        self._instances.data(piece)
                except Rejected as error:
                    self._instances.refuse(error, *(first_text(found, key) for key in ("00080016", "00080018")))
                self._instances.end()

    def _data_sets(self, document: bytes) -> list[Mapping[str, Any]]:
        try:
            found = [xml.read(document)] if self._root_type == accept.XML else orjson.loads(document)
        except (orjson.JSONDecodeError, UnreadableInstance) as error:
            raise InvalidRequest(f"the metadata cannot be read: {error}") from None
        found = [found] if isinstance(found, Mapping) else found
        if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
            raise InvalidRequest("the metadata are no list of data sets")
        return found

    def close(self) -> None:
        """Let go of what waits on the disk."""
        if self._spool is not None:
            self._spool.close()
