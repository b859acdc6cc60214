"""Group 0002, the File Meta Information that stands before a data set in a file (PS3.10 §7.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from archive.errors import UnreadableInstance

IMPLEMENTATION_CLASS_UID = "1.2.826.0.1.3680043.10.1683.1"
IMPLEMENTATION_VERSION = "MINIPACS_01"


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What is announced of an instance before its first byte: becomes group 0002 (PS3.10 §7.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str = ""


def _element(element: int, vr: bytes, value: bytes, pad: bytes = b"\0") -> bytes:
    value += pad * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def file_head(meta: FileMeta) -> bytes:
    """Preamble, prefix and File Meta Information of a PS3.10 file."""
    before, after = _around(meta.sop_class_uid, meta.transfer_syntax_uid, meta.source_ae)
    group = before + _element(0x0003, b"UI", meta.sop_instance_uid.encode("ascii", "replace")) + after
    return bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(group))) + group


@lru_cache(maxsize=256)
def _around(sop_class_uid: str, transfer_syntax_uid: str, source_ae: str) -> tuple[bytes, bytes]:
    """The elements before the SOP Instance UID, and those after it: the same in a whole series."""
    before = _element(0x0001, b"OB", b"\0\1") + _element(0x0002, b"UI", sop_class_uid.encode("ascii", "replace"))
    after = (
        _element(0x0010, b"UI", transfer_syntax_uid.encode("ascii", "replace")),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION.encode(), b" "),
        _element(0x0016, b"AE", source_ae.encode("ascii", "replace")[:16], b" ") if source_ae else b"",
    )
    return before, b"".join(after)


def data_set_offset(path: str) -> int:
    """Where group 0002 ends in a PS3.10 file, by its group length, which every stored file has.

    Raises:
        UnreadableInstance: the file does not begin with one.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(144)
    if len(head) < 144 or head[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise UnreadableInstance("no File Meta Information at the beginning of the file")
    return 144 + int(struct.unpack_from("<I", head, 140)[0])
