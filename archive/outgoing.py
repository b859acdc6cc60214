"""What leaves: an instance with what the RIS or a person has said since (REQ-DCM-70), at every door the same.

Whether a header says something else than the corrections of its patient and study is the same for all slices that say
the same: it is looked at once for each identity (`archive.dicom.corrections.identity`), not once for each file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import chain

from archive.core import Archive
from archive.dicom import coerce, corrections, json, transcode
from archive.dicom.corrections import Changes
from archive.dicom.elements import encoding_of
from archive.dicom.file_meta import FileMeta, file_head
from archive.dicom.header import read_header
from archive.dicom.lines import Lines
from archive.dicom.source import Source
from archive.errors import ArchiveError, UnreadableInstance, unreadable
from archive.retrieve import Stored
from archive.storage.part10 import read_meta
from archive.stretch import Stretch


class Outgoing:
    """One instance on its way out. Nothing is read before it is asked for.

    Everything raises StorageFailed when the copy is missing or cannot be read.
    """

    def __init__(self, stored: Stored, *, default_charset: str) -> None:
        self.stored = stored
        self._charset = default_charset

    @cached_property
    def changes(self) -> Changes | None:
        """What leaves otherwise than it is stored; None: nothing.

        Raises:
            UnreadableInstance: the header cannot be followed.
        """
        stored = self.stored
        if not (stored.patient_corrections or stored.study_corrections):
            return None
        return _changes(_Header(self), stored.patient_corrections, stored.study_corrections)

    def intact(self, transfer_syntax_uid: str) -> bool:
        """Whether it leaves in this syntax bit for bit as it is stored."""
        return transfer_syntax_uid == self.stored.transfer_syntax_uid and self.changes is None

    def data_set(self, transfer_syntax_uid: str, *, bulk: bool = True) -> Iterator[bytes]:
        """Its data set as it leaves, in pieces; without `bulk` data, pixels and the like are left out.

        Raises (at once, or with the first piece):
            NotAcceptable: it cannot be given in this syntax.
            UnreadableInstance: its elements cannot be followed.
        """
        return self._reading(self._data_set(transfer_syntax_uid, bulk=bulk))

    def file(self, transfer_syntax_uid: str) -> Iterator[bytes]:
        """Its PS3.10 file as it leaves, in pieces; with nothing to change, the file as it lies.

        Raises (at once, or with the first piece):
            NotAcceptable, UnreadableInstance: as `data_set`.
        """
        if self.intact(transfer_syntax_uid):
            return self.stretch().pieces()
        data_set = self.data_set(transfer_syntax_uid)
        first = next(data_set, b"")  # what cannot be made is known before a head is
        return chain((self._file_head(transfer_syntax_uid) + first,), data_set)

    def stretch(self, start: int = 0, end: int | None = None) -> Stretch:
        """Its file from one position to another, or to its end, as it lies: of what leaves `intact` alone."""
        return Stretch(self.stored.open(), start, self.stored.file_bytes if end is None else end)

    def metadata(self, bulk_uri: json.BulkUri) -> dict[str, object]:
        """Its metadata as it leaves (`archive.dicom.json.metadata`).

        Raises:
            UnreadableInstance: its elements cannot be followed.
        """
        return self.corrected(self.stored_metadata(bulk_uri))

    def stored_metadata(self, bulk_uri: json.BulkUri) -> dict[str, object]:
        """The same as it is stored, whatever anybody has said since.

        Raises:
            UnreadableInstance: its elements cannot be followed.
        """
        stored = self.stored
        try:
            return json.metadata(
                stored.path,
                data_set_offset=stored.data_set_offset,
                transfer_syntax_uid=stored.transfer_syntax_uid,
                bulk_uri=bulk_uri,
            )
        except OSError as error:
            raise unreadable(error) from error

    def stored_line(self, lines: Lines, bulk_data: bytes) -> bytes:
        """`stored_metadata` as bytes of JSON, and `source` with them; one of `lines` (`archive.dicom.lines`), which has
        read its like before. `bulk_data`: as there.

        Raises:
            UnreadableInstance: its elements cannot be followed.
        """
        stored = self.stored
        start, encoding = stored.data_set_offset, encoding_of(stored.transfer_syntax_uid)
        fd = stored.open()
        try:
            self.source = _sender(os.pread(fd, start, 0))
            source = Source(fd, offset=start, length=stored.data_set_bytes, deflated=encoding.deflated)
            return lines.line(source, encoding, bulk_data)
        except OSError as error:
            raise unreadable(error) from error
        finally:
            os.close(fd)

    def corrected(self, found: dict[str, object], *, source: str | None = None) -> dict[str, object]:
        """Its stored metadata as they leave; `source`: the AE title that sent it, where that is known already.

        Raises:
            UnreadableInstance: its header cannot be followed.
        """
        if self.changes is None:
            return found
        return corrections.overlaid(found, self.changes, source=self.source if source is None else source)

    def _data_set(self, transfer_syntax_uid: str, *, bulk: bool) -> Iterator[bytes]:
        stored, changes = self.stored, self.changes
        if bulk and self.intact(transfer_syntax_uid):
            return self.stretch(stored.data_set_offset).pieces()
        os.close(stored.open())  # nothing is rebuilt from what a file that was cut short still holds
        if changes is not None or not bulk:
            return coerce.pieces(
                stored.path,
                coerce.Coercion(changes, self.source, self._charset) if changes is not None else None,
                data_set_offset=stored.data_set_offset,
                source_syntax=stored.transfer_syntax_uid,
                target_syntax=transfer_syntax_uid,
                bulk=bulk,
            )
        return transcode.pieces(
            stored.path,
            data_set_offset=stored.data_set_offset,
            source_syntax=stored.transfer_syntax_uid,
            target_syntax=transfer_syntax_uid,
        )

    def _file_head(self, transfer_syntax_uid: str) -> bytes:
        """Group 0002 as it is stored, where it says the truth; else a new one."""
        stored = self.stored
        if transfer_syntax_uid == stored.transfer_syntax_uid:
            return b"".join(self.stretch(0, stored.data_set_offset).pieces())
        return file_head(FileMeta(stored.sop_class_uid, stored.sop_instance_uid, transfer_syntax_uid))

    @cached_property
    def source(self) -> str:
        """The AE title that sent it, from group 0002; "" when it is not known."""
        try:
            return _sender(b"".join(self.stretch(0, self.stored.data_set_offset).pieces()))
        except ArchiveError:
            return ""

    @staticmethod
    def _reading(pieces: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from pieces
        except OSError as error:
            raise unreadable(error) from error

    def header(self) -> dict[str, object]:
        """What the stored header says of patient and study."""
        stored = self.stored
        fd = stored.open()
        try:
            header = read_header(
                fd,
                offset=stored.data_set_offset,
                length=stored.data_set_bytes,
                transfer_syntax_uid=stored.transfer_syntax_uid,
                default_charset=self._charset,
            )
        except OSError as error:
            raise unreadable(error) from error
        finally:
            os.close(fd)
        return corrections.said(header.levels)


def outgoing(archive: Archive, stored: Stored) -> Outgoing:
    """An instance as it leaves this archive."""
    return Outgoing(stored, default_charset=archive.settings.dicom.default_charset)


class _Header:
    """A header that is known by its identity, and only read when nobody has read its like before."""

    __slots__ = ("_identity", "_one")

    def __init__(self, one: Outgoing) -> None:
        # an instance that came before identities were kept stands for itself
        self._identity = one.stored.identity or one.stored.digest
        self._one = one

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Header) and other._identity == self._identity

    def read(self) -> dict[str, object]:
        return self._one.header()


@lru_cache(maxsize=4096)
def _changes(header: _Header, patient: str, study: str) -> Changes | None:
    return corrections.changes(header.read(), patient, study)


def _sender(group_2: bytes) -> str:
    try:
        return read_meta(group_2)[0].source_ae
    except UnreadableInstance:
        return ""
