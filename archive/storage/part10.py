"""PS3.10 bytes as they arrive from STOW-RS or a medium, turned into an `Incoming`.

A push parser: it keeps the head (preamble, group 0002, the first elements) and streams the rest. What others write
is tolerated where it can be told for certain: no preamble, no group length, no group 0002, no Transfer Syntax UID.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from typing_extensions import Buffer

from archive.dicom.elements import LONG, SHORT, UNDEFINED
from archive.dicom.file_meta import FileMeta
from archive.dicom.syntaxes import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from archive.errors import UnreadableInstance
from archive.storage.filesystem import Tier
from archive.storage.incoming import Incoming

HEAD_BYTES = 64 << 10  # group 0002 and the SOP UIDs of any real file lie well within
_VRS = SHORT | LONG


class Part10:
    """One file being taken in. `feed` its bytes, then `finish`; `discard` when the source breaks off.

    `source_ae` is the Source Application Entity Title (0002,0016) of a file that names none; `brought_by` of every one.
    """

    def __init__(self, tier: Tier, *, at: datetime, source_ae: str = "", brought_by: str = "") -> None:
        self._tier = tier
        self._at = at
        self._source_ae = source_ae
        self._brought_by = brought_by
        self._head = bytearray()
        self._incoming: Incoming | None = None

    def feed(self, data: Buffer) -> None:
        """Take the next bytes. Raises UnreadableInstance, StorageFull or StorageFailed."""
        if self._incoming is not None:
            self._incoming.write(data)
            return
        self._head += memoryview(data)
        if len(self._head) >= HEAD_BYTES:
            self._begin()

    def finish(self) -> Incoming:
        """All bytes are in. Raises UnreadableInstance when they are not DICOM."""
        if self._incoming is None:
            self._begin()
        assert self._incoming is not None
        return self._incoming

    def discard(self) -> None:
        """Forget what was fed."""
        if self._incoming is not None:
            self._incoming.discard()

    def _begin(self) -> None:
        meta, start = read_meta(bytes(self._head), self._source_ae)
        if self._brought_by:
            meta = replace(meta, source_ae=self._brought_by)
        self._incoming = self._tier.receive(meta, at=self._at)
        self._incoming.write(memoryview(self._head)[start:])
        self._head = bytearray()


def read_meta(head: bytes, source_ae: str = "") -> tuple[FileMeta, int]:
    """What the first bytes of a file announce, and where its data set starts.

    Raises:
        UnreadableInstance: the bytes are not the beginning of a DICOM file or data set.
    """
    group: dict[int, str] = {}
    start = 0
    if head[128:132] == b"DICM" and not _begins_data_set(head):  # the four letters may stand in a value
        group, start = _group_2(head, 132)
    elif head[:2] == b"\2\0":
        group, start = _group_2(head, 0)
    syntax = group.get(0x0010, "") or _guess_syntax(head[start:])
    sop_class, sop_instance = group.get(0x0002, ""), group.get(0x0003, "")
    if not sop_class or not sop_instance:
        found = _first_uids(head[start:], syntax)
        sop_class, sop_instance = sop_class or found.get(0x0016, ""), sop_instance or found.get(0x0018, "")
    return FileMeta(sop_class, sop_instance, syntax, group.get(0x0016, "") or source_ae), start


def _group_2(head: bytes, start: int) -> tuple[dict[int, str], int]:
    """The text values of group 0002, always Explicit VR Little Endian (PS3.10 §7.1), and where it ends."""
    values: dict[int, str] = {}
    position = start
    for group, element, vr, value_at, length in _explicit_elements(head, start, "<"):
        if group != 2:
            break
        if value_at + length > len(head):
            raise UnreadableInstance("the file ends within its File Meta Information")
        if vr in (b"UI", b"AE", b"SH"):
            values[element] = head[value_at : value_at + length].rstrip(b"\0 ").decode("ascii", "replace")
        position = value_at + length
    return values, position


def _explicit_elements(data: bytes, position: int, order: str) -> Iterator[tuple[int, int, bytes, int, int]]:
    while position + 8 <= len(data):
        group, element = struct.unpack_from(order + "HH", data, position)
        vr = data[position + 4 : position + 6]
        if vr not in _VRS:
            return
        if vr in LONG:
            if position + 12 > len(data):
                return
            (length,) = struct.unpack_from(order + "I", data, position + 8)
            position += 12
        else:
            (length,) = struct.unpack_from(order + "H", data, position + 6)
            position += 8
        if length == UNDEFINED:
            return
        yield group, element, vr, position, length
        position += length


def _implicit_elements(data: bytes, position: int) -> Iterator[tuple[int, int, bytes, int, int]]:
    while position + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, position)
        position += 8
        if length == UNDEFINED:
            return
        yield group, element, b"", position, length
        position += length


def _guess_syntax(data: bytes) -> str:
    """The syntax of a data set that nobody announced: told from its first element, or refused."""
    if len(data) >= 8:
        little, big = struct.unpack_from("<HH", data, 0), struct.unpack_from(">HH", data, 0)
        explicit = data[4:6] in _VRS
        if explicit and little[0] <= 0x0010 and little[0] % 2 == 0:
            return EXPLICIT_LE
        if explicit and big[0] <= 0x0010 and big[0] % 2 == 0:
            return EXPLICIT_BE
        (length,) = struct.unpack_from("<I", data, 4)
        if little[0] in (0x0008, 0x0010) and length <= 1 << 16:
            return IMPLICIT_LE
    raise UnreadableInstance("this is not a DICOM file")


def _begins_data_set(head: bytes) -> bool:
    """Whether a data set begins at the first byte: no preamble does, it is zeros or a TIFF head."""
    return head[:8].strip(b"\0") != b"" and head[:2] in (b"\x08\0", b"\0\x08") and head[4:6] in _VRS


def _first_uids(data: bytes, syntax: str) -> dict[int, str]:
    """SOP Class and SOP Instance UID from the first elements of a data set."""
    if syntax == DEFLATED_LE:
        try:
            data = zlib.decompressobj(-15).decompress(data, HEAD_BYTES)
        except zlib.error:
            return {}
    if syntax == IMPLICIT_LE:
        elements = _implicit_elements(data, 0)
    else:
        elements = _explicit_elements(data, 0, ">" if syntax == EXPLICIT_BE else "<")
    found: dict[int, str] = {}
    for group, element, _, at, length in elements:
        if (group, element) > (0x0008, 0x0018):
            break
        if group == 0x0008 and element in (0x0016, 0x0018):
            found[element] = data[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
    return found
